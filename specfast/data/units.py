"""Units that files use, and what is done when a file does not say: everything becomes nm, m and uW / (cm^2 nm sr)."""

from __future__ import annotations

import re

import numpy as np

from specfast.errors import DataError

_LENGTHS = {  # nm in one unit
    "nanometers": 1.0,
    "micrometers": 1e3,
    "millimeters": 1e6,
    "centimeters": 1e7,
    "meters": 1e9,
    "angstroms": 0.1,
}
_FREQUENCIES = {"ghz": 1e9, "mhz": 1e6, "thz": 1e12, "hz": 1.0}
_NAMES = {
    "nm": "nanometers",
    "um": "micrometers",
    "µm": "micrometers",
    "μm": "micrometers",
    "micron": "micrometers",
    "microns": "micrometers",
    "mm": "millimeters",
    "cm": "centimeters",
    "m": "meters",
    "a": "angstroms",
    "å": "angstroms",
    "cm-1": "wavenumber",
    "1/cm": "wavenumber",
    "gigahertz": "ghz",
    "megahertz": "mhz",
    "terahertz": "thz",
    "hertz": "hz",
}
_SPEED_OF_LIGHT = 299_792_458.0  # m / s
# No imaging spectrometer of the solar range has a wavelength below 20 nm or above 20 um, or an FWHM above 500 nm.
_MICROMETER_LIMIT = 20.0
_WIDEST_FWHM = 500.0


def canonical_unit(text: str | None) -> str | None:
    """Return the plain name of a unit of wavelength ("nanometers", "ghz", ...), or None if the text names none."""
    if text is None:
        return None
    name = text.strip().strip("[](){}.").lower().replace("metre", "meter")
    name = _NAMES.get(name, name)
    known = {*_LENGTHS, *_FREQUENCIES, "wavenumber", "index"}
    for candidate in (name, f"{name}s", name.removesuffix("s")):
        if candidate in known:
            return candidate
    return None


def to_nanometers(
    wavelength: np.ndarray, fwhm: np.ndarray | None, unit: str | None
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """Convert band tables to nm.

    Args:
        wavelength: [C], as stored.
        fwhm: [C], as stored, or None.
        unit: as the file names it, or None.

    Returns:
        Both tables in nm (wavelength is None when the numbers are mere band indices), and in words what was assumed.
    """
    name = canonical_unit(unit)
    given = "not given" if unit is None else f"{unit!r}"
    if name == "index":
        return None, None, [f"wavelength unit {given}: the numbers are band indices and are not used"]
    if name in _FREQUENCIES:
        meters = _SPEED_OF_LIGHT / (wavelength * _FREQUENCIES[name])
        widths = None if fwhm is None else meters * fwhm / wavelength * 1e9
        return meters * 1e9, widths, [f"wavelength unit {given}: frequencies converted to nm"]
    if name == "wavenumber":
        centers = 1e7 / wavelength
        widths = None if fwhm is None else centers * fwhm / wavelength
        return centers, widths, [f"wavelength unit {given}: wavenumbers (1/cm) converted to nm"]
    notes = []
    finite = wavelength[np.isfinite(wavelength)]
    typical = float(np.median(finite)) if len(finite) else 0.0
    small = 0 < typical < _MICROMETER_LIMIT
    if name is None:
        name = "micrometers" if small else "nanometers"
        side = "below" if small else "above"
        notes.append(f"wavelength unit {given}: values {side} 20, taken as {'um' if small else 'nm'}")
    elif name == "nanometers" and small:
        notes.append(f"wavelength unit {given}, but the values are below 20: taken as um")
        name = "micrometers"
    elif name == "micrometers" and typical >= _MICROMETER_LIMIT:
        notes.append(f"wavelength unit {given}, but the values are above 20: taken as nm")
        name = "nanometers"
    factor = _LENGTHS[name]
    if fwhm is not None:
        fwhm, note = _fwhm_to_nanometers(fwhm, factor)
        notes += note
    return wavelength * factor, fwhm, notes


def _fwhm_to_nanometers(fwhm: np.ndarray, factor: float) -> tuple[np.ndarray, list[str]]:
    """Convert FWHM by the wavelengths' factor unless that makes no sense; then say so."""
    usable = fwhm[np.isfinite(fwhm) & (fwhm > 0)]
    typical = float(np.median(usable)) if len(usable) else 0.0
    if typical * factor > _WIDEST_FWHM:
        return fwhm, [f"fwhm of about {typical:g} in the wavelengths' unit is not possible: taken as nm"]
    if factor == 1.0 and 0 < typical < 0.1:
        return fwhm * 1e3, [f"fwhm of about {typical:g} nm is not possible: taken as um"]
    return fwhm * factor, []


_POWERS = {"uw": 1.0, "µw": 1.0, "μw": 1.0, "mw": 1e3, "w": 1e6}
_AREAS = {"cm": 1.0, "m": 1e-4}
_SPECTRA = {"nm": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3}


def radiance_factor(unit: str | None) -> float | None:
    """Return how many uW / (cm^2 nm sr) one of a file's units of radiance is, or None if it is none we know.

    >>> radiance_factor("W m-2 sr-1 um-1")
    0.1
    """
    if unit is None:
        return None
    words = re.findall(r"[a-zµμ]+", unit.lower().replace("steradian", "sr").replace("micrometer", "um"))
    # "m" with its exponent is an area; "um" and "nm" are the spectral unit.
    power = next((_POWERS[word] for word in words if word in _POWERS), None)
    area = next((_AREAS[word] for word in words if word in _AREAS), None)
    spectrum = next((_SPECTRA[word] for word in words if word in _SPECTRA), None)
    if None in (power, area, spectrum) or "sr" not in words:
        return None
    return float(f"{power * area * spectrum:.12g}")


def meters_per_degree(latitude: float) -> tuple[float, float]:
    """Return the length of one degree of longitude and of latitude in m, on a sphere; good to half a percent."""
    meridian = 111_195.0
    return meridian * float(np.cos(np.radians(latitude))), meridian


def checked_table(values, name: str, bands: int, where: str) -> np.ndarray | None:
    """Return a per-band table as float64 [C]; a wrong length or a non-number is a DataError that names the file."""
    if values is None:
        return None
    try:
        table = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} is not a list of numbers: {str(values)[:80]!r}") from None
    if len(table) != bands:
        raise DataError(f"{where}: {name} has {len(table)} values, but the image has {bands} bands")
    return table

"""The sensors that specfast knows: band centers, widths, and what their files leave unsaid.

The numbers lie in ``sensor_tables/*.csv``, one file a sensor, each with its source in the first line.
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass, field
from importlib import resources

import numpy as np

FOLDER = "sensor_tables"
TOLERANCE = 1.5  # nm; tables of one sensor drift by tenths over the years, sensors differ by more


@dataclass(frozen=True, eq=False)
class Sensor:
    """One sensor, with the bands of its products.

    Attributes:
        key: the name used by specfast, as ``"aviris_classic"``.
        name: the name in prose, as ``"AVIRIS-Classic"``.
        wavelength: float64 [C], band centers in nm, in the order of the product's bands (not always increasing).
        fwhm: float64 [C] in nm, NaN where unknown.
        gsd: ground sampling distance in m; None where it depends on the flight.
        attribute: the published name that describes it to the model (``"avc"``, ``"avng"``, ``"av3"``), or None.
        source: where the numbers come from.
        aliases: other names; all names match in any case, whatever stands between their letters and digits.
        water_bands: bands in water vapor absorption by level (``"L1"``, ``"L2"``), counted from 0.
        good_bands: bool [C], False where the product itself leaves a band uncalibrated.
        airborne: whether ``gsd`` is only that of the usual flying height.
        stored_scale, stored_offset: of integer products, physical = stored / scale + offset; scale None if unknown.
        stored_level: level of those products, or None.
    """

    key: str
    name: str
    wavelength: np.ndarray
    fwhm: np.ndarray
    gsd: float | None
    attribute: str | None
    source: str
    aliases: tuple[str, ...] = ()
    water_bands: dict[str, np.ndarray] = field(default_factory=dict)
    good_bands: np.ndarray = None
    airborne: bool = False
    stored_scale: float | None = None
    stored_offset: float = 0.0
    stored_level: str | None = None

    def __len__(self) -> int:
        return len(self.wavelength)

    def __repr__(self) -> str:
        low, high = self.wavelength.min(), self.wavelength.max()
        return f"Sensor({self.key!r}, {len(self)} bands, {low:.0f}-{high:.0f} nm)"


def _bands(*ranges: int | tuple[int, int]) -> np.ndarray:
    """Turn band numbers and inclusive ranges, counted from 1 as publications do, into indices counted from 0."""
    numbers = [n for r in ranges for n in (range(r[0], r[1] + 1) if isinstance(r, tuple) else (r,))]
    return np.array(numbers) - 1


# Water bands of AVIRIS-Classic, -NG and -3: as dropped in preparing Hyper-400K. Those of the 1992 scene: the 20 bands
# that its "corrected" version leaves out.
_CLASSIC_WATER = _bands((104, 114), (153, 168))
_INDIAN_PINES_WATER = _bands((104, 108), (150, 163), 220)
_INDIAN_PINES = {"gsd": 20.0, "airborne": True, "attribute": "avc", "stored_scale": 500.0, "stored_offset": -2.0}
_INDIAN_PINES |= {"stored_level": "L1"}

# In order of preference where several tables fit a name or a set of wavelengths.
_CATALOG = {
    "aviris_classic": {
        "table": "aviris_classic_224",
        "name": "AVIRIS-Classic",
        "aliases": ("AVIRIS", "avc", "AVIRIS-C", "AVIRIS Classic 224"),
        "attribute": "avc",
        "gsd": 20.0,
        "airborne": True,
        "water_bands": {"L2": _CLASSIC_WATER},
    },
    "aviris_classic_223": {
        "table": "aviris_classic_223_isofit",
        "name": "AVIRIS-Classic, first band left out",
        "aliases": ("AVIRIS", "avc", "AVIRIS-C", "AVIRIS-Classic"),
        "attribute": "avc",
        "gsd": 20.0,
        "airborne": True,
        "water_bands": {"L2": _CLASSIC_WATER - 1},
    },
    "aviris_1992": {
        "table": "aviris_1992_220_indianpines",
        "name": "AVIRIS 1992 (Indian Pines, 220 bands)",
        "aliases": ("92AV3C", "aviris_1992_220", "Indian Pines"),
        "water_bands": {"L1": _INDIAN_PINES_WATER, "L2": _INDIAN_PINES_WATER},
        **_INDIAN_PINES,
    },
    "indian_pines": {
        "table": "aviris_1992_200_indianpines_corrected",
        "name": "AVIRIS 1992 (Indian Pines corrected, 200 bands)",
        "aliases": ("aviris_1992_200", "Indian Pines corrected", "92AV3C", "aviris_1992"),
        **_INDIAN_PINES,
    },
    "aviris_ng": {
        "table": "aviris_ng_425",
        "name": "AVIRIS-NG",
        "aliases": ("avng", "AVIRIS Next Generation", "ANG"),
        "attribute": "avng",
        "airborne": True,
        "water_bands": {"L2": _bands(1, (195, 211), (281, 319), (421, 425))},
    },
    "aviris_3": {
        "table": "aviris_3_284",
        "name": "AVIRIS-3",
        "aliases": ("av3", "AVIRIS III"),
        "attribute": "av3",
        "airborne": True,
        "water_bands": {"L2": _bands((130, 141), (191, 213))},
    },
    "casi_1500": {
        "table": "casi1500_72_muufl",
        "name": "CASI-1500 (MUUFL Gulfport, 72 bands)",
        "aliases": ("CASI", "CASI-1500", "MUUFL"),
        "gsd": 1.0,
        "airborne": True,
    },
    "casi_1500_144": {
        "table": "casi1500_144_houston2013_nominal",
        "name": "CASI-1500 (Houston 2013, 144 bands)",
        "aliases": ("CASI", "CASI-1500", "Houston 2013"),
        "gsd": 2.5,
        "airborne": True,
    },
    "desis": {"table": "desis_235", "name": "DESIS", "gsd": 30.0},
    "emit": {"table": "emit_285_header", "name": "EMIT", "gsd": 60.0},
    "emit_rounded": {"table": "emit_285", "name": "EMIT, rounded to 0.1 nm", "aliases": ("EMIT",), "gsd": 60.0},
    "enmap": {"table": "enmap_224", "name": "EnMAP", "aliases": ("EnMAP HSI",), "gsd": 30.0},
    "hyperion": {"table": "hyperion_242", "name": "Hyperion", "aliases": ("EO-1 Hyperion", "EO1"), "gsd": 30.0},
    "hyperion_189": {
        "table": "hyperion_189_gamsberg",
        "name": "Hyperion, 189 calibrated bands",
        "aliases": ("Hyperion", "EO-1 Hyperion", "EO1"),
        "gsd": 30.0,
    },
    "prisma": {"table": "prisma_234", "name": "PRISMA", "gsd": 30.0},
    "rosis": {
        "table": "rosis_103_nominal",
        "name": "ROSIS",
        "aliases": ("ROSIS-3", "Pavia"),
        "gsd": 1.3,
        "airborne": True,
    },
}

# How the producers' files begin; what else is in the name is free.
_FILE_NAMES = {
    "aviris_classic": r"f\d{6}t\d{2}p\d{2}r\d{2}",
    "aviris_ng": r"ang\d{8}t\d{6}",
    "aviris_3": r"(?:.*_)?av3\d{8}t\d{6}",
    "desis": r"desis-hsi",
    "emit": r"emit(?:_l\d|\d{8}t\d{6})",
    "enmap": r"enmap(?:01|_|-)",
    "hyperion": r"eo1h\d",
    "prisma": r"prs_l\d",
}


class _Sensors(dict):
    """Sensors by key; ``[]`` takes any of a sensor's names."""

    def __missing__(self, name: str) -> Sensor:
        sensor = find_sensor(name)
        if sensor is None:
            raise KeyError(f"unknown sensor {name!r}; known: {', '.join(self)}")
        return sensor


def sensors() -> dict[str, Sensor]:
    """Return all known sensors by key; ``sensors()[name]`` takes an alias in any case, too."""
    return _Sensors(_all())


@functools.cache
def _all() -> dict[str, Sensor]:
    return {key: _load(key, **entry) for key, entry in _CATALOG.items()}


def _load(key: str, table: str, name: str, gsd: float | None = None, attribute: str | None = None, **rest) -> Sensor:
    text = resources.files("specfast.data").joinpath(FOLDER, f"{table}.csv").read_text(encoding="utf-8")
    source, *lines = text.splitlines()
    rows = list(csv.DictReader(lines))

    def column(title: str, missing: float) -> np.ndarray:
        values = np.array([float(row.get(title) or missing) for row in rows])
        values.setflags(write=False)
        return values

    return Sensor(
        key=key,
        name=name,
        wavelength=column("wavelength_nm", np.nan),
        fwhm=column("fwhm_nm", np.nan),
        gsd=gsd,
        attribute=attribute,
        source=source.lstrip("# "),
        good_bands=column("calibrated", 1.0) != 0,
        **rest,
    )


def fold(name: str) -> str:
    """Reduce a name to its lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def find_sensor(name: str, bands: int | None = None) -> Sensor | None:
    """Return the sensor of that name, or None.

    Names match whole, in any case, whatever stands between letters and digits; a longer text, such as a header's,
    matches by the first known name among its words ("EMIT (Earth Surface Mineral Dust Source Investigation)").

    Args:
        name: key, name or alias.
        bands: band count; of several tables that share the name, the one with so many bands is preferred.
    """
    for text in (name, *_phrases(name)):
        folded = fold(text)
        fits = [s for s in _all().values() if folded in {fold(n) for n in (s.key, s.name, *s.aliases)}]
        # Stable, so that the catalog's order decides between equals; an own key comes before another's alias.
        fits.sort(key=lambda s: (bands is not None and len(s) != bands, fold(s.key) != folded))
        if fits:
            return fits[0]
    return None


def _phrases(text: str) -> list[str]:
    """Runs of up to four words of a text, longest first, then in order."""
    words = re.findall(r"[A-Za-z0-9][A-Za-z0-9_\-]*", text)
    runs = [words[i : i + n] for n in (4, 3, 2, 1) for i in range(len(words) - n + 1)]
    return [" ".join(run) for run in runs]


def sensor_from_file_name(name: str) -> Sensor | None:
    """Return the sensor whose producer names files so, or None."""
    for key, pattern in _FILE_NAMES.items():
        if re.match(pattern, name, re.IGNORECASE):
            return _all()[key]
    return None


def sensor_from_wavelength(wavelength: np.ndarray, tolerance: float = TOLERANCE) -> tuple[Sensor, float] | None:
    """Return the sensor whose table these wavelengths [C] follow, and the largest difference in nm; None if none does.

    Args:
        wavelength: nm.
        tolerance: largest difference of any band, nm.
    """
    found = None
    for sensor in _all().values():
        if len(sensor) == len(wavelength):
            difference = float(np.abs(sensor.wavelength - wavelength).max())
            if difference <= tolerance and (found is None or difference < found[1]):
                found = (sensor, difference)
    return found


def model_name(name: str) -> str:
    """Return what describes a sensor to the model: the published name if it has one, else its own name."""
    sensor = _all().get(name)
    if sensor is None:
        return name
    return sensor.attribute or sensor.name

"""Which of a file's arrays is the cube, which of its axes are the bands, which arrays are the band tables."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping

from specfast.errors import DataError

WAVELENGTH_NAMES = (
    "wavelength",
    "wavelengths",
    "wavelength nm",
    "center wavelength",
    "center wavelengths",
    "central wavelength",
    "band centers",
    "wl",
    "wvl",
    "lambda",
)
FWHM_NAMES = ("fwhm", "fwhms", "fwhm nm", "bandwidth", "bandwidths")
GOOD_BAND_NAMES = ("good wavelengths", "good bands", "bbl")
_CUBE_NAMES = ("reflectance", "radiance")
_RIVAL = 4  # an array less than so many times smaller than the largest could be meant as well
_MOST_COLORS = 4  # an array with no more bands is a picture


def leaf(name: str) -> str:
    """Return the last part of ``group/name`` or ``struct.name`` in lower case, words parted by spaces."""
    return re.sub(r"[\s_\-]+", " ", re.split(r"[/.]", name)[-1].lower())


def named(names: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """Return those of the names that mean one of the wanted, best first; one letter may be wrong."""
    ranked = []
    for name in names:
        own = leaf(name)
        if own in wanted:
            ranked.append((wanted.index(own), name))
            continue
        near = difflib.get_close_matches(own, [w for w in wanted if abs(len(w) - len(own)) <= 1], n=1, cutoff=0.88)
        if near:
            ranked.append((len(wanted) + wanted.index(near[0]), name))
    return [name for _, name in sorted(ranked)]


def choose_cube(
    shapes: Mapping[str, tuple[int, ...]], band_counts: Iterable[int], variable: str | None, where: str
) -> tuple[str, list[str]]:
    """Return the name of the cube among a file's numeric arrays, and what was assumed.

    Args:
        shapes: shapes by name.
        band_counts: numbers of bands that tables or the sensor have.
        variable: the caller's choice.

    Raises:
        DataError: there is none, there are several, or the caller's is none.
    """
    cubes = {name: shape for name, shape in shapes.items() if len(shape) == 3 and 0 not in shape}
    if variable is not None:
        fits = [name for name in cubes if variable in (name, name.lstrip("/"))]
        fits = fits or [name for name in cubes if re.split(r"[/.]", name)[-1] == variable]
        if len(fits) == 1:
            return fits[0], []
        raise DataError(f"{where}: variable {variable!r} is none of its arrays with 3 axes: {_list(cubes)}")
    if not cubes:
        raise DataError(f"{where}: holds no numeric array with 3 axes; it holds {_list(shapes)}")
    counts = set(band_counts)
    for narrower in (
        {name: shape for name, shape in cubes.items() if counts & set(shape)},
        {name: shape for name, shape in cubes.items() if min(shape) > _MOST_COLORS},
    ):
        cubes = {name: cubes[name] for name in cubes if name in narrower} or cubes
    largest = max(math.prod(shape) for shape in cubes.values())
    rivals = {name: shape for name, shape in cubes.items() if _RIVAL * math.prod(shape) >= largest}
    if len(rivals) > 1:
        rivals = {name: shape for name, shape in rivals.items() if leaf(name) in _CUBE_NAMES} or rivals
    if len(rivals) > 1:
        raise DataError(f"{where}: several arrays could be the scene: {_list(rivals)}; pass variable=<name>")
    (name,) = rivals
    others = {other: shape for other, shape in cubes.items() if other != name}
    return name, [f"array {name} taken, the largest; there are also {_list(others)}"] if others else []


def axes_of(
    shape: tuple[int, ...],
    band_counts: Iterable[int],
    where: str,
    *,
    likely: Iterable[int] = (),
    labels: tuple[str, ...] = (),
) -> tuple[tuple[str, ...], list[str]]:
    """Return which axis is which, as ``("row", "column", "band")``, and what was assumed.

    Args:
        shape: of the stored array, 3 axes.
        band_counts: numbers of bands that tables have.
        likely: numbers of bands that the sensor has, used where there are no tables and one of them fits.
        labels: names of the axes, if the file has them.

    Raises:
        DataError: tables exist but no axis has their length.
    """
    counts = sorted(set(band_counts)) or sorted(set(likely) & set(shape))
    labeled = [axis for axis, label in enumerate(labels) if re.search("band|wave|lambda|spectr", label.lower())]
    fits = [axis for axis, length in enumerate(shape) if length in counts]
    notes = []
    if len(labeled) == 1:
        band = labeled[0]
    elif len(fits) == 1:
        band = fits[0]
    elif counts and not fits:
        raise DataError(f"{where}: no axis of the array {tuple(shape)} has {_either(counts)} bands")
    else:
        band = 2 if 2 in fits or not fits else fits[0]
        why = "several axes have the tables' length" if fits else "no table of wavelengths tells the axis of the bands"
        notes.append(f"{why}: axis {band} of {tuple(shape)} taken")
    axes = ["row", "column"]
    axes.insert(band, "band")
    return tuple(axes), notes


def _either(counts: list[int]) -> str:
    return " or ".join(str(count) for count in counts)


def _list(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = [f"{name} {'x'.join(map(str, shape))}" for name, shape in list(shapes.items())[:12]]
    more = [f"and {len(shapes) - 12} more"] if len(shapes) > 12 else []
    return ", ".join([*listed, *more]) or "no arrays"

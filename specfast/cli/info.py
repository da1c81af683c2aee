"""``specfast info FILE...``: what a scene's file holds, and what was assumed about it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from specfast.errors import SpecfastError

HELP = "Show what a scene's file holds: size, bands, units, georeference, and everything that was assumed about it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="ENVI, .mat, .npy, GeoTIFF, NetCDF or HDF5")
    given = parser.add_argument_group("what the files do not say (applied to all of them)")
    given.add_argument("--sensor", help="sensor, see specfast sensors")
    given.add_argument("--level", help="L1 (radiance) or L2 (reflectance)")
    given.add_argument("--gsd", type=float, metavar="METERS", help="ground sampling distance")
    given.add_argument("--scale", type=float, help="stored number of one physical unit, as 10000 for reflectance")
    given.add_argument("--nodata", type=float, metavar="VALUE", help="value of pixels without data")
    given.add_argument("--variable", metavar="NAME", help="name of the cube in .mat, NetCDF or HDF5 files")
    given.add_argument(
        "--out-of-range",
        choices=("raise", "drop", "keep"),
        default="keep",
        help="bands outside 350 to 2550 nm: an error, marked bad, or kept (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, one a file, with all band tables")


def run(args: argparse.Namespace) -> int:
    from specfast.data import open as open_image

    options = {key: getattr(args, key) for key in ("sensor", "level", "gsd", "scale", "nodata", "variable")}
    described, failed = [], False
    for path in args.files:
        try:
            image = open_image(path, **options, out_of_range=args.out_of_range)
            facts = describe(image)
        except (SpecfastError, OSError) as error:
            if len(args.files) == 1:
                raise
            print(f"specfast info: {error}", file=sys.stderr)
            failed = True
            continue
        described.append(facts)
        if not args.json:
            print(("" if len(described) == 1 else "\n") + as_text(image, facts))
    if args.json:
        print(json.dumps(described, indent=2))
    return 2 if failed else 0


def describe(image) -> dict:
    """Return everything that is known of an image, as plain numbers, text and lists; unknown is None."""

    def table(values):
        return None if values is None else [float(value) if np.isfinite(value) else None for value in values]

    def number(value):
        return value.tolist() if isinstance(value, np.ndarray) else value

    return {
        "path": str(image.path),
        "reader": image.reader,
        "shape": list(image.shape),
        "dtype": image.dtype.name,
        "sensor": image.sensor,
        "level": image.level,
        "gsd": image.gsd,
        "wavelength": table(image.wavelength),
        "fwhm": table(image.fwhm),
        "good_bands": image.good_bands.tolist(),
        "nodata": image.nodata if image.nodata is None or np.isfinite(image.nodata) else str(image.nodata),
        "scale": number(image.scale),
        "offset": number(image.offset),
        "crs": image.crs,
        "transform": None if image.transform is None else list(image.transform),
        "assumptions": list(image.assumptions),
    }


def as_text(image, facts: dict) -> str:
    """Return what :func:`describe` found as lines for people."""
    bands, height, width = image.shape
    good = image.good_bands
    lines = [
        ("shape", f"{bands} bands, {height} x {width} pixels"),
        ("stored", f"{image.dtype.name} ({image.reader}), {_scaling(image)}, nodata {_or_unknown(facts['nodata'])}"),
        ("sensor", _or_unknown(image.sensor)),
        ("level", {"L1": "L1, radiance", "L2": "L2, reflectance"}.get(image.level, "unknown")),
        ("wavelength", _wavelength(image.wavelength)),
        ("fwhm", _span(image.fwhm)),
        ("gsd", "unknown" if image.gsd is None else f"{image.gsd:g} m"),
        ("good bands", f"{int(good.sum())} of {bands}: {_ranges(good)} (counted from 0)"),
        ("crs", _shortened(image.crs)),
    ]
    text = [str(image.path), *(f"  {name:<11} {value}" for name, value in lines), "  assumed"]
    return "\n".join([*text, *(f"    - {note}" for note in facts["assumptions"] or ["nothing"])])


def _ranges(mask: np.ndarray) -> str:
    from specfast.data.inspection import ranges

    return ranges(mask) or "none"


def _scaling(image) -> str:
    if isinstance(image.scale, np.ndarray) or isinstance(image.offset, np.ndarray):
        return "scale and offset a band"
    if image.scale == 1 and image.offset == 0:
        return "unscaled"
    return f"value = stored / {image.scale:g}" + (f" {image.offset:+g}" if image.offset else "")


def _wavelength(wavelength: np.ndarray | None) -> str:
    if wavelength is None:
        return "unknown"
    backward = np.flatnonzero(np.diff(wavelength) < 0)
    if len(backward) == 0:
        order = "increasing"
    elif len(backward) == len(wavelength) - 1:
        order = "decreasing"
    else:
        places = ", ".join(f"{n}/{n + 1}" for n in backward[:5]) + (", ..." if len(backward) > 5 else "")
        order = f"not sorted: jumps back between bands {places} (counted from 0)"
    return f"{_span(wavelength)}, {order}"


def _span(values: np.ndarray | None) -> str:
    if values is None or not np.isfinite(values).any():
        return "unknown"
    return f"{np.nanmin(values):.2f} to {np.nanmax(values):.2f} nm"


def _shortened(text: str | None) -> str:
    if text is None:
        return "unknown"
    return text if len(text) <= 60 else text[:57] + "..."


def _or_unknown(value) -> str:
    if value is None:
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)

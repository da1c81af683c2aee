"""``specfast sensors [NAME]``: the sensors whose bands specfast knows."""

from __future__ import annotations

import argparse
import csv
import json
import sys

import numpy as np

from specfast.errors import DataError

HELP = "List the known sensors, or the bands of one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="key or alias, in any case; default: list all")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values, for other programs")
    form.add_argument("--json", action="store_true", help="a list of objects, or one object with the bands as lists")


def run(args: argparse.Namespace) -> int:
    from specfast.data.sensors import find_sensor, sensors

    if args.name is None:
        if args.json:
            print(json.dumps([describe(sensor) for sensor in sensors().values()], indent=2))
        else:
            _list_all(sensors().values(), args.csv)
        return 0
    sensor = find_sensor(args.name)
    if sensor is None:
        raise DataError(f"unknown sensor {args.name!r}; known: {', '.join(sensors())}")
    if args.json:
        print(json.dumps(describe(sensor) | band_lists(sensor), indent=2))
    else:
        _list_bands(sensor, args.csv)
    return 0


def describe(sensor) -> dict:
    """Return what is known of a sensor as a whole, as plain values; unknown is None."""
    return {
        "key": sensor.key,
        "name": sensor.name,
        "aliases": list(sensor.aliases),
        "bands": len(sensor),
        "gsd": sensor.gsd,
        "attribute": sensor.attribute,
        "source": sensor.source,
    }


def band_lists(sensor) -> dict:
    """Return a sensor's tables: wavelength and fwhm in nm, good bands, and the water bands (from 0) by level."""
    return {
        "wavelength": sensor.wavelength.tolist(),
        "fwhm": [None if np.isnan(width) else width for width in sensor.fwhm.tolist()],
        "good_bands": sensor.good_bands.tolist(),
        "water_bands": {level: bands.tolist() for level, bands in sensor.water_bands.items()},
    }


def _list_all(all_sensors, as_csv: bool) -> None:
    title = ("key", "name", "bands", "nm", "fwhm", "gsd", "model")
    rows = [
        (
            sensor.key,
            sensor.name,
            str(len(sensor)),
            f"{sensor.wavelength.min():.0f}-{sensor.wavelength.max():.0f}",
            _span(sensor.fwhm),
            "" if sensor.gsd is None else f"{sensor.gsd:g}",
            sensor.attribute or "",
        )
        for sensor in all_sensors
    ]
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([title, *rows])
        return
    widths = [max(len(row[column]) for row in [title, *rows]) for column in range(len(title))]
    for row in [title, *rows]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print("\nfwhm in nm; gsd in m, of airborne sensors that of the usual flight; model: the published description")


def _list_bands(sensor, as_csv: bool) -> None:
    water = {level: set(bands.tolist()) for level, bands in sensor.water_bands.items()}
    rows = []
    for band, (center, width, good) in enumerate(zip(sensor.wavelength, sensor.fwhm, sensor.good_bands, strict=True)):
        levels = " ".join(level for level, bands in water.items() if band in bands)
        rows.append((band, f"{center:.4f}", "" if np.isnan(width) else f"{width:.4f}", int(good), levels))
    title = ("band", "wavelength_nm", "fwhm_nm", "good", "water_band_at")
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([title, *rows])
        return
    also = f"also: {', '.join(sensor.aliases)}\n" if sensor.aliases else ""
    print(f"{sensor.key}: {sensor.name}\n{also}source: {sensor.source}\n")
    print(f"{'band':>4}  {'nm':>9}  {'fwhm':>7}  bands are counted from 0")
    for band, center, width, good, levels in rows:
        remark = ("" if good else "  uncalibrated") + (f"  water at {levels}" if levels else "")
        print(f"{band:>4}  {center:>9}  {width:>7}{remark}")


def _span(values: np.ndarray) -> str:
    return "" if np.isnan(values).all() else f"{np.nanmin(values):.1f}-{np.nanmax(values):.1f}"

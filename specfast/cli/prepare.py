"""``specfast prepare SCENES... STORE``: tile scenes into a training store."""

from __future__ import annotations

import argparse
from pathlib import Path

from specfast.errors import DataError

HELP = (
    "Tile scenes into a memory-mapped training store. Bad bands and the sensor's water bands are dropped; tiles with "
    "too many invalid values are left out. Run the same command again to go on after an interruption; scenes that are "
    "done are skipped, scenes that changed are prepared again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} SCENES... STORE [options]"
    parser.add_argument("paths", nargs="+", type=Path, metavar="SCENES... STORE", help="scene files, then the folder")
    cut = parser.add_argument_group("tiles")
    cut.add_argument("--tile", type=int, default=256, metavar="PIXELS", help="side of a tile (default: %(default)s)")
    cut.add_argument("--stride", type=int, metavar="PIXELS", help="from one tile to the next (default: the tile)")
    cut.add_argument(
        "--max-invalid",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="leave out tiles with a larger share of invalid values or masked pixels (default: %(default)s)",
    )
    cut.add_argument(
        "--max-value",
        type=float,
        metavar="VALUE",
        help="larger values are invalid (default: 30 or 100 for AVIRIS radiance, 2.5 for its reflectance, else none)",
    )
    scene = parser.add_argument_group("what the files do not say (applied to all scenes)")
    scene.add_argument("--sensor", help="sensor, see specfast sensors")
    scene.add_argument("--level", help="L1 (radiance) or L2 (reflectance)")
    scene.add_argument("--gsd", type=float, metavar="METERS", help="ground sampling distance")
    scene.add_argument("--scale", type=float, help="stored number of one physical unit, as 10000 for reflectance")
    scene.add_argument("--offset", type=float, help="physical = stored / scale + offset")
    scene.add_argument("--nodata", type=float, metavar="VALUE", help="value of pixels without data")
    scene.add_argument("--variable", metavar="NAME", help="name of the cube in .mat, NetCDF or HDF5 files")
    scene.add_argument(
        "--out-of-range",
        choices=("raise", "drop"),
        default="raise",
        help="bands outside 350 to 2550 nm: an error, or left out (default: %(default)s)",
    )
    parser.add_argument("--verify", action="store_true", help="check every tile's checksum; needs no scenes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from specfast.data.preparation import prepare
    from specfast.data.store import SpectralStore

    *scenes, out = args.paths
    if not scenes and not args.verify:
        raise DataError(f"expected scenes and then the folder of the store, got only {out}")
    if scenes:
        given = ("sensor", "level", "gsd", "scale", "offset", "nodata", "variable", "out_of_range")
        store = prepare(
            scenes,
            out,
            tile=args.tile,
            stride=args.stride,
            max_invalid=args.max_invalid,
            max_value=args.max_value,
            progress=not args.quiet,
            on_scene=lambda record, status: tqdm.write(describe(record, status)),
            **{name: getattr(args, name) for name in given if getattr(args, name) is not None},
        )
    else:
        store = SpectralStore.open(out)
    if args.verify:
        store.verify(progress=not args.quiet)
        print(f"all {len(store)} tiles verified")
    print(summary(store))
    return 0


def describe(record, status: str) -> str:
    """Return what became of one scene, in words."""
    left_out = sum(record.rejected.values())
    causes = ", ".join(f"{count} mostly {cause}" for cause, count in record.rejected.items())
    height, width = record.tile
    lines = [
        f"{record.name}: {status}; {len(record)} tiles of {height} x {width} kept, {left_out} left out"
        + (f" ({causes})" if causes else ""),
        f"  {record.sensor} {record.level}, {len(record.bands)} bands, {record.gsd:g} m",
        *(f"  {note}" for note in record.notes),
    ]
    return "\n".join(lines)


def summary(store) -> str:
    """Return what a store holds in all, in words."""
    left_out = sum(sum(record.rejected.values()) for record in store.scenes)
    return (
        f"{store.path}: {len(store)} tiles of {len(store.scenes)} scenes, {left_out} left out, "
        f"{store.nbytes / 2**20:.1f} MiB"
    )

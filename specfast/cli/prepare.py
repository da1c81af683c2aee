"""``specfast prepare SCENES... STORE``: tile scenes into a training store."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specfast.cli import scenes
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
    scenes.add_told(parser)
    parser.add_argument("--verify", action="store_true", help="check every tile's checksum; needs no scenes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print what the store holds as a JSON object")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from specfast.data.preparation import prepare
    from specfast.data.store import SpectralStore

    *files, out = args.paths
    if not files and not args.verify:
        raise DataError(f"expected scenes and then the folder of the store, got only {out}")
    said = sys.stderr if args.json else sys.stdout
    if files:
        store = prepare(
            files,
            out,
            tile=args.tile,
            stride=args.stride,
            max_invalid=args.max_invalid,
            max_value=args.max_value,
            progress=not args.quiet,
            on_scene=lambda record, status: tqdm.write(describe(record, status), file=said),
            **scenes.told(args),
        )
    else:
        store = SpectralStore.open(out)
    if args.verify:
        try:
            store.verify(progress=not args.quiet)
        except DataError as error:
            print(f"specfast prepare: {error}", file=sys.stderr)
            return 1
        print(f"all {len(store)} tiles verified", file=said)
    print(json.dumps(contents(store), indent=2) if args.json else summary(store))
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


def contents(store) -> dict:
    """Return what a store holds, scene by scene, as plain values."""
    scenes = [
        {
            "name": record.name,
            "source": record.source,
            "sensor": record.sensor,
            "level": record.level,
            "gsd": record.gsd,
            "bands": len(record.bands),
            "tile": list(record.tile),
            "tiles": len(record),
            "left_out": record.rejected,
            "notes": record.notes,
        }
        for record in store.scenes
    ]
    return {"store": str(store.path), "tiles": len(store), "bytes": store.nbytes, "scenes": scenes}


def summary(store) -> str:
    """Return what a store holds in all, in words."""
    left_out = sum(sum(record.rejected.values()) for record in store.scenes)
    return (
        f"{store.path}: {len(store)} tiles of {len(store.scenes)} scenes, {left_out} left out, "
        f"{store.nbytes / 2**20:.1f} MiB"
    )

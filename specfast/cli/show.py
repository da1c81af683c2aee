"""``specfast show FILE``: recognize a file or a run's folder, and write a picture or a page of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from specfast.cli import scenes
from specfast.report.kinds import KINDS

HELP = (
    "Show a scene, a class map, a map of change, uncertainty or anomaly scores, an embedding, a table of scores, a "
    "training log, a confusion matrix, or the folder of a run: as PNG, SVG, or a self-contained HTML page."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what to show; it is recognized by its content")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write, .png, .svg or .html (default: NAME.show.png beside FILE; report.html in a run's folder)",
    )
    parser.add_argument("--kind", choices=KINDS, help="what FILE is (default: what its content tells)")
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="show beside it: a scene; another map, with the difference; the scenes before and after a change; a map "
        "of what is known",
    )
    parser.add_argument("--json", action="store_true", help="print what was recognized and written as a JSON object")

    look = parser.add_argument_group("what of it")
    look.add_argument(
        "--bands",
        nargs="+",
        type=int,
        metavar="N",
        help="of a scene the three bands for red, green and blue, of maps those to show; counted from 0",
    )
    look.add_argument(
        "--stretch",
        nargs=2,
        type=float,
        default=[2.0, 98.0],
        metavar="PERCENT",
        help="percentiles at the two ends of the colors (default: 2 98)",
    )
    look.add_argument(
        "--spectra",
        nargs="+",
        type=_pixel,
        metavar="ROW,COL",
        help="pixels of a scene whose spectra are drawn, at most six (default: four of unlike color)",
    )
    look.add_argument(
        "--window",
        nargs=4,
        type=int,
        metavar=("ROW", "COL", "HEIGHT", "WIDTH"),
        help="show this part only; large scenes are otherwise thinned to 1600 pixels a side",
    )

    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.errors import DataError
    from specfast.report.pages import show

    out = args.out or default_out(args.file)
    for given in (args.file, *args.against):
        if out.resolve() == given.resolve():
            raise DataError(f"--out: {out} is a file that is to be shown; give another name")
    exhibit = show(
        args.file,
        kind=args.kind,
        against=args.against,
        bands=args.bands,
        stretch=args.stretch,
        spectra=args.spectra,
        window=None if args.window is None else tuple(args.window),
        **scenes.told(args),
    )
    exhibit.save(out)
    what = ", ".join(filter(None, (exhibit.kind, exhibit.subtitle)))
    print(f"{args.file}: {what}; written to {out}", file=sys.stderr if args.json else sys.stdout)
    found = {"file": str(args.file), "kind": exhibit.kind, "told_by": exhibit.told_by, "written": str(out)}
    return scenes.print_json(args, found | exhibit.summary)


def default_out(path: Path) -> Path:
    """Return where the picture of a file, or the page of a folder, goes unless told otherwise."""
    if path.is_dir() and path.suffix.lower() != ".zarr":
        return path / "report.html"
    return path.with_name(f"{path.stem}.show.png")


def _pixel(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    try:
        return int(row), int(column if comma else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ROW,COL such as 12,80; got {text!r}") from None

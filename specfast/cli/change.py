"""``specfast change BEFORE AFTER --model DIR --out OUT``: what changed between two dates, and how sure that is."""

from __future__ import annotations

import argparse
from pathlib import Path

from specfast.cli import scenes

HELP = (
    "Map the probability of change between two dates of one place, and its uncertainty, with a model that specfast "
    "finetune change saved. The dates must lie on one grid; their sensors may differ. The same command again goes on "
    "where a run stopped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="BEFORE", help="scene of the first date")
    parser.add_argument("after", type=Path, metavar="AFTER", help="scene of the second date")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a saved change detector")
    scenes.add_output(parser, scenes=False)
    scenes.add_reporting(parser)
    scenes.add_computing(parser)
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.errors import DataError
    from specfast.infer import ChangePredictor, predictor_of

    images = scenes.open_scenes(args, (args.before, args.after))
    predictor = predictor_of(args.model, device=scenes.device_of(args), **scenes.model_options(args))
    if not isinstance(predictor, ChangePredictor):
        raise DataError(f"{args.model}: does not compare two dates; use specfast segment SCENE")

    def mapped(number: int, out: Path):
        return scenes.map_one(args, images, predictor, out, {"before": images[0].name, "after": images[1].name})

    return scenes.print_json(args, scenes.map_scenes(args, [args.after], "change", mapped))

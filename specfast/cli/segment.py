"""``specfast segment SCENE... --model DIR --out OUT``: class maps, or maps of a regressor's targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from specfast.cli import scenes

HELP = (
    "Map whole scenes with a fine-tuned model: a class for every pixel (or, of a regression model, its targets), with "
    "the scene's georeference. Memory does not grow with the scene; the same command again goes on where a run stopped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="scene files")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a model that specfast finetune saved")
    scenes.add_output(parser)
    parser.add_argument(
        "--probabilities", action="store_true", help="write OUT_probabilities, too: a float32 band for each class"
    )
    scenes.add_reporting(parser)
    scenes.add_computing(parser)
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.errors import DataError
    from specfast.infer import ChangePredictor, predictor_of

    images = scenes.open_scenes(args, args.scenes)
    predictor = predictor_of(args.model, device=scenes.device_of(args), **scenes.model_options(args))
    if isinstance(predictor, ChangePredictor):
        raise DataError(f"{args.model}: compares two dates; use specfast change BEFORE AFTER")
    if args.probabilities and predictor.kind != "classes":
        raise DataError(f"--probabilities: {args.model} predicts {', '.join(predictor.outputs)}, which are no classes")

    classes = predictor.kind == "classes"

    def mapped(number: int, out: Path):
        return scenes.map_one(
            args,
            images[number],
            predictor,
            out,
            {"scene": images[number].name},
            probabilities=args.probabilities,
            colors=scenes.class_rgb(len(predictor.outputs)) if classes else (),
        )

    what = "classes" if classes else "targets"
    return scenes.print_json(args, scenes.map_scenes(args, args.scenes, what, mapped))

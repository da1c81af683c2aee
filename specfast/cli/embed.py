"""``specfast embed SCENE... --model DIR --out OUT``: features of whole scenes."""

from __future__ import annotations

import argparse
from pathlib import Path

from specfast.cli import scenes

HELP = (
    "Write an encoder's features of whole scenes: a vector a patch, on the grid of patches with its georeference, or "
    "with --pixels a vector a pixel. The same command again goes on where a run stopped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="scene files")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of any saved model")
    scenes.add_output(parser)
    parser.add_argument("--pixels", action="store_true", help="features of pixels, interpolated between patches")
    parser.add_argument(
        "--upsample",
        type=int,
        default=1,
        metavar="N",
        help="enlarge the scene N times first: a patch covers patch size / N pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--levels",
        nargs="+",
        type=int,
        choices=(0, 1, 2, 3),
        default=[3],
        help="the encoder's levels to stack, 0 is the earliest (default: 3, the last)",
    )
    scenes.add_reporting(parser)
    scenes.add_computing(parser)
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.infer import EmbedPredictor
    from specfast.models import SpecAwareEncoder

    images = scenes.open_scenes(args, args.scenes)
    encoder = SpecAwareEncoder.from_pretrained(args.model).to(scenes.device_of(args))
    predictor = EmbedPredictor(
        encoder, pixels=args.pixels, upsample=args.upsample, levels=args.levels, **scenes.model_options(args)
    )

    def mapped(number: int, out: Path):
        return scenes.map_one(args, images[number], predictor, out, {"scene": images[number].name})

    return scenes.print_json(args, scenes.map_scenes(args, args.scenes, "embedding", mapped))

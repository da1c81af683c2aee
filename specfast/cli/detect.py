"""``specfast detect SCENE... --method rx --out OUT``: anomaly scores, and their AUC where targets are known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from specfast.cli import scenes
from specfast.errors import DataError

METHODS = ("rx", "pca-rx", "local-rx", "features", "reconstruction")
_WITH_COMPONENTS = ("pca-rx", "features")
HELP = (
    "Score every pixel of a scene by how unlike the rest it is: RX on spectra, on their principal components or on an "
    "encoder's features, or the error of reconstructing masked pixels. The scene is read twice, once to learn its "
    "background. With --labels, print each method's AUC."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="scene files")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="rx",
        help="features and reconstruction need --model (default: %(default)s)",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="folder of a saved model; of a pre-trained one for reconstruction"
    )
    scenes.add_output(parser, required=False)
    parser.add_argument(
        "--labels", type=Path, metavar="MAP", help="map of known targets (above 0): print a table of AUC with baselines"
    )
    parser.add_argument("--labels-variable", metavar="NAME", help="the map's name in a .mat file")
    parser.add_argument("--components", type=int, metavar="N", help="pca-rx, features: principal components kept")
    scenes.add_reporting(parser)
    group = parser.add_argument_group("computing")
    group.add_argument(
        "--window", type=int, default=256, metavar="PIXELS", help="side of windows (default: %(default)s)"
    )
    group.add_argument("--device", help="such as cuda (default: cuda if there is one)")
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.infer import ScorePredictor, fit_scorer, map_scene
    from specfast.infer.predictors import weights_digest
    from specfast.tasks.anomaly import anomaly_scorer

    _check(args)
    images = scenes.open_scenes(args, args.scenes)
    encoder, mae = _models(args)
    table = None if args.labels is None else _table(args, images[0], encoder, mae)
    model = {"features": encoder, "reconstruction": mae}.get(args.method)
    options = {} if args.components is None else {"components": args.components}

    def mapped(number: int, out: Path):
        image = images[number]
        scorer = anomaly_scorer(args.method, model, **options)
        fit_scorer(scorer, image, window=args.window, progress=not args.quiet)
        identity = f"{args.method} {options} {'' if model is None else weights_digest(model)}"
        return map_scene(
            image,
            ScorePredictor(scorer, identity=identity, window=args.window),
            out,
            cog=args.cog,
            with_preview=args.preview is not None,
            tags={"method": args.method, "scene": image.name, **({} if model is None else {"model": args.model})},
            progress=not args.quiet,
        )

    maps = [] if args.out is None else scenes.map_scenes(args, args.scenes, "anomaly", mapped)
    return scenes.print_json(args, {"maps": maps, "table": table})


def _check(args: argparse.Namespace) -> None:
    if args.out is None and args.labels is None:
        raise DataError("--out: expected a file for the scores (or --labels, to print the AUC only)")
    if args.out is None and args.preview is not None:
        raise DataError("--preview: is made of the scores that --out asks for; give both")
    if args.labels is not None and len(args.scenes) > 1:
        raise DataError(f"--labels: one map belongs to one scene, got {len(args.scenes)} scenes")
    needs = args.method in ("features", "reconstruction")
    if needs and args.model is None:
        raise DataError(f"--method {args.method}: needs --model, the folder of a saved model")
    if not needs and args.model is not None and args.labels is None:
        raise DataError(f"--model: method {args.method} uses none; choose --method features or reconstruction")
    if args.components is not None and args.method not in _WITH_COMPONENTS:
        raise DataError(f"--components: only for the methods {' and '.join(_WITH_COMPONENTS)}; got {args.method}")


def _models(args: argparse.Namespace) -> tuple:
    """Return the encoder and the pre-training model of a folder; None where it holds none."""
    from specfast.models import SpecAwareEncoder, SpecAwareMAE, load_model

    if args.model is None:
        return None, None
    model = load_model(args.model).to(scenes.device_of(args)).eval()
    if isinstance(model, SpecAwareMAE):
        return model.encoder(), model
    if args.method == "reconstruction":
        raise DataError(
            f"{args.model}: holds a {type(model).__name__}, which reconstructs nothing; give a SpecAwareMAE"
        )
    return model if isinstance(model, SpecAwareEncoder) else model.encoder, None


def _table(args: argparse.Namespace, image, encoder, mae) -> dict:
    """Print the AUC of all methods that the models given allow; return the table as plain values."""
    from specfast.evaluate import read_labels
    from specfast.tasks.anomaly_table import anomaly_table

    targets = read_labels(args.labels, args.labels_variable)
    if targets.shape != tuple(image.shape[1:]):
        raise DataError(
            f"{args.labels}: the map has {targets.shape[0]} x {targets.shape[1]} pixels; expected {image.shape[1]} x "
            f"{image.shape[2]}, the size of {args.scenes[0]}"
        )
    given = {} if args.components is None else {name: {"components": args.components} for name in _WITH_COMPONENTS}
    table = anomaly_table(image, targets, encoder=encoder, mae=mae, options=given)
    said = sys.stderr if args.json else sys.stdout
    print(table.to_markdown(), file=said)
    for note in table.notes:
        print(f"note: {note}", file=said)
    return table.to_dict()

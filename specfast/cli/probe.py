"""``specfast probe MODEL SCENE... --labels FILE...``: what frozen features know about classes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from specfast.cli import label_maps
from specfast.cli.scenes import add_told, load_encoder, open_scenes

HELP = (
    "Classify the labelled pixels of a scene from frozen features, beside the raw spectrum, an untrained encoder and "
    "baselines, on random and on field-disjoint pixels."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a saved model")
    label_maps.add_scenes(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write probe.json, probe.csv, probe.md, class maps")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")

    protocol = parser.add_argument_group("protocol")
    label_maps.add_divisions(protocol)
    protocol.add_argument("--seeds", type=int, default=5, metavar="N", help="divisions drawn (default: %(default)s)")
    protocol.add_argument(
        "--classifiers",
        nargs="+",
        choices=("lda", "logistic"),
        default=["lda", "logistic"],
        help="default: both",
    )
    protocol.add_argument(
        "--baselines",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="all (default; without cnn, which is slow), none, or out of svm, pca_svm, random_forest, mean_svm, cnn",
    )

    features = parser.add_argument_group("features")
    features.add_argument("--method", choices=("upsample", "shift"), help="how tokens become features of pixels")
    features.add_argument("--factor", type=int, metavar="N", help="upsample: how much the scene is enlarged")
    features.add_argument("--stride", type=int, metavar="PIXELS", help="shift: pixels between patch grids")
    features.add_argument(
        "--levels", nargs="+", type=int, choices=(0, 1, 2, 3), help="the encoder's levels to stack, 0 is the earliest"
    )
    features.add_argument("--window", type=int, metavar="PIXELS", help="side of the windows that are encoded")
    features.add_argument("--components", type=int, metavar="N", help="whitened components kept of the features")
    features.add_argument("--device", help="such as cuda (default: cuda if there is one)")

    add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.evaluate import probe
    from specfast.evaluate.baselines import require_sklearn
    from specfast.evaluate.probing import DEFAULT_BASELINES

    require_sklearn()
    baselines = label_maps.chosen_baselines(args.baselines, DEFAULT_BASELINES)
    images = open_scenes(args, args.scenes)
    maps = label_maps.read_maps(args.labels, args.scenes, images, args.labels_variable, "--labels")
    encoder = load_encoder(args)
    recipe = {
        name: getattr(args, name)
        for name in ("method", "factor", "stride", "levels", "window")
        if getattr(args, name) is not None
    }
    start = time.perf_counter()
    table = probe(
        encoder,
        images,
        maps,
        splits=args.splits or label_maps.default_splits(images),
        labels_per_class=args.labels_per_class,
        seeds=args.seeds,
        classifiers=args.classifiers,
        baselines=baselines,
        recipe=recipe,
        **({} if args.components is None else {"components": args.components}),
        progress=not args.quiet,
    )
    table.settings |= {
        "model": str(args.model),
        "scenes": [str(path) for path in args.scenes],
        "labels": [str(path) for path in args.labels],
        "seconds": round(time.perf_counter() - start, 1),
    }
    if args.json:
        print(table.to_json())
    else:
        print(table.to_markdown())
        print(table.verdict())
        for note in table.notes:
            print(f"note: {note}")
    if args.out is not None:
        table.save(args.out)
        label_maps.save_class_maps(table, args.scenes, args.out)
        if not args.json:
            print(f"written to {args.out}")
    return 0

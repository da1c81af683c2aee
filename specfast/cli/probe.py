"""``specfast probe MODEL SCENE... --labels FILE...``: what frozen features know about classes."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np

from specfast.cli.scenes import add_told, device_of, open_scenes
from specfast.errors import DataError

HELP = (
    "Classify the labelled pixels of a scene from frozen features, beside the raw spectrum, an untrained encoder and "
    "baselines, on random and on field-disjoint pixels."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a saved model")
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="scene file, or several with equal bands")
    parser.add_argument(
        "--labels",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="label map of each scene in the same order (.npy, .mat or .tif; 0 is unlabelled)",
    )
    parser.add_argument("--labels-variable", metavar="NAME", help="the label map's name in a .mat file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write probe.json, probe.csv, probe.md, class maps")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")

    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--splits",
        nargs="+",
        choices=("random", "field", "tile"),
        help="how train and test pixels are divided (default: random and field; random and tile for several scenes)",
    )
    protocol.add_argument(
        "--labels-per-class", nargs="+", type=int, default=[10, 50], metavar="N", help="default: 10 and 50"
    )
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
    from specfast.evaluate import probe, read_labels
    from specfast.evaluate.baselines import require_sklearn
    from specfast.models import SpecAwareEncoder

    require_sklearn()
    baselines = chosen_baselines(args.baselines)
    if len(args.labels) != len(args.scenes):
        raise DataError(
            f"--labels: expected one file for each of the {len(args.scenes)} scenes, got {len(args.labels)}"
        )
    labels = [read_labels(path, args.labels_variable) for path in args.labels]
    images = open_scenes(args, args.scenes)
    for scene, image, path, one in zip(args.scenes, images, args.labels, labels, strict=True):
        if one.shape != tuple(image.shape[1:]):
            raise DataError(
                f"{path}: the label map has {one.shape[0]} x {one.shape[1]} pixels; "
                f"expected {image.shape[1]} x {image.shape[2]}, the size of {scene}"
            )
    if not args.model.is_dir():
        raise DataError(f"{args.model}: expected the folder of a saved model (config.json, model.safetensors)")
    encoder = SpecAwareEncoder.from_pretrained(args.model).to(device_of(args))
    recipe = {
        name: getattr(args, name)
        for name in ("method", "factor", "stride", "levels", "window")
        if getattr(args, name) is not None
    }
    start = time.perf_counter()
    table = probe(
        encoder,
        images,
        labels,
        splits=args.splits or (("random", "field") if len(images) == 1 else ("random", "tile")),
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
        save_class_maps(table, args.scenes, args.out)
        if not args.json:
            print(f"written to {args.out}")
    return 0


def chosen_baselines(names: list[str]) -> list[str]:
    """Resolve ``all`` and ``none``; DataError for a name that is not known."""
    from specfast.evaluate import BASELINES
    from specfast.evaluate.probing import DEFAULT_BASELINES

    if names == ["all"]:
        return list(DEFAULT_BASELINES)
    if names == ["none"]:
        return []
    if unknown := [name for name in names if name not in BASELINES]:
        raise DataError(
            f"--baselines: expected all, none or names out of {', '.join(BASELINES)}; got {', '.join(unknown)}"
        )
    return names


def save_class_maps(table, scenes: list[Path], folder: Path) -> None:
    """Write each split's class maps as class_map_<split>[_<scene>].npy, int16 [H, W]."""
    from specfast.files import write_atomic

    for split, maps in table.class_maps.items():
        for number, (scene, classes) in enumerate(zip(scenes, maps, strict=True)):
            suffix = "" if len(maps) == 1 else f"_{number}_{scene.stem}"
            buffer = io.BytesIO()
            np.save(buffer, classes)
            write_atomic(folder / f"class_map_{split}{suffix}.npy", buffer.getvalue())

"""``specfast finetune segment SCENE... --model DIR --labels FILE... --out FOLDER``: a class for every pixel."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

from specfast.cli import label_maps, scenes
from specfast.cli.finetune import common

HELP = (
    "Train a segmenter on few labels of whole scenes, several times on different divisions of the labels, and show its "
    "scores beside frozen features, controls and baselines on the same pixels. With --all-labels, train one model on "
    "all labels instead, and save it for specfast segment."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from specfast.tasks.options import REACHES, SEGMENTATION_HEADS, SegmentationOptions

    defaults = SegmentationOptions()
    label_maps.add_scenes(parser)
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="names of the classes 1, 2, ...")
    common.add_model(parser, SEGMENTATION_HEADS, defaults.head)
    parser.add_argument(
        "--reach",
        choices=REACHES,
        help="where the map is to hold: near, in the fields that have labels; far, in other fields and scenes "
        "(default: near, also for --train-map; in the table far for fields and tiles)",
    )
    common.add_reporting(parser)
    parser.add_argument(
        "--all-labels", action="store_true", help="no table: train on every label and save the model in FOLDER/model"
    )

    protocol = parser.add_argument_group("protocol of the table")
    label_maps.add_divisions(protocol)
    protocol.add_argument(
        "--train-map",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a fixed division: map of each scene with the classes of the pixels to train on; other labels are tested",
    )
    protocol.add_argument(
        "--baselines",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="all (default), none, or out of svm, pca_svm, random_forest, mean_svm, cnn",
    )
    common.add_protocol(protocol)

    training = parser.add_argument_group("the scene in training")
    training.add_argument(
        "--pixels-per-class",
        type=int,
        default=defaults.pixels_per_class,
        metavar="N",
        help="labelled pixels of each class drawn in a step (default: %(default)s)",
    )
    common.add_views(training, defaults)
    common.add_training(parser, defaults.fit, "100; none for a linear head that is to reach far, on a frozen encoder")
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.evaluate.baselines import require_sklearn

    require_sklearn()
    images = scenes.open_scenes(args, args.scenes)
    labels = label_maps.read_maps(args.labels, args.scenes, images, args.labels_variable, "--labels")
    encoder = scenes.load_encoder(args)
    if args.all_labels:
        return _train_on_all(args, encoder, images, labels)
    return _compare(args, encoder, images, labels)


def _options(args: argparse.Namespace):
    from specfast.tasks import SegmentationOptions

    return SegmentationOptions(
        head=args.head,
        reach=args.reach,
        head_options=dict(args.head_options),
        spectral_skip=not args.no_spectral_skip,
        pixels_per_class=args.pixels_per_class,
        augment=not args.no_augment,
        view=args.view,
        fit=common.fit_options(args),
    )


def _train_on_all(args, encoder, images, labels) -> int:
    from specfast.evaluate.probing import read_cubes, usable_labels
    from specfast.tasks import train_segmenter

    notes: list[str] = []
    labels = usable_labels(labels, read_cubes(images), notes)
    train = partial(train_segmenter, encoder, images, labels, _options(args), outputs=args.class_names)
    found = {"labelled_pixels": int(sum((one > 0).sum() for one in labels))}
    return common.train_and_save(args, train, found, notes)


def _compare(args, encoder, images, labels) -> int:
    from specfast.evaluate import published_maps
    from specfast.evaluate.probing import DEFAULT_BASELINES
    from specfast.tasks import finetune_segmentation

    start = time.perf_counter()
    baselines = label_maps.chosen_baselines(args.baselines, (*DEFAULT_BASELINES, "cnn"))
    fixed = None
    if args.train_map is not None:
        training = label_maps.read_maps(args.train_map, args.scenes, images, args.labels_variable, "--train-map")
        joined = [np.concatenate([one.ravel() for one in part]) for part in (training, labels)]
        flat, fixed = published_maps(*joined)
        ends = np.cumsum([one.size for one in labels])[:-1]
        labels = [part.reshape(one.shape) for part, one in zip(np.split(flat, ends), labels, strict=True)]
    table = finetune_segmentation(
        encoder,
        images,
        labels,
        splits=args.splits or (() if fixed else label_maps.default_splits(images)),
        labels_per_class=args.labels_per_class,
        seeds=args.seeds,
        options=_options(args),
        baselines=baselines,
        control=not args.no_control,
        fixed=fixed,
        progress=not args.quiet,
    )
    table.settings |= {
        "model": str(args.model),
        "scenes": [str(path) for path in args.scenes],
        "labels": [str(path) for path in args.labels],
        "class_names": args.class_names,
        "seconds": round(time.perf_counter() - start, 1),
    }
    label_maps.save_class_maps(table, args.scenes, args.out)
    return common.report(args, table, "segment")

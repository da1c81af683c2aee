"""``specfast finetune classify LIST.csv --model DIR --out FOLDER``: a class for every scene."""

from __future__ import annotations

import argparse
import csv
from functools import partial
from pathlib import Path

import numpy as np

from specfast.cli import scenes
from specfast.cli.finetune import common
from specfast.errors import DataError

HELP = (
    "Train a classifier of whole scenes (tiles with one label each) on few of them, several times, and show its scores "
    "beside linear and nearest-neighbor probes, controls and baselines on the same scenes. With --all-labels, train "
    "one model on all of them instead, and save it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from specfast.tasks.options import ClassificationOptions

    defaults = ClassificationOptions()
    parser.add_argument(
        "list",
        type=Path,
        metavar="LIST.csv",
        help="columns scene (file, relative to the list) and label (a name); a third, split, may say train or test",
    )
    common.add_model(parser, ("linear", "mlp"), defaults.head)
    common.add_reporting(parser)
    parser.add_argument(
        "--all-labels", action="store_true", help="no table: train on every scene and save the model in FOLDER/model"
    )
    protocol = parser.add_argument_group("protocol of the table")
    protocol.add_argument(
        "--labels-per-class",
        nargs="*",
        type=int,
        metavar="N",
        help="scenes of each class to train on (default: 5 and 10; none if the list has a column split)",
    )
    common.add_protocol(protocol)
    training = parser.add_argument_group("the scenes in training")
    training.add_argument(
        "--scenes-per-class",
        type=int,
        default=defaults.scenes_per_class,
        metavar="N",
        help="scenes of each class drawn in a step (default: %(default)s)",
    )
    training.add_argument(
        "--no-spectral-skip", action="store_true", help="keep the scenes' mean spectra out: any sensor may be served"
    )
    common.add_training(parser, defaults.fit)
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.evaluate.baselines import require_sklearn
    from specfast.evaluate.splits import Split
    from specfast.tasks import ClassificationOptions, finetune_classification, train_classifier

    require_sklearn()
    paths, names, split = read_list(args.list)
    classes = sorted(set(names))
    labels = np.array([classes.index(name) + 1 for name in names])
    samples = [image.sample() for image in scenes.open_scenes(args, paths)]
    encoder = scenes.load_encoder(args)
    options = ClassificationOptions(
        head=args.head,
        head_options=dict(args.head_options),
        spectral_skip=not args.no_spectral_skip,
        scenes_per_class=args.scenes_per_class,
        fit=common.fit_options(args),
    )
    if args.all_labels:
        train = partial(train_classifier, encoder, samples, labels, options, outputs=classes)
        return common.train_and_save(args, train, {"labelled_scenes": len(samples)})
    fixed = None
    if split is not None:
        fixed = Split("given division", np.flatnonzero(split == "train"), np.flatnonzero(split == "test"))
    counts = args.labels_per_class if args.labels_per_class is not None else ((5, 10) if fixed is None else ())
    table = finetune_classification(
        encoder,
        samples,
        labels,
        labels_per_class=counts,
        seeds=args.seeds,
        options=options,
        control=not args.no_control,
        fixed=fixed,
        progress=not args.quiet,
    )
    table.settings |= {"model": str(args.model), "scenes": [str(path) for path in paths], "class_names": classes}
    return common.report(args, table, "classify")


def read_list(path: Path) -> tuple[list[Path], list[str], np.ndarray | None]:
    """Read the scenes' files, their labels, and what is trained on or tested (None if the list does not say).

    Raises:
        DataError: a column or value is missing, or a scene is neither trained on nor tested.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:  # Excel puts a byte order mark in front
        rows = list(csv.DictReader(file, skipinitialspace=True))
    if not rows or {"scene", "label"} - set(rows[0]):
        raise DataError(f"{path}: expected a line with the columns scene,label and a line for each scene")
    for row in rows:
        row.update({name: (row[name] or "").strip() for name in ("scene", "label", "split") if name in row})
    for number, row in enumerate(rows, start=2):
        if not row["scene"] or not row["label"]:
            raise DataError(f"{path}: line {number} lacks a scene or a label")
    split = None
    if "split" in rows[0]:
        split = np.array([row["split"] for row in rows])
        if wrong := sorted(set(split.tolist()) - {"train", "test"}, key=str):
            raise DataError(f"{path}: column split: expected train or test, got {wrong[0]!r}")
    return [path.parent / row["scene"] for row in rows], [row["label"] for row in rows], split

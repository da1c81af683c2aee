"""``specfast finetune change BEFORE AFTER --labels MAP --model DIR --out FOLDER``: learn what counts as a change."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specfast.cli import label_maps, scenes
from specfast.cli.finetune import common

HELP = (
    "Train a change detector on few labels of two dates, several times on different divisions of the labels, and show "
    "its scores beside the same detector on a random encoder, change vector analysis, MAD and a support vector machine "
    "on the same pixels. With --all-labels, train one on all labels instead, and save it for specfast change."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from specfast.tasks.change_options import CHANGE_BASELINES, CHANGE_HEADS, CHANGE_SPLITS, ChangeOptions

    defaults = ChangeOptions()
    parser.add_argument("before", type=Path, metavar="BEFORE", help="scene of the first date")
    parser.add_argument("after", type=Path, metavar="AFTER", help="scene of the second date, on the same grid")
    parser.add_argument("--labels", type=Path, required=True, metavar="MAP", help="map of changes (.npy, .mat or .tif)")
    parser.add_argument("--labels-variable", metavar="NAME", help="the map's name in a .mat file")
    parser.add_argument(
        "--changed", type=int, default=1, metavar="VALUE", help="stands for it in the map (default: %(default)s)"
    )
    parser.add_argument(
        "--unchanged",
        type=int,
        default=0,
        metavar="VALUE",
        help="stands for it in the map; all other values are unlabelled (default: %(default)s)",
    )
    common.add_model(parser, CHANGE_HEADS, defaults.head)
    common.add_reporting(parser)
    parser.add_argument(
        "--all-labels", action="store_true", help="no table: train on every label and save the model in FOLDER/model"
    )

    protocol = parser.add_argument_group("protocol of the table")
    protocol.add_argument(
        "--splits",
        nargs="+",
        choices=CHANGE_SPLITS,
        default=list(CHANGE_SPLITS),
        help="how train and test pixels are divided (default: both)",
    )
    protocol.add_argument(
        "--labels-per-class", nargs="+", type=int, default=[10, 50], metavar="N", help="default: 10 and 50"
    )
    protocol.add_argument("--seeds", type=int, default=5, metavar="N", help="divisions drawn (default: %(default)s)")
    protocol.add_argument(
        "--baselines", nargs="*", choices=CHANGE_BASELINES, default=list(CHANGE_BASELINES), help="default: all"
    )
    protocol.add_argument("--no-control", action="store_true", help="leave out the detector on random weights")

    training = parser.add_argument_group("the scenes in training")
    training.add_argument(
        "--pixels-per-class",
        type=int,
        default=defaults.pixels_per_class,
        metavar="N",
        help="changed and unchanged pixels drawn in a step (default: %(default)s)",
    )
    training.add_argument(
        "--prior",
        type=float,
        metavar="SHARE",
        help="share of the scene that has changed, to suit probabilities to (default: estimated without labels)",
    )
    training.add_argument("--no-augment", action="store_true", help="do not turn and flip the scenes at random")
    training.add_argument(
        "--view",
        type=int,
        default=defaults.view,
        metavar="PIXELS",
        help="larger scenes are cut into tiles of this side (default: %(default)s)",
    )
    common.add_training(parser, defaults.fit)
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.evaluate import read_labels
    from specfast.evaluate.baselines import require_sklearn
    from specfast.evaluate.labels import LARGEST_CLASS
    from specfast.tasks.change_data import change_labels

    if not args.all_labels:
        require_sklearn()
    images = scenes.open_scenes(args, (args.before, args.after))
    change_map = read_labels(args.labels, args.labels_variable, nodata_as=LARGEST_CLASS)
    label_maps.check_size(args.labels, change_map.shape, args.before, images[0])
    labels = change_labels(change_map, args.changed, args.unchanged)
    work = _train_on_all if args.all_labels else _compare
    return work(args, scenes.load_encoder(args), images, labels)


def _options(args: argparse.Namespace):
    from specfast.tasks.change_options import ChangeOptions

    return ChangeOptions(
        head=args.head,
        head_options={**ChangeOptions().head_options, **dict(args.head_options)},
        pixels_per_class=args.pixels_per_class,
        prior=args.prior,
        augment=not args.no_augment,
        view=args.view,
        fit=common.fit_options(args),
    )


def _compare(args: argparse.Namespace, encoder, images, labels) -> int:
    from specfast.tasks.change_table import finetune_change

    result = finetune_change(
        encoder,
        *images,
        labels,
        splits=args.splits,
        labels_per_class=args.labels_per_class,
        seeds=args.seeds,
        baselines=args.baselines,
        control=not args.no_control,
        options=_options(args),
        progress=not args.quiet,
    )
    result.table.settings |= {name: str(getattr(args, name)) for name in ("model", "before", "after", "labels")}
    for split, maps in result.maps.items():
        _save_maps(args.out, maps, f"_{split}")
    return common.report(args, result.table, "change")


def _train_on_all(args: argparse.Namespace, encoder, images, labels) -> int:
    import numpy as np

    from specfast.tasks.change import build_detector, predict_change, train_change
    from specfast.tasks.change_data import ScenePair, usable_labels
    from specfast.train import TrainingInterrupted

    options, pair, notes = _options(args), ScenePair.of(*images), []
    labels = usable_labels(labels, pair, notes)
    pixels = np.flatnonzero(labels)
    detector = build_detector(options, encoder, pair)
    try:
        result = train_change(detector, pair, labels, pixels, options, out=args.out, progress=not args.quiet)
    except TrainingInterrupted as stop:
        print(f"specfast finetune: {stop}; run the same command again to go on", file=sys.stderr)
        return 128 + stop.signal
    folder = detector.save_pretrained(args.out / "model")
    _save_maps(args.out, predict_change(detector, pair), "")
    found = {
        "model": str(folder),
        "labelled_pixels": len(pixels),
        **common.last_row(result),
        "seconds": round(result.seconds, 1),
        "notes": notes,
    }
    said = sys.stderr if args.json else sys.stdout
    loss = "" if found["loss"] is None else f", loss {found['loss']:.4f}"
    print(f"{folder}: {args.head} head, {found['steps']} steps on {len(pixels)} labels{loss}", file=said)
    for note in notes:
        print(f"note: {note}", file=said)
    return scenes.print_json(args, found)


def _save_maps(folder: Path, maps, suffix: str) -> None:
    """Write change_map<suffix>.npy and uncertainty_map<suffix>.npy, float32 [H, W], and beside them what they are."""
    from specfast.files import write_atomic

    quantities = {"change_map": "change probability", "uncertainty_map": "uncertainty"}
    for (name, quantity), values in zip(quantities.items(), maps, strict=True):
        label_maps.save_array(folder / f"{name}{suffix}.npy", values)
        said = {"kind": "continuous", "quantity": quantity, "outputs": [quantity]}
        write_atomic(folder / f"{name}{suffix}.json", (json.dumps(said) + "\n").encode())

"""What the fine-tuning tasks share: options of training and head, reading scenes and labels, saying what came out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from specfast.cli.named_values import pair

TRAINING = {
    "steps": (int, "N", "updates"),
    "lr": (float, "RATE", "peak learning rate of the head"),
    "encoder_lr": (float, "RATE", "that of the encoder's last block, where the encoder is trained"),
    "layer_decay": (float, "X", "factor on it from each block to the one before"),
    "tuned_blocks": (int, "N", "train the last N blocks of the encoder; 0 freezes it, -1 trains all of it"),
    "weight_decay": (float, "X", "of weight matrices"),
    "warmup": (float, "SHARE", "share of the steps in which the learning rate rises"),
}


def add_model(parser: argparse.ArgumentParser, heads: Sequence[str], head: str) -> None:
    """Add --model, --head and --head-options."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder of a saved model, as of specfast pretrain"
    )
    parser.add_argument("--head", choices=tuple(heads), default=head, help="default: %(default)s")
    parser.add_argument(
        "--head-options",
        nargs="+",
        type=pair,
        default=[],
        metavar="NAME=VALUE",
        help="options of the head, such as hidden=128 upsample=2",
    )


def add_training(parser: argparse.ArgumentParser, defaults, steps: str = "%(default)s") -> None:
    """Add the options of training; ``defaults``: the task's FitOptions, ``steps``: how many it takes, in words."""
    group = parser.add_argument_group("training")
    for name, (kind, metavar, text) in TRAINING.items():
        default = getattr(defaults, name)
        flag = "--" + name.replace("_", "-")
        said = steps if name == "steps" else "%(default)s"
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {said})")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16"),
        default=defaults.precision,
        help="auto: bf16 where the device computes it natively (default: %(default)s)",
    )
    group.add_argument("--device", help="such as cuda (default: cuda if there is one)")


def fit_options(args: argparse.Namespace):
    """Return the FitOptions that the arguments describe."""
    from specfast.tasks import FitOptions

    return FitOptions(**{name: getattr(args, name) for name in (*TRAINING, "precision")})


def add_protocol(group: argparse._ArgumentGroup) -> None:
    """Add --seeds and --no-control."""
    group.add_argument("--seeds", type=int, default=5, metavar="N", help="divisions drawn (default: %(default)s)")
    group.add_argument("--no-control", action="store_true", help="leave out what is trained on a random encoder")


def add_views(group: argparse._ArgumentGroup, defaults) -> None:
    """Add how the pixels of scenes are seen in training; ``defaults``: the task's options."""
    group.add_argument(
        "--no-spectral-skip",
        action="store_true",
        help="keep the pixels' own spectra out of the head: the model may then serve other sensors",
    )
    group.add_argument("--no-augment", action="store_true", help="do not turn and flip the scenes at random")
    group.add_argument(
        "--view",
        type=int,
        default=defaults.view,
        metavar="PIXELS",
        help="larger scenes are cut into tiles of this side (default: %(default)s)",
    )


def add_reporting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="receives tables, maps and the model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def train_and_save(args: argparse.Namespace, train: Callable, found: dict, notes: Sequence[str] = ()) -> int:
    """Train one model, save it in FOLDER/model, and say so with what was ``found``.

    Args:
        args: with ``out``, ``quiet``, ``json`` and ``head``.
        train: takes ``out`` and ``progress``; returns the model and a FitResult.
        found: what else to say, by name.
        notes: what was left out.

    Returns:
        the exit code; 128 and the signal's number if one stopped the training, which can then be gone on with.
    """
    from specfast.cli.scenes import print_json
    from specfast.train import TrainingInterrupted

    try:
        model, result = train(out=args.out, progress=not args.quiet)
    except TrainingInterrupted as stop:
        print(f"specfast finetune: {stop}; run the same command again to go on", file=sys.stderr)
        return 128 + stop.signal
    found = {
        "model": str(model.save_pretrained(args.out / "model")),
        "head": args.head,
        "outputs": list(model.config.outputs),
        **found,
        **last_row(result),
        "seconds": round(result.seconds, 1),
    }
    if not args.json:
        print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))
    for note in notes:
        print(f"note: {note}", file=sys.stderr if args.json else sys.stdout)
    return print_json(args, {**found, "notes": list(notes)})


def last_row(result) -> dict:
    """Return the steps that a FitResult took, and the last loss; no loss if there was no step."""
    last = result.history[-1] if result.history else {"step": 0, "loss": None}
    return {"steps": last["step"], "loss": last["loss"]}


def report(args: argparse.Namespace, table, stem: str) -> int:
    """Write a table's files and print it, as JSON or in words."""
    table.save(args.out, stem)
    if args.json:
        print(table.to_json())
        print(f"written to {args.out}", file=sys.stderr)
        return 0
    print(table.to_markdown())
    print(table.verdict())
    for note in table.notes:
        print(f"note: {note}")
    print(f"written to {args.out}")
    return 0

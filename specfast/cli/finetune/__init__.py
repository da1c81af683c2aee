"""``specfast finetune TASK ...``: train a model for a task on labelled scenes; one file a task."""

from __future__ import annotations

import argparse
import importlib

HELP = "Train a model for a task on your own labels, beside baselines on the same pixels."

TASKS = {
    "segment": "a class for every pixel",
    "classify": "a class for every scene",
    "regress": "numbers for every pixel or scene",
    "change": "what changed between two dates",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, text in TASKS.items():
        module = _module(name)
        module.add_arguments(tasks.add_parser(name, help=text, description=module.HELP))


def run(args: argparse.Namespace) -> int:
    return _module(args.task).run(args)


def _module(name: str):
    return importlib.import_module(f"specfast.cli.finetune.{name}")

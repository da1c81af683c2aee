"""``specfast pretrain [CONFIG.yaml] --data STORE... --out DIR``: pre-train a model; also under torchrun."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from specfast.cli.named_values import pair

HELP = (
    "Pre-train SpecAware on stores made by specfast prepare. Options come from a YAML file, from flags, or both; flags "
    "win. The same command again goes on where the run stopped. For several processes: torchrun --nproc-per-node N -m "
    "specfast pretrain ...; with a slow network between them add --sync dssync --log-every 50"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from specfast.train.config import PUBLISHED, PretrainConfig

    # PretrainConfig checks all values, so its own YAML is read here and not by the parser.
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="the same as --config CONFIG.yaml")
    parser.add_argument("--config", dest="config_file", type=Path, metavar="FILE.yaml", help="options by name")
    parser.add_argument("--print-config", action="store_true", help="print all options as YAML and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print what the run left behind as a JSON object")
    options = parser.add_argument_group("the run (defaults that are not marked as published are our choice)")
    defaults = PretrainConfig()
    for field in dataclasses.fields(PretrainConfig):
        default = getattr(defaults, field.name)
        meta = field.metadata
        settings = {"dest": field.name, "default": argparse.SUPPRESS, "metavar": (meta["unit"] or field.name).upper()}
        if field.name == "data":
            settings |= {"nargs": "+", "metavar": "STORE"}
        elif field.name == "model_options":
            settings |= {"nargs": "+", "metavar": "NAME=VALUE", "type": pair}
        elif field.name == "bands":
            settings |= {"nargs": "+", "metavar": "N", "type": _number_or_all}
        elif isinstance(default, tuple):
            settings |= {"nargs": len(default), "metavar": "X"}
        elif isinstance(default, bool):
            settings |= {"action": argparse.BooleanOptionalAction}
            del settings["metavar"]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        origin = ", published" if meta["origin"] == PUBLISHED else ""
        note = "" if default is None or default in ((), {}) else f" (default: {shown}{origin})"
        options.add_argument(_flag(field.name), help=(meta["help"] + note).replace("%", "%%"), **settings)


def run(args: argparse.Namespace) -> int:
    from specfast.train.config import PretrainConfig, read_yaml

    if args.config and args.config_file:
        raise ValueError(f"--config: expected one file of options; got {args.config} and {args.config_file}")
    source = args.config or args.config_file
    values = read_yaml(source) if source else {}
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(PretrainConfig) if hasattr(args, f.name)}
    if "model_options" in given:
        given["model_options"] = {**(values.get("model_options") or {}), **dict(given["model_options"])}
    if given.get("bands") == [None]:
        given["bands"] = None
    config = PretrainConfig.from_dict({**values, **given}, source="options")
    if args.print_config:
        print(config.to_yaml(), end="")
        return 0

    from specfast.train import TrainingInterrupted, pretrain

    main_process = os.environ.get("RANK", "0") == "0"
    try:
        result = pretrain(config, progress=not args.quiet)
    except TrainingInterrupted as stop:
        if main_process:
            print(f"specfast pretrain: {stop}; run the same command again to go on", file=sys.stderr)
        return 128 + stop.signal
    if main_process:
        loss = result.history[-1]["loss"] if result.history else None
        model = result.out_dir / "model"
        if args.json:
            seconds = round(result.seconds, 3)
            print(json.dumps({"model": str(model), "steps": config.steps, "seconds": seconds, "loss": loss}))
        else:
            shown = "" if loss is None else f", loss {loss:.4f}"
            print(f"{result.out_dir}: {config.steps} steps in {result.seconds:.0f} s{shown}; model in {model}")
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _number_or_all(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, two, or 'all'; got {text!r}") from None

"""``specfast completion SHELL``: a script that completes commands, options and their values, made from the parsers."""

from __future__ import annotations

import argparse

HELP = (
    "Print a script that completes specfast's commands, options and choices. bash: put `source <(specfast completion "
    "bash)` into ~/.bashrc. zsh: specfast completion zsh > _specfast, in a folder of $fpath. fish: specfast completion "
    "fish > ~/.config/fish/completions/specfast.fish"
)
SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="whose script")


def run(args: argparse.Namespace) -> int:
    import importlib

    from specfast.cli.completion.tree import command_tree

    print(importlib.import_module(f"specfast.cli.completion.{args.shell}").script(command_tree()), end="")
    return 0

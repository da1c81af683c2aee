"""What a parser of the command line takes: its leaves (commands and their sub-commands) and the options of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return a parser's sub-commands by name; empty for one that has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers that take options for a run: the sub-commands, or the parser itself if it has none."""
    below = subcommands(parser)
    if not below:
        yield parser
    for child in below.values():
        yield from leaves(child)


def settings(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return what a configuration file may give, by key, in the order of ``--help``.

    A key is the option's long name with underscores for hyphens, or a positional argument's name. Help, version and the
    options about configuration files are none.
    """
    found = {}
    for action in parser._actions:
        names = long_names(action)
        skipped = isinstance(action, (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction))
        if not skipped and not {"--config", "--print-config"} & set(names):
            found[key_of(action)] = action
    return found


def key_of(action: argparse.Action) -> str:
    """Return the name that an argument has in a configuration file."""
    names = long_names(action)
    return names[0].removeprefix("--").replace("-", "_") if names else action.dest


def long_names(action: argparse.Action) -> list[str]:
    """Return an option's names that begin with two hyphens; none for a positional argument."""
    return [name for name in action.option_strings if name.startswith("--")]


def takes_value(action: argparse.Action) -> bool:
    """Whether an argument is more than a switch."""
    return action.nargs != 0


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return an argument's help as ``--help`` shows it, in one line."""
    if not action.help or action.help == argparse.SUPPRESS:
        return ""
    return " ".join(parser._get_formatter()._expand_help(action).split())

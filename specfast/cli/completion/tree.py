"""What can be completed: commands, their sub-commands, and the options and positional choices of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field

from specfast.cli import COMMANDS, load
from specfast.cli.options import help_of, long_names, subcommands, takes_value


@dataclass(frozen=True)
class Option:
    """An option: its names (``--json``, ``-h``), help, what its values may be (none: anything, such as a file).

    ``values`` is how many words it takes: 0, 1, or 2 for more than one.
    """

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    values: int


@dataclass(frozen=True)
class Command:
    """A command: the words that lead to it after ``specfast``, and what may follow.

    ``choices`` are the words that a positional argument may be; anything else is taken for a file.
    """

    path: tuple[str, ...]
    help: str
    options: tuple[Option, ...] = ()
    choices: tuple[str, ...] = ()
    children: dict[str, Command] = field(default_factory=dict)

    def walk(self) -> Iterator[Command]:
        """Yield this command and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def command_tree() -> Command:
    """Return ``specfast`` itself, with everything that the parsers of its commands know."""
    children = {name: _command(load(name)[1], (name,), text) for name, text in COMMANDS.items()}
    shown = (("--help", "show all commands"), ("--version", "show the version"))
    return Command((), "", tuple(Option((name,), text, (), 0) for name, text in shown), (), children)


def _command(parser: argparse.ArgumentParser, path: tuple[str, ...], text: str) -> Command:
    below = subcommands(parser)
    helps = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
    options = [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]
    positional = [action for action in parser._actions if not action.option_strings and not below]
    return Command(
        path,
        text,
        tuple(_option(parser, action) for action in options),
        tuple(str(choice) for action in positional for choice in action.choices or ()),
        {name: _command(child, (*path, name), helps.get(name, "")) for name, child in below.items()},
    )


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    names = long_names(action) or list(action.option_strings)
    values = 0 if not takes_value(action) else 1 if action.nargs in (None, argparse.OPTIONAL, 1) else 2
    return Option(tuple(names), help_of(parser, action), tuple(map(str, action.choices or ())), values)

"""The parser of every command: argparse, with ``--config FILE.yaml`` and ``--print-config`` for each."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from specfast.cli.options import settings


class Parser(argparse.ArgumentParser):
    """An argument parser whose options may also come from a YAML file; those on the command line win.

    What the file gives becomes the default of its argument, which then is not required. A command that declares
    ``--config`` itself is left alone.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Python before 3.14 takes "-3.4e38", a common value of pixels without data, for the name of an option.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
        self._configurable = False
        self._given: set[argparse.Action] = set()  # on the command line
        self._typed: dict[argparse.Action, object] = {}  # what was given there or in the file, before conversion

    def add_configuration(self) -> None:
        """Add the two options, unless the command has its own."""
        if "--config" in self._option_string_actions:
            return
        group = self.add_argument_group("configuration")
        group.add_argument(
            "--config", type=Path, metavar="FILE.yaml", help="options by name; those given as arguments win"
        )
        group.add_argument("--print-config", action="store_true", help="print all options as YAML and stop")
        for action in self._actions:
            # Positional arguments that may be none at all: argparse sees that only where those before them are given.
            if not action.option_strings and action.nargs == argparse.ZERO_OR_MORE:
                action.required = False
                action.default = [] if action.default is None else action.default
        self._configurable = True

    def parse_known_args(self, args=None, namespace=None):
        """Parse as argparse does; with ``--config``, on top of the file's values.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file's content is not what the command takes.
        """
        if not self._configurable:
            return super().parse_known_args(args, namespace)
        args = list(sys.argv[1:] if args is None else args)
        if not any(word.startswith(("--c", "--p")) for word in args):  # argparse also takes the beginning of a name
            return self._without_own(super().parse_known_args(args, namespace))
        from specfast.cli import config_file

        required = [thing for thing in (*self._actions, *self._mutually_exclusive_groups) if thing.required]
        _require(required, False)
        asked, unknown = super().parse_known_args(args)  # which file, and what does it not decide?
        _require(required, True)
        self._typed.clear()  # the second look at the same words fills it
        comments = config_file.explanations(self)
        if asked.config:
            self._take(config_file.read(asked.config, self), asked.config)
        if asked.print_config:
            if unknown:
                self.error(f"unrecognized arguments: {' '.join(unknown)}")
            _require(required, False)
        parsed, unknown = self._without_own(super().parse_known_args(args, namespace))
        if asked.print_config:
            print(config_file.as_yaml(self, parsed, self._typed, comments), end="")
            self.exit(0)
        return parsed, unknown

    @staticmethod
    def _without_own(parsed: tuple[argparse.Namespace, list[str]]) -> tuple[argparse.Namespace, list[str]]:
        for name in ("config", "print_config"):  # the command has no use for them
            delattr(parsed[0], name)
        return parsed

    def _take(self, values: dict, source: Path) -> None:
        """Make a file's values defaults, but for those that the command line decides."""
        from specfast.cli.config_file import converted

        known = settings(self)
        decided = {action.dest for action in self._given}
        for group in self._mutually_exclusive_groups:
            members = [key for key in values if known[key] in group._group_actions and values[key] is not False]
            if len(members) > 1:
                raise ValueError(f"{source}: {' and '.join(members)} exclude each other; give one of them")
            if {action.dest for action in group._group_actions} & decided:
                decided |= {known[key].dest for key in members}
            elif members:
                group.required = False
        for key, value in values.items():
            action = known[key]
            try:
                default = converted(self, action, value)
            except ValueError as error:
                raise ValueError(f"{source}: {key}: {error}") from None
            if action.dest in decided:
                continue
            self._typed[action] = value
            for same in self._actions:  # argparse takes the default of the first of several with one destination
                if same.dest == action.dest:
                    same.default = default
                    same.required = False

    def _get_values(self, action, arg_strings):
        if arg_strings or action.option_strings:  # else a positional argument that was left out
            self._given.add(action)
        if arg_strings:
            typed = arg_strings[0] if action.nargs in (None, argparse.OPTIONAL) else list(arg_strings)
            if isinstance(action, argparse._AppendAction):
                typed = [*self._typed.get(action, []), typed]
            self._typed[action] = typed
        return super()._get_values(action, arg_strings)


def _require(things: list, required: bool) -> None:
    for thing in things:
        thing.required = required

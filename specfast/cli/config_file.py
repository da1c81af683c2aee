"""Configuration files: the options of a command as YAML, read by ``--config`` and written by ``--print-config``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import yaml

from specfast.cli.options import help_of, settings, takes_value
from specfast.train.config import check_names, load_yaml

_KNOWN_TYPES = (None, int, float, str, Path)


def read(path: str | os.PathLike, parser: argparse.ArgumentParser) -> dict:
    """Return the values a file gives for a parser's arguments, by key, as they stand there; null means not given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML of names with values, or a key is no option; the message names the nearest.
    """
    content = load_yaml(path)
    check_names(content, str(path), settings(parser))
    return {key: value for key, value in content.items() if value is not None}


def converted(parser: argparse.ArgumentParser, action: argparse.Action, value):
    """Return a file's value as the command line would have given it.

    Raises:
        ValueError: it is not what the argument takes; says what is expected and what was given.
    """
    if not takes_value(action):
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false; got {value!r}")
        if isinstance(action, argparse.BooleanOptionalAction):
            return value
        return action.const if value else action.default
    if isinstance(action, argparse._AppendAction):
        items = value if isinstance(value, list) else [value]
        return [_values(parser, action, item) for item in items]
    return _values(parser, action, value)


def _values(parser: argparse.ArgumentParser, action: argparse.Action, value):
    if action.nargs in (None, argparse.OPTIONAL):
        return _value(parser, action, value)
    if isinstance(value, dict):  # of an option that takes NAME=VALUE
        items = [f"{name}={json.dumps(item)}" for name, item in value.items()]
    else:
        items = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        raise ValueError(f"expected a list of {action.nargs}; got {value!r}")
    if action.nargs == argparse.ONE_OR_MORE and not items and action.default != []:
        raise ValueError("expected a list of at least one; got []")
    return [_value(parser, action, item) for item in items]


def _value(parser: argparse.ArgumentParser, action: argparse.Action, value):
    if isinstance(value, (bool, list, dict)) or value is None:
        hint = ", in quotes if that is a word" if isinstance(value, bool) else ""
        raise ValueError(f"expected one value{hint}; got {value!r}")
    try:
        result = parser._get_value(action, str(value))
        parser._check_value(action, result)
    except argparse.ArgumentError as error:
        raise ValueError(error.message) from None
    return result


def as_yaml(parser: argparse.ArgumentParser, values: argparse.Namespace, typed: dict, comments: dict[str, str]) -> str:
    """Return all arguments as YAML with comments; ``--config`` takes it back.

    Args:
        parser: whose arguments they are.
        values: what was parsed.
        typed: what was given, on the command line or in a file, for each action that was, before conversion.
        comments: from :func:`explanations`.
    """
    known = settings(parser)
    lines = [f"# Options of {parser.prog}; null: not given. Relative paths start from the current folder."]
    for group in parser._action_groups:
        keys = [key for key, action in known.items() if action in group._group_actions]
        if keys and group.title not in ("positional arguments", "options", "optional arguments"):
            lines += ["", f"# -- {group.title}"]
        for key in keys:
            shown = _shown(known[key], getattr(values, known[key].dest, None), typed)
            flow = None if isinstance(shown, list) else False  # lists in one line
            text = yaml.safe_dump({key: shown}, default_flow_style=flow, width=10**6, allow_unicode=True).rstrip("\n")
            lines += [f"# {comments[key]}", text]
    return "\n".join(lines) + "\n"


def explanations(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return a line for each argument: its help, what it may be, and whether it is needed."""
    found = {}
    for key, action in settings(parser).items():
        text = help_of(parser, action)
        if action.choices is not None:
            text += f" [{', '.join(map(str, action.choices))}]"
        found[key] = text + (" [required]" if action.required else "")
    return found


def _shown(action: argparse.Action, value, typed: dict):
    if not takes_value(action):
        return bool(value) if isinstance(action, argparse.BooleanOptionalAction) else value == action.const
    if action.type in _KNOWN_TYPES:
        return _plain(value)
    if action in typed:  # of other types only their text is known to lead back to them
        return typed[action]
    return value if isinstance(value, (int, float, str)) else None


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value

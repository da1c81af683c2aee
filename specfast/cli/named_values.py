"""NAME=VALUE, as the options of models and heads are given on the command line."""

from __future__ import annotations

import argparse
import re

import yaml


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as in YAML 1.2 and everywhere else on the command line."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def pair(text: str) -> tuple[str, object]:
    """Read NAME=VALUE, the value as YAML; a hyphen in the name is read as an underscore.

    Raises:
        argparse.ArgumentTypeError: it is no such pair, or the value is no YAML; in one line.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name.replace("-", "_"), yaml.load(value, _Loader)
    except yaml.YAMLError:  # its own text takes several lines
        raise argparse.ArgumentTypeError(f"{name}: expected a value in YAML, got {value!r}") from None

"""Skips what needs a package that is not here, or that does not import beside this torch, and says why."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def require():
    """Return a function that imports a module or skips the test."""

    def load(name: str, extra: str | None = None):
        try:
            return importlib.import_module(name)
        except Exception as error:  # a package whose own imports fail raises whatever these raise
            hint = f'; pip install "specfast[{extra}]"' if extra else ""
            pytest.skip(f"{name} cannot be imported here ({type(error).__name__}: {error}){hint}")

    return load

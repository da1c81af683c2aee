"""The optional C++ extension specfast._C: loaded once and, when it is missing, why and what mends it."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch  # noqa: F401  before the extension, so that both use the OpenMP runtime torch brings


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """Return specfast._C and "", or None and the reason, in one line with its cure. Never raises, never warns."""
    if os.environ.get("SPECFAST_NO_EXT", "0") not in ("", "0"):
        return None, "left out because SPECFAST_NO_EXT is set"
    try:
        return importlib.import_module("specfast._C"), ""
    except ModuleNotFoundError:
        return None, (
            "not built when specfast was installed: no working C++17 compiler was found, or SPECFAST_NO_EXT was set; "
            "install a compiler (g++ or clang++), then specfast again from its sources: pip install ."
        )
    except ImportError as error:
        return None, f"built, but does not load here ({error}); install specfast again from its sources: pip install ."


@functools.cache
def extension() -> ModuleType | None:
    """Return specfast._C for an operator that wants it; None, with one warning a process, when it cannot be had.

    The warning is omitted when SPECFAST_NO_EXT is set: then its absence is a wish.
    """
    module, reason = load()
    if module is None and os.environ.get("SPECFAST_NO_EXT", "0") in ("", "0"):
        warnings.warn(
            f"specfast._C (fast CPU operators) is {reason}. Slower PyTorch operators are used instead.",
            RuntimeWarning,
            stacklevel=3,
        )
    return module

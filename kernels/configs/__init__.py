"""Checked-in tile sizes of the Triton kernels, one JSON file an architecture.

A file maps kernel -> bits of the dtype ("16" or "32") -> launch parameters. An entry named after a size and a power of
two, such as ``"P256"``, holds what changes where that size, rounded up to a power of two, is that one or larger:

    {"kernel": {"16": {"BLOCK_C": 16, "num_warps": 8, "num_stages": 2, "P256": {"BLOCK_C": 4}}}}

Ordinary calls only read these files; the benchmark's tuner tries others through :func:`override` and writes them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

_overrides: dict[str, dict[str, int]] = {}


@functools.cache
def all_configs(architecture: str) -> dict[str, dict[str, dict]]:
    """Everything known of one architecture: kernel -> bits -> launch parameters."""
    return json.loads((Path(__file__).parent / f"{architecture}.json").read_text())


def config(kernel: str, dtype: torch.dtype, architecture: str, **sizes: int) -> dict[str, int]:
    """Return the launch parameters of a kernel: its BLOCK_* constants, num_warps and num_stages.

    ``sizes`` are those by which the entry may differ (P, R, k): never one that changes from call to call.
    """
    return _resolved(kernel, dtype.itemsize * 8, architecture, tuple(sizes.items())) | _overrides.get(kernel, {})


@functools.cache
def _resolved(kernel: str, bits: int, architecture: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, int]:
    entry = all_configs(architecture)[kernel][str(bits)]
    values = {name: value for name, value in entry.items() if not isinstance(value, dict)}
    for name, size in sizes:
        power = 1
        while power <= bucket(size):
            values |= entry.get(f"{name}{power}", {})
            power *= 2
    return values


def bucket(size: int) -> int:
    """The power of two that a size is filed under."""
    return 1 << max(size - 1, 0).bit_length()


@contextlib.contextmanager
def override(kernel: str, **values: int) -> Iterator[None]:
    """Replace launch parameters of one kernel inside, in all threads: for the tuner and for tests."""
    before = _overrides.get(kernel)
    _overrides[kernel] = (before or {}) | values
    try:
        yield
    finally:
        if before is None:
            del _overrides[kernel]
        else:
            _overrides[kernel] = before

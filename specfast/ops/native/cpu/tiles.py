"""Cutting bands and tokens into tiles that stay in the caches, and memory that one tile after the other uses.

A tile's buffers stay in the last-level cache; those of a group of its bands, which the small batched GEMMs and the
passes over pixels take at a time, stay next to the core.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_BYTES = 6 << 20
GROUP_BYTES = 1 << 19


def parts(whole: slice, item_bytes: int, budget: int, least: int = 8) -> Iterator[slice]:
    """Split a slice into nearly equal ones of at most ``budget`` bytes, or of ``least`` items where these are more."""
    count = whole.stop - whole.start
    number = -(-count // max(least, budget // max(1, item_bytes)))
    for i in range(number):
        yield slice(whole.start + count * i // number, whole.start + count * (i + 1) // number)


def groups(bands: slice, band_bytes: int) -> Iterator[slice]:
    """Split the bands of a tile."""
    return parts(bands, band_bytes, GROUP_BYTES, least=2)


class Buffer:
    """Memory in the dtype of ``like`` that grows to the largest view asked for."""

    def __init__(self, like: Tensor):
        self.memory = like.new_empty(0)

    def view(self, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if self.memory.numel() < size:
            self.memory = self.memory.new_empty(size)
        return self.memory[:size].view(shape)

"""Sizes that are measured: the base model's, and smaller ones to try the benchmarks themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MASK_RATIO = 0.75


@dataclass(frozen=True)
class Sizes:
    """What does not change with the batch: p, R, k, E, D of a model; the name of one with these sizes."""

    model: str
    patch: int
    rank: int
    condition: int
    width: int
    decoder_width: int

    @property
    def hidden(self) -> int:
        return self.condition // 2

    @property
    def pixels(self) -> int:
        return self.patch**2


BASE = Sizes("specaware_base_patch8", patch=8, rank=64, condition=128, width=768, decoder_width=512)
TINY = Sizes("specaware_tiny_patch8", patch=8, rank=64, condition=128, width=192, decoder_width=128)


@dataclass(frozen=True)
class Shape:
    """Samples, bands of each, side of the square image in pixels, and the model's sizes."""

    samples: int
    bands: int
    side: int = 224
    sizes: Sizes = BASE

    def __str__(self) -> str:
        model = "" if self.sizes == BASE else f"-{self.sizes.model.split('_')[1]}"
        return f"B{self.samples}-C{self.bands}-{self.side}px{model}"

    @property
    def patches(self) -> int:
        return (self.side // self.sizes.patch) ** 2

    @property
    def kept(self) -> int:
        return int(self.patches * (1 - MASK_RATIO))

    @property
    def removed(self) -> int:
        return self.patches - self.kept

    @property
    def all_bands(self) -> int:
        return self.samples * self.bands

    def cu_bands(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.samples + 1, dtype=torch.int32, device=device) * self.bands


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

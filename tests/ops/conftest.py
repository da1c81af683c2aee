"""Random operator arguments in the packed layout, in float64 so that every precision starts from the same numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 3.5e-3}


@dataclass(frozen=True)
class Case:
    """Sizes of one operator test."""

    bands: tuple[int, ...]
    tokens: int
    pixels: int = 16
    rank: int = 8
    hidden: int = 6
    width: int = 24

    def __str__(self) -> str:
        bands = "x".join(map(str, self.bands))
        return f"C{bands}-N{self.tokens}-P{self.pixels}-R{self.rank}-k{self.hidden}-E{self.width}"

    @property
    def cu_bands(self) -> torch.Tensor:
        return torch.tensor([0, *itertools.accumulate(self.bands)], dtype=torch.int32)

    def embed(self, seed: int = 0) -> dict[str, torch.Tensor]:
        rand = _normal(seed)
        s = sum(self.bands)
        return {
            "patches": rand(s, self.tokens, self.pixels),
            "factors_v": rand(s, self.rank, self.pixels),
            "hidden": rand(s, self.hidden),
            "weight": rand(self.width, self.rank, self.hidden),
            "bias": rand(self.width, self.rank),
        }

    def linear(self, seed: int = 0) -> dict[str, torch.Tensor]:
        rand = _normal(seed)
        s = sum(self.bands)
        return {
            "tokens": rand(len(self.bands), self.tokens, self.width),
            "hidden": rand(s, self.hidden),
            "weight": rand(self.rank, self.width, self.hidden),
            "bias": rand(self.rank, self.width),
            "factors_u": rand(s, self.pixels, self.rank),
            "pixel_bias": rand(s, self.pixels),
        }

    def target(self, seed: int = 1) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(sum(self.bands), self.tokens, self.pixels, generator=generator, dtype=torch.float64)
        valid = torch.rand(len(self.bands), self.tokens, self.pixels, generator=generator) > 0.3
        return {"target": target * 8, "valid": valid}


def _normal(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


CASES = [
    Case((5, 5), 7),
    Case((3, 9, 1), 4),  # ragged
    Case((63,), 1, pixels=25, rank=5, hidden=3, width=17),  # odd sizes
    Case((1,), 1, pixels=1, rank=1, hidden=1, width=1),
    Case((4, 0, 3), 2),  # a sample without bands
    Case((4, 2), 0),  # no tokens
    Case((40, 70), 33, pixels=64, rank=64, hidden=64, width=96),
]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str)
    if "form" in metafunc.fixturenames:
        metafunc.parametrize("form", ["direct", "reassociated"])
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill ``torch.empty`` with NaN, so that an output element nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]

"""A small encoder and images of one sensor."""

from __future__ import annotations

import pytest
import torch

from specfast import SpectralBatch
from specfast.data import BandTable
from tests.models.conftest import make_model, make_sample

BANDS = 12


def images(samples: int = 2, height: int = 32, width: int = 32, *, contrast: float = 1.0) -> SpectralBatch:
    """Samples of the same bands; their content differs the more, the larger the contrast."""
    table = BandTable.of(make_sample(BANDS))
    generator = torch.Generator().manual_seed(samples + height)
    brightness = torch.linspace(1, contrast, samples)[:, None, None, None]
    return table.batch(torch.rand(samples, BANDS, height, width, generator=generator) * brightness)


def plain(batch: SpectralBatch) -> torch.Tensor:
    return batch.image.unflatten(0, (len(batch), -1))


@pytest.fixture
def encoder():
    return make_model("encoder", depth=2).eval()


@pytest.fixture
def bands() -> BandTable:
    return BandTable.of(make_sample(BANDS))

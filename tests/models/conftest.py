"""Small models and batches for the model tests."""

from __future__ import annotations

import pytest
import torch

import specfast
from specfast import SpectralBatch, SpectralSample

TINY = {
    "image_size": 32,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def make_sample(bands: int, height: int = 32, width: int = 32, *, seed: int = 0, **changes) -> SpectralSample:
    generator = torch.Generator().manual_seed(seed + 1000 * bands)
    values = {
        "image": torch.rand(bands, height, width, generator=generator),
        "wavelength": torch.linspace(400, 2400, bands),
        "fwhm": torch.full((bands,), 9.0) + torch.rand(bands, generator=generator),
        "gsd": 4.0 + bands / 10,
        "sensor": "av3",
        "level": "L2",
        **changes,
    }
    return SpectralSample(**values)


def make_model(task: str = "pretrain", **overrides):
    torch.manual_seed(0)
    model = specfast.create_model("specaware_tiny_patch8", task=task, **{**TINY, **overrides})
    with torch.no_grad():  # so that a missing bias or zero-initialized head shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        model.patch_embed.scaler.fill_(0.3)
    return model


@pytest.fixture
def mixed_samples() -> list[SpectralSample]:
    """Different band counts, sensors, levels, GSDs and sizes, one with invalid pixels."""
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:13, 5:] = False
    return [
        make_sample(12),
        make_sample(5, sensor="avc", level="L1", gsd=20.0),
        make_sample(70, 17, 24, sensor="avng"),
        make_sample(12, seed=1, valid=valid),
        make_sample(9, 10, 10, sensor="others"),
    ]


@pytest.fixture
def batch() -> SpectralBatch:
    return SpectralBatch.from_samples([make_sample(12), make_sample(12, seed=1)])

"""A store of two sensors, and options of a run small enough to take well under a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specfast.data import SpectralImage, prepare
from specfast.train import PretrainConfig

TINY = {
    "model": "specaware_tiny_patch8",
    "model_options": {
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "decoder_embed_dim": 32,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    "crop": 32,
    "bands": (4, 9),
    "batch_size": 2,
    "lr": 1e-3,
    "device": "cpu",
    "workers": 1,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Compute in one thread: results do not depend on how many cores there are, and small tensors are quicker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _scene(name: str, sensor: str, bands: int, height: int, width: int, gsd: float) -> SpectralImage:
    generator = np.random.default_rng(bands)
    materials = generator.random((4, height, width))
    image = np.tensordot(generator.random((bands, 4)), materials, axes=1).astype(np.float32) / 4
    image[:, 3:9, 5:9] = np.nan  # pixels without a measurement
    return SpectralImage.from_array(
        image,
        wavelength=np.linspace(450, 900, bands),
        fwhm=np.full(bands, 8.0),
        gsd=gsd,
        sensor=sensor,
        level="L2",
        name=name,
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """Six tiles of 40 x 40 with 12 bands and one of 28 x 20, less than a crop, with 8."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    prepare([_scene("wide", "avng", 12, 120, 80, 5.0), _scene("small", "avc", 8, 28, 20, 17.0)], folder, tile=40)
    return folder


@pytest.fixture
def options(store, tmp_path) -> dict:
    return {**TINY, "data": (str(store),), "out": str(tmp_path / "run"), "steps": 4}


@pytest.fixture
def config(options) -> PretrainConfig:
    return PretrainConfig(**options)


@pytest.fixture
def no_dropout(monkeypatch):
    """Switch dropout off: the one thing that differs between ways to spread samples over passes and processes."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)

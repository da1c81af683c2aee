"""Small scenes of fields whose spectra tell their class, and an encoder for them."""

from __future__ import annotations

import numpy as np
import torch

import specfast
from specfast import SpectralSample
from tests.models.conftest import TINY

BANDS = 12
WAVELENGTH = torch.linspace(450, 2300, BANDS)


def make_encoder():
    torch.manual_seed(0)
    return specfast.create_model(
        "specaware_tiny_patch8", task="encoder", **{**TINY, "generator_init": "fan_in", "image_size": 32}
    ).eval()


def make_scene(height=24, width=30, seed=0, classes=3, noise=0.3) -> tuple[SpectralSample, np.ndarray]:
    """Fields of 6 x 6 pixels; each class has a spectrum of its own."""
    rng = np.random.default_rng(seed)
    fields = rng.permutation(np.arange(-(-height // 6) * -(-width // 6)) % classes) + 1
    labels = fields.reshape(-(-height // 6), -1).repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    spectra = np.random.default_rng(99).random((classes + 1, BANDS))
    image = spectra[labels] + noise * rng.normal(size=(height, width, BANDS))
    return make_sample(np.moveaxis(image, -1, 0)), labels


def make_sample(image, **changes) -> SpectralSample:
    values = {
        "image": torch.as_tensor(np.asarray(image), dtype=torch.float32),
        "wavelength": WAVELENGTH,
        "fwhm": torch.full((BANDS,), 10.0),
        "gsd": 20.0,
        "sensor": "avc",
        "level": "L2",
    }
    return SpectralSample(**{**values, **changes})

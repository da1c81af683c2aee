"""Scenes in memory, and predictors that compute something known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast.data import SpectralImage
from specfast.infer import Predictor
from specfast.models import create_model

WAVELENGTH, FWHM = np.linspace(450, 2300, 6), np.full(6, 10.0)
UTM, TURNED = "EPSG:32633", (30.0, 4.0, 400000.0, 4.0, -30.0, 5800000.0)


@pytest.fixture
def make_image():
    """Make a scene of six bands; ``holes`` are windows (row, column, height, width) without data."""

    def make(height, width, *, holes=(), seed=0, transform=TURNED, **options):
        cube = np.random.default_rng(seed).random((6, height, width), dtype=np.float32)
        for row, column, h, w in holes:
            cube[:, row : row + h, column : column + w] = np.nan
        known = {"wavelength": WAVELENGTH, "fwhm": FWHM, "gsd": 30.0, "sensor": "others", "level": "L2"}
        image = SpectralImage.from_array(cube, **{**known, **options})
        image.crs, image.transform = UTM, transform
        return image

    return make


class Bands(Predictor):
    """The first two bands as they are: what a map must hold is known for every pixel, whatever the windows.

    With ``context`` something of the window's mean joins in, as in a model: windows disagree on the pixels they share.
    """

    outputs = ("first", "second")
    window, overlap = 16, 0.4
    identity = "bands"
    context = 0.0

    def __init__(self, **changes):
        vars(self).update(changes)
        self.seen = 0

    def __call__(self, samples):
        self.seen += len(samples)
        values = torch.stack([sample.image[:2] for sample in samples])
        return values + self.context * values.mean(dim=(2, 3), keepdim=True)


class Classes(Bands):
    """Probabilities of two classes from the first two bands."""

    kind = "classes"
    quantity = "class"

    def __call__(self, samples):
        values = super().__call__(samples)
        return values / values.sum(dim=1, keepdim=True).clamp_min(1e-6)


@pytest.fixture
def bands():
    return Bands


@pytest.fixture
def classes():
    return Classes


@pytest.fixture(scope="session")
def encoder():
    """A small encoder with fixed weights that has something to say."""
    torch.manual_seed(0)
    return create_model(
        "specaware_tiny_patch4", task="encoder", image_size=32, embed_dim=32, num_heads=2, depth=2, rank=8,
        condition_dim=16, generator_init="fan_in",
    ).eval()  # fmt: skip

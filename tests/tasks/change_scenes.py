"""Two dates of made-up fields, a small encoder and quick options, for the tests of change detection."""

from __future__ import annotations

import numpy as np
import torch

import specfast
from specfast import SpectralSample
from specfast.tasks.change_options import ChangeOptions
from specfast.tasks.options import FitOptions

SMALL = {"image_size": 32, "embed_dim": 16, "depth": 4, "num_heads": 2, "rank": 4, "condition_dim": 16}
QUICK = ChangeOptions(fit=FitOptions(steps=40, lr=1e-2, precision="float32"), head="mlp", head_options={"upsample": 1})


def make_scenes(height=40, width=48, bands=8, seed=0):
    """Two dates of fields with their own spectra; some fields have become others. Returns samples and labels."""
    rng = np.random.default_rng(seed)
    spectra = np.cumsum(rng.uniform(-0.2, 0.3, size=(6, bands)), axis=1) + 0.5
    fields = rng.integers(0, 6, size=(height // 8, width // 8))
    later = np.where(rng.random(fields.shape) < 0.3, (fields + rng.integers(1, 6, fields.shape)) % 6, fields)
    wide = [np.kron(one, np.ones((8, 8), dtype=int)) for one in (fields, later)]
    wavelength = torch.linspace(450, 2300, bands)
    samples = []
    for one in wide:
        cube = spectra[one] + 0.05 * rng.normal(size=(height, width, bands))
        image = torch.from_numpy(cube.transpose(2, 0, 1).copy()).float()
        samples.append(SpectralSample(image, wavelength, torch.full((bands,), 20.0), 4.0, "av3", "L2"))
    return *samples, np.where(wide[0] == wide[1], 1, 2)


def make_encoder():
    torch.manual_seed(0)
    return specfast.create_model("specaware_tiny_patch8", task="encoder", **SMALL).eval()


def drawn(labels, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.sort(
        np.concatenate([rng.choice(np.flatnonzero(labels.ravel() == c), count, replace=False) for c in (1, 2)])
    )

"""One batch of five real sensors, whose sizes the patch size does not divide, through the whole model."""

from __future__ import annotations

import pytest
import torch

from specfast import SpectralBatch
from specfast.testing import assert_close
from tests.data.samples import mixed_samples
from tests.models.conftest import make_model


@pytest.mark.filterwarnings("ignore:sensor .* has no published description")
def test_aviris_enmap_casi_rosis_and_emit_in_one_batch(shared):
    samples = mixed_samples(shared)
    batch = SpectralBatch.from_samples(samples)
    assert len(set(batch.band_counts)) >= 4
    assert batch.valid is not None
    model = make_model().eval()
    rows, columns = (side // 8 for side in batch.image.shape[-2:])
    noise = torch.rand(len(samples), rows, columns, generator=torch.Generator().manual_seed(0))
    out = model(batch, mask_noise=noise.flatten(1), return_prediction=True)
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    for number, sample in enumerate(samples):
        h, w = (-(-side // 8) for side in sample.image.shape[-2:])
        alone = model(SpectralBatch.from_samples([sample]), mask_noise=noise[number : number + 1, :h, :w].flatten(1))
        kept = alone.latent.shape[1]
        assert_close(out.latent[number, :kept], alone.latent[0], 1e-5, f"latent of {sample.sensor}")
        assert out.mask[number].sum() == alone.mask.sum() > 0
        assert out.prediction[number].shape == (rows * columns, 64 * sample.image.shape[0])

"""Samples of five sensors in one batch."""

from __future__ import annotations

import pytest
import torch

from specfast.batch import SpectralBatch

from .samples import mixed_samples


@pytest.mark.filterwarnings("ignore:sensor .* has no published description")
def test_five_sensors_in_one_batch(shared):
    samples = mixed_samples(shared)
    assert [len(sample.wavelength) for sample in samples] == [204, 218, 72, 103, 244]
    batch = SpectralBatch.from_samples(samples)
    assert batch.image.shape == (204 + 218 + 72 + 103 + 244, 32, 32)
    assert batch.sensor[0] == "avc"
    assert batch.level == ("L2",) * 5
    torch.testing.assert_close(batch.gsd, torch.tensor([16.9, 30, 1, 1.3, 60]))
    assert batch.valid.sum(dim=(1, 2)).tolist() == [int(sample.valid.sum()) for sample in samples]
    assert bool(torch.isfinite(batch.image).all())
    for number, sample in enumerate(samples):
        h, w = sample.valid.shape
        assert h % 8 or w % 8
        own = batch.image[batch.cu_bands[number] : batch.cu_bands[number + 1]]
        assert torch.equal(own[:, :h, :w], sample.image)
        assert not own[:, h:].any()
        assert not batch.valid[number, :, w:].any()
        # Reflectance, not reflectance times 10000, and not all the same.
        assert 0.01 < float(sample.image[:, sample.valid].mean()) < 0.7
        assert float(sample.image[:, sample.valid].std()) > 0.01

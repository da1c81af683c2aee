"""SpecAwareEncoder: shapes, levels, sharing, other image sizes, ragged batches."""

from __future__ import annotations

import pytest
import torch

from specfast import SpectralBatch
from specfast.testing import assert_close
from tests.models.conftest import make_model, make_sample


@pytest.mark.parametrize(("depth", "after"), [(1, [1, 1, 1, 1]), (3, [1, 2, 3, 3]), (4, [1, 2, 3, 4])])
def test_levels_are_evenly_spaced(depth, after, batch):
    encoder = make_model("encoder", depth=depth).eval()
    seen = {}
    for number, block in enumerate(encoder.blocks, start=1):
        block.register_forward_hook(lambda _m, _i, out, number=number: seen.update({number: out}))
    features = encoder(batch)
    for level, number in zip(features.levels, after, strict=True):
        tokens = seen[number] if number < depth else encoder.norm(seen[number])
        assert torch.equal(level, tokens[:, 1:].mT.unflatten(-1, (4, 4)))


def test_encoder_of_a_pretraining_model_shares_its_weights(batch):
    model = make_model().eval()
    encoder = model.encoder()
    assert {p.data_ptr() for p in encoder.parameters()} <= {p.data_ptr() for p in model.parameters()}
    features = encoder(batch)
    noise = torch.arange(16.0).expand(2, -1)
    latent = model(batch, mask_ratio=0.0, mask_noise=noise).latent
    assert_close(features.cls, latent[:, 0], 1e-6)
    assert_close(features.tokens, latent[:, 1:], 1e-6)


def test_other_image_sizes(batch):
    encoder = make_model("encoder").eval()
    sample = make_sample(6, 72, 40)
    features = encoder(SpectralBatch.from_samples([sample]))
    assert features.tokens.shape == (1, 45, 32)
    assert [level.shape for level in features.levels] == [(1, 32, 9, 5)] * 4


def test_mixed_batch_equals_samples_alone(mixed_samples):
    encoder = make_model("encoder").eval()
    together = encoder(SpectralBatch.from_samples(mixed_samples))
    for number, sample in enumerate(mixed_samples):
        alone = encoder(SpectralBatch.from_samples([sample]))
        h, w = alone.levels[0].shape[-2:]
        assert_close(together.cls[number], alone.cls[0], 1e-5, f"cls of sample {number}")
        final = together.levels[3][number, :, :h, :w]
        assert_close(final, alone.levels[3][0], 1e-5, f"last level of sample {number}")

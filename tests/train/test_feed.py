"""Mask noise is a pure function of the seed and the sample's number."""

from __future__ import annotations

import itertools

import torch

from specfast import create_model
from specfast.data import SpectralLoader
from specfast.train.feed import feed, mask_noise


def test_noise_depends_on_seed_and_sample_number_alone():
    whole = mask_noise(7, 100, 6, 5)
    assert whole.shape == (6, 5, 5)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[2:5], mask_noise(7, 102, 3, 5))
    assert not torch.equal(whole, mask_noise(8, 100, 6, 5))
    assert len({tuple(sample.flatten().tolist()) for sample in whole}) == 6


def test_noise_is_uniform_and_leaves_torch_alone():
    before = torch.get_rng_state()
    noise = mask_noise(0, 0, 64, 28).flatten(1).double()
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 <= float(noise.min()) < 1e-3
    assert 0.999 < float(noise.max()) < 1
    deciles = torch.histc(noise, bins=10, min=0, max=1) / noise.numel()
    assert float((deciles - 0.1).abs().max()) < 6e-3  # four standard deviations
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.2


def test_a_sample_is_masked_the_same_in_whatever_batch(store):
    """Alone, the small tile is padded to 4 x 3 patches; beside others it is padded to 4 x 4."""
    model = create_model("specaware_tiny_patch8", image_size=32, embed_dim=32, depth=1, num_heads=2)

    def masks(batch_size, count):
        loader = SpectralLoader(store, batch_size=batch_size, crop=32, bands=4, workers=0, seed=3)
        for batch, noise in itertools.islice(feed(loader, model, torch.device("cpu")), count):
            rows, columns = model.patch_grid(batch)
            mask = model.eval()(batch, mask_noise=noise).mask.unflatten(1, (rows, columns))
            for sample, sensor in zip(mask, batch.sensor, strict=True):
                yield (columns, sensor), sample[:, :3]

    alone, together = list(masks(1, 8)), list(masks(4, 2))
    assert (3, "avc") in {kind for kind, _ in alone}
    assert (3, "avc") not in {kind for kind, _ in together}
    for (_, a), (_, b) in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_ranks_and_resumed_runs_get_the_noise_of_their_samples(store):
    model = create_model("specaware_tiny_patch8", image_size=32, embed_dim=32, depth=1, num_heads=2)

    def take(first, count, **options):
        loader = SpectralLoader(store, crop=32, bands=4, workers=0, seed=3, **options)
        loader.step = first
        return list(itertools.islice(feed(loader, model, torch.device("cpu")), count))

    whole = take(0, 2, batch_size=4)
    for rank in (0, 1):
        parts = take(0, 2, batch_size=2, rank=rank, world_size=2)
        for (batch, noise), (part, part_noise) in zip(whole, parts, strict=True):
            assert torch.equal(part_noise, noise[2 * rank : 2 * rank + 2])
            assert part.sensor == batch.sensor[2 * rank : 2 * rank + 2]
    (batch, noise), (later, later_noise) = whole[1], take(1, 1, batch_size=4)[0]
    assert torch.equal(noise, later_noise)
    assert torch.equal(batch.image, later.image)

"""However samples are spread over passes, the gradient is that of one large batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from specfast import SpectralBatch, SpectralSample, create_model
from specfast.testing import assert_close, relative_rms
from specfast.train.distributed import World
from specfast.train.feed import mask_noise
from specfast.train.gradients import compute_gradient, removed_pixels

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    return create_model("specaware_tiny_patch8", image_size=32, **sizes, **decoder).eval()  # no dropout


def samples(holes: bool) -> list[SpectralSample]:
    """Four samples of 5 to 8 bands; with ``holes`` up to half of their pixels hold no measurement."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(4):
        bands = 5 + number
        valid = torch.ones(32, 32, dtype=torch.bool)
        if holes:
            valid[:, : 5 * number] = False
        image = torch.rand(bands, 32, 32, generator=generator)
        table = torch.linspace(450, 900, bands), torch.full((bands,), 8.0)
        made.append(SpectralSample(image, *table, gsd=5.0, sensor="avng", level="L2", valid=valid))
    return made


def parts(chosen: list[SpectralSample], size: int) -> list[tuple[SpectralBatch, torch.Tensor]]:
    noise = mask_noise(0, 0, len(chosen), 4).flatten(1)
    return [
        (SpectralBatch.from_samples(chosen[first : first + size]), noise[first : first + size])
        for first in range(0, len(chosen), size)
    ]


def gradient(model, chosen, size, **options):
    split = parts(chosen, size)
    update = compute_gradient(model, model, split, count=len(split), mask_ratio=0.75, world=ALONE, **options)
    return update, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("holes", [False, True], ids=["all-valid", "holes"])
@pytest.mark.parametrize("size", [1, 2])
def test_accumulation_equals_the_large_batch(model, holes, size):
    whole, expected = gradient(model, samples(holes), 4)
    spread, actual = gradient(model, samples(holes), size)
    for name in expected:
        assert_close(actual[name], expected[name], 2e-5, name)
    for field in dataclasses.fields(whole):
        assert getattr(spread, field.name) == pytest.approx(getattr(whole, field.name), rel=1e-5), field.name


def test_a_mean_of_means_would_differ(model):
    """The weights matter: without them the test above would fail on samples with holes."""
    chosen = samples(holes=True)
    _, expected = gradient(model, chosen, 4)
    single = [gradient(model, [sample], 1)[1] for sample in chosen]
    name = "decoder_embed.weight"
    mean = torch.stack([gradients[name] for gradients in single]).mean(dim=0)
    assert relative_rms(mean, expected[name]) > 0.02


@pytest.mark.parametrize("holes", [False, True], ids=["all-valid", "holes"])
def test_the_gradient_is_that_of_the_loss(model, holes):
    update, actual = gradient(model, samples(holes), 4)
    model.zero_grad()
    (batch, noise), *_ = parts(samples(holes), 4)
    out = model(batch, mask_ratio=0.75, mask_noise=noise)
    out.loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in expected:
        assert_close(actual[name], expected[name], 2e-6, name)
    norm = torch.linalg.vector_norm(torch.cat([value.flatten() for value in expected.values()]))
    assert update.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert update.loss == pytest.approx(out.loss.item(), rel=1e-6)


@pytest.mark.parametrize("holes", [False, True], ids=["all-valid", "holes"])
def test_removed_pixels_are_those_of_the_loss(model, holes):
    (batch, noise), *_ = parts(samples(holes), 4)
    mask = model(batch, mask_noise=noise).mask
    expected = 0
    for b in range(4):
        for patch in mask[b].nonzero().flatten().tolist():
            row, col = divmod(patch, 4)
            window = (slice(8 * row, 8 * row + 8), slice(8 * col, 8 * col + 8))
            expected += 64 if batch.valid is None else int(batch.valid[b][window].sum())
    assert removed_pixels(model, batch, mask).item() == expected


def test_clipping_scales_all_gradients_alike(model):
    free, unclipped = gradient(model, samples(False), 4)
    limit = free.grad_norm / 3
    clipped, actual = gradient(model, samples(False), 4, clip_norm=limit)
    assert clipped.grad_norm == free.grad_norm  # reported before clipping
    for name in actual:
        torch.testing.assert_close(actual[name], unclipped[name] / 3, rtol=1e-5, atol=1e-9)
    _, loose = gradient(model, samples(False), 4, clip_norm=2 * free.grad_norm)
    assert all(torch.equal(loose[name], unclipped[name]) for name in loose)


def test_not_finite_and_stop_are_reported(model):
    update, _ = gradient(model, samples(False), 4, stop=True)
    assert update.finite
    assert update.stop
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    assert not gradient(model, samples(False), 4)[0].finite


def test_bf16_stays_near_float32(model):
    full, expected = gradient(model, samples(True), 4)
    low, actual = gradient(model, samples(True), 4, bf16=True)
    assert low.loss == pytest.approx(full.loss, rel=1e-2)
    assert actual["decoder_embed.weight"].dtype == torch.float32
    assert 0 < relative_rms(actual["decoder_embed.weight"], expected["decoder_embed.weight"]) < 0.05

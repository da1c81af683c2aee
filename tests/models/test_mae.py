"""SpecAwareMAE: ragged batches, invalid pixels, masking, precision, compilation, checkpointing."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch._dynamo.testing

import specfast
from specfast import SpectralBatch
from specfast.models.condition import over_bands
from specfast.models.masking import kept_count, random_masking
from specfast.testing import assert_close
from tests.models.conftest import TINY, make_model, make_sample


def noise_for(samples, patch_size=8):
    """One noise per patch position of the common grid, and its part that each sample's own grid sees."""
    batch = SpectralBatch.from_samples(samples, patch_size)
    rows, columns = (size // patch_size for size in batch.image.shape[-2:])
    noise = torch.rand(len(samples), rows, columns, generator=torch.Generator().manual_seed(3))
    own = []
    for number, sample in enumerate(samples):
        h, w = (-(-size // patch_size) for size in sample.image.shape[-2:])
        own.append(noise[number, :h, :w].reshape(1, -1))
    return batch, noise.flatten(1), own


def test_a_sample_in_a_mixed_batch_equals_the_sample_alone(mixed_samples):
    model = make_model().eval()
    batch, noise, own = noise_for(mixed_samples)
    out = model(batch, mask_noise=noise, return_prediction=True)
    rows, columns = (size // 8 for size in batch.image.shape[-2:])
    totals = torch.zeros(3, dtype=torch.float64)
    for number, sample in enumerate(mixed_samples):
        alone = model(SpectralBatch.from_samples([sample]), mask_noise=own[number], return_prediction=True)
        h, w = (-(-size // 8) for size in sample.image.shape[-2:])
        kept = alone.latent.shape[1]
        assert_close(out.latent[number, :kept], alone.latent[0], 1e-5, f"latent of sample {number}")
        assert not out.latent[number, kept:].any()
        mask = out.mask[number].view(rows, columns)
        assert torch.equal(mask[:h, :w].flatten(), alone.mask[0])
        assert mask.sum() == alone.mask.sum()
        prediction = out.prediction[number].view(rows, columns, -1)[:h, :w].flatten(0, 1)
        present = SpectralBatch.from_samples([sample]).valid
        seen = slice(None) if present is None else present.view(h, 8, w, 8).any(3).any(1).flatten()
        assert_close(prediction[seen], alone.prediction[0][seen], 1e-5, f"prediction of sample {number}")
        pixels = 64.0 * alone.mask.sum() if present is None else _removed_valid_pixels(present, alone.mask, h, w)
        totals += torch.tensor(
            [pixels * float(loss.detach()) for loss in (alone.loss_spectral, alone.loss_charbonnier)] + [pixels]
        )
    assert_close(out.loss_spectral.double(), totals[0] / totals[2], 1e-5, "loss_spectral")
    assert_close(out.loss_charbonnier.double(), totals[1] / totals[2], 1e-5, "loss_charbonnier")


def _removed_valid_pixels(valid, mask, h, w):
    return float((valid.view(h, 8, w, 8).transpose(1, 2).flatten(2) * mask.view(h, w, 1)).sum())


def test_what_invalid_pixels_hold_changes_nothing(mixed_samples):
    model = make_model().eval()
    batch, noise, _ = noise_for(mixed_samples)
    before = model(batch, mask_noise=noise)
    before.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for number, sample in enumerate(mixed_samples):
        if sample.valid is not None:
            image = torch.where(sample.valid, sample.image, torch.nan)
            mixed_samples[number] = dataclasses.replace(sample, image=image, valid=None)
    after = model(SpectralBatch.from_samples(mixed_samples), mask_noise=noise)
    model.zero_grad()
    after.loss.backward()
    assert torch.equal(before.loss, after.loss)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_wholly_invalid_sample_neither_fails_nor_counts():
    model = make_model().eval()
    good = make_sample(6)
    nothing = make_sample(6, seed=2, valid=torch.zeros(32, 32, dtype=torch.bool))
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    both = model(SpectralBatch.from_samples([good, nothing]), mask_noise=noise)
    alone = model(SpectralBatch.from_samples([good]), mask_noise=noise[:1])
    assert_close(both.loss, alone.loss, 1e-5)
    both.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 0.99])
def test_masking_counts(ratio):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4, 50, generator=generator)
    present = torch.rand(4, 50, generator=generator) > torch.tensor([[0.0], [0.4], [0.9], [1.0]])
    masking = random_masking(noise, ratio, present)
    for b in range(4):
        count = int(present[b].sum())
        kept = masking.keep[b][masking.keep_used[b]]
        removed = masking.removed[b][masking.removed_used[b]]
        assert len(kept) == kept_count(count, ratio)
        if count:
            assert set(kept.tolist()) | set(removed.tolist()) == set(present[b].nonzero().flatten().tolist())
            assert len(kept) + len(removed) == count
            assert noise[b, kept].max() <= noise[b, removed].min() if len(removed) else True
            assert torch.equal(noise[b, kept], noise[b, kept].sort().values)
        assert masking.mask[b].sum() == len(removed)
        assert masking.mask[b, removed].all()
    everything = random_masking(noise, ratio, torch.ones_like(present))
    plain = random_masking(noise, ratio, None)
    assert torch.equal(everything.keep, plain.keep)
    assert torch.equal(everything.removed, plain.removed)
    assert torch.equal(everything.mask, plain.mask)


def test_fresh_weights_follow_the_published_initialization():
    torch.manual_seed(0)
    model = specfast.create_model("specaware_tiny_patch8")
    assert float(model.patch_embed.scaler.detach()) == pytest.approx(0.02)
    assert model.patch_embed.spectral_embedding.fusion_weights.tolist() == pytest.approx([0.8, 0.2])
    for module in (model.patch_embed, model.decoder_pred):
        last = module.matrix_generator.bias_generator[-1]
        assert not last.weight.any()
        assert not last.bias.any()
    for name in ("blocks.0.attn.qkv", "decoder_pred.matrix_generator.u_generator.6", "decoder_embed"):
        layer = model.get_submodule(name)
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert float(layer.weight.detach().abs().max()) <= 2.0
        assert not layer.bias.any()


def test_fan_in_generators_start_with_factors_of_ordinary_spread(batch):
    torch.manual_seed(0)
    spread = {}
    for init in ("published", "fan_in"):
        model = specfast.create_model("specaware_tiny_patch8", **TINY, generator_init=init).eval()
        condition = torch.randn(50, model.config.condition_dim)
        for module, columns in ((model.patch_embed, 64), (model.decoder_pred, TINY["decoder_embed_dim"])):
            generators = module.matrix_generator
            spread[init, columns, "v"] = float(generators.v_generator(condition).detach().std()) * columns**0.5
            spread[init, columns, "u"] = float(generators.u_generator(condition).detach().std()) * 64**0.5
        assert torch.isfinite(model(batch).loss)
        assert not model.patch_embed.matrix_generator.bias_generator[-1].weight.any()
    for (init, *_), value in spread.items():
        assert (0.7 < value < 1.4) if init == "fan_in" else value < 0.1
    with pytest.raises(ValueError, match="generator_init: must be 'published' or 'fan_in'; got 'xavier'"):
        specfast.create_model("specaware_tiny_patch8", generator_init="xavier")


def test_bfloat16_autocast_stays_near_float32(batch):
    model = make_model().eval()
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    exact = model(batch, mask_noise=noise)
    exact.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(batch, mask_noise=noise)
    low.loss.backward()
    assert low.loss.dtype == torch.float32
    assert_close(low.loss, exact.loss, 5e-3)
    for name in (
        "patch_embed.matrix_generator.u_generator.6.weight",
        "decoder_pred.matrix_generator.v_generator.6.weight",
    ):
        assert_close(model.get_parameter(name).grad, gradients[name], 0.05, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_converted_to_another_dtype_runs(batch, dtype):
    model = make_model().eval()
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    expected = float(model(batch, mask_noise=noise).loss.detach())
    out = model.to(dtype)(batch, mask_noise=noise)
    out.loss.backward()
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-5 if dtype == torch.float64 else 2e-2)


def test_gradient_checkpointing_changes_nothing(mixed_samples):
    batch, noise, _ = noise_for(mixed_samples)
    results = []
    for checkpointing in (False, True):
        model = make_model(gradient_checkpointing=checkpointing)
        torch.manual_seed(7)
        model(batch, mask_noise=noise).loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_compiles_without_graph_breaks(batch, mixed_samples):
    torch._dynamo.reset()
    model = make_model().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for b in (batch, SpectralBatch.from_samples(mixed_samples)):
        rows, columns = (size // 8 for size in b.image.shape[-2:])
        noise = torch.rand(len(b), rows * columns, generator=torch.Generator().manual_seed(0))
        expected = model(b, mask_noise=noise)
        expected.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        actual = compiled(b, mask_noise=noise)
        actual.loss.backward()
        assert_close(actual.loss, expected.loss, 1e-6)
        assert_close(actual.latent, expected.latent, 1e-5)
        for g, p in zip(gradients, model.parameters(), strict=True):
            assert_close(p.grad, g, 1e-4)
        model.zero_grad()


def test_one_compiled_graph_serves_every_band_layout():
    torch._dynamo.reset()
    model = make_model().eval()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    counted = []
    for layout in [
        (5, 5, 5),
        (7, 7, 7),
        (9, 9, 9),
        (11, 11, 11),
        *itertools.permutations((4, 6, 9)),
        (2, 3, 3),
        (8, 5, 8),
    ]:
        b = SpectralBatch.from_samples([make_sample(bands) for bands in layout])
        assert_close(compiled(b, mask_noise=noise).loss, model(b, mask_noise=noise).loss, 1e-6, str(layout))
        counted.append(graphs.frame_count)
    assert counted[-1] <= 4, counted  # 12 layouts; dense and ragged, each with fixed sizes at first, then with symbols


def test_autocast_keeps_the_residual_stream_in_float32(batch):
    model = make_model().eval()
    seen = []
    for block in (*model.blocks, *model.decoder_blocks):
        block.register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    assert set(seen) == {torch.float32}


def test_what_is_repeated_over_bands_gets_the_sum_of_their_gradients():
    """In bfloat16 too: hundreds of small terms must not be rounded away one after the other."""
    batch = SpectralBatch.from_samples([make_sample(400), make_sample(300, seed=1)])
    content = torch.zeros(2, 8, dtype=torch.bfloat16, requires_grad=True)
    outgoing = torch.rand(700, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    over_bands(content, batch).backward(outgoing)
    expected = torch.stack([part.double().sum(dim=0) for part in outgoing.split([400, 300])])
    assert_close(content.grad, expected, 4e-3)


def test_random_noise_comes_from_torchs_generator(batch):
    model = make_model().eval()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(model(batch).loss.detach()))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio: must lie in \[0, 1\); got 1.0"),
        ({"mask_noise": torch.rand(2, 15)}, r"mask_noise: must be \[B, N\] = \[2, 16\]; got \[2, 15\]"),
    ],
)
def test_argument_errors(batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model()(batch, **arguments)


def test_image_sides_must_be_multiples_of_the_patch_size():
    sample = make_sample(3, 30, 32)
    batch = SpectralBatch.from_arrays(sample.image[None], sample.wavelength, sample.fwhm, 1.0, "av3", "L2")
    with pytest.raises(ValueError, match=r"multiples of patch_size=8; got 30 x 32"):
        make_model()(batch)

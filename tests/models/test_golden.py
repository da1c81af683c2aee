"""The models against numbers that the published code gave."""

from __future__ import annotations

import pytest
import torch

import specfast
from specfast import ops
from specfast.testing import assert_close, relative_rms


def load(golden, task="pretrain"):
    heads = {"num_heads": golden.config["num_heads"]}
    if task == "pretrain":
        heads["decoder_num_heads"] = golden.config["decoder_num_heads"]
    return specfast.load_published(golden.section("state"), task=task, **heads).eval()


def batch_of(golden):
    inputs = golden.section("in")
    return specfast.SpectralBatch.from_arrays(
        inputs["image"],
        inputs["wavelength_nm"],
        inputs["fwhm_nm"],
        inputs["gsd_m"],
        golden.config["sensor"],
        golden.config["level"],
    )


@pytest.mark.parametrize("form", ["direct", "reassociated"])
def test_pretraining_step(golden_mae, form):
    model, expected = load(golden_mae), golden_mae.section("out")
    with ops.use_form(form):
        out = model(
            batch_of(golden_mae),
            mask_ratio=golden_mae.config["mask_ratio"],
            mask_noise=golden_mae.section("in")["mask_noise"],
            return_prediction=True,
        )
        out.loss.backward()
    assert torch.equal(out.mask, expected["mask"])
    assert_close(out.latent, expected["latent"], 1e-5, "latent")
    assert_close(out.prediction, expected["pred"], 1e-5, "prediction")
    for actual, name in (
        (out.loss, "loss"),
        (out.loss_spectral, "loss_spectral"),
        (2 * out.loss_charbonnier, "loss_charbonnier_x2"),
    ):
        assert_close(actual, expected[name], 1e-6, name)
    gradients = golden_mae.section("grad")
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    errors = {name: relative_rms(p.grad, gradients[name]) for name, p in model.named_parameters()}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= 1e-4, f"gradient of {worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize("form", ["direct", "reassociated"])
def test_embedding_of_all_patches(golden_mae, form):
    model, batch, expected = load(golden_mae), batch_of(golden_mae), golden_mae.section("out")
    samples, patches = expected["mask"].shape
    index = torch.arange(patches).expand(samples, -1)
    with ops.use_form(form), torch.no_grad():
        embedded = model.patch_embed(batch, index, patches)
    assert_close(embedded.meta, expected["meta_embedding"].flatten(0, 1), 1e-5, "meta")
    assert_close(embedded.condition, expected["condition"].flatten(0, 1), 1e-5, "condition")
    assert_close(embedded.bias, expected["bias"], 1e-5, "bias")
    assert_close(embedded.tokens, expected["tokens"], 1e-5, "tokens")


def test_encoder_levels_with_adaptive_pooling(golden_segmentation):
    """The example's 32 x 32 images are pooled to the 28 x 28 grid of the 224-pixel checkpoint."""
    encoder, expected = load(golden_segmentation, "encoder"), golden_segmentation.section("out")
    assert encoder.config.content_grid == 28
    with torch.no_grad():
        features = encoder(batch_of(golden_segmentation))
    for number, level in enumerate(features.levels):
        assert_close(level, expected[f"level_{number}"], 1e-5, f"level {number}")
    assert torch.equal(features.tokens, features.levels[3].flatten(2).mT)


def test_dropout_changes_training_mode_only(golden_mae):
    model, batch = load(golden_mae).train(), batch_of(golden_mae)
    noise = golden_mae.section("in")["mask_noise"]
    losses = {float(model(batch, mask_noise=noise).loss.detach()) for _ in range(3)}
    assert len(losses) == 3
    # the modules with dropout are the two fusions' and the content's and the four factor generators', all at 0.1
    dropouts = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    assert {model.get_submodule(name).p for name in dropouts} == {0.1}
    assert sum("generator.3" in name for name in dropouts) == 4
    assert sum("fusion" in name for name in dropouts) == 4

"""The baseline of the benchmarks computes the same function as the package, from the same weights."""

from __future__ import annotations

import pytest
import torch

from bench.published import PublishedEncoder, PublishedMAE
from specfast import SpectralBatch
from specfast.testing import assert_close
from tests.models.conftest import make_model, make_sample
from tests.models.test_golden import batch_of, load

NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(5))


def dense(bands: int = 12) -> SpectralBatch:
    return SpectralBatch.from_samples([make_sample(bands), make_sample(bands, seed=1, sensor="avc", level="L1")])


@pytest.mark.parametrize("bands", [7, 80])  # the planner takes either form
def test_loss_and_every_gradient_equal_the_package_s(bands):
    model = make_model().eval()
    published = PublishedMAE.sharing(model)
    ours = model(dense(bands), mask_noise=NOISE)
    ours.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    theirs = published(dense(bands), mask_noise=NOISE)
    theirs.loss.backward()
    assert_close(theirs.loss, ours.loss, 1e-6, "loss")
    assert_close(theirs.loss_spectral, ours.loss_spectral, 1e-6, "loss_spectral")
    assert_close(theirs.latent, ours.latent, 1e-5, "latent")
    assert torch.equal(theirs.mask, ours.mask)
    for name, parameter in published.named_parameters():
        assert_close(parameter.grad, gradients[name], 1e-4, name)


def test_prediction_equals_the_package_s():
    model = make_model().eval()
    ours = model(dense(), mask_noise=NOISE, return_prediction=True)
    assert_close(PublishedMAE.sharing(model)(dense(), mask_noise=NOISE).prediction, ours.prediction, 1e-5)


def test_encoder_equals_the_package_s():
    model = make_model("encoder").eval()
    ours, theirs = model(dense()), PublishedEncoder.sharing(model)(dense())
    assert_close(theirs.tokens, ours.tokens, 1e-5)
    assert_close(theirs.cls, ours.cls, 1e-5)
    for level, expected in zip(theirs.levels, ours.levels, strict=True):
        assert_close(level, expected, 1e-5)


def test_published_numbers(golden_mae):
    """The golden numbers come from the published code itself."""
    model = PublishedMAE.sharing(load(golden_mae))
    out = model(
        batch_of(golden_mae),
        mask_ratio=golden_mae.config["mask_ratio"],
        mask_noise=golden_mae.section("in")["mask_noise"],
    )
    out.loss.backward()
    expected, gradients = golden_mae.section("out"), golden_mae.section("grad")
    assert_close(out.loss, expected["loss"], 1e-6, "loss")
    assert_close(out.latent, expected["latent"], 1e-5, "latent")
    assert_close(out.prediction, expected["pred"], 1e-5, "prediction")
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], 1e-4, name)


def test_what_the_published_code_cannot_take_is_refused():
    ragged = SpectralBatch.from_samples([make_sample(5), make_sample(6)])
    with pytest.raises(ValueError, match="equal band counts"):
        PublishedMAE.sharing(make_model())(ragged)

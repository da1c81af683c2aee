"""fold: an encoder for one sensor computes what the encoder does, or says that it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specfast import SpectralBatch, create_model
from specfast.export import fold, fold_error
from specfast.export.encoder import AdaptivePooling, ConvolutionEmbedding
from specfast.testing import assert_close
from tests.export.conftest import BANDS, images, plain
from tests.models.conftest import make_model, make_sample


def assert_equal_outputs(folded, encoder, batch, tolerance=1e-6):
    with torch.no_grad():
        features = encoder(batch)
        cls, *levels = folded(plain(batch))
    assert_close(cls, features.cls, tolerance, "cls")
    for number, (level, expected) in enumerate(zip(levels, features.levels, strict=True), start=1):
        assert_close(level, expected, tolerance, f"level {number}")


def make_content_free(encoder):
    with torch.no_grad():
        encoder.patch_embed.feature_fusion.modal2_proj.weight.zero_()
    return encoder


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (8, 8)])
@pytest.mark.parametrize("grid", [4, 7])
def test_with_the_content_branch_it_is_exact(bands, size, grid):
    encoder = make_model("encoder", content_grid=grid).eval()
    folded = fold(encoder, bands, image_size=size)
    assert folded.exact
    assert folded.image_size == size
    assert_equal_outputs(folded, encoder, images(3, *size))


@pytest.mark.parametrize("overrides", [{"patch_size": 4, "image_size": 16}, {"gsd_scale": 0.5}, {"depth": 1}])
def test_other_configurations(bands, overrides):
    encoder = make_model("encoder", **overrides).eval()
    assert_equal_outputs(fold(encoder, bands, image_size=32), encoder, images())


def test_a_content_free_encoder_is_one_convolution_and_exact(encoder, bands):
    folded = fold(make_content_free(encoder), bands)
    assert folded.exact
    assert isinstance(folded.embedding, ConvolutionEmbedding)
    assert folded.embedding.convolution.weight.shape == (32, BANDS, 8, 8)
    for size in ((32, 32), (16, 56)):
        assert_equal_outputs(folded, encoder, images(2, *size))
    assert fold(encoder, content=images()).exact


def test_folded_content_is_exact_on_the_reference_only(encoder):
    reference = images(1)
    folded = fold(encoder, content=reference)
    assert not folded.exact
    assert_equal_outputs(folded, encoder, reference)
    own, others = fold_error(folded, encoder, reference), fold_error(folded, encoder, images(4, contrast=20.0))
    assert own["embedding"] < 1e-6
    assert others["embedding"] > 100 * own["embedding"]
    assert list(others) == ["embedding", *folded.outputs]


def test_folded_content_is_the_mean_of_the_samples_convolutions(encoder):
    batch = images(3, contrast=5.0)
    weights, biases = [], []
    for one in plain(batch):
        convolution = fold(encoder, content=fold_batch(one)).embedding.convolution
        weights.append(convolution.weight)
        biases.append(convolution.bias)
    mean = fold(encoder, content=batch).embedding.convolution
    assert_close(mean.weight, torch.stack(weights).mean(dim=0), 1e-6)
    assert_close(mean.bias, torch.stack(biases).mean(dim=0), 1e-6)


def fold_batch(image: torch.Tensor) -> SpectralBatch:
    sample = make_sample(BANDS)
    sample.image = image
    return SpectralBatch.from_samples([sample])


def test_invalid_pixels_do_not_enter_the_folded_content(encoder):
    image = plain(images(1))[0]
    image[:, 5:] = image[:, 5:].clone()
    whole, holed = make_sample(BANDS), make_sample(BANDS)
    whole.image, holed.image = image[:, :16], image.clone()
    holed.image[:, 16:] = 1e6
    holed.valid = torch.zeros(32, 32, dtype=torch.bool)
    holed.valid[:16] = True
    folded = fold(encoder, content=SpectralBatch.from_samples([holed]))
    with torch.no_grad():
        outputs = folded(image[None])
    assert all(bool(output.isfinite().all()) for output in outputs)
    assert float(folded.embedding.convolution.weight.detach().abs().max()) < 10


def test_a_sensor_s_name_will_do():
    encoder = make_model("encoder").eval()
    folded = fold(encoder, "enmap", "L2", bands=range(20, 30), image_size=16)
    assert len(folded.bands) == 10
    batch = folded.bands.batch(torch.rand(1, 10, 16, 16))
    assert_equal_outputs(folded, encoder, batch)


def test_models_that_have_an_encoder(bands):
    mae = make_model().eval()
    assert_equal_outputs(fold(mae, bands), mae.encoder(), images())
    segmenter = create_model("specaware_tiny_patch8", task="segmentation", outputs=["a", "b"], depth=2, image_size=32)
    assert_equal_outputs(fold(segmenter, bands), segmenter.encoder.eval(), images())
    with pytest.raises(ValueError, match="model: expected a SpecAwareEncoder or a model that has one; got Linear"):
        fold(nn.Linear(2, 2), bands)


def test_the_model_is_copied_and_left_as_it_was(encoder, bands):
    encoder.train()
    encoder.blocks[0].eval()
    folded = fold(encoder, bands)
    assert encoder.training
    assert [block.training for block in encoder.blocks] == [False, True]
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    before = folded(plain(images()))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert all(torch.equal(one, other) for one, other in zip(before, folded(plain(images())), strict=True))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "sensor: expected a sensor's name and a level, a band table, or images"),
        (("enmap",), {}, "sensor: expected a sensor's name and a level"),
        (("enmap", "L2"), {"content": "batch"}, "content: brings its own metadata"),
        (("table", "L2"), {}, "sensor: a band table brings its own metadata"),
        (("table",), {"image_size": 30}, "image_size: expected multiples of the patch size 8; got 30 x 30"),
        (("table",), {"gsd": 3.0}, "sensor: a band table brings its own metadata"),
    ],
)
def test_arguments_that_do_not_go_together(encoder, bands, arguments, options, message):
    arguments = tuple(bands if value == "table" else value for value in arguments)
    options = {key: images() if value == "batch" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        fold(encoder, *arguments, **options)


def test_samples_of_different_sensors_cannot_be_folded(encoder):
    mixed = SpectralBatch.from_samples([make_sample(BANDS), make_sample(BANDS, sensor="avc")])
    with pytest.raises(ValueError, match="expected samples with the same bands, sensor, level and gsd"):
        fold(encoder, content=mixed)


def test_images_that_do_not_fit_are_named(encoder, bands):
    fixed, free = fold(encoder, bands, image_size=32), fold(encoder, content=images())
    for folded, shape, message in (
        (fixed, (1, 11, 32, 32), r"image: expected \[B, 12, H, W\]; got \[1, 11, 32, 32\]"),
        (fixed, (1, 12, 40, 32), "image: expected 32 x 32 pixels; got 40 x 32"),
        (free, (12, 32, 32), r"image: expected \[B, 12, H, W\]; got \[12, 32, 32\]"),
        (free, (1, 12, 33, 32), "image: expected multiples of 8 pixels; got 33 x 32"),
        (free, (1, 12, 8, 8 * 1025), "image: expected at most 1024 patches a side"),
    ):
        with pytest.raises(ValueError, match=message):
            folded(torch.zeros(shape))


def test_the_error_is_measured_on_the_folded_bands_only(encoder, bands):
    folded = fold(encoder, bands)
    with pytest.raises(ValueError, match="batch: expected the 12 bands that were folded in; got 5 others"):
        fold_error(folded, encoder, SpectralBatch.from_samples([make_sample(5)]))
    holed = make_sample(BANDS, valid=torch.zeros(32, 32, dtype=torch.bool).index_fill(0, torch.tensor(3), True))
    with pytest.raises(ValueError, match="pixels are all valid"):
        fold_error(folded, encoder, SpectralBatch.from_samples([holed]))


@pytest.mark.parametrize(("size", "grid"), [((32, 24), 4), ((17, 40), 7), ((5, 9), 6), ((56, 56), 28)])
def test_pooling_is_torch_s(size, grid):
    image = torch.randn(2, 3, *size)
    average, maximum = AdaptivePooling(size, grid)(image)
    assert_close(average, nn.functional.adaptive_avg_pool2d(image, grid).flatten(2), 1e-6)
    assert torch.equal(maximum, nn.functional.adaptive_max_pool2d(image, grid).flatten(2))

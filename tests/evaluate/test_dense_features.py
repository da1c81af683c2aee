"""Geometry of dense features: a stand-in encoder that tells what it saw shows where its tokens end up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import specfast
from specfast.batch import SpectralSample
from specfast.evaluate import dense_features


class PatchMeans(nn.Module):
    """An encoder whose token is the mean of each band over the patch's valid pixels; level k is k + 1 times that."""

    def __init__(self, patch_size=8, image_size=32):
        super().__init__()
        self.config = SimpleNamespace(patch_size=patch_size, image_size=image_size)
        self.shapes, self.gsd, self.modes = [], [], []

    def forward(self, batch):
        p = self.config.patch_size
        image = batch.image.unflatten(0, (len(batch), -1))
        valid = torch.ones_like(image[:, :1]) if batch.valid is None else batch.valid[:, None].float()
        share = nn.functional.avg_pool2d(valid, p)
        means = nn.functional.avg_pool2d(image * valid, p) / share.clamp_min(1e-6)
        self.shapes.append(tuple(image.shape))
        self.gsd += batch.gsd.tolist()
        self.modes.append(self.training)
        return SimpleNamespace(levels=[means * (k + 1) for k in range(4)])


def scene(height=37, width=45, *, valid=None) -> SpectralSample:
    """Band 0 is the row, band 1 the column, band 2 a constant."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 7)]).float()
    bands = torch.tensor([500.0, 600.0, 700.0])
    return SpectralSample(image, bands, torch.full((3,), 10.0), 30.0, "avc", "L1", valid)


RECIPES = [
    pytest.param({"method": "upsample", "factor": factor}, id=f"upsample-{factor}") for factor in (1, 2, 4, 8)
] + [pytest.param({"method": "shift", "stride": stride}, id=f"shift-{stride}") for stride in (1, 2, 4, 8)]


@pytest.mark.parametrize("patch_size", [4, 8])
@pytest.mark.parametrize("recipe", RECIPES)
def test_features_lie_on_their_pixels(recipe, patch_size):
    """Where the image is a ramp, the features are the ramp: half a patch of shift would show as an error of p / 2."""
    if recipe.get("stride", 1) > patch_size:
        pytest.skip("no such grid")
    image = scene()
    features = dense_features(PatchMeans(patch_size), image, levels=(0,), window=64, **recipe)
    assert features.shape == (37, 45, 3)
    assert features.dtype == np.float32
    inner = slice(2 * patch_size, 37 - 2 * patch_size)
    expected = image.image.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(features[inner, inner], expected[inner, inner], atol=1e-3)
    np.testing.assert_allclose(features[..., 2], 7, atol=1e-4)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("recipe", RECIPES[1:2] + RECIPES[5:6])
def test_windows_fit_together(recipe, overlap):
    """A pixel's features do not depend on where windows begin, except near the edges of windows."""
    image = scene(70, 90)
    encoder = PatchMeans(image_size=64)
    features = dense_features(encoder, image, levels=(0,), window=32, overlap=overlap, batch_size=3, **recipe)
    assert np.abs(features - image.image.permute(1, 2, 0).numpy()).max() <= 4.5  # half a patch, at edges only
    assert np.abs(features - image.image.permute(1, 2, 0).numpy()).mean() < 0.9
    assert max(shape[0] for shape in encoder.shapes) <= max(3, 1)
    np.testing.assert_allclose(features[..., 2], 7, atol=1e-4)


def test_default_window_fills_the_model():
    encoder = PatchMeans(image_size=32)
    dense_features(encoder, scene(70, 90), factor=2, levels=(0,))
    assert {shape[2:] for shape in encoder.shapes} == {(32, 32)}


def test_levels_are_stacked_in_the_order_asked_for():
    features = dense_features(PatchMeans(), scene(16, 16), levels=(-1, 0), factor=1)
    np.testing.assert_allclose(features[..., [2, 5]], np.broadcast_to([28.0, 7.0], (16, 16, 2)), atol=1e-4)


def test_gsd_follows_the_enlargement():
    for recipe, gsd in (({"factor": 4}, 7.5), ({"method": "shift"}, 30.0)):
        encoder = PatchMeans()
        dense_features(encoder, scene(16, 16), **recipe)
        assert set(encoder.gsd) == {gsd}


@pytest.mark.parametrize("recipe", RECIPES)
def test_invalid_pixels_are_nan_and_reach_no_neighbor(recipe):
    image = scene(48, 48)
    hole = torch.ones(48, 48, dtype=torch.bool)
    hole[10:30, 12:31] = False
    image.image[:, 40, 40] = torch.nan
    image.image[:, 12:20, 14:20] = 1e9
    image.valid = hole
    features = dense_features(PatchMeans(), image, levels=(0,), window=64, **recipe)
    missing = ~hole.numpy()
    missing[40, 40] = True
    assert np.array_equal(np.isnan(features).all(axis=2), missing)
    assert np.isfinite(features[~missing]).all()
    np.testing.assert_allclose(features[~missing][:, 2], 7, atol=1e-3)


def test_windows_without_a_valid_pixel_are_not_encoded():
    image = scene(32, 64)
    image.valid = torch.zeros(32, 64, dtype=torch.bool)
    image.valid[:, :20] = True
    encoder = PatchMeans()
    features = dense_features(encoder, image, factor=1, window=32, overlap=0, batch_size=1)
    assert len(encoder.shapes) == 1
    assert np.isnan(features[:, 20:]).all()
    image.valid[:] = False
    with pytest.raises(ValueError, match="no pixel is valid"):
        dense_features(encoder, image)


def test_out_is_filled_and_mode_is_restored():
    encoder = PatchMeans().train()
    out = np.full((16, 16, 3), 99, dtype=np.float32)
    features = dense_features(encoder, scene(16, 16), levels=(0,), out=out)
    assert features is out
    np.testing.assert_allclose(out[..., 2], 7, atol=1e-4)
    assert encoder.training
    assert not any(encoder.modes)
    with pytest.raises(ValueError, match=r"out: expected float32 \[16, 16, 3\]"):
        dense_features(encoder, scene(16, 16), levels=(0,), out=np.zeros((16, 16, 4), np.float32))


def test_lazy_scene_is_read_window_by_window():
    whole = scene(64, 64)
    read = []

    class Lazy:
        shape = (3, 64, 64)

        def sample(self, window):
            read.append(window)
            row, column, height, width = window
            part = whole.image[:, row : row + height, column : column + width]
            return SpectralSample(part, whole.wavelength, whole.fwhm, 30.0, "avc", "L1", None)

    features = dense_features(PatchMeans(), Lazy(), factor=2, levels=(0,), overlap=0)
    assert {window[2:] for window in read} == {(16, 16)}
    assert len(read) == 16
    np.testing.assert_allclose(features, dense_features(PatchMeans(), whole, factor=2, levels=(0,), overlap=0))


@pytest.mark.parametrize("recipe", [{"method": "upsample", "factor": 2}, {"method": "shift", "stride": 4}])
def test_with_the_real_encoder(recipe):
    encoder = specfast.create_model(
        "specaware_tiny_patch8", task="encoder", image_size=32, embed_dim=32, depth=4, num_heads=2, rank=8
    )
    features = dense_features(encoder, scene(20, 30), **recipe)
    assert features.shape == (20, 30, 4 * 32)
    assert np.isfinite(features).all()
    again = dense_features(encoder, scene(20, 30), batch_size=1, **recipe)
    np.testing.assert_allclose(features, again, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "nearest"}, "method: expected one of upsample, shift"),
        ({"levels": ()}, "levels"),
        ({"levels": (4,)}, "levels"),
        ({"factor": 0}, "factor"),
        ({"method": "shift", "stride": 3}, "divisor of the patch size 8"),
        ({"overlap": 1.0}, "overlap"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_options(recipe, message):
    with pytest.raises(ValueError, match=message):
        dense_features(PatchMeans(), scene(16, 16), **recipe)

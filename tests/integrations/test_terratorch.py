"""SpecAware as a backbone of TerraTorch: what its factories expect, and the factories themselves where they import."""

from __future__ import annotations

import sys
import types

import pytest
import torch

import specfast
from specfast.data import band_table
from specfast.integrations import terratorch
from specfast.testing import assert_close
from tests.models.conftest import make_model

SIZES = {"embed_dim": 32, "depth": 4, "num_heads": 2, "image_size": 32}
SENSOR = {"sensor": "enmap", "level": "L2", "bands": range(40, 46)}


class Registry(dict):
    def register(self, constructor):
        self[constructor.__name__] = constructor
        return constructor


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """TerraTorch's registry, as far as registering goes."""
    module = types.ModuleType("terratorch.registry")
    module.TERRATORCH_BACKBONE_REGISTRY = Registry()
    monkeypatch.setitem(sys.modules, "terratorch", types.ModuleType("terratorch"))
    monkeypatch.setitem(sys.modules, "terratorch.registry", module)
    return module.TERRATORCH_BACKBONE_REGISTRY


def test_every_model_is_registered_by_its_name(registry):
    assert terratorch.register() == specfast.list_models()
    assert list(registry) == specfast.list_models()
    backbone = registry["specaware_tiny_patch4"](**SENSOR, **SIZES)
    assert isinstance(backbone, terratorch.TerraTorchBackbone)
    assert backbone.patch_size == 4
    terratorch.register()  # as a notebook's cell that runs again


def test_features_are_the_encoder_s_levels():
    backbone = terratorch.build_backbone("specaware_tiny_patch8", **SENSOR, **SIZES).eval()
    image = torch.rand(2, 6, 16, 24)
    with torch.no_grad():
        features = backbone(image, image_size=(16, 24))  # TerraTorch hands on keywords
        expected = backbone.encoder(band_table(**SENSOR).batch(image)).levels
    assert backbone.out_channels == [32] * 4
    for feature, level in zip(features, expected, strict=True):
        assert feature.shape == (2, 32, 2, 3)
        assert torch.equal(feature, level)


def test_chosen_levels():
    backbone = terratorch.build_backbone("specaware_tiny_patch8", **SENSOR, **SIZES, out_indices=[-1]).eval()
    with torch.no_grad():
        (feature,) = backbone(torch.rand(1, 6, 8, 8))
    assert feature.shape == (1, 32, 1, 1)
    assert backbone.out_channels == [32]
    with pytest.raises(ValueError, match=r"out_indices: expected levels from 0 to 3; got \[4\]"):
        terratorch.build_backbone("specaware_tiny_patch8", **SENSOR, **SIZES, out_indices=[4])


def test_gradients_and_invalid_pixels():
    backbone = terratorch.build_backbone("specaware_tiny_patch8", **SENSOR, **SIZES)
    image = torch.rand(1, 6, 16, 16)
    image[0, :, :3] = torch.nan
    features = backbone(image)
    sum(feature.sum() for feature in features).backward()
    assert all(bool(feature.isfinite().all()) for feature in features)
    assert bool(backbone.encoder.patch_embed.scaler.grad.isfinite())


def test_checkpoints(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    torch.save({"model": model.state_dict()}, tmp_path / "published.pth")
    for checkpoint, options in ((tmp_path / "model", {}), (tmp_path / "published.pth", {"num_heads": 2})):
        backbone = terratorch.build_backbone(
            "specaware_tiny_patch8", **SENSOR, checkpoint=checkpoint, pretrained=True, **options
        )
        assert_close(backbone.encoder.cls_token, model.cls_token, 1e-7)
    with pytest.raises(ValueError, match="pretrained: specfast brings no weights; pass checkpoint"):
        terratorch.build_backbone("specaware_tiny_patch8", **SENSOR, pretrained=True)


def test_terratorch_s_absence_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "terratorch", None)
    with pytest.raises(ImportError, match=r'terratorch: cannot be imported .*pip install "specfast\[terratorch\]"'):
        terratorch.register()


def test_terratorch_builds_a_model(require):
    require("terratorch.registry", "terratorch")
    factory = require("terratorch.models.encoder_decoder_factory").EncoderDecoderFactory()
    terratorch.register()
    model = factory.build_model(
        "segmentation",
        backbone="specaware_tiny_patch8",
        decoder="FCNDecoder",
        num_classes=3,
        **{f"backbone_{key}": value for key, value in {**SENSOR, **SIZES}.items()},
    )
    assert model(torch.rand(1, 6, 32, 32)).output.shape == (1, 3, 32, 32)

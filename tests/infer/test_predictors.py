"""Predictors: what models give for a window is what map_scene writes; and which models make which maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast.batch import SpectralBatch
from specfast.errors import DataError
from specfast.infer import (
    ChangePredictor,
    EmbedPredictor,
    RegressPredictor,
    ScorePredictor,
    SegmentPredictor,
    fit_scorer,
    map_scene,
    predictor_of,
)
from specfast.infer.predictors import weights_digest
from specfast.models import create_model
from specfast.tasks.anomaly import anomaly_scorer

SIZES = {
    "image_size": 32, "embed_dim": 32, "num_heads": 2, "depth": 2, "rank": 8, "condition_dim": 16,
    "decoder_embed_dim": 16, "decoder_num_heads": 2, "decoder_depth": 1, "generator_init": "fan_in",
}  # fmt: skip


def model(task, **options):
    torch.manual_seed(0)
    return create_model("specaware_tiny_patch4", task=task, **SIZES, **options).eval()


def whole(net, image):
    """The model's answer to the whole scene at once."""
    with torch.inference_mode():
        return net(net.batch_of([image.sample()]))[0].float()


def test_a_scene_of_one_window_is_what_the_segmenter_says(make_image, tmp_path):
    image = make_image(30, 27, holes=((0, 0, 5, 5),))
    net = model("segmentation", outputs=("corn", "soil", "water"))
    predictor = SegmentPredictor(net)
    map_scene(image, predictor, tmp_path / "map.npy", probabilities=True)
    shares = whole(net, image).softmax(dim=0).numpy()
    valid = np.isfinite(image.read()[0])
    found = np.load(tmp_path / "map_probabilities.npy")
    np.testing.assert_allclose(found[:, valid], shares[:, valid], rtol=1e-5, atol=1e-6)
    assert np.array_equal(np.load(tmp_path / "map.npy")[valid], found.argmax(axis=0)[valid] + 1)
    assert (np.load(tmp_path / "map.npy")[~valid] == 0).all()


def test_a_regressor_gives_its_targets(make_image, tmp_path):
    image = make_image(30, 27)
    net = model("regression", outputs=("nitrogen in %",))
    net.fit_targets(torch.tensor([[1.0], [5.0]]))
    predictor = RegressPredictor(net)
    assert predictor.quantity == "nitrogen in %"
    map_scene(image, predictor, tmp_path / "map.npy")
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), whole(net, image).numpy(), rtol=1e-5, atol=1e-6)


def test_a_change_detector_gives_probability_and_uncertainty(make_image, tmp_path):
    images = make_image(30, 27, seed=1, holes=((0, 0, 3, 3),)), make_image(30, 27, seed=2)
    net = model("change", outputs=("change",))
    map_scene(images, ChangePredictor(net), tmp_path / "map.npy")
    with torch.inference_mode():
        out = net(*(net.batch_of([image.sample()]) for image in images))
    found = np.load(tmp_path / "map.npy")
    assert np.isnan(found[:, :3, :3]).all()
    expected = torch.cat([out.logits.sigmoid(), out.uncertainty], dim=1)[0].numpy()
    valid = np.isfinite(found[0])
    np.testing.assert_allclose(found[:, valid], expected[:, valid], rtol=1e-5, atol=1e-6)


def test_embeddings_on_the_patch_grid_are_the_encoder_s_tokens(encoder, make_image, tmp_path):
    image = make_image(32, 24, holes=((0, 0, 4, 8), (8, 8, 2, 2)))
    map_scene(image, EmbedPredictor(encoder, levels=(0, -1)), tmp_path / "map.npy")
    with torch.inference_mode():
        levels = encoder(SpectralBatch.from_samples([image.sample()], 4)).levels
    expected = torch.cat([levels[0], levels[-1]], dim=1)[0].numpy()
    found = np.load(tmp_path / "map.npy")
    assert found.shape == (64, 8, 6)
    assert np.isnan(found[:, 0, :2]).all()
    valid = np.isfinite(found[0])
    assert valid.sum() == 46
    np.testing.assert_allclose(found[:, valid], expected[:, valid], rtol=1e-5, atol=1e-5)


def test_embeddings_of_pixels_lie_between_those_of_patches(encoder, make_image, tmp_path):
    image = make_image(32, 24)
    map_scene(image, EmbedPredictor(encoder), tmp_path / "patches.npy")
    map_scene(image, EmbedPredictor(encoder, pixels=True), tmp_path / "pixels.npy")
    patches, pixels = np.load(tmp_path / "patches.npy"), np.load(tmp_path / "pixels.npy")
    assert pixels.shape == (32, 32, 24)
    expected = torch.nn.functional.interpolate(torch.from_numpy(patches)[None], scale_factor=4, mode="bilinear")[0]
    np.testing.assert_allclose(pixels, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_an_enlarged_scene_has_smaller_patches(encoder, make_image, tmp_path):
    image = make_image(32, 24)
    result = map_scene(image, EmbedPredictor(encoder, upsample=2), tmp_path / "map.npy")
    assert np.load(tmp_path / "map.npy").shape == (32, 16, 12)
    assert result.grid.cell == 2


class Brightness:
    """A scorer: how far a pixel's mean lies from the scene's, which fit learns block by block."""

    margin, needs_model = 2, ""

    def __init__(self):
        self.blocks = []

    def prepare(self, sample):
        return np.where(sample.valid.numpy(), sample.image.numpy(), np.nan)

    def fit(self, blocks):
        self.blocks = list(blocks)
        self.mean = np.concatenate(self.blocks).mean()

    def score(self, cube):
        return np.abs(cube.mean(axis=0) - self.mean).astype(np.float32)


def test_a_scorer_sees_every_valid_pixel_once_and_then_scores(make_image, tmp_path):
    image = make_image(70, 45, holes=((0, 0, 9, 9),))
    scorer = fit_scorer(Brightness(), image, window=32)
    cube = image.read()
    valid = np.isfinite(cube[0])
    seen = np.concatenate(scorer.blocks)
    assert seen.shape == (valid.sum(), 6)
    assert np.array_equal(np.sort(seen[:, 0]), np.sort(cube[0][valid]))
    map_scene(image, ScorePredictor(scorer, identity="", window=32), tmp_path / "map.npy")
    expected = np.where(valid, np.abs(cube.mean(axis=0) - scorer.mean), np.nan)
    np.testing.assert_allclose(np.load(tmp_path / "map.npy")[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("method", "again"), [("rx", 1.0), ("pca-rx", 1.0), ("local-rx", 4.0)])
def test_no_pixel_is_read_twice_in_a_pass_unless_neighbors_count(make_image, tmp_path, monkeypatch, method, again):
    image, pixels = make_image(50, 41), []
    sample = image.sample
    monkeypatch.setattr(image, "sample", lambda box: pixels.append(box[2] * box[3]) or sample(box))
    options = {"inner": 3, "outer": 17} if method == "local-rx" else {}
    scorer = fit_scorer(anomaly_scorer(method, **options), image, window=32)
    assert sum(pixels) == 50 * 41
    pixels.clear()
    map_scene(image, ScorePredictor(scorer, identity="", window=32), tmp_path / "map.npy")
    assert 1.0 <= sum(pixels) / (50 * 41) <= again
    assert (sum(pixels) > 50 * 41) == (again > 1)
    np.testing.assert_allclose(np.load(tmp_path / "map.npy")[0], scorer.score(image.read()), rtol=1e-5)


@pytest.mark.parametrize(("margin", "needs_model", "expected"), [(0, "", True), (2, "", False), (0, "encoder", False)])
def test_scores_are_pixelwise_if_they_need_neither_neighbors_nor_a_model(margin, needs_model, expected):
    scorer = Brightness()
    scorer.margin, scorer.needs_model = margin, needs_model
    assert ScorePredictor(scorer, identity="").pixelwise is expected


def test_a_scorer_needs_a_valid_pixel(make_image):
    with pytest.raises(DataError, match="no pixel of the scene is valid"):
        fit_scorer(Brightness(), make_image(20, 20, holes=((0, 0, 20, 20),)))


@pytest.mark.parametrize(
    ("task", "expected"),
    [("segmentation", SegmentPredictor), ("regression", RegressPredictor), ("change", ChangePredictor)],
)
def test_a_saved_model_gets_the_predictor_of_its_kind(tmp_path, task, expected):
    net = model(task, outputs=("change",))
    net.save_pretrained(tmp_path)
    predictor = predictor_of(tmp_path)
    assert type(predictor) is expected
    assert predictor.identity == expected(net).identity


@pytest.mark.parametrize("task", ["pretrain", "encoder", "classification"])
def test_models_without_maps_are_refused(tmp_path, task):
    model(task, **({"outputs": ("a", "b")} if task == "classification" else {})).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="gives no maps of classes, targets or change"):
        predictor_of(tmp_path)


def test_a_regressor_of_scenes_gives_no_map():
    net = model("regression", outputs=("yield",), head="scene")
    with pytest.raises(DataError, match="predicts one value for a scene"):
        RegressPredictor(net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsample": 3}, "upsample: expected a divisor of the patch size 4; got 3"),
        ({"levels": ()}, r"levels: expected numbers from -4 to 3, at least one; got \[\]"),
        ({"levels": (4,)}, r"levels: expected numbers from -4 to 3, at least one; got \[4\]"),
    ],
)
def test_wrong_options(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        EmbedPredictor(encoder, **options)


def test_other_weights_are_told_apart():
    first, second = model("encoder"), model("encoder")
    assert weights_digest(first) == weights_digest(second)
    with torch.no_grad():
        second.norm.bias[3] += 1e-6
    assert weights_digest(first) != weights_digest(second)


def test_bf16_is_close_and_told_apart(encoder, make_image):
    sample = make_image(32, 32).sample()
    exact, rough = EmbedPredictor(encoder), EmbedPredictor(encoder, bf16=True)
    assert exact.identity != rough.identity
    difference = (rough([sample]) - exact([sample])).square().mean().sqrt() / exact([sample]).square().mean().sqrt()
    assert rough([sample]).dtype == torch.float32
    assert 0 < difference < 0.05

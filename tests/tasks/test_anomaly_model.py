"""Anomaly scores of models: what is encoded, what is masked, and the table with its controls."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import specfast
from specfast import SpectralSample
from specfast.data import open as open_image
from specfast.evaluate import dense_features
from specfast.tasks.anomaly import anomaly_scorer, as_rows, score_image
from specfast.tasks.anomaly_model import ReconstructionError
from specfast.tasks.anomaly_rx import PCARX
from specfast.tasks.anomaly_table import anomaly_table

SMALL = {
    "image_size": 32,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "rank": 4,
    "condition_dim": 16,
}


def make_scene(height=30, width=41, bands=5, seed=0) -> SpectralSample:
    image = torch.rand(bands, height, width, generator=torch.Generator().manual_seed(seed))
    wavelength = torch.linspace(500, 2000, bands)
    return SpectralSample(image, wavelength, torch.full((bands,), 10.0), 4.0, "av3", "L2")


@pytest.fixture(scope="module")
def mae():
    torch.manual_seed(0)
    return specfast.create_model("specaware_tiny_patch8", **SMALL)


class Neighbor(nn.Module):
    """A stand-in for the autoencoder: predicts 1 everywhere, and remembers which patches were removed."""

    def __init__(self, patch=4, side=16):
        super().__init__()
        self.config = SimpleNamespace(patch_size=patch, image_size=side)
        self.weight = nn.Parameter(torch.zeros(1))
        self.removed, self.modes = [], []

    def patch_grid(self, batch):
        return tuple(length // self.config.patch_size for length in batch.image.shape[-2:])

    def valid_pixels(self, batch):
        if batch.valid is None:
            return None
        p = self.config.patch_size
        return nn.functional.unfold(batch.valid[:, None].float(), p, stride=p).mT > 0

    def forward(self, batch, ratio, noise, return_prediction):
        rows, columns = self.patch_grid(batch)
        valid = self.valid_pixels(batch)
        present = torch.ones_like(noise, dtype=torch.bool) if valid is None else valid.any(-1)
        count = int(present.sum())
        kept = max(1, int(count * (1 - ratio)))
        order = noise.masked_fill(~present, torch.inf).argsort(dim=1)[:, kept:count]
        mask = torch.zeros(1, rows * columns).scatter(1, order, 1.0)
        self.removed.append(mask[0].view(rows, columns))
        self.modes.append(self.training)
        size = self.config.patch_size**2 * batch.band_counts[0]
        return SimpleNamespace(mask=mask, prediction=torch.ones(1, rows * columns, size))


@pytest.mark.parametrize(("passes", "ratio"), [(2, 0.75), (8, 0.5), (4, 0.3)])
def test_every_patch_is_removed_and_errors_are_those_of_removed_pixels(passes, ratio):
    scene = make_scene(16, 16)
    model = Neighbor().train()
    error = ReconstructionError(model, passes=passes, mask_ratio=ratio).prepare(scene)
    times = torch.stack(model.removed).sum(dim=0)
    assert len(model.removed) == passes
    assert times.min() >= 1
    assert times.max() - times.min() <= 1
    assert not any(model.modes)
    assert model.training
    expected = (scene.image - 1).square().mean(dim=0).sqrt()
    np.testing.assert_allclose(error[0], expected, rtol=1e-5)


def test_prediction_is_put_where_it_belongs():
    """A model that predicts each removed pixel exactly has no error, whatever the order of patches and bands."""
    scene = make_scene(16, 24)

    class Perfect(Neighbor):
        def forward(self, batch, ratio, noise, return_prediction):
            output = super().forward(batch, ratio, noise, return_prediction)
            p = self.config.patch_size
            patches = nn.functional.unfold(batch.image[None], p, stride=p)  # [1, C p p, N]
            output.prediction = patches.unflatten(1, (-1, p * p)).permute(0, 3, 2, 1).flatten(2)
            return output

    for error in ("rms", "angle"):
        found = ReconstructionError(Perfect(), error=error, window=24).prepare(scene)
        assert found.max() < 1e-3


def test_spectral_angle_does_not_see_brightness():
    scene = make_scene(16, 16)
    scene.image[:] = torch.rand(16, 16)  # gray: the angle to the prediction of ones is 0
    angle = ReconstructionError(Neighbor(), error="angle").prepare(scene)
    rms = ReconstructionError(Neighbor(), error="rms").prepare(scene)
    assert angle.max() < 1e-3
    assert rms.max() > 0.5


def test_scenes_larger_than_a_window_and_invalid_pixels():
    scene = make_scene(30, 41)
    scene.valid = torch.ones(30, 41, dtype=torch.bool)
    scene.valid[:20, :20] = False
    scene.image[:, :20, :20] = 1e6
    model = Neighbor()
    scorer = ReconstructionError(model, window=15)
    assert scorer.side == 16
    error = scorer.prepare(scene)
    assert max(removed.numel() for removed in model.removed) <= 16
    assert np.array_equal(np.isnan(error[0]), ~scene.valid.numpy())
    expected = (scene.image - 1).square().mean(dim=0).sqrt().numpy()
    np.testing.assert_allclose(error[0][scene.valid], expected[scene.valid], rtol=1e-5)
    scores = scorer.fit([as_rows(error)]).score(error)
    known = scores[np.isfinite(scores)]
    assert abs(known.mean()) < 1e-5
    assert known.std() == pytest.approx(1, rel=1e-2)
    scene.valid[:] = False
    assert np.isnan(scorer.prepare(scene)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": "mae"}, "error: expected one of rms, angle"),
        ({"passes": 2, "mask_ratio": 0.5}, "between 1 / passes and 1"),
        ({"passes": 1, "mask_ratio": 0.9}, "at least 2 passes"),
    ],
)
def test_bad_options_of_reconstruction(options, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionError(Neighbor(), **options)


def test_reconstruction_with_the_real_model_is_deterministic(mae):
    scene = make_scene()
    first, second = (score_image(anomaly_scorer("reconstruction", mae), scene) for _ in range(2))
    assert first.shape == (30, 41)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)


def test_feature_rx_is_rx_on_dense_features(mae):
    scene = make_scene()
    scorer = anomaly_scorer("features", mae.encoder(), components=4, factor=2)
    scores = score_image(scorer, scene)
    features = dense_features(mae.encoder(), scene, factor=2).transpose(2, 0, 1)
    expected = PCARX(4).fit([as_rows(features)]).score(features)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    scene.valid = torch.zeros(30, 41, dtype=torch.bool)
    assert scorer.prepare(scene).shape == (64, 30, 41)
    assert np.isnan(scorer.prepare(scene)).all()


def test_table_has_every_method_its_controls_and_what_it_rests_on(mae, tmp_path):
    scene = make_scene(24, 24)
    targets = np.zeros((24, 24), dtype=np.uint8)
    targets[5:7, 9:11] = 3
    scene.image[1::2, 5:7, 9:11] = 2.0
    table = anomaly_table(scene, targets, mae=mae, options={"pca-rx": {"components": 3}, "local-rx": {"outer": 9}})
    rows = {row.method: row for row in table.rows}
    assert [row.kind for row in table.rows] == ["baseline"] * 3 + ["features", "control"] * 2
    assert rows["RX, all bands"].scores["auc"][0] > 0.95
    for row in table.rows:
        assert 0 <= row.scores["auc"][0] <= 1
    assert rows["RX, encoder features"].scores != rows["RX, encoder features, random weights"].scores
    assert table.settings["targets"] == 4
    assert any("only 4 target pixels" in note for note in table.notes)
    saved = table.save(tmp_path, "anomaly")
    assert sorted(path.name for path in saved) == ["anomaly.csv", "anomaly.json", "anomaly.md"]
    assert "| RX, all bands |" in (tmp_path / "anomaly.md").read_text()


def test_table_without_a_model_and_what_it_refuses():
    scene = make_scene(16, 16)
    targets = np.zeros((16, 16))
    targets[2, 2] = 1
    assert [row.kind for row in anomaly_table(scene, targets, methods=["rx", "pca-rx"]).rows] == ["baseline"] * 2
    for options, message in (
        ({"methods": ["features"]}, "method 'features' needs a model"),
        ({"methods": ["no"]}, "methods: expected some of rx"),
        ({"targets": np.zeros((4, 4))}, r"targets: expected 16 x 16 to match the scene, got shape \[4, 4\]"),
        ({"targets": np.zeros((16, 16))}, "got 0 targets"),
    ):
        with pytest.raises(ValueError, match=message):
            anomaly_table(scene, **{"targets": targets, **options})


def test_muufl_targets(shared):
    """Real CASI scene with three target pixels: the scores are what the textbook formula gives."""
    from scipy.io import loadmat

    path = shared / "data" / "casi_muufl" / "an_hsi_img_for_tgt_det_demo.mat"
    arrays = loadmat(path)
    image = open_image(path, sensor="casi", level="L2", gsd=1.0, variable="hsi_sub")
    table = anomaly_table(image, arrays["gtImg_sub"], methods=["rx", "pca-rx"])
    rows = arrays["hsi_sub"].reshape(-1, 72).astype(np.float64)
    away = rows - rows.mean(axis=0)
    distance = np.einsum("ij,jk,ik->i", away, np.linalg.inv(np.cov(rows.T)), away)
    truth = arrays["gtImg_sub"].ravel() > 0
    expected = (distance[truth][:, None] > distance[~truth]).mean()
    assert table.rows[0].scores["auc"][0] == pytest.approx(expected, abs=1e-3)
    assert table.settings["targets"] == 3

"""A real EnMAP tile: the map lies where the scene lies, and windows give what the whole scene gives."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.data import open as open_image
from specfast.infer import EmbedPredictor, ScorePredictor, fit_scorer, map_scene
from specfast.tasks.anomaly import anomaly_scorer, score_image


@pytest.fixture(scope="module")
def enmap(shared):
    pytest.importorskip("rasterio")
    return open_image(shared / "data" / "enmap_potsdam" / "images" / "enmap_potsdam_tile_128_0.tif")


def test_features_lie_on_the_patches_of_the_scene(enmap, encoder, tmp_path):
    import rasterio

    map_scene(enmap, EmbedPredictor(encoder), tmp_path / "features.tif", window=16)
    with rasterio.open(enmap.path) as scene, rasterio.open(tmp_path / "features.tif") as features:
        assert features.crs == scene.crs
        assert features.bounds == scene.bounds
        assert features.res == (4 * scene.res[0], 4 * scene.res[1])
        assert features.count == 32
        assert np.isfinite(features.read()).all()


def test_scores_by_windows_are_those_of_the_scene(enmap, tmp_path):
    scorer = fit_scorer(anomaly_scorer("rx"), enmap, window=12)
    map_scene(enmap, ScorePredictor(scorer, identity="rx", window=12), tmp_path / "scores.npy")
    whole = score_image(anomaly_scorer("rx"), enmap.sample())
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy")[0], whole, rtol=1e-3)

"""Baselines: their inputs by hand, and their accuracy on Indian Pines against what was measured elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from specfast.evaluate import BASELINES, cnn, field_disjoint, random_pixels, score
from specfast.evaluate.baselines import mean_filters, principal_components
from specfast.evaluate.cnn import SIDE, patches


@pytest.fixture(scope="module")
def indian_pines(shared) -> tuple[np.ndarray, np.ndarray]:
    folder = shared / "data" / "indian_pines"
    cube = np.load(folder / "Indian_pines_corrected.npy").astype(np.float32)
    return cube, np.load(folder / "Indian_pines_gt.npy").astype(np.int64)


# (method, split, labels a class) -> overall accuracy in percent, measured apart from this code over five seeds.
MEASURED = [
    ("lda", random_pixels, 50, 66.4, 4),
    ("lda", field_disjoint, 50, 41.4, 8),
    ("svm", random_pixels, 50, 72.4, 4),
    ("svm", field_disjoint, 50, 41.2, 8),
    ("pca_svm", random_pixels, 50, 69.2, 4),
    ("random_forest", random_pixels, 50, 68.0, 4),
    ("mean_svm", random_pixels, 10, 64.1, 6),
]


@pytest.mark.parametrize(
    ("key", "split", "count", "expected", "margin"), MEASURED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_accuracy_on_indian_pines(indian_pines, key, split, count, expected, margin):
    from threadpoolctl import threadpool_limits

    cube, labels = indian_pines
    method, part, flat = BASELINES[key], split(labels, count, 0), labels.ravel()
    inputs = method.prepare([cube])[0]
    inputs = inputs.reshape(-1, inputs.shape[2])
    with threadpool_limits(1):
        predicted = method.build(0).fit(inputs[part.train], flat[part.train]).predict(inputs[part.test])
    accuracy = 100 * score(flat[part.test], predicted).overall_accuracy
    assert abs(accuracy - expected) < margin


def test_mean_filters_leave_out_invalid_pixels():
    cube = np.arange(25, dtype=np.float32).reshape(5, 5, 1)
    cube[1, 1] = np.nan
    out = mean_filters(cube, sides=(1, 3))
    assert out.shape == (5, 5, 2)
    assert np.isnan(out[1, 1]).all()
    assert out[2, 2, 0] == 12
    around = cube[1:4, 1:4].ravel()
    assert out[2, 2, 1] == pytest.approx(np.nanmean(around), rel=1e-5)
    with pytest.raises(ValueError, match="odd numbers"):
        mean_filters(cube, sides=(2,))


def test_principal_components_are_uncorrelated_and_ordered():
    rng = np.random.default_rng(0)
    cube = (rng.normal(size=(20, 30, 6)) @ rng.normal(size=(6, 6))).astype(np.float32)
    cube[0, 0, 0] = np.nan
    (out,) = principal_components([cube], 4)
    assert np.isnan(out[0, 0]).all()
    covariance = np.cov(out.reshape(-1, 4)[1:].T)
    assert (np.diff(np.diag(covariance)) < 0).all()
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-4)
    assert principal_components([cube], 10)[0].shape[2] == 6
    parts = principal_components([cube[:8], cube[8:]], 4)  # scenes share their components
    np.testing.assert_array_equal(np.concatenate(parts), out)


def test_patches_are_centered_on_their_pixel():
    components = np.zeros((12, 14, 2), dtype=np.float32)
    components[5, 6] = [1, 2]
    components[0, 0] = np.nan
    out = patches(components).reshape(12, 14, 2, SIDE, SIDE)
    assert np.isnan(out[0, 0]).all()
    center = out[5, 6, :, SIDE // 2, SIDE // 2]
    assert center[1] == pytest.approx(2 * center[0])
    assert center[0] != 0
    assert np.count_nonzero(out[5, 6]) == 2
    assert out[4, 6, 0, SIDE // 2 + 1, SIDE // 2] == center[0]


def test_cnn_learns_and_repeats(monkeypatch):
    monkeypatch.setattr(cnn, "STEPS", 40)
    rng = np.random.default_rng(0)
    labels = np.repeat([2, 5, 9], 40)
    cube = (rng.normal(size=(1, 120, 20)) + np.eye(20)[labels] * 6).astype(np.float32).repeat(9, axis=0)
    method = BASELINES["cnn"]
    inputs = method.prepare([cube])[0][4]
    part = random_pixels(labels, 10, 0)
    fitted = [method.build(1).fit(inputs[part.train], labels[part.train]) for _ in range(2)]
    predicted = [model.predict(inputs[part.test]) for model in fitted]
    assert (predicted[0] == labels[part.test]).mean() > 0.6  # chance is 1 / 3
    assert np.array_equal(*predicted)

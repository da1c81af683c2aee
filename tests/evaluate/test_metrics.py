"""Metrics against numbers by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.evaluate import mean_and_spread, score


def test_by_hand():
    result = score(np.array([1, 1, 1, 1, 2, 2, 3, 3]), np.array([1, 1, 1, 2, 2, 2, 3, 1]))
    assert result.overall_accuracy == pytest.approx(6 / 8)
    assert result.per_class == pytest.approx({1: 3 / 4, 2: 1.0, 3: 1 / 2})
    assert result.average_accuracy == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    chance = (4 * 4 + 2 * 3 + 2 * 1) / 64
    assert result.kappa == pytest.approx((6 / 8 - chance) / (1 - chance))
    assert result.confusion.tolist() == [[3, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert result.mean_iou == pytest.approx((3 / 5 + 2 / 3 + 1 / 2) / 3)
    assert result.mean_f1 == pytest.approx((6 / 8 + 4 / 5 + 2 / 3) / 3)


def test_classes_that_are_only_predicted_count_as_errors_of_the_others():
    result = score(np.array([1, 1, 2, 2]), np.array([1, 3, 2, 2]))
    assert result.mean_iou == pytest.approx((1 / 2 + 1) / 2)
    assert result.mean_f1 == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_against_sklearn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 9, 500)
    predicted = np.where(rng.random(500) < 0.6, labels, rng.integers(1, 12, 500))
    result = score(labels, predicted)
    assert result.overall_accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert result.kappa == pytest.approx(metrics.cohen_kappa_score(labels, predicted))
    recall = metrics.recall_score(labels, predicted, average=None, labels=np.unique(labels))
    assert result.average_accuracy == pytest.approx(recall.mean())  # classes only predicted do not count
    assert np.array_equal(result.confusion, metrics.confusion_matrix(labels, predicted))


def test_one_class_has_no_agreement_beyond_chance():
    result = score(np.ones(5, int), np.ones(5, int))
    assert (result.overall_accuracy, result.kappa) == (1.0, 0.0)


def test_mean_and_spread():
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([4.0]) == (4.0, 0.0)


def test_bad_input():
    with pytest.raises(ValueError, match="predicted: expected the shape"):
        score(np.ones(3, int), np.ones(4, int))
    with pytest.raises(ValueError, match="at least one pixel"):
        score(np.array([], int), np.array([], int))
    with pytest.raises(ValueError, match="values"):
        mean_and_spread([])

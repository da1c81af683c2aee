"""AUC, F1, Otsu: against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.evaluate.detection import auc, best_f1, otsu_threshold, score_detection

pytest.importorskip("sklearn")


def counted_auc(truth, scores):
    """Every target against every other pixel: 1 for a higher score, half for a tie."""
    targets, others = scores[truth][:, None], scores[~truth]
    return ((targets > others) + 0.5 * (targets == others)).mean()


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_counts_pairs_and_halves_ties(levels):
    rng = np.random.default_rng(levels)
    truth = rng.random((20, 30)) < 0.2
    scores = np.floor((rng.random((20, 30)) + 0.2 * truth) * levels)
    assert auc(truth, scores) == pytest.approx(counted_auc(truth, scores), abs=1e-12)
    assert auc(truth, -scores) == pytest.approx(1 - counted_auc(truth, scores), abs=1e-12)


def test_auc_is_exact_where_scores_differ_in_the_last_bit():
    scores = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert auc(np.array([False, True]), scores) == 1.0
    assert auc(np.array([True, False]), scores) == 0.0


def test_auc_leaves_out_nan_and_ranks_infinities():
    truth = np.array([1, 0, 0, 1, 0])
    assert auc(truth, np.array([3.0, 1.0, 2.0, np.nan, np.nan])) == 1.0
    assert auc(truth, np.array([np.inf, 1.0, 2.0, -np.inf, 0.0])) == 0.5


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        (np.zeros(3), np.zeros(4), r"scores: expected the shape of truth, \[3\]; got \[4\]"),
        (np.zeros(3), np.zeros(3), "got 0 targets and 3 others"),
        (np.array([1, 0]), np.array([1.0, np.nan]), "got 1 targets and 0 others"),
        (np.array([2, 0]), np.zeros(2), "truth: expected bool, or 0 and 1"),
    ],
)
def test_what_auc_refuses(truth, scores, message):
    with pytest.raises(ValueError, match=message):
        auc(truth, scores)


def test_best_f1_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(1)
    truth = rng.random(200) < 0.3
    scores = np.round(rng.random(200) + 0.4 * truth, 2)
    by_hand = {t: score_detection(truth, scores >= t).f1 for t in np.unique(scores)}
    best, threshold = best_f1(truth, scores)
    assert best == pytest.approx(max(by_hand.values()))
    assert by_hand[threshold] == pytest.approx(best)


def test_best_f1_ranks_infinities_and_leaves_out_nan():
    truth = np.array([[1, 0, 1, 0, 1]])
    assert best_f1(truth, np.array([[np.inf, 2.0, 3.0, -np.inf, np.nan]])) == (1.0, 3.0)
    assert best_f1(truth, np.array([[np.inf, 2.0, np.inf, 2.0, -np.inf]])) == (pytest.approx(0.8), np.inf)


def test_scores_of_a_binary_map():
    truth = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    found = np.array([[1, 1, 0, 1], [0, 0, 0, 0]])
    scores = score_detection(truth, found)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.iou == pytest.approx(2 / 4)
    assert scores.overall_accuracy == pytest.approx(6 / 8)
    chance = (3 * 3 + 5 * 5) / 64
    assert scores.kappa == pytest.approx((6 / 8 - chance) / (1 - chance))


def test_scores_where_nothing_is_found_or_all_agree():
    nothing = score_detection(np.array([1, 0, 0]), np.zeros(3))
    assert (nothing.f1, nothing.iou, nothing.precision, nothing.recall, nothing.kappa) == (0, 0, 0, 0, 0)
    same = score_detection(np.ones(3), np.ones(3))
    assert (same.f1, same.kappa) == (1, 0)  # chance alone would agree as much
    with pytest.raises(ValueError, match="at least one pixel"):
        score_detection(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="found: expected the shape of truth"):
        score_detection(np.zeros((2, 2)), np.zeros(4))


def between_variance(values, threshold):
    low, high = values[values <= threshold], values[values > threshold]
    share = len(low) / len(values)
    return share * (1 - share) * (low.mean() - high.mean()) ** 2


def test_otsu_maximizes_the_variance_between_groups():
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 1, 700), rng.normal(6, 1.5, 120)]).round(2)
    threshold = otsu_threshold(values)
    best = max(between_variance(values, t) for t in np.unique(values)[:-1])
    assert between_variance(values, threshold) == pytest.approx(best, rel=1e-12)
    assert 1.5 < threshold < 5


def test_otsu_of_large_numbers_keeps_its_digits():
    values = np.array([0.0, 0.1, 0.2, 1.0, 1.1]) + 1e9
    assert 0.2 < otsu_threshold(values) - 1e9 < 1.0


def test_otsu_leaves_out_nan_and_refuses_what_cannot_be_divided():
    assert otsu_threshold(np.array([[0.0, np.nan], [2.0, np.inf]])) == 1.0
    for values in (np.zeros(4), np.array([np.nan, 1.0]), np.array([])):
        with pytest.raises(ValueError, match="at least two different finite numbers"):
            otsu_threshold(values)
    pair = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert list(pair > otsu_threshold(pair)) == [False, True]

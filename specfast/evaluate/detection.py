"""How well a score or a binary map finds the pixels that matter: anomalies, changes.

Legend: the truth is True where a pixel is a target (or has changed). Pixels without a finite score have no say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specfast.evaluate.baselines import require_sklearn


@dataclass(frozen=True)
class DetectionScores:
    """How well a binary map agrees with the truth; shares from 0 to 1 (kappa from -1 to 1).

    Attributes:
        f1: harmonic mean of precision and recall of the targets.
        iou: intersection over union of found and true targets.
        kappa: agreement beyond chance (Cohen 1960); 0 where chance alone would agree fully.
        precision: share of what was found that is a target; 0 if nothing was found.
        recall: share of the targets that was found.
        overall_accuracy: share of all pixels that are right.
    """

    f1: float
    iou: float
    kappa: float
    precision: float
    recall: float
    overall_accuracy: float


def auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the exact area under the ROC curve: the chance that a target scores above another pixel, ties half.

    Args:
        truth: bool (or 0 and 1), any shape.
        scores: the same shape, higher is more likely a target; pixels with NaN are left out, infinities are ranked.

    Raises:
        ValueError: shapes differ, the truth holds other values, or only targets or only others are left.
        ImportError: scikit-learn is missing.
    """
    require_sklearn()
    from sklearn.metrics import roc_auc_score

    truth, scores = _paired(truth, scores)
    if np.isinf(scores).any():  # ranks decide, so infinity may be any number beyond the others
        scores = np.unique(scores, return_inverse=True)[1]
    return float(roc_auc_score(truth, scores))


def best_f1(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Return the best F1 that any threshold gives, and that threshold (targets score at least as much).

    The threshold is chosen with the truth at hand: a bound on what the score can do, not a result to be had without
    labels. Arguments and errors as of :func:`auc`.
    """
    require_sklearn()
    from sklearn.metrics import precision_recall_curve

    truth, scores = _paired(truth, scores)
    values, ranks = np.unique(scores, return_inverse=True)  # ranks decide here, too: infinities are no mistake
    precision, recall, thresholds = precision_recall_curve(truth, ranks)
    total = precision[:-1] + recall[:-1]
    f1 = np.divide(2 * precision[:-1] * recall[:-1], total, out=np.zeros_like(total), where=total > 0)
    best = int(f1.argmax())
    return float(f1[best]), float(values[int(thresholds[best])])


def score_detection(truth: np.ndarray, found: np.ndarray) -> DetectionScores:
    """Compare a binary map with the truth, two arrays of one shape, bool or 0 and 1.

    Raises:
        ValueError: shapes differ, other values, or no pixel.
        ImportError: scikit-learn is missing.
    """
    require_sklearn()
    from sklearn import metrics

    truth, found = _binary(truth, "truth"), _binary(found, "found")
    if truth.shape != found.shape:
        raise ValueError(f"found: expected the shape of truth, {list(truth.shape)}; got {list(found.shape)}")
    if truth.size == 0:
        raise ValueError("truth: expected at least one pixel, got none")
    truth, found = truth.ravel(), found.ravel()
    constant = (truth.all() and found.all()) or not (truth.any() or found.any())
    return DetectionScores(
        f1=float(metrics.f1_score(truth, found, zero_division=0)),
        iou=float(metrics.jaccard_score(truth, found, zero_division=0)),
        kappa=0.0 if constant else float(metrics.cohen_kappa_score(truth, found)),
        precision=float(metrics.precision_score(truth, found, zero_division=0)),
        recall=float(metrics.recall_score(truth, found, zero_division=0)),
        overall_accuracy=float(metrics.accuracy_score(truth, found)),
    )


def otsu_threshold(values: np.ndarray) -> float:
    """Return the threshold that divides values best in two groups (Otsu 1979); what lies above it is the upper group.

    It maximizes the variance between the groups over all divisions of the sorted values, without a histogram, and lies
    halfway between the groups.

    Args:
        values: any shape; NaN and infinities are left out.

    Raises:
        ValueError: fewer than two different finite values.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    values = np.sort(values[np.isfinite(values)])
    if values.size == 0 or values[0] == values[-1]:
        raise ValueError("values: expected at least two different finite numbers to divide")
    values_from_mean = values - values.mean()  # of large values the sums would lose digits
    below = np.arange(1, values.size)
    total = np.cumsum(values_from_mean)[:-1]  # the sums above are the negatives of these
    between = total**2 * (1 / below + 1 / (values.size - below))
    between[values[1:] == values[:-1]] = -np.inf  # equal values stay together
    best = int(between.argmax())
    low, high = values[best], values[best + 1]
    middle = low + (high - low) / 2
    return float(middle if low <= middle < high else low)


def _paired(truth, scores) -> tuple[np.ndarray, np.ndarray]:
    truth, scores = _binary(truth, "truth"), np.asarray(scores)
    if truth.shape != scores.shape:
        raise ValueError(f"scores: expected the shape of truth, {list(truth.shape)}; got {list(scores.shape)}")
    known = ~np.isnan(scores)
    truth, scores = truth[known], scores[known]
    if truth.all() or not truth.any():
        raise ValueError(
            f"truth: expected targets and other pixels among those with a score, got {int(truth.sum())} targets and "
            f"{int((~truth).sum())} others"
        )
    return truth, scores


def _binary(values, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name}: expected bool, or 0 and 1; got other values")
    return values.astype(bool)

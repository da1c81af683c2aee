"""Scores of a classification (OA, AA, kappa, mean IoU, mean F1), and their spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specfast.evaluate.baselines import require_sklearn

METRICS = ("overall_accuracy", "average_accuracy", "kappa", "mean_iou", "mean_f1")


@dataclass(frozen=True)
class Scores:
    """How well one prediction agrees with the labels. Numbers are shares from 0 to 1 (kappa from -1 to 1).

    Attributes:
        overall_accuracy: OA, the share of pixels that are right.
        average_accuracy: AA, the mean over the classes present in the labels of the share of theirs that is right.
        kappa: agreement beyond chance (Cohen 1960); 0 where chance alone would agree fully.
        mean_iou: mIoU, the mean over the classes present in the labels of intersection over union (Jaccard's index).
        mean_f1: the mean over the same classes of the harmonic mean of precision and recall.
        per_class: class -> share of its pixels that is right.
        confusion: int64 [K, K], rows are labels and columns predictions, in the order of ``classes``.
        classes: the classes that occur in labels or prediction, ascending.
    """

    overall_accuracy: float
    average_accuracy: float
    kappa: float
    mean_iou: float
    mean_f1: float
    per_class: dict[int, float]
    confusion: np.ndarray
    classes: tuple[int, ...]


def score(labels: np.ndarray, predicted: np.ndarray) -> Scores:
    """Compare predicted classes with labels, two integer arrays of one shape.

    Raises:
        ValueError: shapes differ, or there is no pixel.
        ImportError: scikit-learn is missing.
    """
    require_sklearn()
    from sklearn.metrics import f1_score, jaccard_score

    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape:
        raise ValueError(f"predicted: expected the shape of labels, {list(labels.shape)}; got {list(predicted.shape)}")
    if labels.size == 0:
        raise ValueError("labels: expected at least one pixel, got none")
    labels, predicted = labels.ravel(), predicted.ravel()
    classes, index = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    rows, columns = index[: labels.size], index[labels.size :]
    confusion = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
    confusion = confusion.reshape(len(classes), len(classes))
    right, total = np.diag(confusion), labels.size
    per_label, per_prediction = confusion.sum(axis=1), confusion.sum(axis=0)
    present = per_label > 0
    overall = float(right.sum() / total)
    chance = float((per_label / total) @ (per_prediction / total))
    recall = right[present] / per_label[present]
    over_present = {"labels": classes[present], "average": "macro", "zero_division": 0.0}
    return Scores(
        overall_accuracy=overall,
        average_accuracy=float(recall.mean()),
        kappa=(overall - chance) / (1 - chance) if chance < 1 else 0.0,
        mean_iou=float(jaccard_score(labels, predicted, **over_present)),
        mean_f1=float(f1_score(labels, predicted, **over_present)),
        per_class={int(c): float(share) for c, share in zip(classes[present], recall, strict=True)},
        confusion=confusion,
        classes=tuple(int(c) for c in classes),
    )


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (0 for one value)."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("values: expected at least one, got none")
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0

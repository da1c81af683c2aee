"""All anomaly scores of a scene beside each other, measured on a map of known targets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from specfast.batch import SpectralSample
from specfast.evaluate.detection import auc, best_f1
from specfast.evaluate.probing import random_weights
from specfast.tasks.anomaly import METHODS, anomaly_scorer, score_image
from specfast.tasks.score_table import ScoreRow, ScoreTable

if TYPE_CHECKING:
    from specfast.data import SpectralImage

METRICS = {"auc": "AUC", "best_f1": "best F1"}
TITLES = {
    "rx": "RX, all bands",
    "pca-rx": "RX, 10 principal components",
    "local-rx": "local RX",
    "features": "RX, encoder features",
    "reconstruction": "reconstruction error",
}
FEW_TARGETS = 30


def anomaly_table(
    image: SpectralImage | SpectralSample,
    targets: np.ndarray,
    *,
    methods: Sequence[str] | None = None,
    encoder: nn.Module | None = None,
    mae: nn.Module | None = None,
    options: dict[str, dict] | None = None,
) -> ScoreTable:
    """Score a scene by every method and compare with known targets.

    The best F1 takes the threshold that suits the targets best: it bounds what a threshold chosen without them can do.
    Methods with a model stand beside the same model with random weights.

    Args:
        image: one scene; it is read whole.
        targets: [H, W], above 0 where a pixel is a target.
        methods: keys of :data:`specfast.tasks.anomaly.METHODS`; default all that the models given allow.
        encoder: a SpecAwareEncoder, for ``"features"``; default that of ``mae``.
        mae: a SpecAwareMAE, for ``"reconstruction"``.
        options: method -> options of its scorer.

    Returns:
        the table; metrics ``"auc"`` and ``"best_f1"``, shares from 0 to 1.

    Raises:
        ValueError: the map does not fit the scene or names no target, a method is unknown or lacks its model.
    """
    sample = image if isinstance(image, SpectralSample) else image.sample()
    size = tuple(torch.as_tensor(sample.image).shape[1:])
    targets = np.asarray(targets)
    if targets.shape != size:
        raise ValueError(f"targets: expected {size[0]} x {size[1]} to match the scene, got shape {list(targets.shape)}")
    truth = targets > 0
    if encoder is None and mae is not None:
        encoder = mae.encoder()
    models = {"": None, "encoder": encoder, "mae": mae}
    if methods is None:
        methods = [name for name, scorer in METHODS.items() if not scorer.needs_model or models[scorer.needs_model]]
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"methods: expected some of {', '.join(METHODS)}; got {', '.join(map(str, unknown))}")
    rows = []
    for method in methods:
        needed = METHODS[method].needs_model
        model = models[needed]
        given = (options or {}).get(method, {})
        rows.append(_row(TITLES[method], "features" if needed else "baseline", method, model, given, sample, truth))
        if needed:
            title = f"{TITLES[method]}, random weights"
            rows.append(_row(title, "control", method, random_weights(model), given, sample, truth))
    found = int(truth.sum())
    notes = []
    if found < FEW_TARGETS:
        notes.append(f"only {found} target pixels: one pixel more or less would move these numbers")
    return ScoreTable(rows, METRICS, notes, {"targets": found, "pixels": int(truth.size), "options": options or {}})


def _row(title, kind, method, model, options, sample, truth) -> ScoreRow:
    start = time.perf_counter()
    scores = score_image(anomaly_scorer(method, model, **options), sample)
    seconds = time.perf_counter() - start
    values = {"auc": (auc(truth, scores),), "best_f1": (best_f1(truth, scores)[0],)}
    return ScoreRow(title, kind, "targets against all other pixels", values, seconds)

"""Anomaly scores: how unlike the rest of the scene each pixel is, without labels.

A scorer works in two passes, so that a scene of any size can stream through it: ``fit`` learns the background from
blocks of pixels [n, F], ``score`` gives every pixel of a cube [F, h, w] a number, higher is more anomalous. ``prepare``
makes that cube of a window: the spectra themselves, or what a model makes of them. ``margin`` says how many pixels
around a window its scores depend on::

    scorer = anomaly_scorer("rx")
    scorer.fit(as_rows(scorer.prepare(image.sample(window))) for window in windows)
    scores = scorer.score(scorer.prepare(image.sample(window)))
"""

from __future__ import annotations

import numpy as np
from torch import nn

from specfast.batch import SpectralSample
from specfast.tasks.anomaly_local import LocalRX
from specfast.tasks.anomaly_model import FeatureRX, ReconstructionError
from specfast.tasks.anomaly_rx import PCARX, GlobalRX

METHODS = {
    "rx": GlobalRX,
    "pca-rx": PCARX,
    "local-rx": LocalRX,
    "features": FeatureRX,
    "reconstruction": ReconstructionError,
}


def anomaly_scorer(method: str, model: nn.Module | None = None, **options):
    """Return the scorer of a method.

    Args:
        method: ``"rx"``, ``"pca-rx"`` and ``"local-rx"`` on spectra, ``"features"`` (RX on an encoder's dense features)
            or ``"reconstruction"`` (a masked autoencoder's error); see the classes in :data:`METHODS`.
        model: the SpecAwareEncoder of ``"features"``, the SpecAwareMAE of ``"reconstruction"``; None otherwise.
        options: those of the scorer's class.

    Raises:
        ValueError: an unknown method, a model missing or not needed, or an option out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
    scorer = METHODS[method]
    if bool(scorer.needs_model) != (model is not None):
        what = f"needs a model ({scorer.needs_model})" if scorer.needs_model else "takes no model"
        raise ValueError(f"model: method {method!r} {what}")
    return scorer(**options) if model is None else scorer(model, **options)


def as_rows(cube: np.ndarray) -> np.ndarray:
    """Return the pixels of a cube [F, h, w] as rows [h * w, F]."""
    return cube.reshape(len(cube), -1).T


def score_image(scorer, sample: SpectralSample) -> np.ndarray:
    """Fit a scorer to one scene in memory and return its scores, float32 [H, W], NaN where a pixel is invalid."""
    cube = scorer.prepare(sample)
    return scorer.fit([as_rows(cube)]).score(cube)

"""A digest of what a model is trained on, so that a folder's run is never gone on with, or returned, for other data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from specfast.batch import SpectralSample
from specfast.models.downstream import DownstreamModel


def inputs_digest(
    out: str | Path | None, model: DownstreamModel, samples: Iterable[SpectralSample], options, *known: np.ndarray
) -> str:
    """Return the SHA-256 of what a run is made of beside the model's shape and the fit's options; ``""`` without a
    folder, where there is nothing to confuse it with.

    Args:
        out: the run's folder.
        model: before training; its encoder counts.
        samples: what it is trained on.
        options: of the task, with a field ``fit``, which :func:`specfast.tasks.fit` compares by name.
        known: labels or targets, and where they belong.
    """
    if out is None:
        return ""
    digest = hashlib.sha256(repr(replace(options, fit=None)).encode())
    for array in known:
        _add(digest, array)
    for sample in samples:
        digest.update(repr((sample.gsd, sample.sensor, sample.level, sample.valid is None)).encode())
        for values in (sample.image, sample.wavelength, sample.fwhm, sample.valid):
            if values is not None:
                _add(digest, values)
    for name, weight in model.encoder.state_dict().items():
        digest.update(name.encode())
        _add(digest, weight)
    return digest.hexdigest()


def _add(digest, values) -> None:
    """Add an array's type and shape and its bytes, so that equal bytes of other shapes differ."""
    if isinstance(values, torch.Tensor):  # through bytes, as numpy has no bfloat16
        raw = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        values = np.asarray(values)
        raw = np.ascontiguousarray(values)
    digest.update(repr((str(values.dtype).removeprefix("torch."), tuple(values.shape))).encode())
    digest.update(raw)

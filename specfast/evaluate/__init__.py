"""Probes of frozen features: splits, metrics, dense features, baselines, the probe's table."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "probe": "specfast.evaluate.probing",
    "ProbeTable": "specfast.evaluate.table",
    "ProbeRow": "specfast.evaluate.table",
    "Comparison": "specfast.evaluate.table",
    "dense_features": "specfast.evaluate.features",
    "whiten": "specfast.evaluate.features",
    "Split": "specfast.evaluate.splits",
    "random_pixels": "specfast.evaluate.splits",
    "field_disjoint": "specfast.evaluate.splits",
    "by_tile": "specfast.evaluate.splits",
    "published_maps": "specfast.evaluate.splits",
    "Scores": "specfast.evaluate.metrics",
    "score": "specfast.evaluate.metrics",
    "mean_and_spread": "specfast.evaluate.metrics",
    "auc": "specfast.evaluate.detection",
    "best_f1": "specfast.evaluate.detection",
    "otsu_threshold": "specfast.evaluate.detection",
    "DetectionScores": "specfast.evaluate.detection",
    "score_detection": "specfast.evaluate.detection",
    "BASELINES": "specfast.evaluate.baselines",
    "Method": "specfast.evaluate.baselines",
    "read_labels": "specfast.evaluate.labels",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'specfast.evaluate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

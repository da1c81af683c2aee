"""specfast: fast training and practical use of hyperspectral foundation models."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "SpectralBatch": "specfast.batch",
    "SpectralSample": "specfast.batch",
    "SpecAwareConfig": "specfast.models",
    "SpecAwareMAE": "specfast.models",
    "SpecAwareEncoder": "specfast.models",
    "create_model": "specfast.models",
    "list_models": "specfast.models",
    "load_model": "specfast.models",
    "load_published": "specfast.models",
    "patch": "specfast.models.patching",
    "unpatch": "specfast.models.patching",
    "DownstreamConfig": "specfast.models",
    "SpecAwareSegmenter": "specfast.models",
    "SpecAwareClassifier": "specfast.models",
    "SpecAwareRegressor": "specfast.models",
    "SpecAwareChangeDetector": "specfast.models",
}
_SUBMODULES = (
    "data",
    "dssync",
    "errors",
    "evaluate",
    "export",
    "infer",
    "models",
    "ops",
    "report",
    "tasks",
    "testing",
    "train",
)

__all__ = [*_PUBLIC, *_SUBMODULES, "__version__"]


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"specfast.{name}")
    raise AttributeError(f"module 'specfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

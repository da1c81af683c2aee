"""Pre-training: configuration, the loop, checkpoints, logging."""

from __future__ import annotations

import importlib

# fetched on demand: reading a configuration needs no torch
_PUBLIC = {
    "PretrainConfig": "specfast.train.config",
    "pretrain": "specfast.train.pretraining",
    "PretrainResult": "specfast.train.pretraining",
    "NonFiniteLossError": "specfast.train.pretraining",
    "TrainingInterrupted": "specfast.train.signals",
    "read_log": "specfast.train.logging",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'specfast.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

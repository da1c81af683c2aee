"""An encoder for one sensor as a plain network: images [B, C, H, W] in, features out; for ONNX and AOTInductor."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "FoldedEncoder": "specfast.export.encoder",
    "fold": "specfast.export.folding",
    "fold_error": "specfast.export.folding",
    "export": "specfast.export.formats",
    "FORMATS": "specfast.export.formats",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'specfast.export' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

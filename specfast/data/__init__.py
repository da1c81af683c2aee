"""Scenes in, batches out: readers of files, what is known of sensors, and the training store with its loader."""

from __future__ import annotations

import importlib

# Imported here and now: each function has its module's name, and a later import of the module would put the module in
# the function's place.
from specfast.data.resample import resample
from specfast.data.sensors import sensors

_PUBLIC = {
    "open": "specfast.data.opening",
    "SpectralImage": "specfast.data.image",
    "Sensor": "specfast.data.sensors",
    "find_sensor": "specfast.data.sensors",
    "BandTable": "specfast.data.bands",
    "band_table": "specfast.data.bands",
    "covered_bands": "specfast.data.resample",
    "prepare": "specfast.data.preparation",
    "SpectralStore": "specfast.data.store",
    "SpectralLoader": "specfast.data.loader",
}

__all__ = [*_PUBLIC, "resample", "sensors"]


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'specfast.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

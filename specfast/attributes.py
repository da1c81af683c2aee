"""Sensor and processing-level names, and the sentence vectors that describe them to the model.

SpecAware describes each sample by two frozen sentence embeddings (all-MiniLM-L6-v2, 384 numbers): one of its sensor's
name, one of its processing level's (Ji et al. 2026, section 3.2). The six sentences of the published model ship as a
table, so the language model is needed only for other sensors (the extra ``[text]``).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import warnings
from importlib import resources

import numpy as np
import torch

ATTRIBUTE_DIM = 384

SENSOR_SENTENCES = {"avc": "AVIRIS-Classic", "avng": "AVIRIS-NG", "av3": "AVIRIS-3", "others": "other HSI sensors"}
LEVEL_SENTENCES = {"L1": "L1 Calibrated Radiance", "L2": "L2 Surface Reflectance"}

_SENSOR_ALIASES = {"avc": ("AVIRIS",), "avng": ("AVIRIS Next Generation",), "av3": (), "others": ("other", "unknown")}
_LEVEL_ALIASES = {
    "L1": ("radiance", "calibrated radiance", "L1B", "L1C"),
    "L2": ("reflectance", "surface reflectance", "L2A"),
}
_TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def _fold(name: str) -> str:
    """Reduce a name to its letters and digits, so that case, dashes and spaces do not matter."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _lookup_table(sentences: dict[str, str], aliases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {_fold(name): key for key, sentence in sentences.items() for name in (key, sentence, *aliases[key])}


_SENSORS = _lookup_table(SENSOR_SENTENCES, _SENSOR_ALIASES)
_LEVELS = _lookup_table(LEVEL_SENTENCES, _LEVEL_ALIASES)


def canonical_level(name: str) -> str:
    """Return ``"L1"`` (radiance) or ``"L2"`` (reflectance) for a level given by key or sentence, in any case.

    Raises:
        ValueError: for any other name.
    """
    key = _LEVELS.get(_fold(name)) if isinstance(name, str) else None
    if key is None:
        known = ", ".join(f"{k} ({s})" for k, s in LEVEL_SENTENCES.items())
        raise ValueError(
            f"level: unknown processing level {name!r}; expected one of {known}, 'radiance', 'reflectance'"
        )
    return key


def canonical_sensor(name: str) -> str:
    """Return the published key (``avc``, ``avng``, ``av3``, ``others``) of a sensor, or its name if it has none."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"sensor: expected a sensor's name, got {name!r}; use 'others' for an unknown sensor")
    return _SENSORS.get(_fold(name), name)


@functools.cache
def _published_vectors() -> dict[str, np.ndarray]:
    with resources.files("specfast").joinpath("attributes.npz").open("rb") as file, np.load(file) as table:
        return dict(zip(table["keys"].tolist(), table["vectors"].astype(np.float32), strict=True))


@functools.cache
def _text_encoder():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(os.environ.get("SPECFAST_TEXT_MODEL", _TEXT_MODEL), device="cpu")


@functools.cache
def _sensor_vector(name: str) -> np.ndarray:
    vectors = _published_vectors()
    key = canonical_sensor(name)
    if key in vectors:
        return vectors[key]
    if importlib.util.find_spec("sentence_transformers") is None:
        reason = 'pip install "specfast[text]" embeds other names'
    else:
        try:
            return np.asarray(_text_encoder().encode(name), dtype=np.float32)
        except OSError as error:  # the weights are not on this machine and cannot be fetched
            reason = f"the sentence model could not be loaded ({error})"
    known = ", ".join(f"{k} ({s})" for k, s in SENSOR_SENTENCES.items())
    warnings.warn(
        f"sensor {name!r} has no published description and is treated as 'others'; known sensors: {known}; {reason}",
        UserWarning,
        stacklevel=2,
    )
    return vectors["others"]


def attribute_vectors(sensors: list[str], levels: list[str]) -> torch.Tensor:
    """Return the sentence vectors of B samples: float32 [B, 2, 384], the sensor's first, then the level's.

    Raises:
        ValueError: a level is unknown, or a sensor is not a name. An unknown sensor only warns, once a name.
    """
    vectors = _published_vectors()
    rows = [np.stack([_sensor_vector(s), vectors[canonical_level(lv)]]) for s, lv in zip(sensors, levels, strict=True)]
    return torch.from_numpy(np.stack(rows))

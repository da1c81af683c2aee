"""Models by name, and model classes by task and by what a saved folder says it holds."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence

from torch import nn

from specfast.errors import CheckpointError
from specfast.models.config import SpecAwareConfig
from specfast.models.downstream import DownstreamConfig, DownstreamModel
from specfast.models.pretrained import CONFIG_FILE, read_config, resolve

# Base is published; the others follow the usual ViT sizes (large: Ji et al. 2026).
_SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3, "decoder_embed_dim": 128, "decoder_depth": 4, "decoder_num_heads": 4},
    "small": {"embed_dim": 384, "num_heads": 6, "decoder_embed_dim": 256, "decoder_depth": 4, "decoder_num_heads": 8},
    "base": {},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_PATCH_SIZES = (4, 8, 16)
# Task: the class's module and name. Imported when asked for.
_TASKS = {
    "pretrain": ("specfast.models.mae", "SpecAwareMAE"),
    "encoder": ("specfast.models.encoder", "SpecAwareEncoder"),
    "segmentation": ("specfast.models.segmenter", "SpecAwareSegmenter"),
    "classification": ("specfast.models.classifier", "SpecAwareClassifier"),
    "regression": ("specfast.models.regressor", "SpecAwareRegressor"),
    "change": ("specfast.models.change", "SpecAwareChangeDetector"),
}


def list_models() -> list[str]:
    """Return the names :func:`create_model` knows."""
    return [f"specaware_{size}_patch{p}" for size in _SIZES for p in _PATCH_SIZES]


def create_model(
    name: str,
    *,
    task: str = "pretrain",
    outputs: Sequence[str] | None = None,
    head: str | None = None,
    head_options: dict | None = None,
    **overrides,
) -> nn.Module:
    """Build a model with fresh weights.

    Args:
        name: one of :func:`list_models`.
        task: ``"pretrain"`` (SpecAwareMAE), ``"encoder"`` (SpecAwareEncoder), ``"segmentation"`` (SpecAwareSegmenter),
            ``"classification"`` (SpecAwareClassifier), ``"regression"`` (SpecAwareRegressor) or ``"change"``
            (SpecAwareChangeDetector).
        outputs: names of the classes or targets of a task model.
        head: its head, a key of the class's ``HEADS``; None takes the class's default.
        head_options: options of that head.
        overrides: fields of :class:`SpecAwareConfig`.

    Raises:
        ValueError: unknown name (the nearest are named), task or option, or options that do not fit each other.
    """
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=3)
        raise ValueError(
            f"name: unknown model {name!r}; "
            + (f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(list_models())}")
        )
    size, patch = name.removeprefix("specaware_").rsplit("_patch", 1)
    config = SpecAwareConfig.from_dict({**_SIZES[size], "patch_size": int(patch), **overrides})
    cls = model_class(task)
    if not issubclass(cls, DownstreamModel):
        if outputs is not None or head is not None or head_options is not None:
            raise ValueError(f"outputs, head, head_options: only for the task models; got task={task!r}")
        return cls(config)
    if outputs is None:
        raise ValueError(f"outputs: task {task!r} needs the names of its classes or targets")
    return cls(DownstreamConfig(config, head or cls.DEFAULT_HEAD, tuple(outputs), dict(head_options or {})))


def model_class(task: str) -> type[nn.Module]:
    """Return the model class of a task."""
    if task not in _TASKS:
        raise ValueError(f"task: must be one of {', '.join(_TASKS)}; got {task!r}")
    return _class(*_TASKS[task])


def load_model(source: str | os.PathLike, **overrides) -> nn.Module:
    """Load a saved model of any kind: its config.json says which class it is.

    Args:
        source: a folder written by ``save_pretrained``, or a name on the Hugging Face hub.
        overrides: as in ``from_pretrained``.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        CheckpointError: the folder holds no model of specfast, or its weights do not fit; every offending key is named.
    """
    folder = resolve(source)
    architecture = read_config(folder).get("architecture")
    classes = {name: module for module, name in _TASKS.values()}
    if architecture not in classes:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: holds architecture {architecture!r}; expected one of {', '.join(classes)}"
        )
    return _class(classes[architecture], architecture).from_pretrained(folder, **overrides)


def _class(module: str, name: str) -> type[nn.Module]:
    return getattr(importlib.import_module(module), name)

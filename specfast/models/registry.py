"""Models by name."""

from __future__ import annotations

import difflib

from specfast.models.config import SpecAwareConfig
from specfast.models.encoder import SpecAwareEncoder
from specfast.models.mae import SpecAwareMAE

# Base is published; the others follow the usual ViT sizes (large: Ji et al. 2026).
_SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3, "decoder_embed_dim": 128, "decoder_depth": 4, "decoder_num_heads": 4},
    "small": {"embed_dim": 384, "num_heads": 6, "decoder_embed_dim": 256, "decoder_depth": 4, "decoder_num_heads": 8},
    "base": {},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_PATCH_SIZES = (4, 8, 16)
_TASKS = {"pretrain": SpecAwareMAE, "encoder": SpecAwareEncoder}


def list_models() -> list[str]:
    """Return the names :func:`create_model` knows."""
    return [f"specaware_{size}_patch{p}" for size in _SIZES for p in _PATCH_SIZES]


def create_model(name: str, *, task: str = "pretrain", **overrides) -> SpecAwareMAE | SpecAwareEncoder:
    """Build a model with fresh weights.

    Args:
        name: one of :func:`list_models`.
        task: ``"pretrain"`` (SpecAwareMAE) or ``"encoder"`` (SpecAwareEncoder).
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
    values = {**_SIZES[size], "patch_size": int(patch), **overrides}
    return model_class(task)(SpecAwareConfig.from_dict(values))


def model_class(task: str) -> type[SpecAwareMAE] | type[SpecAwareEncoder]:
    """Return the model class of a task."""
    if task not in _TASKS:
        raise ValueError(f"task: must be one of {', '.join(_TASKS)}; got {task!r}")
    return _TASKS[task]

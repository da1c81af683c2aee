"""Loading checkpoints of the published SpecAware code, and ImageNet weights of plain ViTs."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from specfast.errors import CheckpointError
from specfast.models.config import SpecAwareConfig
from specfast.models.downstream import DownstreamConfig
from specfast.models.encoder import SpecAwareEncoder
from specfast.models.mae import SpecAwareMAE
from specfast.models.pretrained import DECODER_PREFIXES, load_exactly, part_of
from specfast.models.segmenter import SpecAwareSegmenter

_EMBED = "patch_embed.matrix_generator."
_HEAD = "decoder_pred.matrix_generator."
_TASKS = {"pretrain": SpecAwareMAE, "encoder": SpecAwareEncoder, "segmentation": SpecAwareSegmenter}
_SEGMENTATION_PREFIXES = ("neck.", "decoder.", "segmentation_head.")


def load_published(
    source: str | os.PathLike | dict[str, Tensor],
    *,
    task: str = "pretrain",
    image_size: int | None = None,
    patch_size: int | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    outputs: Sequence[str] | None = None,
    **overrides,
) -> SpecAwareMAE | SpecAwareEncoder | SpecAwareSegmenter:
    """Build the model of a published checkpoint and load it.

    Widths, depths, rank, patch size and pooling grid are read off the shapes. Head counts cannot be: they default to
    heads 64 wide in the encoder and 32 wide in the decoder, as in the base model.

    Args:
        source: a ``.pth``/``.pt``/``.safetensors`` file (never unpickled beyond tensors), or a state dict with the
            published names, also inside ``{"model": ...}`` or with the segmentation example's ``encoder.`` prefix.
        task: ``"pretrain"``, ``"encoder"`` or ``"segmentation"`` (the example's model with its UPerNet head; for an
            encoder without one, :meth:`SpecAwareSegmenter.from_encoder` makes a fresh head).
        image_size: side of the crops the model will see, in pixels; by default the one it was trained with.
        patch_size: p; if it differs from the checkpoint's, the generators' patch axes are resampled bilinearly and the
            ground sampling distance is scaled by the ratio, as the authors do for the encoder.
        num_heads, decoder_num_heads: attention heads.
        outputs: ``"segmentation"``: names of the classes; by default ``"class 1"`` and so on.
        overrides: other fields of :class:`SpecAwareConfig`.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: keys are missing, unexpected or misshapen (all are named), or a checkpoint without a decoder is
            asked to pre-train, or one without a segmentation head to segment.
        ValueError: an option that does not fit.
    """
    if task not in _TASKS:
        raise ValueError(f"task: must be one of {', '.join(_TASKS)}; got {task!r}")
    if outputs is not None and task != "segmentation":
        raise ValueError(f"outputs: only for task 'segmentation'; got task={task!r}")
    cls = _TASKS[task]
    name = "state dict" if isinstance(source, dict) else str(source)
    state, head = _split_head(_state_dict(source, name))
    has_decoder = any(key.startswith(DECODER_PREFIXES) for key in state)
    if task == "pretrain" and not has_decoder:
        raise CheckpointError(f"{name}: an encoder-only checkpoint cannot serve task 'pretrain'; use task='encoder'")
    if task == "segmentation" and not head:
        raise CheckpointError(
            f"{name}: holds no segmentation head; load it with task='encoder' and give that encoder to "
            "SpecAwareSegmenter.from_encoder"
        )
    if task != "pretrain":
        state = {key: value for key, value in state.items() if not key.startswith(DECODER_PREFIXES)}
    values = _infer(state, name, SpecAwareMAE if task == "pretrain" else SpecAwareEncoder)
    trained_patch = values["patch_size"]
    if patch_size is not None and patch_size < 1:
        raise ValueError(f"patch_size: must be at least 1; got {patch_size}")
    values["image_size"] = image_size or values["content_grid"] * trained_patch
    if patch_size is not None and patch_size != trained_patch:
        state = _resample_patches(state, values["rank"], trained_patch, patch_size)
        values.update(patch_size=patch_size, gsd_scale=patch_size / trained_patch)
    values["num_heads"] = num_heads or max(1, values["embed_dim"] // 64)
    if "decoder_embed_dim" in values:
        values["decoder_num_heads"] = decoder_num_heads or max(1, values["decoder_embed_dim"] // 32)
    config = SpecAwareConfig.from_dict({**values, **overrides})
    if task == "segmentation":
        config = _segmenter_config(config, head, name, outputs)
        state = {f"encoder.{key}": value for key, value in state.items()} | head
    model = cls(config)
    load_exactly(model, state, name)
    return model


def _split_head(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate the segmentation example's head from the encoder, which has a prefix there."""
    if not any(key.startswith("encoder.") for key in state):
        return state, {}
    head = {key: value for key, value in state.items() if key.startswith(_SEGMENTATION_PREFIXES)}
    return part_of(state, "encoder."), head


def _segmenter_config(config: SpecAwareConfig, head: dict[str, Tensor], name: str, outputs) -> DownstreamConfig:
    """Read the sizes of the example's head off its shapes."""
    keys = ("neck.lateral_convs.0.weight", "segmentation_head.0.weight")
    if problems := [key for key in keys if key not in head or head[key].ndim != 4 or 0 in head[key].shape]:
        raise CheckpointError(f"{name}: missing or misshapen {', '.join(problems)}, expected 4 dimensions")
    channels = len(head[keys[0]])
    classes, last = head[keys[1]].shape[:2]
    if outputs is not None and len(outputs) != classes:
        raise ValueError(f"outputs: expected {classes} names, the checkpoint's classes; got {len(outputs)}")
    options = {"pyramid_channels": channels, "segmentation_channels": last}
    names = tuple(outputs) if outputs is not None else tuple(f"class {k}" for k in range(1, classes + 1))
    return DownstreamConfig(config, "upernet", names, options)


def initialize_from_vit(
    model: SpecAwareMAE | SpecAwareEncoder, source: str | os.PathLike | dict[str, Tensor]
) -> list[str]:
    """Load blocks, norm and cls token of a plain ViT (such as an ImageNet MAE), in timm's names, into the encoder.

    Everything else of the source is ignored, and the model's generators and decoder keep their weights.

    Returns:
        The names loaded.

    Raises:
        CheckpointError: a block, the norm or the cls token is missing or of another shape; all are named.
    """
    name = "state dict" if isinstance(source, dict) else str(source)
    state, _ = _split_head(_state_dict(source, name))
    own = model.state_dict()
    wanted = [key for key in own if key == "cls_token" or key.startswith(("blocks.", "norm."))]
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [
        f"misshapen {key} {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise CheckpointError(f"{name}: does not fit the encoder's ViT: " + "; ".join(problems))
    model.load_state_dict({key: state[key] for key in wanted}, strict=False)
    return wanted


def _state_dict(source, name: str) -> dict[str, Tensor]:
    if not isinstance(source, dict):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint file")
        try:
            if path.suffix == ".safetensors":
                source = load_file(path)
            else:
                # training scripts keep their parsed arguments beside the weights; a Namespace runs nothing when loaded
                with torch.serialization.safe_globals([argparse.Namespace]):
                    source = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader raises many types on damaged files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path}: cannot be read as a file of tensors alone: {reason}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(source, dict) and isinstance(source.get(wrapper), dict):
            source = source[wrapper]
    if not isinstance(source, dict) or not all(isinstance(value, Tensor) for value in source.values()) or not source:
        raise CheckpointError(f"{name}: expected a state dict of tensors with the published names")
    return dict(source)


def _infer(state: dict[str, Tensor], name: str, cls: type) -> dict:
    """Read the sizes off the shapes; CheckpointError if keys that tell them are missing or contradict each other."""

    def depth(prefix):
        numbers = [int(m.group(1)) for key in state if (m := re.match(rf"{prefix}\.(\d+)\.", key))]
        return 1 + max(numbers, default=-1)

    values = {"depth": max(1, depth("blocks"))}
    if cls is SpecAwareMAE:
        values["decoder_depth"] = depth("decoder_blocks")
    with torch.device("meta"):
        names = list(cls(SpecAwareConfig(**values)).state_dict())
    keys = {
        "cls_token": 3,
        "mask_token": 3,
        _EMBED + "u_generator.6.weight": 2,
        _EMBED + "v_generator.6.weight": 2,
        "patch_embed.content_feature_extractor.avg_feature_encoder.0.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "patch_embed.spectral_embedding.attribute_encoder.fc.weight": 2,
    }
    if cls is not SpecAwareMAE:
        del keys["mask_token"]
    if any(key not in state for key in keys):
        problems = [f"missing {key}" for key in names if key not in state]
        problems += [f"unexpected {key}" for key in state if key not in names]
        raise CheckpointError(
            f"{name}: expected a SpecAware checkpoint with the published names: " + "; ".join(problems)
        )
    shapes = {key: tuple(state[key].shape) for key in keys}
    misshapen = [
        f"{key} {list(shapes[key])}, expected {ndim} dimensions"
        for key, ndim in keys.items()
        if len(shapes[key]) != ndim or 0 in shapes[key]
    ]
    if misshapen:
        raise CheckpointError(f"{name}: misshapen " + "; ".join(misshapen))

    def quotient(key, divisor, meaning):
        whole, rest = divmod(shapes[key][0], divisor)
        if rest or not whole:
            raise CheckpointError(
                f"{name}: misshapen {key} {list(shapes[key])}, expected a multiple of {divisor} {meaning}"
            )
        return whole

    def root(number, key, meaning):
        if math.isqrt(number) ** 2 != number:
            raise CheckpointError(
                f"{name}: misshapen {key} {list(shapes[key])}, expected {meaning} to be a square, got {number}"
            )
        return math.isqrt(number)

    width = shapes["cls_token"][-1]
    rank = quotient(_EMBED + "u_generator.6.weight", width, "rows (the width of cls_token)")
    pixels = quotient(_EMBED + "v_generator.6.weight", rank, "rows (the rank)")
    windows = shapes["patch_embed.content_feature_extractor.avg_feature_encoder.0.weight"][1]
    values |= {
        "embed_dim": width,
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
        "condition_dim": 2 * shapes["patch_embed.spectral_embedding.attribute_encoder.fc.weight"][0],
        "rank": rank,
        "patch_size": root(pixels, _EMBED + "v_generator.6.weight", "its pixels a patch"),
        "content_grid": root(
            windows, "patch_embed.content_feature_extractor.avg_feature_encoder.0.weight", "its pooling windows"
        ),
    }
    if cls is SpecAwareMAE:
        values["decoder_embed_dim"] = shapes["mask_token"][-1]
    return values


def _resample_patches(state: dict[str, Tensor], rank: int, old: int, new: int) -> dict[str, Tensor]:
    """Resample the rows of the generators' last layers that stand for a patch's pixels."""
    state = dict(state)

    def resample(key, before, after):
        for part in ("weight", "bias"):
            # rows of another number are left as they are, to be named as misshapen with all others
            if (rows := state.get(full := f"{key}.{part}")) is not None and len(rows) == before * old * old * after:
                # rows [before, p, p, after], columns last
                image = rows.reshape(before, old, old, -1).permute(0, 3, 1, 2).float()
                image = F.interpolate(image, size=(new, new), mode="bilinear", align_corners=False)
                state[full] = (
                    image.permute(0, 2, 3, 1).reshape(before * new * new * after, *rows.shape[1:]).to(rows.dtype)
                )

    resample(_EMBED + "v_generator.6", rank, 1)
    resample(_HEAD + "u_generator.6", 1, rank)
    resample(_HEAD + "bias_generator.3", 1, 1)
    return state

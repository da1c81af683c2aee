"""What is measured: each operator on the base model's shapes, by every provider.

A provider does the same job from the same inputs. ``reference`` works as the published code does: it embeds all
patches and then drops three quarters of them, predicts all and then ignores the kept ones, and stores what it
generates. ``specfast`` is the public operator. Both start from the generators' hidden vectors and the image's patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specfast import ops
from specfast.kernels import reference

PATCH, RANK, HIDDEN, WIDTH, DECODER_WIDTH = 8, 64, 64, 768, 512
MASK_RATIO = 0.75


@dataclass(frozen=True)
class Shape:
    """Sizes of one row: samples, bands of each, and the side of the square image in pixels."""

    samples: int
    bands: int
    side: int = 224

    def __str__(self) -> str:
        return f"B{self.samples}-C{self.bands}-{self.side}px"

    @property
    def patches(self) -> int:
        return (self.side // PATCH) ** 2

    @property
    def kept(self) -> int:
        return int(self.patches * (1 - MASK_RATIO))


@dataclass
class Workload:
    """Inputs of one operator, and the providers that consume them."""

    differentiable: dict[str, Tensor]
    providers: dict[str, Callable[[dict[str, Tensor]], tuple[Tensor, ...]]]


def _inputs(shape: Shape, dtype: torch.dtype, device: str):
    generator = torch.Generator().manual_seed(0)

    def rand(*sizes, scale=1.0):
        return (torch.randn(*sizes, generator=generator) * scale).to(device, dtype)

    cu_bands = torch.tensor([0, *itertools.accumulate([shape.bands] * shape.samples)], dtype=torch.int32, device=device)
    order = torch.stack([torch.randperm(shape.patches, generator=generator) for _ in range(shape.samples)]).to(device)
    return rand, cu_bands, order[:, : shape.kept], order[:, shape.kept :]


def hyper_embed(shape: Shape, dtype: torch.dtype, device: str) -> Workload:
    rand, cu_bands, keep, _ = _inputs(shape, dtype, device)
    bands = shape.samples * shape.bands
    everything = rand(bands, shape.patches, PATCH**2)
    sample = torch.arange(shape.samples, device=device).repeat_interleave(shape.bands)
    kept_patches = everything.gather(1, keep[sample][..., None].expand(-1, -1, PATCH**2))
    inputs = {
        "factors_v": rand(bands, RANK, PATCH**2, scale=0.1),
        "hidden": rand(bands, HIDDEN),
        "weight": rand(WIDTH, RANK, HIDDEN, scale=0.1),
        "bias": rand(WIDTH, RANK, scale=0.1),
    }

    def published(x):
        tokens = reference.hyper_embed(everything, **x, cu_bands=cu_bands)
        return (tokens.gather(1, keep[..., None].expand(-1, -1, WIDTH)),)

    return Workload(
        inputs,
        {"reference": published, "specfast": lambda x: (ops.hyper_embed(kept_patches, **x, cu_bands=cu_bands),)},
    )


def hyper_linear_loss(shape: Shape, dtype: torch.dtype, device: str) -> Workload:
    rand, cu_bands, _, removed = _inputs(shape, dtype, device)
    bands, pixels = shape.samples * shape.bands, PATCH**2
    inputs = {
        "tokens": rand(shape.samples, shape.patches, DECODER_WIDTH),
        "hidden": rand(bands, HIDDEN),
        "weight": rand(RANK, DECODER_WIDTH, HIDDEN, scale=0.05),
        "bias": rand(RANK, DECODER_WIDTH, scale=0.05),
        "factors_u": rand(bands, pixels, RANK, scale=0.1),
        "pixel_bias": rand(bands, pixels),
    }
    target = rand(bands, shape.patches, pixels)
    mask = torch.zeros(shape.samples, shape.patches, dtype=torch.bool, device=device).scatter(1, removed, True)
    valid = mask[..., None].expand(-1, -1, pixels)
    sample = torch.arange(shape.samples, device=device).repeat_interleave(shape.bands)
    removed_target = target.gather(1, removed[sample][..., None].expand(-1, -1, pixels))
    everywhere = torch.ones(*removed.shape, pixels, dtype=torch.bool, device=device)

    def published(x):
        return reference.hyper_linear_loss(**x, target=target, valid=valid, cu_bands=cu_bands)[:2]

    def ours(x):
        tokens = x["tokens"].gather(1, removed[..., None].expand(-1, -1, DECODER_WIDTH))
        x = {**x, "tokens": tokens}
        return ops.hyper_linear_loss(**x, target=removed_target, valid=everywhere, cu_bands=cu_bands)[:2]

    return Workload(inputs, {"reference": published, "specfast": ours})


def patch_pool(shape: Shape, dtype: torch.dtype, device: str) -> Workload:
    rand, cu_bands, keep, _ = _inputs(shape, dtype, device)
    image = rand(shape.samples * shape.bands, shape.side, shape.side)
    grid = (shape.side // PATCH, shape.side // PATCH)
    return Workload(
        {},
        {
            "reference": lambda _: reference.patch_pool(image, keep, cu_bands, PATCH, grid),
            "specfast": lambda _: ops.patch_pool(image, keep, cu_bands, PATCH),
        },
    )


OPERATORS = {"patch_pool": patch_pool, "hyper_embed": hyper_embed, "hyper_linear_loss": hyper_linear_loss}
SHAPES = [Shape(2, 100), Shape(2, 202), Shape(2, 425)]

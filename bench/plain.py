"""The best plain PyTorch a user could write for batches of equal band counts: the line to beat.

The same algebra as specfast's: only kept (or removed) patches are touched, the large factor is never formed, and all
samples go through the same batched matmuls. Everything else is stored, as autograd does.

Legend: B samples, C bands, K or M tokens, P pixels a patch, R rank, k hidden, E and D widths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kept_patches(image: Tensor, index: Tensor, patch_size: int) -> Tensor:
    """Mask first: image [B, C, H, W] and index [B, K] -> [B, C, K, P]."""
    tiles = image.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size)).transpose(3, 4)  # [B, C, h, w, p, p]
    which = torch.arange(len(image), device=image.device)[:, None]
    chosen = tiles[which, :, index // tiles.shape[3], index % tiles.shape[3]]  # [B, K, C, p, p]
    return chosen.transpose(1, 2).flatten(3)


def hyper_embed(patches: Tensor, factors_v: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """patches [B, C, K, P], factors_v [B, C, R, P], hidden [B, C, k], weight [E, R, k], bias [E, R] -> [B, K, E]."""
    projected = torch.matmul(patches, factors_v.mT)
    moments = torch.bmm(projected.flatten(2).mT, hidden).unflatten(1, projected.shape[2:])  # [B, K, R, k]
    return F.linear(moments.flatten(2), weight.flatten(1)) + F.linear(projected.sum(dim=1), bias)


def hyper_linear(
    tokens: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, factors_u: Tensor, pixel_bias: Tensor
) -> Tensor:
    """tokens [B, M, D], hidden [B, C, k], weight [R, D, k], bias [R, D], factors_u [B, C, P, R] -> [B, C, M, P]."""
    moments = torch.einsum("bld,rdk->blrk", tokens, weight)
    inner = torch.bmm(hidden, moments.flatten(1, 2).mT).unflatten(2, moments.shape[1:3])  # [B, C, M, R]
    inner = inner + F.linear(tokens, bias)[:, None]
    return torch.matmul(inner, factors_u.mT) + pixel_bias[:, :, None]

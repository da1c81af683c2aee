"""patch_pool in PyTorch: the forward pass is the reference itself; backward recomputes the windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.kernels.reference.patch_pool import patch_pool as patch_pool_fwd

__all__ = ["patch_pool_bwd", "patch_pool_fwd"]


def patch_pool_bwd(
    dpatches: Tensor,
    daverage: Tensor,
    dmaximum: Tensor,
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None,
    extent: Tensor | None,
) -> Tensor:
    """Return dimage [S, H, W]; invalid pixels get 0, and a tie for the maximum goes to its first pixel."""
    height, width = image.shape[-2:]
    p = patch_size
    dimage = torch.zeros_like(image, memory_format=torch.contiguous_format)
    segments = list(itertools.pairwise(cu_bands.tolist()))
    extents = [(height, width)] * len(segments) if extent is None else extent.tolist()
    for b, ((start, end), (rows, columns)) in enumerate(zip(segments, extents, strict=True)):
        draster = image.new_zeros(end - start, (height // p) * (width // p), p * p)
        draster.index_add_(1, index[b], dpatches[start:end].to(image.dtype))
        dbands = dimage[start:end]
        dbands.copy_(draster.view(-1, height // p, width // p, p, p).permute(0, 1, 3, 2, 4).reshape(dbands.shape))
        mask = torch.ones_like(image[:1], dtype=torch.bool) if valid is None else valid[b, None]
        measured = mask[:, :rows, :columns]
        inside = torch.where(measured, image[start:end, :rows, :columns], -torch.inf)
        share = F.adaptive_avg_pool2d(measured.to(image.dtype), grid)
        scaled = torch.where(share > 0, daverage[start:end].view(-1, *grid) / share.clamp_min(1e-12), 0.0)
        dinside = torch.ops.aten._adaptive_avg_pool2d_backward(scaled.to(image.dtype), inside)
        _, where = F.adaptive_max_pool2d(inside, grid, return_indices=True)
        dinside = dinside + torch.ops.aten.adaptive_max_pool2d_backward(
            dmaximum[start:end].view(-1, *grid).contiguous(), inside, where
        )
        dbands[:, :rows, :columns] += dinside
        dbands.masked_fill_(~mask, 0.0)
    return dimage

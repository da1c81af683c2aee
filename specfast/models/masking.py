"""Which patches a masked autoencoder keeps, and which it must predict.

Legend: B samples, N patches of the grid, K kept and M removed slots a sample. A patch without a single valid pixel is
neither kept nor removed; a sample that has such patches keeps its share of the others and leaves slots unused. K and M
depend on shapes alone, so that nothing here waits for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Masking:
    """Patch numbers in raster order, and which slots are in use (None: all).

    Attributes:
        keep: int64 [B, K] in ascending order of noise; removed: int64 [B, M].
        keep_used: bool [B, K] or None; removed_used: bool [B, M] or None.
        present: bool [B, N], patches with a valid pixel, or None when all have one.
        mask: float32 [B, N], 1 for removed patches, 0 for kept ones and for those without a valid pixel.
    """

    keep: Tensor
    removed: Tensor
    keep_used: Tensor | None
    removed_used: Tensor | None
    present: Tensor | None
    mask: Tensor


def kept_count(patches: int, mask_ratio: float) -> int:
    """Number of patches kept of ``patches``: the published int(N (1 - ratio)), but at least one."""
    return max(1, int(patches * (1 - mask_ratio)))


def random_masking(noise: Tensor, mask_ratio: float, present: Tensor | None) -> Masking:
    """Keep the patches with the smallest noise [B, N] of each sample.

    ``present`` bool [B, N] marks the patches that hold a valid pixel; None: all do.
    """
    samples, patches = noise.shape
    kept = kept_count(patches, mask_ratio)
    mask = torch.zeros(samples, patches, device=noise.device)
    if present is None:
        order = noise.argsort(dim=1, stable=True)
        keep, removed = order[:, :kept], order[:, kept:]
        return Masking(keep, removed, None, None, None, mask.scatter(1, removed, 1.0))
    order = noise.masked_fill(~present, torch.inf).argsort(dim=1, stable=True)
    count = present.sum(dim=1, keepdim=True)
    # the same rounding as kept_count, on the device
    own = (count.double() * (1 - mask_ratio)).long().clamp_min(1)
    slots = torch.arange(patches, device=noise.device).expand(samples, -1)
    keep_used = slots[:, :kept] < own
    position = own + slots[:, : patches - kept]
    removed_used = position < count
    removed = order.gather(1, position.clamp_max(patches - 1))
    mask = mask.scatter_add(1, removed, removed_used.float())
    return Masking(order[:, :kept], removed, keep_used, removed_used, present, mask)

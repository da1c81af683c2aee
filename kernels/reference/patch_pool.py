"""Pooling of every band over a grid, and the gather of chosen patches.

Legend: B samples, S all bands, H x W pixels, p patch size, P = p * p, K chosen patches, (gh, gw) pooling grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_pool(
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None = None,
    extent: Tensor | None = None,
):
    """Return (patches [S, K, P], average [S, gh * gw], maximum [S, gh * gw]).

    image [S, H, W]; index int64 [B, K], patches in raster order of the H/p x W/p grid; valid [B, H, W] bool or None;
    extent int64 [B, 2], the (height, width) of each sample before padding, or None.
    Pooling is adaptive, as torch's: window i of g over n pixels spans floor(i n / g) to ceil((i + 1) n / g), with n the
    sample's extent. Only valid pixels count, a window without any gives 0, and invalid pixels of a patch are 0.
    """
    height, width = image.shape[-2:]
    patches, average, maximum = [], [], []
    segments = list(itertools.pairwise(cu_bands.tolist()))
    extents = [(height, width)] * len(segments) if extent is None else extent.tolist()
    for sample, ((start, end), (rows, columns)) in enumerate(zip(segments, extents, strict=True)):
        bands = image[start:end]
        mask = torch.ones_like(bands[:1], dtype=torch.bool) if valid is None else valid[sample, None]
        bands = torch.where(mask, bands, 0.0)
        inside, measured = bands[:, :rows, :columns], mask[:, :rows, :columns]
        share = F.adaptive_avg_pool2d(measured.to(_at_least_float32(image)), grid)
        mean = F.adaptive_avg_pool2d(inside.to(share.dtype), grid) / share.clamp_min(1e-12)  # keeps gradients finite
        largest = F.adaptive_max_pool2d(torch.where(measured, inside, -torch.inf), grid)
        average.append(torch.where(share > 0, mean, 0.0).to(image.dtype).flatten(1))
        maximum.append(torch.where(share > 0, largest, 0.0).flatten(1))
        p = patch_size
        raster = bands.unflatten(2, (-1, p)).unflatten(1, (-1, p)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        patches.append(raster[:, index[sample]])
    if not patches:
        windows = grid[0] * grid[1]
        return image.new_empty(0, index.shape[1], patch_size**2), *(image.new_empty(0, windows) for _ in range(2))
    return torch.cat(patches), torch.cat(average), torch.cat(maximum)


def _at_least_float32(image: Tensor) -> torch.dtype:
    return torch.promote_types(image.dtype, torch.float32)

"""Bringing a batch to the encoder's patch grid: enlarged, and padded where the patch size does not divide it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.batch import SpectralBatch
from specfast.models.condition import over_bands


def on_patch_grid(batch: SpectralBatch, patch_size: int, factor: int = 1) -> SpectralBatch:
    """Enlarge a batch bilinearly and repeat its last rows and columns until the patch size divides its sides.

    A token of a patch of p pixels then covers ``p / factor`` pixels of the scene. Invalid pixels play no part in the
    interpolation, and the ground sampling distance is divided by the factor.

    Args:
        batch: images [S, H, W] of any size.
        patch_size: p.
        factor: how much the images are enlarged, at least 1.

    Returns:
        The batch itself if there is nothing to do; else one whose sides are H and W times the factor, rounded up to
        multiples of p.
    """
    image, valid, extent = batch.image, batch.valid, batch.extent
    if factor > 1:
        if valid is None:
            image = _enlarge(image, factor)
        else:
            share = over_bands(_enlarge(valid.to(image.dtype), factor), batch)
            image = torch.where(share > 0, _enlarge(image, factor) / share.clamp_min(1e-6), 0.0)
            valid = valid.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
            image = image * over_bands(valid, batch)
        extent = None if extent is None else extent * factor
    height, width = image.shape[-2:]
    rows, columns = (-(-length // patch_size) * patch_size for length in (height, width))
    if (rows, columns) != (height, width):
        image, valid = (
            _repeat_edges(image, rows, columns),
            None if valid is None else _repeat_edges(valid, rows, columns),
        )
    if image is batch.image:
        return batch
    return replace(batch, image=image, valid=valid, extent=extent, gsd=batch.gsd / factor)


def to_pixels(maps: Tensor, present: Tensor | None, spacing: float, size: tuple[int, int]) -> Tensor:
    """Interpolate maps of patches to the centers of pixels.

    Args:
        maps: [B, F, rows, columns]; the center of patch (i, j) lies at pixel coordinate (i + 1/2, j + 1/2) * spacing.
        present: bool [B, rows, columns], False where a patch holds nothing and is left out; None if all hold something.
        spacing: pixels between patches; rows and columns times it are whole numbers.
        size: rows and columns of pixels, which the patches cover.

    Returns:
        [B, F, *size]; 0 where no patch is near.
    """
    if present is None:
        return _at_centers(maps, spacing, size)
    there = present[:, None].to(maps.dtype)
    share = _at_centers(there, spacing, size)
    mixed = _at_centers(maps * there, spacing, size)
    return torch.where(share > 1e-6, mixed / share.clamp_min(1e-6), 0.0)


def _at_centers(maps: Tensor, spacing: float, size: tuple[int, int]) -> Tensor:
    if spacing != 1:
        whole = [round(side * spacing) for side in maps.shape[-2:]]
        maps = F.interpolate(maps, size=whole, mode="bilinear", align_corners=False)
    return maps[..., : size[0], : size[1]]


def _enlarge(image: Tensor, factor: int) -> Tensor:
    return F.interpolate(image[:, None], scale_factor=factor, mode="bilinear", align_corners=False)[:, 0]


def _repeat_edges(image: Tensor, rows: int, columns: int) -> Tensor:
    row = torch.arange(rows, device=image.device).clamp_max(image.shape[-2] - 1)
    column = torch.arange(columns, device=image.device).clamp_max(image.shape[-1] - 1)
    return image[..., row[:, None], column]

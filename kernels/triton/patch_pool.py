"""Launchers of patch_pool, in the eager backend's signatures.

Where the pooling windows are the patches (the model's own grid, no extent), one kernel pools and gathers from a single
read of the image; other grids pool and gather by two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.triton import launch
from specfast.kernels.triton.patch_pool_kernels import (
    patch_gather_kernel,
    patch_links_kernel,
    patch_pool_bwd_kernel,
    patch_pool_fwd_kernel,
    patch_windows_kernel,
)

PATCH_LIMIT = 64  # a patch is at most one tile


def _constants(kernel: str, image: Tensor, patch_size: int) -> dict:
    """P, BLOCK_P, BLOCK_T and options of a kernel whose tile is BLOCK_PIXELS large."""
    values = dict(configs.config(kernel, image.dtype, launch.architecture(image.device), p=patch_size))
    side = configs.bucket(patch_size)
    return values | {"P": patch_size, "BLOCK_P": side, "BLOCK_T": max(1, values.pop("BLOCK_PIXELS") // side**2)}


def _strides(image: Tensor, patch_size: int) -> tuple[int, tuple[int, int, int]]:
    """The unit of the strides along bands and rows, and the strides in it (that along columns in elements)."""
    band, row, column = image.stride()
    unit = patch_size if band % patch_size == 0 and row % patch_size == 0 else 1
    return unit, (band // unit, row // unit, column)


def _links(index: Tensor, patches: int, like: Tensor) -> Tensor:
    """int32 [B, N + 1 + K]: each patch's first position, that of the first entry which is no patch, then each
    position's next with the same patch; -1: none.
    """
    samples, kept = index.shape
    links = index.new_full((samples, patches + 1 + kept), -1, dtype=torch.int32)
    if index.numel():
        ordered, order = torch.where((index >= 0) & (index < patches), index, patches).sort(dim=1, stable=True)
        values = configs.config("patch_links", like.dtype, launch.architecture(like.device))
        grid = (samples * triton.cdiv(kept, values["BLOCK_Q"]),)
        patch_links_kernel[grid](ordered.contiguous(), order.contiguous(), links, patches, kept, **values)
    return links


def patch_pool_fwd(
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None,
    extent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches [S, K, P * P], average and maximum [S, gh * gw]."""
    (bands, height, width), kept, windows = image.shape, index.shape[1], grid[0] * grid[1]
    patches = image.new_empty(bands, kept, patch_size * patch_size)
    average, maximum = image.new_empty(bands, windows), image.new_empty(bands, windows)
    if bands == 0:
        return patches, average, maximum
    valid, sample = launch.as_bytes(valid), launch.sample_of_band(cu_bands, bands)
    unit, strides = _strides(image, patch_size)
    rows, columns = height // patch_size, width // patch_size
    common = {"UNIT": unit, "HAS_VALID": valid is not None}
    if extent is None and tuple(grid) == (rows, columns):
        constants = _constants("patch_pool_fwd", image, patch_size)
        patch_pool_fwd_kernel[(bands * rows * triton.cdiv(columns, constants["BLOCK_T"]),)](
            image,
            valid,
            sample,
            _links(index, rows * columns, image),
            patches,
            average,
            maximum,
            *strides,
            rows,
            columns,
            kept,
            **common,
            **constants,
        )
        return patches, average, maximum
    _windows(image, valid, extent, sample, grid, average=average, maximum=maximum)
    if kept:
        constants = _constants("patch_gather", image, patch_size)
        patch_gather_kernel[(bands * triton.cdiv(kept, constants["BLOCK_T"]),)](
            image, valid, sample, index, patches, *strides, *index.stride(), rows, columns, kept, **common, **constants
        )
    return patches, average, maximum


def _windows(image, valid, extent, sample, grid, average, maximum=None, daverage=None, argmax=None):
    """Pool, or (given daverage and argmax) prepare the gradients of pooling."""
    values = configs.config("patch_windows", image.dtype, launch.architecture(image.device))
    tiles = triton.cdiv(grid[0] * grid[1], values["BLOCK_W"])
    patch_windows_kernel[(image.shape[0] * tiles,)](
        image,
        valid,
        None if extent is None else extent.contiguous(),
        sample,
        daverage,
        average,
        maximum,
        argmax,
        *image.stride(),
        *image.shape[1:],
        *grid,
        HAS_VALID=valid is not None,
        HAS_EXTENT=extent is not None,
        BACKWARD=daverage is not None,
        **values,
    )


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
    (bands, height, width), kept = image.shape, index.shape[1]
    dimage = image.new_empty(image.shape)
    if bands == 0:
        return dimage
    valid, sample = launch.as_bytes(valid), launch.sample_of_band(cu_bands, bands)
    share = torch.empty_like(daverage, dtype=torch.float32, memory_format=torch.contiguous_format)
    argmax = torch.empty_like(share, dtype=torch.int32)
    _windows(image, valid, extent, sample, grid, average=share, daverage=daverage.contiguous(), argmax=argmax)
    rows, columns = height // patch_size, width // patch_size
    constants = _constants("patch_pool_bwd", image, patch_size)
    patch_pool_bwd_kernel[(bands * rows * triton.cdiv(columns, constants["BLOCK_T"]),)](
        dpatches.contiguous(),
        share,
        dmaximum.contiguous(),
        argmax,
        valid,
        None if extent is None else extent.contiguous(),
        sample,
        _links(index, rows * columns, image),
        dimage,
        rows,
        columns,
        *grid,
        kept,
        HAS_VALID=valid is not None,
        HAS_EXTENT=extent is not None,
        **constants,
    )
    return dimage

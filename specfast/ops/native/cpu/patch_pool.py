"""patch_pool by the C++ kernel: one pass over every band."""

from __future__ import annotations

import torch
from torch import Tensor

from specfast import _native
from specfast.ops.native.cpu.dtypes import DTYPES


def patch_pool_fwd(
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: list[int],
    valid: Tensor | None,
    extent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches [S, K, P], average and maximum [S, gh * gw]."""
    samples, kept = index.shape
    bands, windows = image.shape[0], grid[0] * grid[1]
    patches = image.new_empty(bands, kept, patch_size * patch_size)
    average, maximum = image.new_empty(bands, windows), image.new_empty(bands, windows)
    # kept alive by these names until the call returns
    index, cu_bands = index.contiguous(), cu_bands.contiguous()
    valid = None if valid is None else valid.contiguous()
    extent = None if extent is None else extent.contiguous()
    _native.extension().patch_pool(
        image=image.data_ptr(),
        dtype=DTYPES[image.dtype],
        shape=tuple(image.shape),
        strides=image.stride(),
        index=index.data_ptr(),
        cu_bands=cu_bands.data_ptr(),
        samples=samples,
        kept=kept,
        patch_size=patch_size,
        grid=tuple(grid),
        valid=0 if valid is None else valid.data_ptr(),
        extent=0 if extent is None else extent.data_ptr(),
        patches=patches.data_ptr(),
        average=average.data_ptr(),
        maximum=maximum.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return patches, average, maximum

"""patch_pool by the C++ kernel: one pass over every band."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specfast import _native
from specfast.ops.native.cpu.dtypes import DTYPES
from specfast.ops.native.patch_pool import call_patch_pool


def patch_pool_fwd(
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None,
    extent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches [S, K, P], average and maximum [S, gh * gw]."""
    function, dtype = _native.extension().patch_pool, DTYPES[image.dtype]
    arguments = image, index, cu_bands, patch_size, grid, valid, extent
    return call_patch_pool(function, dtype, *arguments, threads=torch.get_num_threads())

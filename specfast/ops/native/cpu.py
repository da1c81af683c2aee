"""CPU backend: C++ kernels for float32 and bfloat16; large dense GEMMs go through torch to its library."""

from __future__ import annotations

import torch
from torch import Tensor

from specfast import _native

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def unsupported(name: str, *arguments) -> str | None:
    """Why this backend cannot run the operator on these arguments, or None."""
    first = arguments[0]
    if first.device.type != "cpu":
        return f"tensors on {first.device.type}"
    return None if first.dtype in _DTYPES else f"{first.dtype} inputs"


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
        dtype=_DTYPES[image.dtype],
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

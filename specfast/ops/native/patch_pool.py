"""The call of the extension's patch_pool, which CPU and CUDA kernels take alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def call_patch_pool(
    function: Callable,
    dtype: str,
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None,
    extent: Tensor | None,
    **where: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches [S, K, P], average and maximum [S, gh * gw]; ``where`` is the threads or the stream to run on."""
    samples, kept = index.shape
    bands, windows = image.shape[0], grid[0] * grid[1]
    patches = image.new_empty(bands, kept, patch_size * patch_size)
    average, maximum = image.new_empty(bands, windows), image.new_empty(bands, windows)
    # kept alive by these names until the call returns; on a GPU, the allocator's order on the stream then protects them
    index, cu_bands = index.contiguous(), cu_bands.contiguous()
    valid = None if valid is None else valid.contiguous()
    extent = None if extent is None else extent.contiguous()
    function(
        image=image.data_ptr(),
        dtype=dtype,
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
        **where,
    )
    return patches, average, maximum

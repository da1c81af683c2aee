"""Registers the operators' implementations: composed PyTorch for every device, native code where there is some."""

from __future__ import annotations

import functools

import torch

from specfast import _native
from specfast.kernels import eager
from specfast.ops.schemas import LIBRARY

_NATIVE_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _without_autocast(kernel):
    """Inputs come in the precision they are to be computed in; a backward may run under another autocast state."""

    @functools.wraps(kernel)
    def run(*args):
        with torch.autocast(args[0].device.type, enabled=False):
            return kernel(*args)

    return run


for name in eager.__all__:
    LIBRARY.impl(name, _without_autocast(getattr(eager, name)), "CompositeExplicitAutograd")


def _patch_pool_cpu(image, index, cu_bands, patch_size, grid, valid, extent):
    native = _native.extension() if image.dtype in _NATIVE_DTYPES else None
    if native is None:
        return _without_autocast(eager.patch_pool_fwd)(image, index, cu_bands, patch_size, grid, valid, extent)
    samples, kept = index.shape
    bands, windows = image.shape[0], grid[0] * grid[1]
    patches = image.new_empty(bands, kept, patch_size * patch_size)
    average, maximum = image.new_empty(bands, windows), image.new_empty(bands, windows)
    # kept alive by these names until the call returns
    index, cu_bands = index.contiguous(), cu_bands.contiguous()
    valid = None if valid is None else valid.contiguous()
    extent = None if extent is None else extent.contiguous()
    native.patch_pool(
        image=image.data_ptr(),
        dtype=_NATIVE_DTYPES[image.dtype],
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


LIBRARY.impl("patch_pool_fwd", _patch_pool_cpu, "CPU")

"""CUDA backend: kernels of csrc/cuda, on the current device and torch's current stream of it.

Large dense GEMMs go through torch to its library.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from specfast import _native
from specfast.ops.native.flat_buffer import call_delta_average, call_delta_pack
from specfast.ops.native.patch_pool import call_patch_pool

__all__ = ["delta_average_", "delta_pack", "hyper_embed_fwd", "patch_pool_fwd", "unsupported"]

_POOL_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TENSOR_CORE_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_WIDEST_IMAGE = 4096  # as csrc/cuda/patch_pool.h
_MOST = {"P": 256, "R": 256, "k": 128}  # as csrc/cuda/hyper_embed.h


def unsupported(name: str, *arguments) -> str | None:
    """Why this backend cannot run the operator on these arguments, or None. Reads sizes only, waits for nothing."""
    first = arguments[0]
    if first.device.type != "cuda":
        return f"tensors on {first.device.type}"
    return _unsupported_inputs(name, *arguments) or _problem(first.device.index)


def _unsupported_inputs(name: str, *arguments) -> str | None:
    first = arguments[0]
    if name.startswith("delta_"):
        return None  # the types that the operator has checked
    if first.dtype not in (_POOL_DTYPES if name == "patch_pool_fwd" else _TENSOR_CORE_DTYPES):
        return f"{first.dtype} inputs"
    if name == "patch_pool_fwd":
        sides = (*first.shape[1:], *arguments[4])
        return f"an image or grid of more than {_WIDEST_IMAGE} rows or columns" if max(sides) > _WIDEST_IMAGE else None
    if arguments[-1] != "reassociated":
        return f"form {arguments[-1]!r}"
    for symbol, size in zip("PRk", (first.shape[2], *arguments[3].shape[1:]), strict=True):
        if size % 16 or not 0 < size <= _MOST[symbol]:
            return f"{symbol}={size}, which is not a multiple of 16 up to {_MOST[symbol]}"
    return None


@functools.cache
def _problem(device: int | None) -> str | None:
    with torch.cuda.device(device):
        return _native.extension().cuda_problem() or None


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and at an address that 16-byte loads can start from; the same tensor where it is."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def patch_pool_fwd(
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None,
    extent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches [S, K, P], average and maximum [S, gh * gw]; see kernels.reference.patch_pool."""
    function, dtype = _native.extension().cuda_patch_pool, _POOL_DTYPES[image.dtype]
    arguments = image, index, cu_bands, patch_size, grid, valid, extent
    return call_patch_pool(function, dtype, *arguments, stream=_stream(image))


def hyper_embed_fwd(
    patches: Tensor, factors_v: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, cu_bands: Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [B, K, E], moments [B, K, R, k] and sums [B, K, R]: one kernel, and the dense GEMM with weight."""
    samples, tokens = cu_bands.numel() - 1, patches.shape[1]
    width, rank, inner = weight.shape
    moments = patches.new_empty(samples, tokens, rank, inner)
    sums = patches.new_empty(samples, tokens, rank)
    patches, factors_v, hidden = _aligned(patches), _aligned(factors_v), _aligned(hidden)
    cu_bands = cu_bands.contiguous()
    _native.extension().cuda_hyper_embed_moments(
        patches=patches.data_ptr(),
        dtype=_TENSOR_CORE_DTYPES[patches.dtype],
        factors_v=factors_v.data_ptr(),
        hidden=hidden.data_ptr(),
        cu_bands=cu_bands.data_ptr(),
        samples=samples,
        tokens=tokens,
        pixels=patches.shape[2],
        rank=rank,
        width=inner,
        moments=moments.data_ptr(),
        sums=sums.data_ptr(),
        stream=_stream(patches),
    )
    out = torch.addmm(
        sums.flatten(0, 1) @ bias.mT, moments.flatten(2).flatten(0, 1), weight.reshape(width, rank * inner).mT
    )
    return out.view(samples, tokens, width), moments, sums


def delta_pack(values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return packed [n] and scales; residual becomes what rounding lost."""
    function, stream = _native.extension().cuda_delta_pack, _stream(values)
    return call_delta_pack(function, values, reference, residual, wire, stream=stream)


def delta_average_(values: Tensor, reference: Tensor, packed: Tensor, scales: Tensor) -> None:
    """Write reference + the mean of the deltas packed [g, n] to values."""
    function, stream = _native.extension().cuda_delta_average, _stream(values)
    call_delta_average(function, values, reference, packed, scales, stream=stream)

"""Batched matrix products of the direct forms, over bands of which several share one sample's matrix.

Legend: S bands of all samples, B samples. No matrix of a sample is repeated for its bands, and no offset is read back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.triton import launch


@triton.jit
def load_matrix(pointer, i, j, stride_i, stride_j, I, J):  # noqa: E741
    offsets = i.to(tl.int64)[:, None] * stride_i + j.to(tl.int64)[None, :] * stride_j
    return tl.load(pointer + offsets, mask=(i < I)[:, None] & (j < J)[None, :], other=0.0)


@triton.jit(do_not_specialize=["tokens"])
def band_matmul_kernel(
    left_ptr,
    right_ptr,
    left_of_ptr,
    right_of_ptr,
    out_ptr,
    stride_lb,
    stride_lm,
    stride_lk,
    stride_rb,
    stride_rk,
    stride_rn,
    tokens,
    STATIC_M: tl.constexpr,
    STATIC_N: tl.constexpr,
    STATIC_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[s] = left[left_of[s]] @ right[right_of[s]], one tile; the size that is 0 is ``tokens``."""
    M = tokens if STATIC_M == 0 else STATIC_M
    N = tokens if STATIC_N == 0 else STATIC_N
    K = tokens if STATIC_K == 0 else STATIC_K
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    band = program // (tiles_m * tiles_n)
    m = program // tiles_n % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    left = left_ptr + tl.load(left_of_ptr + band).to(tl.int64) * stride_lb
    right = right_ptr + tl.load(right_of_ptr + band).to(tl.int64) * stride_rb
    product = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = load_matrix(left, m, k, stride_lm, stride_lk, M, K)
        b = load_matrix(right, k, n, stride_rk, stride_rn, K, N)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    offsets = (band.to(tl.int64) * M + m)[:, None] * N + n[None, :]
    tl.store(out_ptr + offsets, product.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def band_matmul(left: Tensor, right: Tensor, left_of: Tensor, right_of: Tensor, tokens: str) -> Tensor:
    """left [X, M, K] and right [Y, K, N], any strides, int32 left_of and right_of [S] -> [S, M, N].

    out[s] is left[left_of[s]] @ right[right_of[s]]. ``tokens`` says which of "M", "N" and "K" counts tokens and changes
    from call to call; the others are the model's, and the kernel is compiled for them.
    """
    bands, (m, k), n = left_of.shape[0], left.shape[1:], right.shape[2]
    out = left.new_empty(bands, m, n)
    if out.numel() == 0 or k == 0:
        return out.zero_()
    sizes = configs.config("band_matmul", left.dtype, launch.architecture(left.device))
    grid = bands * triton.cdiv(m, sizes["BLOCK_M"]) * triton.cdiv(n, sizes["BLOCK_N"])
    band_matmul_kernel[(grid,)](
        left,
        right,
        left_of,
        right_of,
        out,
        *left.stride(),
        *right.stride(),
        {"M": m, "N": n, "K": k}[tokens],
        STATIC_M=0 if tokens == "M" else m,
        STATIC_N=0 if tokens == "N" else n,
        STATIC_K=0 if tokens == "K" else k,
        PRECISION=launch.precision(left.dtype),
        **sizes,
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def band_contraction_kernel(
    left_ptr,
    right_ptr,
    cu_bands_ptr,
    out_ptr,
    tokens,
    R: tl.constexpr,
    E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[b, n, e] = sum over the sample's bands c and ranks r of left[c, n, r] right[c, r, e], one tile."""
    tiles_n, tiles_e = tl.cdiv(tokens, BLOCK_N), tl.cdiv(E, BLOCK_E)
    program = tl.program_id(0)
    sample = program // (tiles_n * tiles_e)
    n = program // tiles_e % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    e = program % tiles_e * BLOCK_E + tl.arange(0, BLOCK_E)
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)
    left = left_ptr + start.to(tl.int64) * tokens * R
    right = right_ptr + start.to(tl.int64) * R * E
    out = tl.zeros([BLOCK_N, BLOCK_E], dtype=tl.float32)
    for _ in range(start, end):
        for rank in tl.static_range(0, R, BLOCK_R):
            r = rank + tl.arange(0, BLOCK_R)
            h = load_matrix(left, n, r, R, 1, tokens, R)
            u = load_matrix(right, r, e, E, 1, R, E)
            out = tl.dot(h, u, out, input_precision=PRECISION)
        left += tokens.to(tl.int64) * R
        right += R * E
    offsets = (sample.to(tl.int64) * tokens + n)[:, None] * E + e[None, :]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=(n < tokens)[:, None] & (e < E)[None, :])


def band_contraction(left: Tensor, right: Tensor, cu_bands: Tensor) -> Tensor:
    """left [S, N, R], right [S, R, E], both contiguous -> [B, N, E], the sum of each sample's bands' products."""
    (_, tokens, rank), width, samples = left.shape, right.shape[2], cu_bands.shape[0] - 1
    out = left.new_empty(samples, tokens, width)
    if out.numel() == 0:
        return out
    sizes = configs.config("band_contraction", left.dtype, launch.architecture(left.device))
    grid = samples * triton.cdiv(tokens, sizes["BLOCK_N"]) * triton.cdiv(width, sizes["BLOCK_E"])
    band_contraction_kernel[(grid,)](
        left, right, cu_bands, out, tokens, R=rank, E=width, PRECISION=launch.precision(left.dtype), **sizes
    )
    return out


def all_bands(like: Tensor, bands: int) -> Tensor:
    """The identity map for :func:`band_matmul`."""
    return torch.arange(bands, device=like.device, dtype=torch.int32)

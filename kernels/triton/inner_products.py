"""inner[c, l, r] = V[c] z[l] of the re-associated form, from moments and back to their gradient.

Legend: S bands of all samples, M tokens a sample, R rank, K the hidden width k; rows are pairs (l, r). Every kernel
works on ``count`` tokens from ``first`` on, so that inner [S, count, R] is as small as the caller likes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.triton import launch
from specfast.kernels.triton.hyper_embed_kernels import load_hidden


@triton.jit
def load_rows(pointer, row, rows, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """[rows, BLOCK_K] of a matrix whose rows are K long."""
    k = tl.arange(0, BLOCK_K)
    offsets = row.to(tl.int64)[:, None] * K + k[None, :]
    return tl.load(pointer + offsets, mask=(row < rows)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def inner_offsets(c, row, count, R: tl.constexpr):
    """Where inner[c, row] lies; the constant R keeps the alignment known for every count."""
    return (c.to(tl.int64) * count)[:, None] * R + row[None, :]


@triton.jit(do_not_specialize=["tokens", "first", "count"])
def inner_fwd_kernel(
    moments_ptr,
    offset_ptr,
    hidden_ptr,
    cu_bands_ptr,
    inner_ptr,
    tokens,
    first,
    count,
    R: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """inner = hidden moments^T + offset for a tile of rows, read once, and all bands of its sample."""
    tiles = tl.cdiv(count * R, BLOCK_ROWS)
    sample = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    base = (sample.to(tl.int64) * tokens + first) * R
    moments = load_rows(moments_ptr + base * K, row, count * R, K, BLOCK_K)
    offset = tl.load(offset_ptr + base + row, mask=row < count * R, other=0.0).to(tl.float32)
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)
    for band in tl.range(start, end, BLOCK_C, num_stages=STAGES):
        c = band + tl.arange(0, BLOCK_C)
        g = load_hidden(hidden_ptr, c, c < end, K, BLOCK_K)
        inner = tl.dot(g, tl.trans(moments), input_precision=PRECISION) + offset[None, :]
        mask = (c < end)[:, None] & (row < count * R)[None, :]
        tl.store(inner_ptr + inner_offsets(c, row, count, R), inner.to(inner_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "first", "count"])
def inner_dmoments_kernel(
    dinner_ptr,
    hidden_ptr,
    cu_bands_ptr,
    dmoments_ptr,
    doffset_ptr,
    tokens,
    first,
    count,
    R: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dmoments = dinner^T hidden and doffset = dinner summed, for a tile of rows, over all bands of its sample."""
    tiles = tl.cdiv(count * R, BLOCK_ROWS)
    sample = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)
    dmoments = tl.zeros([BLOCK_ROWS, BLOCK_K], dtype=tl.float32)
    doffset = tl.zeros([BLOCK_C, BLOCK_ROWS], dtype=tl.float32)
    for band in tl.range(start, end, BLOCK_C, num_stages=STAGES):
        c = band + tl.arange(0, BLOCK_C)
        mask = (c < end)[:, None] & (row < count * R)[None, :]
        d = tl.load(dinner_ptr + inner_offsets(c, row, count, R), mask=mask, other=0.0)
        g = load_hidden(hidden_ptr, c, c < end, K, BLOCK_K)
        dmoments = tl.dot(tl.trans(d), g, dmoments, input_precision=PRECISION)
        doffset += d.to(tl.float32)
    base = (sample.to(tl.int64) * tokens + first) * R
    k = tl.arange(0, BLOCK_K)
    dtype = dmoments_ptr.dtype.element_ty
    mask = (row < count * R)[:, None] & (k < K)[None, :]
    offsets = (base + row)[:, None] * K + k[None, :]
    tl.store(dmoments_ptr + offsets, dmoments.to(dtype), mask=mask)
    tl.store(doffset_ptr + base + row, tl.sum(doffset, axis=0).to(dtype), mask=row < count * R)


@triton.jit(do_not_specialize=["tokens", "first", "count", "bands", "splits", "split_blocks"])
def inner_dhidden_kernel(
    dinner_ptr,
    moments_ptr,
    tile_sample_ptr,
    tile_start_ptr,
    tile_end_ptr,
    partials_ptr,
    tokens,
    first,
    count,
    bands,
    splits,
    split_blocks,
    R: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """partials[split, c, k]: dinner times moments over one split of the rows, for a tile of bands."""
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    start, end = tl.load(tile_start_ptr + tile), tl.load(tile_end_ptr + tile)
    if start >= end:
        return
    sample = tl.load(tile_sample_ptr + tile)
    base = (sample.to(tl.int64) * tokens + first) * (R * K)
    c = start + tl.arange(0, BLOCK_C)
    dhidden = tl.zeros([BLOCK_C, BLOCK_K], dtype=tl.float32)
    last = tl.minimum((split + 1) * split_blocks * BLOCK_ROWS, count * R)
    for low in tl.range(split * split_blocks * BLOCK_ROWS, last, BLOCK_ROWS, num_stages=STAGES):
        row = low + tl.arange(0, BLOCK_ROWS)
        mask = (c < end)[:, None] & (row < last)[None, :]
        d = tl.load(dinner_ptr + inner_offsets(c, row, count, R), mask=mask, other=0.0)
        y = load_rows(moments_ptr + base, row, last, K, BLOCK_K)
        dhidden = tl.dot(d, y, dhidden, input_precision=PRECISION)
    k = tl.arange(0, BLOCK_K)
    offsets = (split.to(tl.int64) * bands + c)[:, None] * K + k[None, :]
    tl.store(partials_ptr + offsets, dhidden, mask=(c < end)[:, None] & (k < K)[None, :])


def _constants(kernel: str, hidden: Tensor, rank: int) -> dict:
    sizes = configs.config(kernel, hidden.dtype, launch.architecture(hidden.device), k=hidden.shape[1])
    return sizes | {
        "R": rank,
        "K": hidden.shape[1],
        "BLOCK_K": max(16, configs.bucket(hidden.shape[1])),
        "PRECISION": launch.precision(hidden.dtype),
        "STAGES": sizes["num_stages"],
    }


def inner_fwd(moments: Tensor, offset: Tensor, hidden: Tensor, cu_bands: Tensor, first: int, count: int) -> Tensor:
    """inner [S, count, R] of the tokens from ``first`` on; all arguments contiguous."""
    samples, tokens, rank, _ = moments.shape
    inner = hidden.new_empty(hidden.shape[0], count, rank)
    constants = _constants("inner_fwd", hidden, rank)
    programs = samples * triton.cdiv(count * rank, constants["BLOCK_ROWS"])
    if programs:
        inner_fwd_kernel[(programs,)](moments, offset, hidden, cu_bands, inner, tokens, first, count, **constants)
    return inner


def inner_dmoments(
    dinner: Tensor, hidden: Tensor, cu_bands: Tensor, dmoments: Tensor, doffset: Tensor, first: int
) -> None:
    """Fill dmoments [B, M, R, k] and doffset [B, M, R] of the tokens that dinner [S, count, R] is of."""
    samples, tokens, rank, _ = dmoments.shape
    count = dinner.shape[1]
    constants = _constants("inner_dmoments", hidden, rank)
    programs = samples * triton.cdiv(count * rank, constants["BLOCK_ROWS"])
    if programs:
        inner_dmoments_kernel[(programs,)](
            dinner, hidden, cu_bands, dmoments, doffset, tokens, first, count, **constants
        )


def inner_dhidden(dinner: Tensor, moments: Tensor, hidden: Tensor, cu_bands: Tensor, first: int) -> Tensor:
    """The part of dhidden, float32 [S, k], that comes from the tokens dinner [S, count, R] is of."""
    _, tokens, rank, _ = moments.shape
    bands, count = dinner.shape[:2]
    constants = _constants("inner_dhidden", hidden, rank)
    tiles = launch.band_tiles(cu_bands, bands, constants["BLOCK_C"])
    blocks = triton.cdiv(count * rank, constants["BLOCK_ROWS"])
    # a product of few rows and columns but a long contraction: split it until the device is full
    split_blocks = triton.cdiv(blocks, max(1, min(blocks, 1024 // max(len(tiles), 1))))
    splits = triton.cdiv(blocks, max(split_blocks, 1))
    partials = hidden.new_empty(splits, *hidden.shape, dtype=torch.float32)
    if len(tiles) and splits:
        inner_dhidden_kernel[(len(tiles) * splits,)](
            dinner,
            moments,
            *tiles,
            partials,
            tokens,
            first,
            count,
            bands,
            splits,
            split_blocks,
            **constants,
        )
    return partials.sum(dim=0)

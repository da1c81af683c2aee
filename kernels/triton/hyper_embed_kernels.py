"""The fused kernels of hyper_embed's re-associated form: h = V x never leaves the chip.

Legend: S bands of all samples, C bands of a tile, N tokens of a tile, K tokens a sample, P pixels a patch, R rank,
HIDDEN the hidden width k. A tile holds one sample's bands only. h is wanted per band (rows are tokens) where it is made
and per token (the contraction runs over bands) where it is used, hence the permutations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_patches(patches_ptr, rows, c, c_inside, n, n_inside, first, P: tl.constexpr, BLOCK_P: tl.constexpr):
    """[C, N, BLOCK_P]: pixels from ``first`` on; ``rows`` patches lie between one band and the next."""
    p = first + tl.arange(0, BLOCK_P)
    row = c.to(tl.int64)[:, None] * rows + n[None, :]
    mask = (c_inside[:, None] & n_inside[None, :])[:, :, None] & (p < P)[None, None, :]
    return tl.load(patches_ptr + row[:, :, None] * P + p[None, None, :], mask=mask, other=0.0)


@triton.jit
def load_factors(factors_ptr, c, c_inside, r, first, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """[C, R, BLOCK_P]."""
    p = first + tl.arange(0, BLOCK_P)
    row = c.to(tl.int64)[:, None] * R + r[None, :]
    mask = (c_inside[:, None] & (r < R)[None, :])[:, :, None] & (p < P)[None, None, :]
    return tl.load(factors_ptr + row[:, :, None] * P + p[None, None, :], mask=mask, other=0.0)


@triton.jit
def load_hidden(hidden_ptr, c, c_inside, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr):
    """[C, BLOCK_K], zeros outside of the tile's bands."""
    k = tl.arange(0, BLOCK_K)
    mask = c_inside[:, None] & (k < HIDDEN)[None, :]
    return tl.load(hidden_ptr + c.to(tl.int64)[:, None] * HIDDEN + k[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["rows", "tokens"])
def hyper_embed_fwd_kernel(
    patches_ptr,
    factors_ptr,
    hidden_ptr,
    cu_bands_ptr,
    moments_ptr,
    sums_ptr,
    rows,
    tokens,
    P: tl.constexpr,
    R: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """moments[b, n, r, k] and sums[b, n, r] of a tile of tokens and a slice of ranks, over all bands of a sample."""
    # slices of the same tokens run side by side and share their patches in L2
    slices: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    tiles = tl.cdiv(tokens, BLOCK_N)
    program = tl.program_id(0)
    sample = program // (slices * tiles)
    n = (program // slices) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    r = program % slices * BLOCK_R + tl.arange(0, BLOCK_R)
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)
    dtype = patches_ptr.dtype.element_ty

    moments = tl.zeros([BLOCK_N * BLOCK_R, BLOCK_K], dtype=tl.float32)
    sums = tl.zeros([BLOCK_N, BLOCK_R], dtype=tl.float32)
    for first in range(start, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = c < end
        h = tl.zeros([BLOCK_C, BLOCK_N, BLOCK_R], dtype=tl.float32)
        for p in tl.static_range(0, P, BLOCK_P):
            x = load_patches(patches_ptr, rows, c, inside, n, n < tokens, p, P, BLOCK_P)
            v = load_factors(factors_ptr, c, inside, r, p, P, R, BLOCK_P)
            h = tl.dot(x, tl.permute(v, (0, 2, 1)), h, input_precision=PRECISION)
        sums += tl.sum(h, axis=0)
        by_token = tl.reshape(tl.permute(h.to(dtype), (1, 2, 0)), [BLOCK_N * BLOCK_R, BLOCK_C])
        g = load_hidden(hidden_ptr, c, inside, HIDDEN, BLOCK_K)
        moments = tl.dot(by_token, g, moments, input_precision=PRECISION)

    row = (sample.to(tl.int64) * tokens + n)[:, None] * R + r[None, :]
    mask = (n < tokens)[:, None] & (r < R)[None, :]
    tl.store(sums_ptr + row, sums.to(dtype), mask=mask)
    k = tl.arange(0, BLOCK_K)
    row, mask = tl.reshape(row, [BLOCK_N * BLOCK_R]), tl.reshape(mask, [BLOCK_N * BLOCK_R])
    tl.store(
        moments_ptr + row[:, None] * HIDDEN + k[None, :], moments.to(dtype), mask=mask[:, None] & (k < HIDDEN)[None, :]
    )


@triton.jit
def load_dmoments(
    dmoments_ptr,
    dsums_ptr,
    sample,
    tokens,
    n,
    r,
    R: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradients of moments [N * R, BLOCK_K] and of sums [N * R]."""
    row = tl.reshape((sample.to(tl.int64) * tokens + n)[:, None] * R + r[None, :], [BLOCK_N * BLOCK_R])
    mask = tl.reshape((n < tokens)[:, None] & (r < R)[None, :], [BLOCK_N * BLOCK_R])
    k = tl.arange(0, BLOCK_K)
    dmoments = tl.load(
        dmoments_ptr + row[:, None] * HIDDEN + k[None, :], mask=mask[:, None] & (k < HIDDEN)[None, :], other=0.0
    )
    return dmoments, tl.load(dsums_ptr + row, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["rows", "tokens", "bands"])
def hyper_embed_bwd_kernel(
    patches_ptr,
    factors_ptr,
    hidden_ptr,
    dmoments_ptr,
    dsums_ptr,
    tile_sample_ptr,
    tile_start_ptr,
    tile_end_ptr,
    dfactors_ptr,
    dhidden_ptr,
    rows,
    tokens,
    bands,
    P: tl.constexpr,
    R: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dfactors_v and a part of dhidden of one tile of bands, one slice of ranks and of pixels, over all tokens.

    h is linear in the pixels, so every slice adds its own part [slice, S, HIDDEN] of dhidden; they are summed later, in
    a fixed order.
    """
    rank_slices: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    slices: tl.constexpr = rank_slices * ((P + BLOCK_P - 1) // BLOCK_P)
    program = tl.program_id(0)
    piece = program % slices
    tile = program // slices
    start, end = tl.load(tile_start_ptr + tile), tl.load(tile_end_ptr + tile)
    if start >= end:
        return
    sample = tl.load(tile_sample_ptr + tile)
    c = start + tl.arange(0, BLOCK_C)
    inside = c < end
    r = piece % rank_slices * BLOCK_R + tl.arange(0, BLOCK_R)
    first = piece // rank_slices * BLOCK_P
    dtype = patches_ptr.dtype.element_ty

    v = load_factors(factors_ptr, c, inside, r, first, P, R, BLOCK_P)
    g = load_hidden(hidden_ptr, c, inside, HIDDEN, BLOCK_K)
    dv = tl.zeros([BLOCK_C, BLOCK_R, BLOCK_P], dtype=tl.float32)
    dg = tl.zeros([BLOCK_K, BLOCK_C], dtype=tl.float32)
    for token in range(0, tokens, BLOCK_N):
        n = token + tl.arange(0, BLOCK_N)
        x = load_patches(patches_ptr, rows, c, inside, n, n < tokens, first, P, BLOCK_P)
        dmoments, dsums = load_dmoments(
            dmoments_ptr, dsums_ptr, sample, tokens, n, r, R, HIDDEN, BLOCK_N, BLOCK_R, BLOCK_K
        )
        h = tl.dot(x, tl.permute(v, (0, 2, 1)), input_precision=PRECISION)
        by_token = tl.reshape(tl.permute(h.to(dtype), (1, 2, 0)), [BLOCK_N * BLOCK_R, BLOCK_C])
        dg = tl.dot(tl.trans(dmoments), by_token, dg, input_precision=PRECISION)
        dh = tl.dot(dmoments, tl.trans(g), input_precision=PRECISION) + dsums.to(tl.float32)[:, None]
        by_band = tl.permute(tl.reshape(dh.to(dtype), [BLOCK_N, BLOCK_R, BLOCK_C]), (2, 1, 0))
        dv = tl.dot(by_band, x, dv, input_precision=PRECISION)

    p = first + tl.arange(0, BLOCK_P)
    row = c.to(tl.int64)[:, None] * R + r[None, :]
    mask = (inside[:, None] & (r < R)[None, :])[:, :, None] & (p < P)[None, None, :]
    tl.store(dfactors_ptr + row[:, :, None] * P + p[None, None, :], dv.to(dtype), mask=mask)
    k = tl.arange(0, BLOCK_K)
    row = (piece.to(tl.int64) * bands + c) * HIDDEN
    tl.store(dhidden_ptr + row[None, :] + k[:, None], dg, mask=inside[None, :] & (k < HIDDEN)[:, None])


@triton.jit(do_not_specialize=["tokens"])
def hyper_embed_dpatches_kernel(
    factors_ptr,
    hidden_ptr,
    dmoments_ptr,
    dsums_ptr,
    tile_sample_ptr,
    tile_start_ptr,
    tile_end_ptr,
    dpatches_ptr,
    tokens,
    P: tl.constexpr,
    R: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dpatches of one tile of bands, one tile of tokens and one slice of pixels, over all ranks."""
    slices: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    token_tiles = tl.cdiv(tokens, BLOCK_N)
    program = tl.program_id(0)
    first = program % slices * BLOCK_P
    n = (program // slices) % token_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = program // (slices * token_tiles)
    start, end = tl.load(tile_start_ptr + tile), tl.load(tile_end_ptr + tile)
    if start >= end:
        return
    sample = tl.load(tile_sample_ptr + tile)
    c = start + tl.arange(0, BLOCK_C)
    inside = c < end
    dtype = factors_ptr.dtype.element_ty

    g = load_hidden(hidden_ptr, c, inside, HIDDEN, BLOCK_K)
    dx = tl.zeros([BLOCK_C, BLOCK_N, BLOCK_P], dtype=tl.float32)
    for rank in range(0, R, BLOCK_R):
        r = rank + tl.arange(0, BLOCK_R)
        v = load_factors(factors_ptr, c, inside, r, first, P, R, BLOCK_P)
        dmoments, dsums = load_dmoments(
            dmoments_ptr, dsums_ptr, sample, tokens, n, r, R, HIDDEN, BLOCK_N, BLOCK_R, BLOCK_K
        )
        dh = tl.dot(dmoments, tl.trans(g), input_precision=PRECISION) + dsums.to(tl.float32)[:, None]
        by_band = tl.permute(tl.reshape(dh.to(dtype), [BLOCK_N, BLOCK_R, BLOCK_C]), (2, 0, 1))
        dx = tl.dot(by_band, v, dx, input_precision=PRECISION)

    p = first + tl.arange(0, BLOCK_P)
    row = c.to(tl.int64)[:, None] * tokens + n[None, :]
    mask = (inside[:, None] & (n < tokens)[None, :])[:, :, None] & (p < P)[None, None, :]
    tl.store(dpatches_ptr + row[:, :, None] * P + p[None, None, :], dx.to(dtype), mask=mask)

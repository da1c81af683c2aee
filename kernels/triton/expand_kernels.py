"""prediction[c, l] = U[c] inner[c, l] + pixel_bias[c], its loss and its gradients, a band's tile of tokens at a time.

Legend: S bands of all samples, M tokens a sample, P pixels a patch, R rank. ``inner`` and what is made of it hold
``count`` tokens, those of the sample from ``first`` on. The prediction of a loss never leaves the chip.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specfast.kernels.triton.spectral_loss import charbonnier, pixel_coefficients, pixel_gradient, store_reductions


@triton.jit
def tile(rows, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """32-bit offsets and mask of the first ``rows`` rows, WIDTH long, of a matrix whose 64-bit address is a scalar."""
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    return row[:, None] * WIDTH + column[None, :], (row < rows)[:, None] & (column < WIDTH)[None, :]


@triton.jit
def load_factors(factors_ptr, band, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr):
    """[BLOCK_P, BLOCK_R]."""
    offsets, mask = tile(P, BLOCK_P, R, BLOCK_R)
    return tl.load(factors_ptr + band * (P * R) + offsets, mask=mask, other=0.0)


@triton.jit
def expand(inner, factors, pixel_bias_ptr, band, P: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr):
    """The prediction of a tile, [L, BLOCK_P] in float32."""
    p = tl.arange(0, BLOCK_P)
    bias = tl.load(pixel_bias_ptr + band * P + p, mask=p < P, other=0.0).to(tl.float32)
    return tl.dot(inner, tl.trans(factors), input_precision=PRECISION) + bias[None, :]


@triton.jit(do_not_specialize=["tokens", "first", "count"])
def expand_fwd_kernel(
    inner_ptr,
    factors_ptr,
    pixel_bias_ptr,
    prediction_ptr,
    tokens,
    first,
    count,
    P: tl.constexpr,
    R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of tokens of one band's prediction [S, M, P]."""
    tiles = tl.cdiv(count, BLOCK_L)
    band = (tl.program_id(0) // tiles).to(tl.int64)
    low = tl.program_id(0) % tiles * BLOCK_L
    offsets, mask = tile(count - low, BLOCK_L, R, BLOCK_R)
    inner = tl.load(inner_ptr + (band * count + low) * R + offsets, mask=mask, other=0.0)
    factors = load_factors(factors_ptr, band, P, R, BLOCK_P, BLOCK_R)
    prediction = expand(inner, factors, pixel_bias_ptr, band, P, BLOCK_P, PRECISION)
    offsets, mask = tile(count - low, BLOCK_L, P, BLOCK_P)
    prediction_ptr += (band * tokens + first + low) * P
    tl.store(prediction_ptr + offsets, prediction.to(prediction_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "first", "count", "programs"])
def expand_loss_fwd_kernel(
    inner_ptr,
    factors_ptr,
    pixel_bias_ptr,
    target_ptr,
    valid_ptr,
    cu_bands_ptr,
    sums_ptr,
    partials_ptr,
    tokens,
    first,
    count,
    programs,
    P: tl.constexpr,
    R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums [B, 3, M, P] of a tile of tokens over all bands, and its part of the three numbers [3, programs]."""
    program = tl.program_id(0)
    tiles = tl.cdiv(count, BLOCK_L)
    sample = program // tiles
    low = program % tiles * BLOCK_L
    pixel, inside = tile(count - low, BLOCK_L, P, BLOCK_P)
    offsets, mask = tile(count - low, BLOCK_L, R, BLOCK_R)
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)

    pp = tl.zeros([BLOCK_L, BLOCK_P], dtype=tl.float32)
    pt = tl.zeros([BLOCK_L, BLOCK_P], dtype=tl.float32)
    tt = tl.zeros([BLOCK_L, BLOCK_P], dtype=tl.float32)
    charb = tl.zeros([BLOCK_L, BLOCK_P], dtype=tl.float32)
    for step in tl.range(0, end - start, num_stages=STAGES):
        band = start.to(tl.int64) + step
        inner = tl.load(inner_ptr + (band * count + low) * R + offsets, mask=mask, other=0.0)
        factors = load_factors(factors_ptr, band, P, R, BLOCK_P, BLOCK_R)
        target = tl.load(target_ptr + (band * tokens + first + low) * P + pixel, mask=inside, other=0.0)
        target = target.to(tl.float32)
        prediction = expand(inner, factors, pixel_bias_ptr, band, P, BLOCK_P, PRECISION)
        pp += prediction * prediction
        pt += prediction * target
        tt += target * target
        charb += charbonnier(prediction - target)

    row = sample.to(tl.int64) * tokens
    valid = tl.load(valid_ptr + (row + first + low) * P + pixel, mask=inside, other=0) != 0
    sums_ptr += (row * 3 + first + low) * P
    step = tokens.to(tl.int64) * P
    tl.store(sums_ptr + pixel, pp, mask=inside)
    tl.store(sums_ptr + step + pixel, pt, mask=inside)
    tl.store(sums_ptr + 2 * step + pixel, tt, mask=inside)
    store_reductions(partials_ptr, program, programs, pp, pt, tt, charb, valid, end - start)


@triton.jit(do_not_specialize=["tokens"])
def pixel_coefficients_kernel(
    dspectral_ptr, sums_ptr, coefficients_ptr, tokens, P: tl.constexpr, BLOCK_PIXELS: tl.constexpr
):
    """What multiplies target and prediction in d loss / d prediction, [B, 2, M, P], from the sums [B, 3, M, P]."""
    tiles = tl.cdiv(tokens * P, BLOCK_PIXELS)
    sample = tl.program_id(0) // tiles
    pixel = tl.program_id(0) % tiles * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < tokens * P
    step = tokens.to(tl.int64) * P
    sums = sums_ptr + sample * 3 * step + pixel
    pp = tl.load(sums, mask=inside, other=0.0)
    pt = tl.load(sums + step, mask=inside, other=0.0)
    tt = tl.load(sums + 2 * step, mask=inside, other=0.0)
    of_target, of_prediction = pixel_coefficients(pp, pt, tt, tl.load(dspectral_ptr + sample))
    coefficients = coefficients_ptr + sample * 2 * step + pixel
    tl.store(coefficients, of_target, mask=inside)
    tl.store(coefficients + step, of_prediction, mask=inside)


@triton.jit(do_not_specialize=["tokens", "first", "count"])
def expand_bwd_kernel(
    inner_ptr,
    factors_ptr,
    pixel_bias_ptr,
    given_ptr,
    valid_ptr,
    coefficients_ptr,
    dcharbonnier_ptr,
    sample_ptr,
    cu_bands_ptr,
    dfactors_ptr,
    dpixel_bias_ptr,
    tokens,
    first,
    count,
    P: tl.constexpr,
    R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    OF_LOSS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dfactors_u and dpixel_bias of one band over all tokens; dinner takes the place of inner.

    ``given`` is the target, with which and the prediction made again the gradient of the loss is formed (OF_LOSS),
    or dprediction itself. ACCUMULATE adds to what tokens before ``first`` gave.
    """
    band = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, BLOCK_P)
    factors = load_factors(factors_ptr, band, P, R, BLOCK_P, BLOCK_R)
    if OF_LOSS:
        sample = tl.load(sample_ptr + band).to(tl.int64)
        bands = tl.load(cu_bands_ptr + sample + 1) - tl.load(cu_bands_ptr + sample)
        of_difference = tl.load(dcharbonnier_ptr + sample) / bands.to(tl.float32)
        bias = tl.load(pixel_bias_ptr + band * P + p, mask=p < P, other=0.0).to(tl.float32)

    dfactors = tl.zeros([BLOCK_P, BLOCK_R], dtype=tl.float32)
    dbias = tl.zeros([BLOCK_P, 16], dtype=tl.float32)
    ones = tl.full([BLOCK_L, 16], 1.0, dtype=factors.dtype)
    for low in tl.range(0, count, BLOCK_L, num_stages=STAGES):
        offsets, mask = tile(count - low, BLOCK_L, R, BLOCK_R)
        pixel, inside = tile(count - low, BLOCK_L, P, BLOCK_P)
        inner = tl.load(inner_ptr + (band * count + low) * R + offsets, mask=mask, other=0.0)
        given = tl.load(given_ptr + (band * tokens + first + low) * P + pixel, mask=inside, other=0.0).to(tl.float32)
        if OF_LOSS:
            valid = tl.load(valid_ptr + (sample * tokens + first + low) * P + pixel, mask=inside, other=0) != 0
            coefficient = coefficients_ptr + (sample * 2 * tokens + first + low) * P
            of_target = tl.load(coefficient + pixel, mask=inside, other=0.0)
            of_prediction = tl.load(coefficient + tokens.to(tl.int64) * P + pixel, mask=inside, other=0.0)
            prediction = tl.dot(inner, tl.trans(factors), input_precision=PRECISION) + bias[None, :]
            dp = pixel_gradient(prediction, given, of_target, of_prediction, of_difference)
            # pixels that do not count may hold anything, NaN too, so nothing of theirs is multiplied by 0 and kept
            dp = tl.where(valid, dp, 0.0)
        else:
            dp = given
        rounded = dp.to(inner.dtype)
        # a product, for a sum over rows goes across warps, and adding up tiles would not leave enough registers
        dbias += tl.dot(tl.trans(rounded), ones, input_precision="ieee")
        dfactors = tl.dot(tl.trans(rounded), inner, dfactors, input_precision=PRECISION)
        dinner = tl.dot(rounded, factors, input_precision=PRECISION)
        tl.store(inner_ptr + (band * count + low) * R + offsets, dinner.to(inner.dtype), mask=mask)

    offsets, mask = tile(P, BLOCK_P, R, BLOCK_R)
    dfactors_ptr += band * (P * R) + offsets
    dpixel_bias_ptr += band * P + p
    column = tl.max(dbias, axis=1)  # any of the equal columns
    if ACCUMULATE:
        dfactors += tl.load(dfactors_ptr, mask=mask, other=0.0).to(tl.float32)
        column += tl.load(dpixel_bias_ptr, mask=p < P, other=0.0).to(tl.float32)
    tl.store(dfactors_ptr, dfactors.to(dfactors_ptr.dtype.element_ty), mask=mask)
    tl.store(dpixel_bias_ptr, column.to(dpixel_bias_ptr.dtype.element_ty), mask=p < P)

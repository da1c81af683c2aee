"""spectral_loss: four running sums a pixel while the bands of a sample stream by once; no atomics.

Legend: B samples, C bands of one sample, S all bands, M tokens, P pixels a patch. Sums and gradients are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.reference.spectral_loss import COSINE_EPS
from specfast.kernels.triton import launch

_EPS = tl.constexpr(COSINE_EPS)


@triton.jit
def charbonnier(difference):
    """sqrt(1 + d^2) - 1 = d^2 / (1 + sqrt(1 + d^2)), without its cancellation.

    By rsqrt, half the instructions of a square root and a division, of which there is one for every prediction.
    """
    squared = difference * difference
    root = (squared + 1.0) * tl.rsqrt(squared + 1.0)
    inverse_root = tl.rsqrt(root + 1.0)
    return squared * inverse_root * inverse_root


@triton.jit
def norms_and_cosine(pp, pt, tt):
    norm_p = tl.maximum(tl.sqrt(pp), _EPS, propagate_nan=tl.PropagateNan.ALL)
    norm_t = tl.maximum(tl.sqrt(tt), _EPS, propagate_nan=tl.PropagateNan.ALL)
    return norm_p, norm_t, pt / (norm_p * norm_t)


@triton.jit
def pixel_coefficients(pp, pt, tt, dspectral):
    """What multiplies target and prediction in the gradient of the cosine."""
    norm_p, norm_t, cosine = norms_and_cosine(pp, pt, tt)
    of_target = -dspectral / (norm_p * norm_t)
    # below COSINE_EPS the norm is a constant, so its own derivative vanishes
    of_prediction = tl.where(tl.sqrt(pp) > _EPS, dspectral * cosine / (norm_p * norm_p), 0.0)
    return of_target, of_prediction


@triton.jit
def pixel_gradient(prediction, target, of_target, of_prediction, of_difference):
    difference = prediction - target
    slope = of_difference * difference * tl.rsqrt(difference * difference + 1.0)
    return slope + of_target * target + of_prediction * prediction


@triton.jit
def store_reductions(partials_ptr, program, programs, pp, pt, tt, charb, valid, bands):
    """One program's part of the three numbers of its sample; what does not count may be NaN and is not added."""
    _, _, cosine = norms_and_cosine(pp, pt, tt)
    spectral = tl.where(valid, 1.0 - cosine, 0.0)
    band_mean = tl.where(valid, charb / tl.maximum(bands, 1).to(tl.float32), 0.0)
    tl.store(partials_ptr + program, tl.sum(spectral))
    tl.store(partials_ptr + programs + program, tl.sum(band_mean))
    tl.store(partials_ptr + 2 * programs + program, tl.sum(valid.to(tl.float32)))


@triton.jit(do_not_specialize=["tokens", "programs"])
def spectral_loss_fwd_kernel(
    prediction_ptr,
    target_ptr,
    valid_ptr,
    cu_bands_ptr,
    sums_ptr,
    partials_ptr,
    tokens,
    programs,
    P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums [B, 3, M, P] and this tile's part of the three numbers [3, B, tiles]."""
    program = tl.program_id(0)
    tiles = tl.cdiv(tokens * P, BLOCK_PIXELS)
    sample = program // tiles
    pixel = program % tiles * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < tokens * P
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)

    pp = tl.zeros([BLOCK_PIXELS], dtype=tl.float32)
    pt = tl.zeros([BLOCK_PIXELS], dtype=tl.float32)
    tt = tl.zeros([BLOCK_PIXELS], dtype=tl.float32)
    charb = tl.zeros([BLOCK_PIXELS], dtype=tl.float32)
    for first in tl.range(start, end, BLOCK_C, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK_C)
        offsets = (c.to(tl.int64) * tokens)[:, None] * P + pixel[None, :]
        mask = (c < end)[:, None] & inside[None, :]
        p = tl.load(prediction_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(target_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        pp += tl.sum(p * p, axis=0)
        pt += tl.sum(p * t, axis=0)
        tt += tl.sum(t * t, axis=0)
        charb += tl.sum(charbonnier(p - t), axis=0)

    row = sample.to(tl.int64) * tokens
    valid = tl.load(valid_ptr + row * P + pixel, mask=inside, other=0) != 0
    sums = sums_ptr + row * (3 * P) + pixel
    step = tokens.to(tl.int64) * P
    tl.store(sums, pp, mask=inside)
    tl.store(sums + step, pt, mask=inside)
    tl.store(sums + 2 * step, tt, mask=inside)
    store_reductions(partials_ptr, program, programs, pp, pt, tt, charb, valid, end - start)


@triton.jit(do_not_specialize=["tokens"])
def spectral_loss_bwd_kernel(
    dspectral_ptr,
    dcharbonnier_ptr,
    prediction_ptr,
    target_ptr,
    valid_ptr,
    cu_bands_ptr,
    sums_ptr,
    dprediction_ptr,
    tokens,
    P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dprediction of a tile of pixels, all bands of its sample."""
    program = tl.program_id(0)
    tiles = tl.cdiv(tokens * P, BLOCK_PIXELS)
    sample = program // tiles
    pixel = program % tiles * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < tokens * P
    start, end = tl.load(cu_bands_ptr + sample), tl.load(cu_bands_ptr + sample + 1)

    row = sample.to(tl.int64) * tokens
    valid = tl.load(valid_ptr + row * P + pixel, mask=inside, other=0) != 0
    sums = sums_ptr + row * (3 * P) + pixel
    step = tokens.to(tl.int64) * P
    pp = tl.load(sums, mask=inside, other=0.0)
    pt = tl.load(sums + step, mask=inside, other=0.0)
    tt = tl.load(sums + 2 * step, mask=inside, other=0.0)
    of_target, of_prediction = pixel_coefficients(pp, pt, tt, tl.load(dspectral_ptr + sample))
    of_difference = tl.load(dcharbonnier_ptr + sample) / tl.maximum(end - start, 1).to(tl.float32)
    for first in tl.range(start, end, BLOCK_C, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK_C)
        offsets = (c.to(tl.int64) * tokens)[:, None] * P + pixel[None, :]
        mask = (c < end)[:, None] & inside[None, :]
        p = tl.load(prediction_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(target_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dp = pixel_gradient(p, t, of_target[None, :], of_prediction[None, :], of_difference)
        # pixels that do not count may hold anything, NaN too, so nothing of theirs is multiplied by 0 and kept
        dp = tl.where(valid[None, :], dp, 0.0)
        tl.store(dprediction_ptr + offsets, dp.to(dprediction_ptr.dtype.element_ty), mask=mask)


def _constants(kernel: str, prediction: Tensor) -> dict:
    sizes = configs.config(kernel, prediction.dtype, launch.architecture(prediction.device))
    return sizes | {"STAGES": sizes["num_stages"], "P": prediction.shape[2]}


def spectral_loss_fwd(
    prediction: Tensor, target: Tensor, valid: Tensor, cu_bands: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the three [B] and sums [B, 3, M, P] for backward."""
    samples, (_, tokens, pixels) = cu_bands.shape[0] - 1, prediction.shape
    constants = _constants("spectral_loss_fwd", prediction)
    programs = samples * triton.cdiv(tokens * pixels, constants["BLOCK_PIXELS"])
    sums = prediction.new_empty(samples, 3, tokens, pixels, dtype=torch.float32)
    partials = prediction.new_empty(3, programs, dtype=torch.float32)
    if programs:
        spectral_loss_fwd_kernel[(programs,)](
            prediction.contiguous(),
            target.contiguous(),
            launch.as_bytes(valid),
            cu_bands.contiguous(),
            sums,
            partials,
            tokens,
            programs,
            **constants,
        )
    return *reduced(partials, samples), sums


def reduced(partials: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """The programs' parts [3, B * tiles], summed in a fixed order to three [B]."""
    tiles = partials.shape[1] // max(samples, 1)
    return tuple(part.sum(dim=1) for part in partials.view(3, samples, tiles))


def spectral_loss_bwd(
    dspectral: Tensor,
    dcharbonnier: Tensor,
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    cu_bands: Tensor,
    sums: Tensor,
) -> Tensor:
    """Return dprediction [S, M, P]."""
    samples, (_, tokens, pixels) = cu_bands.shape[0] - 1, prediction.shape
    constants = _constants("spectral_loss_bwd", prediction)
    dprediction = prediction.new_empty(prediction.shape)
    if dprediction.numel():
        spectral_loss_bwd_kernel[(samples * triton.cdiv(tokens * pixels, constants["BLOCK_PIXELS"]),)](
            dspectral.contiguous(),
            dcharbonnier.contiguous(),
            prediction.contiguous(),
            target.contiguous(),
            launch.as_bytes(valid),
            cu_bands.contiguous(),
            sums.contiguous(),
            dprediction,
            tokens,
            **constants,
        )
    return dprediction

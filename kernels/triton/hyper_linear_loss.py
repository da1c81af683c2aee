"""Launchers of hyper_linear_loss, in the eager backend's signatures; the prediction is never stored.

Legend: B samples, S bands of all samples, M tokens a sample, D width, P pixels a patch, R rank, k hidden width.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.eager.hyper_linear import saved_moments
from specfast.kernels.triton import launch
from specfast.kernels.triton.expand_kernels import expand_loss_fwd_kernel, pixel_coefficients_kernel
from specfast.kernels.triton.hyper_linear import expand_bwd, expand_constants, in_form, token_runs
from specfast.kernels.triton.spectral_loss import reduced


def hyper_linear_loss_fwd(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    target: Tensor,
    valid: Tensor,
    cu_bands: Tensor,
    form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return spectral sum, Charbonnier sum, valid pixels (all [B]); for backward sums [B, 3, M, P], moments, offset."""
    samples, count = tokens.shape[:2]
    cu_bands, factors_u, pixel_bias = cu_bands.contiguous(), factors_u.contiguous(), pixel_bias.contiguous()
    target, valid = target.contiguous(), launch.as_bytes(valid)
    saved = saved_moments(tokens, weight, bias, form)
    factors_v = in_form(tokens, hidden, weight, bias, cu_bands, *saved, form)
    sums = tokens.new_empty(samples, 3, count, factors_u.shape[1], dtype=torch.float32)
    constants = expand_constants("expand_loss_fwd", factors_u)
    totals = None
    for first, last in token_runs(count, hidden, factors_u.shape[2]):
        programs = samples * triton.cdiv(last - first, constants["BLOCK_L"])
        partials = tokens.new_empty(3, programs, dtype=torch.float32)
        if programs:
            expand_loss_fwd_kernel[(programs,)](
                factors_v.inner(first, last),
                factors_u,
                pixel_bias,
                target,
                valid,
                cu_bands,
                sums,
                partials,
                count,
                first,
                last - first,
                programs,
                STAGES=constants["num_stages"],
                **constants,
            )
        three = reduced(partials, samples)
        totals = three if totals is None else tuple(a + b for a, b in zip(totals, three, strict=True))
    return *totals, sums, *saved


def hyper_linear_loss_bwd(
    dspectral: Tensor,
    dcharbonnier: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    target: Tensor,
    valid: Tensor,
    cu_bands: Tensor,
    sums: Tensor,
    moments: Tensor,
    offset: Tensor,
    form: str,
) -> tuple[Tensor, ...]:
    """Return the gradients of tokens, hidden, weight, bias, factors_u, pixel_bias; predictions are made again."""
    cu_bands = cu_bands.contiguous()
    factors_v = in_form(tokens, hidden, weight, bias, cu_bands, moments, offset, form)
    of_loss = (
        launch.as_bytes(valid),
        _coefficients(dspectral, sums),
        dcharbonnier.contiguous(),
        launch.sample_of_band(cu_bands, hidden.shape[0]),
        cu_bands,
    )
    return expand_bwd(factors_v, hidden, factors_u, pixel_bias, tokens.shape[1], target, of_loss)


def _coefficients(dspectral: Tensor, sums: Tensor) -> Tensor:
    samples, _, tokens, pixels = sums.shape
    coefficients = sums.new_empty(samples, 2, tokens, pixels)
    if coefficients.numel():
        constants = configs.config("pixel_coefficients", sums.dtype, launch.architecture(sums.device))
        pixel_coefficients_kernel[(samples * triton.cdiv(tokens * pixels, constants["BLOCK_PIXELS"]),)](
            dspectral.contiguous(), sums.contiguous(), coefficients, tokens, P=pixels, **constants
        )
    return coefficients

"""Compressed deltas from a common reference: what a worker sends, and the mean that all receivers make of it."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # elements that share a scale
TOO_LARGE = 1.9375 * 2.0**127  # rounding to float8 would carry it beyond float32


def block_scales(total: Tensor) -> Tensor:
    """[n] -> [ceil(n / BLOCK)]: the least power of two that brings a block's values within float8's 448.

    At least 2^-126, so that its reciprocal is a number too. Being a power of two, it rounds nothing by itself.
    """
    sendable = torch.where(total.abs() < TOO_LARGE, total.abs(), 0.0)
    largest = torch.stack([part.max() for part in sendable.split(BLOCK)]) if len(total) else total
    mantissa, exponent = torch.frexp(largest.double())  # mantissa in [0.5, 1), and 448 is 0.875 * 2^9
    exponent = exponent - 9 + (mantissa > 0.875)
    return (2.0 ** torch.where(largest > 0, exponent, -126).clamp_min(-126).double()).float()


def delta_pack(values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Round values - reference + residual to ``wire`` -> packed [n], scales, and the new residual [n].

    bfloat16 has no scales. float8_e4m3fn is divided by its block's scale; what is not below TOO_LARGE becomes NaN.
    The new residual is what rounding lost, and 0 where that is not finite.
    """
    total = (values - reference) + residual
    if wire == torch.bfloat16:
        scales, scale = total.new_empty(0), 1.0
    else:
        scales = block_scales(total)
        scale = scales.repeat_interleave(BLOCK)[: len(total)]
    scaled = total / scale
    if wire != torch.bfloat16:
        scaled = scaled.masked_fill(~(total.abs() < TOO_LARGE), torch.nan)  # torch's cast: NaN or 448, by version
    packed = scaled.to(wire)
    lost = total - packed.float() * scale
    return packed, scales, torch.where(lost.isfinite(), lost, 0.0)


def delta_average(reference: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """Return reference [n] + the mean of the deltas packed [g, n], added in the order of the rows, in float32."""
    deltas = packed.float()
    if scales.numel():
        deltas = deltas * scales.repeat_interleave(BLOCK, dim=1)[:, : len(reference)]
    mean = deltas[0]
    for delta in deltas[1:]:
        mean = mean + delta
    return reference + mean / len(deltas)

"""The reconstruction loss as four running sums a pixel while bands stream by.

Legend: B samples, C bands of one sample, S all bands, M tokens, P pixels a patch. Everything is at least float32.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from specfast.kernels.reference.spectral_loss import COSINE_EPS

_TILE_ELEMENTS = 1 << 20  # predicted numbers in flight: 4 MB a temporary


def band_tiles(start: int, end: int, pixels: int):
    """Split the bands [start, end) so that a tile of ``pixels`` numbers a band stays within the budget."""
    step = max(8, _TILE_ELEMENTS // max(pixels, 1))
    return [(first, min(first + step, end)) for first in range(start, end, step)]


class PixelSums:
    """pred^2, pred * target, target^2 and Charbonnier, summed over the bands of one sample: [4, M, P]."""

    def __init__(self, like: Tensor, tokens: int, pixels: int):
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.sums = torch.zeros(4, tokens, pixels, dtype=self.dtype, device=like.device)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Take in a tile of bands, both [c, M, P]."""
        p, t = prediction.to(self.dtype), target.to(self.dtype)
        squared = (p - t).square_()
        # d^2 / (1 + sqrt(1 + d^2)) equals sqrt(1 + d^2) - 1 without its cancellation
        charbonnier = squared.div_((squared + 1).sqrt_().add_(1))
        for row, term in enumerate((p * p, p * t, t * t, charbonnier)):
            self.sums[row] += term.sum(dim=0)

    def reduce(self, valid: Tensor, bands: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sample's spectral sum, Charbonnier sum and number of valid pixels."""
        _, cosine = _norms_and_cosine(self.sums)
        zero = cosine.new_zeros(())
        return (
            torch.where(valid, 1 - cosine, zero).sum(),
            torch.where(valid, self.sums[3] / max(bands, 1), zero).sum(),
            valid.sum().to(self.dtype),
        )


class PixelGradient:
    """d loss / d prediction of one sample, formed tile by tile from the sums of the forward pass."""

    def __init__(self, sums: Tensor, valid: Tensor, bands: int, dspectral: Tensor, dcharbonnier: Tensor):
        """sums [>=3, M, P], valid [M, P], and the gradients of the sample's two sums (scalars)."""
        (norm_p, norm_t), cosine = _norms_and_cosine(sums)
        # pixels that do not count may hold anything, NaN too, so nothing of theirs is multiplied by 0 and kept
        self.ignored = ~valid
        self.of_target = -dspectral / (norm_p * norm_t)
        # below COSINE_EPS the norm is a constant, so its own derivative vanishes
        self.of_prediction = torch.where(sums[0].sqrt() > COSINE_EPS, dspectral * cosine / norm_p.square(), 0.0)
        self.of_difference = dcharbonnier / max(bands, 1)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        p, t = prediction.to(self.of_target.dtype), target.to(self.of_target.dtype)
        difference = p - t
        slope = difference.div_((difference * difference).add_(1).sqrt_()).mul_(self.of_difference)
        return slope.addcmul_(self.of_target, t).addcmul_(self.of_prediction, p).masked_fill_(self.ignored, 0.0)


def _norms_and_cosine(sums: Tensor):
    norm_p = sums[0].sqrt().clamp_min(COSINE_EPS)
    norm_t = sums[2].sqrt().clamp_min(COSINE_EPS)
    return (norm_p, norm_t), sums[1] / (norm_p * norm_t)


def stack_reductions(rows: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the samples' three numbers into three [B]."""
    if not rows:
        return tuple(like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32)) for _ in range(3))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def spectral_loss_fwd(prediction: Tensor, target: Tensor, valid: Tensor, cu_bands: Tensor):
    """Return the three [B] and sums [B, 3, M, P] for backward."""
    tokens, pixels = prediction.shape[1:]
    samples = cu_bands.numel() - 1
    kept = prediction.new_empty(samples, 3, tokens, pixels, dtype=torch.promote_types(prediction.dtype, torch.float32))
    rows = []
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        sums = PixelSums(prediction, tokens, pixels)
        for first, last in band_tiles(start, end, tokens * pixels):
            sums.add(prediction[first:last], target[first:last])
        rows.append(sums.reduce(valid[b], end - start))
        kept[b] = sums.sums[:3]
    return *stack_reductions(rows, prediction), kept


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
    tokens, pixels = prediction.shape[1:]
    dprediction = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        gradient = PixelGradient(sums[b], valid[b], end - start, dspectral[b], dcharbonnier[b])
        for first, last in band_tiles(start, end, tokens * pixels):
            dprediction[first:last] = gradient(prediction[first:last], target[first:last])
    return dprediction

"""The reconstruction loss of SpecAware, summed over the valid pixels of each sample."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

COSINE_EPS = 1e-8  # torch.nn.functional.cosine_similarity's own default


def spectral_loss(prediction: Tensor, target: Tensor, valid: Tensor, cu_bands: Tensor):
    """Cosine distance over bands, and band-mean Charbonnier, of each pixel (Ji et al. 2026).

    prediction, target [S, M, P], valid [B, M, P] bool -> three [B]: the sum of 1 - cosine, the sum of
    mean(sqrt(1 + d^2) - 1), and the number of valid pixels. At least float32 throughout.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    sums = []
    for sample, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        p = prediction[start:end].to(dtype)
        mask = valid[sample]
        t = torch.where(mask, target[start:end].to(dtype), 0.0)  # what is not counted may be NaN
        norms = p.norm(dim=0).clamp_min(COSINE_EPS) * t.norm(dim=0).clamp_min(COSINE_EPS)
        spectral = 1 - (p * t).sum(dim=0) / norms
        charbonnier = (torch.sqrt(1 + (p - t) ** 2) - 1).sum(dim=0) / max(end - start, 1)
        zero = spectral.new_zeros(())
        sums.append(
            torch.stack(
                [
                    torch.where(mask, spectral, zero).sum(),
                    torch.where(mask, charbonnier, zero).sum(),
                    mask.sum().to(dtype),
                ]
            )
        )
    stacked = torch.stack(sums) if sums else prediction.new_empty(0, 3, dtype=dtype)
    return stacked[:, 0], stacked[:, 1], stacked[:, 2]

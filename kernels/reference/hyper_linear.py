"""Per-sample factor matmul of the prediction head, in both orders, alone and with the loss behind it.

Legend: B samples, C bands of one sample, S all bands, M tokens, P pixels a patch, R rank, k hidden width, D width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from specfast.kernels.reference.spectral_loss import spectral_loss


def hyper_linear(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    cu_bands: Tensor,
):
    """U (V z) + bias of every band, with V generated first (Ji et al. 2026, the published order).

    tokens [B, M, D], hidden [S, k], weight [R, D, k], bias [R, D], factors_u [S, P, R], pixel_bias [S, P]
    -> prediction [S, M, P].
    """
    predictions = []
    for sample, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        factors_v = torch.einsum("rdk,ck->crd", weight, hidden[start:end]) + bias
        inner = torch.einsum("crd,ld->clr", factors_v, tokens[sample])
        predictions.append(_expand(inner, factors_u[start:end], pixel_bias[start:end]))
    return torch.cat(predictions) if predictions else tokens.new_empty(0, tokens.shape[1], factors_u.shape[1])


def hyper_linear_reassociated(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    cu_bands: Tensor,
):
    """The same function, with tokens meeting the generator's weights first: V is never formed."""
    predictions = []
    for sample, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        moments = torch.einsum("rdk,ld->lrk", weight, tokens[sample])
        inner = torch.einsum("lrk,ck->clr", moments, hidden[start:end]) + tokens[sample] @ bias.mT
        predictions.append(_expand(inner, factors_u[start:end], pixel_bias[start:end]))
    return torch.cat(predictions) if predictions else tokens.new_empty(0, tokens.shape[1], factors_u.shape[1])


def _expand(inner: Tensor, factors_u: Tensor, pixel_bias: Tensor) -> Tensor:
    return torch.einsum("cpr,clr->clp", factors_u, inner) + pixel_bias[:, None]


def hyper_linear_loss(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    target: Tensor,
    valid: Tensor,
    cu_bands: Tensor,
):
    """spectral_loss of hyper_linear: the prediction is stored here, and must not be in a backend."""
    prediction = hyper_linear(tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands)
    return spectral_loss(prediction, target, valid, cu_bands)

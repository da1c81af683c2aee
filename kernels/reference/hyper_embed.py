"""Per-sample factor matmul of the embedding, in both orders of summation.

Legend: B samples, C bands of one sample, S all bands, K tokens, P pixels a patch, R rank, k hidden width, E width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def hyper_embed(patches: Tensor, factors_v: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, cu_bands: Tensor):
    """Sum over bands of U V x, with U generated first (Ji et al. 2026, the published order).

    patches [S, K, P], factors_v [S, R, P], hidden [S, k], weight [E, R, k], bias [E, R] -> tokens [B, K, E].
    """
    tokens = []
    for start, end in itertools.pairwise(cu_bands.tolist()):
        factors_u = torch.einsum("erk,ck->cer", weight, hidden[start:end]) + bias
        projected = torch.einsum("crp,cnp->cnr", factors_v[start:end], patches[start:end])
        tokens.append(torch.einsum("cer,cnr->ne", factors_u, projected))
    return torch.stack(tokens) if tokens else patches.new_empty(0, patches.shape[1], weight.shape[0])


def hyper_embed_reassociated(
    patches: Tensor, factors_v: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, cu_bands: Tensor
):
    """The same function, with the sum over bands taken before the one over (R, k): U is never formed."""
    tokens = []
    for start, end in itertools.pairwise(cu_bands.tolist()):
        projected = torch.einsum("crp,cnp->cnr", factors_v[start:end], patches[start:end])
        moments = torch.einsum("cnr,ck->nrk", projected, hidden[start:end])
        tokens.append(
            torch.einsum("erk,nrk->ne", weight, moments) + torch.einsum("er,nr->ne", bias, projected.sum(dim=0))
        )
    return torch.stack(tokens) if tokens else patches.new_empty(0, patches.shape[1], weight.shape[0])

"""hyper_embed in PyTorch: direct (U generated a sample at a time) and re-associated (U never formed).

Legend: B samples, C bands of one sample, S all bands, K tokens, P pixels a patch, R rank, k hidden width, E width.
Re-associated: moments[b,n,r,k] = sum_c h[c,n,r] hidden[c,k] and sums[b,n,r] = sum_c h[c,n,r], with h = V x; then one
GEMM with the generator's weight, shared by the batch, and one with its bias.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def _segments(cu_bands: Tensor):
    return enumerate(itertools.pairwise(cu_bands.tolist()))


def _accumulator(like: Tensor, *shape: int) -> Tensor:
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def hyper_embed_fwd(
    patches: Tensor, factors_v: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, cu_bands: Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [B, K, E] and what backward needs: moments [B, K, R, k] and sums [B, K, R] (empty when direct)."""
    samples, tokens = cu_bands.numel() - 1, patches.shape[1]
    width, rank, inner = weight.shape
    if form == "direct":
        generator = weight.permute(2, 1, 0).reshape(inner, rank * width)
        offset = bias.mT.reshape(rank * width)
        out = patches.new_empty(samples, tokens, width)
        for b, (start, end) in _segments(cu_bands):
            factors_u = torch.addmm(offset, hidden[start:end], generator).view((end - start) * rank, width)
            torch.mm(_projected(patches, factors_v, start, end).transpose(0, 1).flatten(1), factors_u, out=out[b])
        return out, patches.new_empty(0), patches.new_empty(0)
    moments = patches.new_empty(samples, tokens, rank, inner)
    sums = patches.new_empty(samples, tokens, rank)
    scratch = _scratch(patches, rank, cu_bands)
    for b, (start, end) in _segments(cu_bands):
        projected = _projected(patches, factors_v, start, end, out=scratch[: end - start])
        torch.mm(projected.flatten(1).mT, hidden[start:end], out=moments[b].view(tokens * rank, inner))
        torch.sum(projected, dim=0, out=sums[b])
    out = torch.addmm(
        sums.flatten(0, 1) @ bias.mT, moments.flatten(2).flatten(0, 1), weight.reshape(width, rank * inner).mT
    )
    return out.view(samples, tokens, width), moments, sums


def hyper_embed_bwd(
    dtokens: Tensor,
    patches: Tensor,
    factors_v: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    cu_bands: Tensor,
    moments: Tensor,
    sums: Tensor,
    form: str,
    needs_dpatches: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return dpatches (empty unless asked for), dfactors_v, dhidden, dweight, dbias."""
    tokens = patches.shape[1]
    width, rank, inner = weight.shape
    dpatches = (
        torch.empty_like(patches, memory_format=torch.contiguous_format) if needs_dpatches else patches.new_empty(0)
    )
    dfactors_v = torch.empty_like(factors_v, memory_format=torch.contiguous_format)
    dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)

    def through_projection(dprojected: Tensor, start: int, end: int) -> None:
        torch.bmm(dprojected.mT, patches[start:end], out=dfactors_v[start:end])
        if needs_dpatches:
            torch.bmm(dprojected, factors_v[start:end], out=dpatches[start:end])

    if form == "direct":
        generator = weight.permute(2, 1, 0).reshape(inner, rank * width)
        offset = bias.mT.reshape(rank * width)
        dgenerator = _accumulator(weight, inner, rank * width)
        doffset = _accumulator(bias, rank * width)
        for b, (start, end) in _segments(cu_bands):
            factors_u = torch.addmm(offset, hidden[start:end], generator).view((end - start) * rank, width)
            projected = _projected(patches, factors_v, start, end).transpose(0, 1).flatten(1)
            dfactors_u = (projected.mT @ dtokens[b]).view(end - start, rank * width)
            dprojected = (dtokens[b] @ factors_u.mT).view(tokens, end - start, rank).transpose(0, 1)
            torch.mm(dfactors_u, generator.mT, out=dhidden[start:end])
            dgenerator += hidden[start:end].mT @ dfactors_u
            doffset += dfactors_u.sum(dim=0)
            through_projection(dprojected, start, end)
        dweight = dgenerator.view(inner, rank, width).permute(2, 1, 0).to(weight.dtype).contiguous()
        dbias = doffset.view(rank, width).mT.to(bias.dtype).contiguous()
        return dpatches, dfactors_v, dhidden, dweight, dbias

    samples = dtokens.shape[0]
    flat = dtokens.flatten(0, 1)
    dweight = (flat.mT @ moments.flatten(2).flatten(0, 1)).view(weight.shape)
    dbias = flat.mT @ sums.flatten(0, 1)
    dmoments = (flat @ weight.reshape(width, rank * inner)).view(samples, tokens * rank, inner)
    dsums = (flat @ bias).view(samples, tokens * rank)
    scratch = _scratch(patches, rank, cu_bands)
    for b, (start, end) in _segments(cu_bands):
        projected = _projected(patches, factors_v, start, end, out=scratch[: end - start]).flatten(1)
        torch.mm(projected, dmoments[b], out=dhidden[start:end])
        dprojected = torch.addmm(dsums[b], hidden[start:end], dmoments[b].mT, out=projected)
        through_projection(dprojected.view(end - start, tokens, rank), start, end)
    return dpatches, dfactors_v, dhidden, dweight, dbias


def _scratch(patches: Tensor, rank: int, cu_bands: Tensor) -> Tensor:
    """Room for h of any one sample: on a CPU, touching the pages of a new one costs as much as filling it."""
    most = max(cu_bands.diff().tolist(), default=0)
    return patches.new_empty(most, patches.shape[1], rank)


def _projected(patches: Tensor, factors_v: Tensor, start: int, end: int, out: Tensor | None = None) -> Tensor:
    """h = V x of the bands [start, end): [C, K, R], contiguous."""
    return torch.bmm(patches[start:end], factors_v[start:end].mT, out=out)

"""hyper_linear and hyper_linear_loss in PyTorch, direct and re-associated.

Legend: B samples, C bands of one sample, S all bands, M tokens, D width, P pixels a patch, R rank, k hidden width.
The two forms differ only in how inner[c,l,r] = V[c] z[l] comes about; each is a small class that also gathers the
gradients of what bands share.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from specfast.kernels.eager.spectral_loss import PixelGradient, PixelSums, band_tiles, stack_reductions


def _packed(weight: Tensor) -> Tensor:
    """weight [R, D, k] as the matrix [D, R * k] that tokens meet first."""
    rank, width, inner = weight.shape
    return weight.permute(1, 0, 2).reshape(width, rank * inner)


def token_moments(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return moments [B, M, R, k] and offset [B, M, R], the tokens met by the generator's last layer."""
    samples, count, width = tokens.shape
    flat = tokens.reshape(samples * count, width)
    rank, _, inner = weight.shape
    return (flat @ _packed(weight)).view(samples, count, rank, inner), (flat @ bias.mT).view(samples, count, rank)


def saved_moments(tokens: Tensor, weight: Tensor, bias: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """What forward keeps for backward: :func:`token_moments`, or nothing (both empty) when direct."""
    if form == "direct":
        return tokens.new_empty(0), tokens.new_empty(0)
    return token_moments(tokens, weight, bias)


def token_moments_bwd(
    dmoments: Tensor, doffset: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dtokens, dweight, dbias of :func:`token_moments`."""
    samples, count, width = tokens.shape
    rank, _, inner = weight.shape
    flat = tokens.reshape(samples * count, width)
    dmoments = dmoments.reshape(samples * count, rank * inner)
    doffset = doffset.reshape(samples * count, rank)
    dtokens = torch.addmm(doffset @ bias, dmoments, _packed(weight).mT).view(tokens.shape)
    dweight = (flat.mT @ dmoments).view(width, rank, inner).permute(1, 0, 2).contiguous()
    return dtokens, dweight, doffset.mT @ flat


class _Direct:
    """V of a tile of bands is generated, then applied to the sample's tokens."""

    def __init__(self, tokens: Tensor, weight: Tensor, bias: Tensor, needs_gradient: bool = False):
        rank, width, inner = weight.shape
        self.tokens, self.shape, self.dtype = tokens, (rank, width), weight.dtype
        self.weight, self.bias = weight.permute(2, 0, 1).reshape(inner, rank * width), bias.reshape(rank * width)
        if needs_gradient:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.dtokens = torch.zeros(tokens.shape, dtype=dtype, device=tokens.device)
            self.dweight = torch.zeros_like(self.weight, dtype=dtype)
            self.dbias = torch.zeros_like(self.bias, dtype=dtype)

    def _factors(self, hidden: Tensor) -> Tensor:
        return torch.addmm(self.bias, hidden, self.weight).view(hidden.shape[0] * self.shape[0], self.shape[1])

    def inner(self, b: int, hidden: Tensor) -> Tensor:
        """V z of sample b, hidden [c, k] -> [c, M, R]."""
        return (self._factors(hidden) @ self.tokens[b].mT).view(hidden.shape[0], self.shape[0], -1).mT

    def backward(self, b: int, hidden: Tensor, dinner: Tensor) -> Tensor:
        rank, width = self.shape
        flat = dinner.mT.reshape(hidden.shape[0] * rank, self.tokens.shape[1])
        dfactors = (flat @ self.tokens[b]).view(hidden.shape[0], rank * width)
        self.dtokens[b] += flat.mT @ self._factors(hidden)
        self.dweight += hidden.mT @ dfactors
        self.dbias += dfactors.sum(dim=0)
        return dfactors @ self.weight.mT

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        dweight = self.dweight.view(-1, *self.shape).permute(1, 2, 0)
        return (
            self.dtokens.to(self.dtype),
            dweight.to(self.dtype).contiguous(),
            self.dbias.view(self.shape).to(self.dtype),
        )


class _Reassociated:
    """The tokens meet the generator's weight first, and a band only weighs the result with its hidden vector."""

    def __init__(self, tokens, weight, bias, moments: Tensor, offset: Tensor, needs_gradient: bool = False):
        self.inputs = tokens, weight, bias
        self.shape = moments.shape[1:3]
        self.moments, self.offset = moments.flatten(1, 2), offset.flatten(1)[:, None]  # [B, M R, k], [B, 1, M R]
        if needs_gradient:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.dmoments = torch.zeros_like(self.moments, dtype=dtype)
            self.doffset = torch.zeros_like(self.offset, dtype=dtype)

    def inner(self, b: int, hidden: Tensor) -> Tensor:
        """hidden [c, k] -> [c, M, R]."""
        return torch.addmm(self.offset[b], hidden, self.moments[b].mT).view(hidden.shape[0], *self.shape)

    def backward(self, b: int, hidden: Tensor, dinner: Tensor) -> Tensor:
        flat = dinner.flatten(1)
        self.dmoments[b] += flat.mT @ hidden
        self.doffset[b] += flat.sum(dim=0)
        return flat @ self.moments[b]

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.inputs[0].dtype
        return token_moments_bwd(self.dmoments.to(dtype), self.doffset.to(dtype), *self.inputs)


def _in_form(tokens, weight, bias, moments, offset, form, needs_gradient=False) -> _Direct | _Reassociated:
    if form == "direct":
        return _Direct(tokens, weight, bias, needs_gradient)
    return _Reassociated(tokens, weight, bias, moments, offset, needs_gradient)


def _predict(inner: Tensor, factors_u: Tensor, pixel_bias: Tensor) -> Tensor:
    return torch.baddbmm(pixel_bias[:, None], inner, factors_u.mT)


def hyper_linear_fwd(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    cu_bands: Tensor,
    form: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return prediction [S, M, P], and for backward moments and offset as :func:`token_moments` (empty when direct)."""
    saved = saved_moments(tokens, weight, bias, form)
    factors_v = _in_form(tokens, weight, bias, *saved, form)
    prediction = tokens.new_empty(hidden.shape[0], tokens.shape[1], factors_u.shape[1])
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        for first, last in band_tiles(start, end, tokens.shape[1] * factors_u.shape[1]):
            inner = factors_v.inner(b, hidden[first:last])
            prediction[first:last] = _predict(inner, factors_u[first:last], pixel_bias[first:last])
    return prediction, *saved


class _Gradients:
    """The gradients of hyper_linear's inputs, filled a tile of bands at a time."""

    def __init__(self, factors_v: _Direct | _Reassociated, hidden: Tensor, factors_u: Tensor, pixel_bias: Tensor):
        self.factors_v, self.factors_u, self.hidden = factors_v, factors_u, hidden
        contiguous = torch.contiguous_format
        self.dhidden = torch.empty_like(hidden, memory_format=contiguous)
        self.dfactors_u = torch.empty_like(factors_u, memory_format=contiguous)
        self.dpixel_bias = torch.empty_like(pixel_bias, memory_format=contiguous)

    def add(self, b: int, first: int, last: int, inner: Tensor, dprediction: Tensor) -> None:
        self.dpixel_bias[first:last] = dprediction.sum(dim=1)
        dprediction = dprediction.to(inner.dtype)
        torch.bmm(dprediction.mT, inner, out=self.dfactors_u[first:last])
        dinner = torch.bmm(dprediction, self.factors_u[first:last])
        self.dhidden[first:last] = self.factors_v.backward(b, self.hidden[first:last], dinner)

    def result(self) -> tuple[Tensor, ...]:
        dtokens, dweight, dbias = self.factors_v.gradients()
        return dtokens, self.dhidden, dweight, dbias, self.dfactors_u, self.dpixel_bias


def hyper_linear_bwd(
    dprediction: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    cu_bands: Tensor,
    moments: Tensor,
    offset: Tensor,
    form: str,
) -> tuple[Tensor, ...]:
    """Return the gradients of tokens, hidden, weight, bias, factors_u, pixel_bias."""
    factors_v = _in_form(tokens, weight, bias, moments, offset, form, needs_gradient=True)
    gradients = _Gradients(factors_v, hidden, factors_u, pixel_bias)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        for first, last in band_tiles(start, end, tokens.shape[1] * factors_u.shape[1]):
            gradients.add(b, first, last, factors_v.inner(b, hidden[first:last]), dprediction[first:last])
    return gradients.result()


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
    count, pixels = tokens.shape[1], factors_u.shape[1]
    saved = saved_moments(tokens, weight, bias, form)
    factors_v = _in_form(tokens, weight, bias, *saved, form)
    kept = tokens.new_empty(tokens.shape[0], 3, count, pixels, dtype=torch.promote_types(tokens.dtype, torch.float32))
    rows = []
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        sums = PixelSums(tokens, count, pixels)
        for first, last in band_tiles(start, end, count * pixels):
            inner = factors_v.inner(b, hidden[first:last])
            sums.add(_predict(inner, factors_u[first:last], pixel_bias[first:last]), target[first:last])
        rows.append(sums.reduce(valid[b], end - start))
        kept[b] = sums.sums[:3]
    return *stack_reductions(rows, tokens), kept, *saved


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
    """Return the gradients of tokens, hidden, weight, bias, factors_u, pixel_bias; predictions are recomputed."""
    factors_v = _in_form(tokens, weight, bias, moments, offset, form, needs_gradient=True)
    gradients = _Gradients(factors_v, hidden, factors_u, pixel_bias)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        of_loss = PixelGradient(sums[b], valid[b], end - start, dspectral[b], dcharbonnier[b])
        for first, last in band_tiles(start, end, tokens.shape[1] * factors_u.shape[1]):
            inner = factors_v.inner(b, hidden[first:last])
            prediction = _predict(inner, factors_u[first:last], pixel_bias[first:last])
            gradients.add(b, first, last, inner, of_loss(prediction, target[first:last]))
    return gradients.result()

"""hyper_linear and hyper_linear_loss in PyTorch, direct and re-associated.

Legend: B samples, C bands of one sample, S all bands, M tokens, D width, P pixels a patch, R rank, k hidden width.
The two forms differ only in how inner[c,l,r] = V[c] z[l] comes about; each is a small class that lives as long as one
sample is in flight and gathers the gradients of what its bands share.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from specfast.kernels.eager.spectral_loss import PixelGradient, PixelSums, band_tiles, stack_reductions


class _Generator:
    """The generator's last layer (weight [R, D, k], bias [R, D]) packed for one form, and its gradient."""

    def __init__(self, weight: Tensor, bias: Tensor, form: str, needs_gradient: bool = False):
        self.shape = weight.shape
        rank, width, inner = weight.shape
        self.direct = form == "direct"
        if self.direct:
            self.weight, self.bias = weight.permute(2, 0, 1).reshape(inner, rank * width), bias.reshape(rank * width)
        else:
            self.weight, self.bias = weight.permute(1, 0, 2).reshape(width, rank * inner), bias
        if needs_gradient:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.dweight = torch.zeros_like(self.weight, dtype=dtype)
            self.dbias = torch.zeros_like(self.bias, dtype=dtype)

    def sample(self, tokens: Tensor) -> _DirectSample | _ReassociatedSample:
        return (_DirectSample if self.direct else _ReassociatedSample)(self, tokens)

    def gradients(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rank, width, inner = self.shape
        if self.direct:
            dweight = self.dweight.view(inner, rank, width).permute(1, 2, 0)
        else:
            dweight = self.dweight.view(width, rank, inner).permute(1, 0, 2)
        return dweight.to(dtype).contiguous(), self.dbias.view(rank, width).to(dtype)


class _DirectSample:
    """V of a tile of bands is generated, then applied to the sample's tokens [M, D]."""

    def __init__(self, generator: _Generator, tokens: Tensor):
        self.generator, self.tokens = generator, tokens
        self.dtokens = None

    def _factors(self, hidden: Tensor) -> Tensor:
        rank, width, _ = self.generator.shape
        return torch.addmm(self.generator.bias, hidden, self.generator.weight).view(hidden.shape[0] * rank, width)

    def inner(self, hidden: Tensor) -> Tensor:
        """hidden [c, k] -> [c, M, R]."""
        rank = self.generator.shape[0]
        return (self._factors(hidden) @ self.tokens.mT).view(hidden.shape[0], rank, self.tokens.shape[0]).mT

    def backward(self, hidden: Tensor, dinner: Tensor) -> Tensor:
        rank, width, _ = self.generator.shape
        flat = dinner.mT.reshape(hidden.shape[0] * rank, self.tokens.shape[0])
        dfactors = (flat @ self.tokens).view(hidden.shape[0], rank * width)
        dtokens = flat.mT @ self._factors(hidden)
        self.dtokens = dtokens.to(self.generator.dweight.dtype) if self.dtokens is None else self.dtokens.add_(dtokens)
        self.generator.dweight += hidden.mT @ dfactors
        self.generator.dbias += dfactors.sum(dim=0)
        return dfactors @ self.generator.weight.mT

    def finish(self) -> Tensor:
        return torch.zeros_like(self.tokens) if self.dtokens is None else self.dtokens


class _ReassociatedSample:
    """The tokens [M, D] meet the generator's weight first, and a band only weighs the result with its hidden vector."""

    def __init__(self, generator: _Generator, tokens: Tensor):
        self.generator, self.tokens = generator, tokens
        rows = tokens.shape[0] * generator.shape[0]
        self.moments = (tokens @ generator.weight).view(rows, generator.shape[2])  # [M * R, k]
        self.offset = (tokens @ generator.bias.mT).view(1, rows)
        self.dmoments = self.doffset = None

    def inner(self, hidden: Tensor) -> Tensor:
        """hidden [c, k] -> [c, M, R]."""
        inner = torch.addmm(self.offset, hidden, self.moments.mT)
        return inner.view(hidden.shape[0], self.tokens.shape[0], self.generator.shape[0])

    def backward(self, hidden: Tensor, dinner: Tensor) -> Tensor:
        flat = dinner.flatten(1)
        if self.dmoments is None:
            dtype = self.generator.dweight.dtype
            self.dmoments = torch.zeros_like(self.moments, dtype=dtype)
            self.doffset = torch.zeros_like(self.offset, dtype=dtype)
        self.dmoments += flat.mT @ hidden
        self.doffset += flat.sum(dim=0)
        return flat @ self.moments

    def finish(self) -> Tensor:
        if self.dmoments is None:
            return torch.zeros_like(self.tokens)
        rank, _, inner = self.generator.shape
        count = self.tokens.shape[0]
        dmoments = self.dmoments.view(count, rank * inner).to(self.tokens.dtype)
        doffset = self.doffset.view(count, rank).to(self.tokens.dtype)
        self.generator.dweight += self.tokens.mT @ dmoments
        self.generator.dbias += doffset.mT @ self.tokens
        return torch.addmm(doffset @ self.generator.bias, dmoments, self.generator.weight.mT)


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
) -> Tensor:
    """Return prediction [S, M, P]."""
    generator = _Generator(weight, bias, form)
    prediction = tokens.new_empty(hidden.shape[0], tokens.shape[1], factors_u.shape[1])
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        sample = generator.sample(tokens[b])
        for first, last in band_tiles(start, end, tokens.shape[1] * factors_u.shape[1]):
            prediction[first:last] = _predict(
                sample.inner(hidden[first:last]), factors_u[first:last], pixel_bias[first:last]
            )
    return prediction


class _Gradients:
    """The gradients of hyper_linear's inputs, filled a tile of bands at a time."""

    def __init__(self, tokens, hidden, weight, bias, factors_u, pixel_bias, form):
        self.generator = _Generator(weight, bias, form, needs_gradient=True)
        self.factors_u = factors_u
        self.hidden = hidden
        contiguous = torch.contiguous_format
        self.dtokens = torch.empty_like(tokens, memory_format=contiguous)
        self.dhidden = torch.empty_like(hidden, memory_format=contiguous)
        self.dfactors_u = torch.empty_like(factors_u, memory_format=contiguous)
        self.dpixel_bias = torch.empty_like(pixel_bias, memory_format=contiguous)

    def add(self, sample, first: int, last: int, inner: Tensor, dprediction: Tensor) -> None:
        self.dpixel_bias[first:last] = dprediction.sum(dim=1)
        dprediction = dprediction.to(inner.dtype)
        torch.bmm(dprediction.mT, inner, out=self.dfactors_u[first:last])
        dinner = torch.bmm(dprediction, self.factors_u[first:last])
        self.dhidden[first:last] = sample.backward(self.hidden[first:last], dinner)

    def result(self) -> tuple[Tensor, ...]:
        dweight, dbias = self.generator.gradients(self.hidden.dtype)
        return self.dtokens, self.dhidden, dweight, dbias, self.dfactors_u, self.dpixel_bias


def hyper_linear_bwd(
    dprediction: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    cu_bands: Tensor,
    form: str,
) -> tuple[Tensor, ...]:
    """Return the gradients of tokens, hidden, weight, bias, factors_u, pixel_bias."""
    gradients = _Gradients(tokens, hidden, weight, bias, factors_u, pixel_bias, form)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        sample = gradients.generator.sample(tokens[b])
        for first, last in band_tiles(start, end, tokens.shape[1] * factors_u.shape[1]):
            gradients.add(sample, first, last, sample.inner(hidden[first:last]), dprediction[first:last])
        gradients.dtokens[b] = sample.finish()
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spectral sum, Charbonnier sum, valid pixels (all [B]) and sums [B, 3, M, P] for backward."""
    count, pixels = tokens.shape[1], factors_u.shape[1]
    generator = _Generator(weight, bias, form)
    kept = tokens.new_empty(tokens.shape[0], 3, count, pixels, dtype=torch.promote_types(tokens.dtype, torch.float32))
    rows = []
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        sample = generator.sample(tokens[b])
        sums = PixelSums(tokens, count, pixels)
        for first, last in band_tiles(start, end, count * pixels):
            inner = sample.inner(hidden[first:last])
            sums.add(_predict(inner, factors_u[first:last], pixel_bias[first:last]), target[first:last])
        rows.append(sums.reduce(valid[b], end - start))
        kept[b] = sums.sums[:3]
    return *stack_reductions(rows, tokens), kept


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
    form: str,
) -> tuple[Tensor, ...]:
    """Return the gradients of tokens, hidden, weight, bias, factors_u, pixel_bias; predictions are recomputed."""
    gradients = _Gradients(tokens, hidden, weight, bias, factors_u, pixel_bias, form)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        sample = gradients.generator.sample(tokens[b])
        of_loss = PixelGradient(sums[b], valid[b], end - start, dspectral[b], dcharbonnier[b])
        for first, last in band_tiles(start, end, tokens.shape[1] * factors_u.shape[1]):
            inner = sample.inner(hidden[first:last])
            prediction = _predict(inner, factors_u[first:last], pixel_bias[first:last])
            gradients.add(sample, first, last, inner, of_loss(prediction, target[first:last]))
        gradients.dtokens[b] = sample.finish()
    return gradients.result()

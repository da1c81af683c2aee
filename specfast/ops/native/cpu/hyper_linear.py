"""hyper_linear and hyper_linear_loss: torch's GEMMs on tiles that stay in the caches, C++ passes over pixels between.

Legend: B samples, C bands of one sample, S all bands, M tokens, D width, P pixels a patch, R rank, k hidden width.
A tile is a range of bands and of tokens. Re-associated, it holds every band of some tokens, so that what sums over
bands (dmoments) is complete with it; direct, every token of some bands, whose V is generated once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from specfast.kernels.eager.hyper_linear import saved_moments, token_moments_bwd
from specfast.ops.native.cpu.spectral_loss import SampleGradient, SampleSums, with_adjacent_rows
from specfast.ops.native.cpu.tiles import TILE_BYTES, Buffer, groups, parts


class _Reassociated:
    """inner = moments hidden + offset, for all bands of a few tokens."""

    def __init__(self, tokens, weight, bias, moments, offset):
        self.inputs = tokens, weight, bias
        self.moments, self.offset = moments, offset
        self.inner_buffer = Buffer(tokens)

    def prepare_backward(self) -> None:
        self.dmoments, self.doffset = torch.empty_like(self.moments), torch.empty_like(self.offset)

    def tiles(self, b: int, of_sample: slice, hidden: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (bands, tokens, inner [c, m, R])."""
        bands, (count, rank, inner) = of_sample.stop - of_sample.start, self.moments.shape[1:]
        for part in parts(slice(0, count), bands * rank * self.moments.itemsize, TILE_BYTES):
            moments = self.moments[b, part].view(-1, inner)
            out = self.inner_buffer.view(bands, part.stop - part.start, rank)
            offset = self.offset[b, part].view(1, -1)
            torch.addmm(offset, hidden[of_sample], moments.mT, out=out.view(bands, moments.shape[0]))
            yield of_sample, part, out

    def backward(self, b: int, tokens: slice, hidden: Tensor, dinner: Tensor) -> Tensor:
        """Take in a tile's dinner [c, m, R]; return its part of dhidden [c, k]."""
        flat = dinner.flatten(1)
        moments = self.moments[b, tokens].flatten(0, 1)
        torch.mm(flat.mT, hidden, out=self.dmoments[b, tokens].view_as(moments))
        torch.sum(flat, dim=0, out=self.doffset[b, tokens].view(-1))
        return flat @ moments

    def without_bands(self, b: int) -> None:
        self.dmoments[b].zero_()
        self.doffset[b].zero_()

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        return token_moments_bwd(self.dmoments, self.doffset, *self.inputs)


class _Direct:
    """inner = V z with V generated, for all tokens of a few bands."""

    def __init__(self, tokens, weight, bias):
        rank, width, inner = weight.shape
        self.tokens, self.rank, self.width = tokens, rank, width
        self.generator = weight.permute(2, 0, 1).reshape(inner, rank * width)
        self.bias = bias.reshape(rank * width)
        self.inner_buffer, self.factors_buffer = Buffer(tokens), Buffer(tokens)

    def prepare_backward(self) -> None:
        self.dtokens = torch.zeros_like(self.tokens, dtype=torch.float32, memory_format=torch.contiguous_format)
        self.dgenerator = torch.zeros_like(self.generator, dtype=torch.float32)
        self.dbias = torch.zeros_like(self.bias, dtype=torch.float32)

    def tiles(self, b: int, of_sample: slice, hidden: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (bands, tokens, inner [c, M, R])."""
        count = self.tokens.shape[1]
        largest = max(count, self.width)  # of a band, inner has the former times R numbers and V the latter
        for bands in parts(of_sample, largest * self.rank * self.tokens.itemsize, TILE_BYTES):
            size = bands.stop - bands.start
            generated = self.factors_buffer.view(size, self.rank * self.width)
            torch.addmm(self.bias, hidden[bands], self.generator, out=generated)
            self.factors = generated.view(size * self.rank, self.width)
            out = torch.mm(self.tokens[b], self.factors.mT, out=self.inner_buffer.view(count, size * self.rank))
            yield bands, slice(0, count), out.view(count, size, self.rank).transpose(0, 1)

    def backward(self, b: int, tokens: slice, hidden: Tensor, dinner: Tensor) -> Tensor:
        """Take in dinner [c, M, R] of the tile that came last; return dhidden [c, k]."""
        flat = dinner.transpose(0, 1).flatten(1)
        dfactors = (flat.mT @ self.tokens[b]).view(hidden.shape[0], self.rank * self.width)
        self.dtokens[b] += flat @ self.factors
        self.dgenerator += hidden.mT @ dfactors
        self.dbias += dfactors.sum(dim=0)
        return dfactors @ self.generator.mT

    def without_bands(self, b: int) -> None:
        """Nothing: all gradients start from zero."""

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.tokens.dtype
        dweight = self.dgenerator.view(-1, self.rank, self.width).permute(1, 2, 0)
        dbias = self.dbias.view(self.rank, self.width)
        return self.dtokens.to(dtype), dweight.to(dtype, memory_format=torch.contiguous_format), dbias.to(dtype)


def _in_form(tokens, weight, bias, moments, offset, form) -> _Reassociated | _Direct:
    if form == "direct":
        return _Direct(tokens, weight, bias)
    return _Reassociated(tokens, weight, bias, moments.contiguous(), offset.contiguous())


def _predict(
    factors_v: _Reassociated | _Direct, b: int, of_sample: slice, hidden: Tensor, factors_u: Tensor, buffer: Buffer
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (bands, tokens, prediction [c, m, P] without its bias), a group of bands at a time."""
    for bands, part, inner in factors_v.tiles(b, of_sample, hidden):
        for group, local in _groups(bands, inner, factors_u):
            prediction = buffer.view(*inner[local].shape[:2], factors_u.shape[1])
            yield group, part, torch.bmm(inner[local], factors_u[group].mT, out=prediction)


def _groups(bands: slice, inner: Tensor, factors_u: Tensor) -> Iterator[tuple[slice, slice]]:
    """Split the bands of a tile; yield the group among all bands, and within the tile."""
    for group in groups(bands, inner.shape[1] * max(factors_u.shape[1:]) * inner.itemsize):
        yield group, slice(group.start - bands.start, group.stop - bands.start)


def _backward(
    gradient_of_sample: Callable[[int, int], Callable[[slice, slice, Tensor], Tensor]],
    dpixel_bias: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    cu_bands: Tensor,
    moments: Tensor,
    offset: Tensor,
    form: str,
) -> tuple[Tensor, ...]:
    """The gradients of all inputs, where gradient_of_sample(sample, its number of bands) gives a function
    (bands, tokens, inner) -> dprediction [c, m, P] of a tile.
    """
    factors_v = _in_form(tokens, weight, bias, moments, offset, form)
    factors_v.prepare_backward()
    dhidden = torch.zeros_like(hidden, dtype=torch.float32, memory_format=torch.contiguous_format)
    dfactors_u = torch.zeros_like(factors_u, dtype=torch.float32, memory_format=torch.contiguous_format)
    dinners, products = Buffer(tokens), Buffer(tokens)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        if start == end:
            factors_v.without_bands(b)
            continue
        gradient = gradient_of_sample(b, end - start)
        for bands, part, inner in factors_v.tiles(b, slice(start, end), hidden):
            dinner = dinners.view(*inner.shape)
            for group, local in _groups(bands, inner, factors_u):
                dprediction = gradient(group, part, inner[local])
                if tokens.dtype == torch.float32:
                    dfactors_u[group].baddbmm_(dprediction.mT, inner[local])
                else:  # a product is rounded, their sum is not
                    product = products.view(*dfactors_u[group].shape)
                    dfactors_u[group] += torch.bmm(dprediction.mT, inner[local], out=product)
                torch.bmm(dprediction, factors_u[group], out=dinner[local])
            dhidden[bands] += factors_v.backward(b, part, hidden[bands], dinner)
    dtokens, dweight, dbias = factors_v.gradients()
    dtype = tokens.dtype
    return dtokens, dhidden.to(dtype), dweight, dbias, dfactors_u.to(dtype), dpixel_bias.to(dtype)


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
    """Return prediction [S, M, P], and for backward moments [B, M, R, k] and offset [B, M, R] (empty when direct)."""
    saved = saved_moments(tokens, weight, bias, form)
    factors_v = _in_form(tokens, weight, bias, *saved, form)
    out, buffer = tokens.new_empty(len(hidden), tokens.shape[1], factors_u.shape[1]), Buffer(tokens)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        for bands, part, prediction in _predict(factors_v, b, slice(start, end), hidden, factors_u, buffer):
            torch.add(prediction, pixel_bias[bands, None], out=out[bands, part])
    return out, *saved


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
    dprediction = with_adjacent_rows(dprediction)
    dpixel_bias = dprediction.sum(dim=1)

    def gradient_of_sample(b: int, bands: int):
        return lambda group, part, inner: dprediction[group, part]

    return _backward(
        gradient_of_sample, dpixel_bias, tokens, hidden, weight, bias, factors_u, cu_bands, moments, offset, form
    )


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
    target, valid, pixel_bias = with_adjacent_rows(target), valid.contiguous(), pixel_bias.contiguous()
    saved = saved_moments(tokens, weight, bias, form)
    factors_v = _in_form(tokens, weight, bias, *saved, form)
    sums = tokens.new_empty(valid.shape[0], 3, *valid.shape[1:], dtype=torch.float32)
    losses, buffer = sums.new_empty(valid.shape[0], 3), Buffer(tokens)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        of_sample = SampleSums(sums[b])
        for bands, part, prediction in _predict(factors_v, b, slice(start, end), hidden, factors_u, buffer):
            of_sample.add(prediction, target[bands, part], pixel_bias[bands], part.start)
        of_sample.reduce(valid[b], end - start, losses[b])
    return *(column.clone() for column in losses.unbind(1)), sums, *saved


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
    target, pixel_bias = with_adjacent_rows(target), pixel_bias.contiguous()
    valid, sums = valid.contiguous(), sums.contiguous()
    dspectral, dcharbonnier = dspectral.tolist(), dcharbonnier.tolist()
    dpixel_bias, buffer = torch.zeros_like(pixel_bias, dtype=torch.float32), Buffer(tokens)

    def gradient_of_sample(b: int, bands: int):
        of_sample = SampleGradient(sums[b], valid[b], bands, dspectral[b], dcharbonnier[b])

        def gradient(group: slice, part: slice, inner: Tensor) -> Tensor:
            prediction = buffer.view(*inner.shape[:2], factors_u.shape[1])
            torch.bmm(inner, factors_u[group].mT, out=prediction)
            of_sample.replace(prediction, target[group, part], pixel_bias[group], part.start, dpixel_bias[group])
            return prediction

        return gradient

    return _backward(
        gradient_of_sample, dpixel_bias, tokens, hidden, weight, bias, factors_u, cu_bands, moments, offset, form
    )

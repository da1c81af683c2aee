"""hyper_linear_loss with C++ passes over tiles of predicted pixels, and torch's GEMMs between them.

Legend: B samples, C bands of one sample, S all bands, M tokens, D width, P pixels a patch, R rank, k hidden width.
A tile is a range of bands and of tokens. Re-associated, it holds every band of a few tokens, so that what sums over
bands (the pixels' sums, dmoments) is complete with it; direct, every token of a few bands, whose V is generated once.
Tiles are small enough for the two or three buffers of one to stay in the last-level cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from specfast.kernels.eager.hyper_linear import token_moments, token_moments_bwd
from specfast.ops.native.cpu.spectral_loss import SampleGradient, SampleSums, with_adjacent_rows

_TILE_ELEMENTS = 1 << 19  # of inner, prediction or dinner


def _ranges(count: int, step: int) -> list[tuple[int, int]]:
    """Split range(count) into nearly equal parts of at most ``step``."""
    parts = -(-count // step)
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


class _Buffer:
    """Memory that one tile after the other uses."""

    def __init__(self, like: Tensor):
        self.memory = like.new_empty(0)

    def view(self, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if self.memory.numel() < size:
            self.memory = self.memory.new_empty(size)
        return self.memory[:size].view(shape)


class _Reassociated:
    """inner = moments hidden + offset, for all bands of a few tokens."""

    def __init__(self, tokens, weight, bias, moments, offset, pixels):
        self.inputs = tokens, weight, bias
        self.moments, self.offset = moments, offset
        self.pixels = pixels
        self.inner_buffer = _Buffer(tokens)

    def prepare_backward(self) -> None:
        self.dmoments, self.doffset = torch.empty_like(self.moments), torch.empty_like(self.offset)

    def tiles(self, b: int, hidden: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (bands of the sample, tokens, inner [c, m, R])."""
        bands, (count, rank, inner) = hidden.shape[0], self.moments.shape[1:]
        step = max(8, _TILE_ELEMENTS // max(1, bands * max(rank, self.pixels)))
        for first, last in _ranges(count, step):
            rows = (last - first) * rank
            out = self.inner_buffer.view(bands, rows)
            moments = self.moments[b, first:last].view(rows, inner)
            torch.addmm(self.offset[b, first:last].view(1, rows), hidden, moments.mT, out=out)
            yield slice(0, bands), slice(first, last), out.view(bands, last - first, rank)

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

    def __init__(self, tokens, weight, bias, pixels):
        rank, width, inner = weight.shape
        self.tokens, self.rank, self.width, self.pixels = tokens, rank, width, pixels
        self.generator = weight.permute(2, 0, 1).reshape(inner, rank * width)
        self.bias = bias.reshape(rank * width)
        self.inner_buffer, self.factors_buffer = _Buffer(tokens), _Buffer(tokens)

    def prepare_backward(self) -> None:
        self.dtokens = torch.zeros_like(self.tokens, dtype=torch.float32, memory_format=torch.contiguous_format)
        self.dgenerator = torch.zeros_like(self.generator, dtype=torch.float32)
        self.dbias = torch.zeros_like(self.bias, dtype=torch.float32)

    def tiles(self, b: int, hidden: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (bands of the sample, tokens, inner [c, M, R])."""
        bands, count = hidden.shape[0], self.tokens.shape[1]
        step = max(8, _TILE_ELEMENTS // max(1, count * max(self.rank, self.pixels)))
        for first, last in _ranges(bands, step):
            rows = (last - first) * self.rank
            self.factors = self.factors_buffer.view(last - first, self.rank * self.width)
            torch.addmm(self.bias, hidden[first:last], self.generator, out=self.factors)
            self.factors = self.factors.view(rows, self.width)
            out = torch.mm(self.tokens[b], self.factors.mT, out=self.inner_buffer.view(count, rows))
            yield slice(first, last), slice(0, count), out.view(count, last - first, self.rank).transpose(0, 1)

    def backward(self, b: int, tokens: slice, hidden: Tensor, dinner: Tensor) -> Tensor:
        """Take in dinner [c, M, R] of the tile that came last; return dhidden [c, k]."""
        flat = dinner.transpose(0, 1).reshape(dinner.shape[1], -1)
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


def _in_form(tokens, weight, bias, moments, offset, form, pixels) -> _Reassociated | _Direct:
    if form == "direct":
        return _Direct(tokens, weight, bias, pixels)
    return _Reassociated(tokens, weight, bias, moments.contiguous(), offset.contiguous(), pixels)


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
    empty = tokens.new_empty(0)
    moments, offset = (empty, empty.clone()) if form == "direct" else token_moments(tokens, weight, bias)
    factors_v = _in_form(tokens, weight, bias, moments, offset, form, pixel_bias.shape[1])
    sums = tokens.new_empty(valid.shape[0], 3, *valid.shape[1:], dtype=torch.float32)
    losses = sums.new_empty(valid.shape[0], 3)
    buffer = _Buffer(tokens)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        of_sample = SampleSums(sums[b])
        for bands, of_tokens, inner in factors_v.tiles(b, hidden[start:end]):
            at = slice(start + bands.start, start + bands.stop)
            prediction = buffer.view(*inner.shape[:2], pixel_bias.shape[1])
            torch.bmm(inner, factors_u[at].mT, out=prediction)
            of_sample.add(prediction, target[at, of_tokens], pixel_bias[at], of_tokens.start)
        of_sample.reduce(valid[b], end - start, losses[b])
    return *(column.clone() for column in losses.unbind(1)), sums, moments, offset


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
    target, valid, pixel_bias = with_adjacent_rows(target), valid.contiguous(), pixel_bias.contiguous()
    sums = sums.contiguous()
    factors_v = _in_form(tokens, weight, bias, moments, offset, form, pixel_bias.shape[1])
    factors_v.prepare_backward()
    dhidden = torch.zeros_like(hidden, dtype=torch.float32, memory_format=torch.contiguous_format)
    dfactors_u = torch.zeros_like(factors_u, dtype=torch.float32, memory_format=torch.contiguous_format)
    dpixel_bias = torch.zeros_like(pixel_bias, dtype=torch.float32)
    predictions, dinners = _Buffer(tokens), _Buffer(tokens)
    dspectral, dcharbonnier = dspectral.tolist(), dcharbonnier.tolist()
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        if start == end:
            factors_v.without_bands(b)
            continue
        gradient = SampleGradient(sums[b], valid[b], end - start, dspectral[b], dcharbonnier[b])
        for bands, of_tokens, inner in factors_v.tiles(b, hidden[start:end]):
            at = slice(start + bands.start, start + bands.stop)
            prediction = predictions.view(*inner.shape[:2], pixel_bias.shape[1])
            torch.bmm(inner, factors_u[at].mT, out=prediction)
            gradient.replace(prediction, target[at, of_tokens], pixel_bias[at], of_tokens.start, dpixel_bias[at])
            if prediction.dtype == torch.float32:
                dfactors_u[at].baddbmm_(prediction.mT, inner)
            else:
                dfactors_u[at] += torch.bmm(prediction.mT, inner)
            dinner = torch.bmm(prediction, factors_u[at], out=dinners.view(*inner.shape))
            dhidden[at] += factors_v.backward(b, of_tokens, hidden[at], dinner)
    dtokens, dweight, dbias = factors_v.gradients()
    dtype = tokens.dtype
    return dtokens, dhidden.to(dtype), dweight, dbias, dfactors_u.to(dtype), dpixel_bias.to(dtype)

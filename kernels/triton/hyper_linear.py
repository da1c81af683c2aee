"""Launchers of hyper_linear, in the eager backend's signatures, and the two forms that hyper_linear_loss shares.

Legend: B samples, S bands of all samples, M tokens a sample, D width, P pixels a patch, R rank, k hidden width.

inner[c, l] = V[c] z[l] passes through memory, a bounded run of tokens at a time. Kept on chip it would cost more: a
program that fuses both products holds the moments of at most 16 tokens (8 kB each in bfloat16 at R = k = 64), so it
reads U again for every 16 tokens, 512 bytes a (band, token) from L2, where inner written and read is 256 bytes; and its
products, batched over bands, lower to mma.sync, not wgmma or tcgen05. Backward takes six products a (band, token) with
inner and dinner in memory; two kernels that own tokens and bands and make both again would take nine.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.eager.hyper_linear import saved_moments, token_moments_bwd
from specfast.kernels.triton import launch
from specfast.kernels.triton.band_products import all_bands, band_contraction, band_matmul
from specfast.kernels.triton.expand_kernels import expand_bwd_kernel, expand_fwd_kernel
from specfast.kernels.triton.inner_products import inner_dhidden, inner_dmoments, inner_fwd

PIXEL_LIMIT = 256  # a patch, and a column of U, are one tile
RANK_LIMIT = 128
FACTOR_LIMIT = 128 * 128  # numbers in that tile, which backward holds twice; sides count as powers of two

_INNER_BYTES = 1 << 30  # of inner at a time; one run of tokens at B 64, C 202, M 588, R 64 in bfloat16
_TOKEN_MULTIPLE = 128


class Reassociated:
    """V is never formed: inner comes from the moments of the tokens."""

    def __init__(self, tokens, hidden, weight, bias, cu_bands, moments, offset):
        self.inputs = tokens, weight, bias
        self.hidden, self.cu_bands = hidden.contiguous(), cu_bands
        self.moments, self.offset = moments.contiguous(), offset.contiguous()

    def inner(self, first: int, last: int) -> Tensor:
        """V z of the tokens [first, last), contiguous [S, last - first, R]."""
        return inner_fwd(self.moments, self.offset, self.hidden, self.cu_bands, first, last - first)

    def start_backward(self) -> None:
        self.dmoments, self.doffset = torch.empty_like(self.moments), torch.empty_like(self.offset)
        self.dhidden = None

    def add(self, first: int, last: int, dinner: Tensor) -> None:
        inner_dmoments(dinner, self.hidden, self.cu_bands, self.dmoments, self.doffset, first)
        dhidden = inner_dhidden(dinner, self.moments, self.hidden, self.cu_bands, first)
        self.dhidden = dhidden if self.dhidden is None else self.dhidden.add_(dhidden)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dtokens, dhidden, dweight, dbias."""
        dtokens, dweight, dbias = token_moments_bwd(self.dmoments, self.doffset, *self.inputs)
        return dtokens, self.dhidden.to(self.hidden.dtype), dweight, dbias


class Direct:
    """V of every band is generated, then applied."""

    def __init__(self, tokens, hidden, weight, bias, cu_bands):
        rank, width, inner = weight.shape
        self.tokens, self.hidden, self.cu_bands = tokens, hidden, cu_bands
        self.weight = weight.permute(2, 0, 1).reshape(inner, rank * width)
        self.factors = torch.addmm(bias.reshape(rank * width), hidden, self.weight).view(-1, rank, width)
        self.each = all_bands(hidden, hidden.shape[0])
        self.sample_of = launch.sample_of_band(cu_bands, hidden.shape[0])

    def inner(self, first: int, last: int) -> Tensor:
        """V z of the tokens [first, last), contiguous [S, last - first, R]."""
        return band_matmul(self.tokens[:, first:last], self.factors.mT, self.sample_of, self.each, tokens="M")

    def start_backward(self) -> None:
        self.dtokens = self.tokens.new_empty(self.tokens.shape)
        self.dfactors = None

    def add(self, first: int, last: int, dinner: Tensor) -> None:
        self.dtokens[:, first:last] = band_contraction(dinner, self.factors, self.cu_bands)
        dfactors = band_matmul(dinner.mT, self.tokens[:, first:last], self.each, self.sample_of, tokens="K")
        self.dfactors = dfactors if self.dfactors is None else self.dfactors.float().add_(dfactors)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dtokens, dhidden, dweight, dbias."""
        _, rank, width = self.factors.shape
        dfactors = self.dfactors.to(self.hidden.dtype).view(self.hidden.shape[0], rank * width)
        dweight = (self.hidden.mT @ dfactors).view(-1, rank, width).permute(1, 2, 0).contiguous()
        return self.dtokens, dfactors @ self.weight.mT, dweight, dfactors.sum(dim=0).view(rank, width)


def in_form(tokens, hidden, weight, bias, cu_bands, moments, offset, form: str) -> Direct | Reassociated:
    if form == "direct":
        return Direct(tokens, hidden, weight, bias, cu_bands)
    return Reassociated(tokens, hidden, weight, bias, cu_bands, moments, offset)


def token_runs(tokens: int, hidden: Tensor, rank: int) -> Iterator[tuple[int, int]]:
    """Runs [first, last) of tokens whose inner is within the budget; one empty run where there are no tokens."""
    each = hidden.shape[0] * rank * hidden.element_size()
    step = max(_INNER_BYTES // max(each, 1) // _TOKEN_MULTIPLE, 1) * _TOKEN_MULTIPLE
    return ((first, min(first + step, tokens)) for first in range(0, max(tokens, 1), step))


def expand_constants(kernel: str, factors_u: Tensor) -> dict:
    """Launch parameters of a kernel that expands inner; BLOCK_PIXELS is how many predictions a tile holds."""
    _, pixels, rank = factors_u.shape
    sizes = dict(configs.config(kernel, factors_u.dtype, launch.architecture(factors_u.device), P=pixels, R=rank))
    block = max(16, configs.bucket(pixels))
    return sizes | {
        "P": pixels,
        "R": rank,
        "BLOCK_L": max(16, min(128, sizes.pop("BLOCK_PIXELS") // block)),
        "BLOCK_P": block,
        "BLOCK_R": max(16, configs.bucket(rank)),
        "PRECISION": launch.precision(factors_u.dtype),
    }


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
    """Return prediction [S, M, P], and for backward moments and offset (empty when direct)."""
    count, cu_bands = tokens.shape[1], cu_bands.contiguous()
    factors_u, pixel_bias = factors_u.contiguous(), pixel_bias.contiguous()
    saved = saved_moments(tokens, weight, bias, form)
    factors_v = in_form(tokens, hidden, weight, bias, cu_bands, *saved, form)
    prediction = tokens.new_empty(hidden.shape[0], count, factors_u.shape[1])
    constants = expand_constants("expand_fwd", factors_u)
    for first, last in token_runs(count, hidden, factors_u.shape[2]):
        programs = hidden.shape[0] * triton.cdiv(last - first, constants["BLOCK_L"])
        if programs:
            expand_fwd_kernel[(programs,)](
                factors_v.inner(first, last),
                factors_u,
                pixel_bias,
                prediction,
                count,
                first,
                last - first,
                **constants,
            )
    return prediction, *saved


def expand_bwd(
    factors_v: Direct | Reassociated,
    hidden: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    tokens: int,
    given: Tensor,
    of_loss: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of tokens, hidden, weight, bias, factors_u, pixel_bias.

    ``given`` [S, M, P] is dprediction, or the target where ``of_loss`` holds valid, coefficients, dcharbonnier,
    sample_of and cu_bands.
    """
    factors_u, pixel_bias, given = factors_u.contiguous(), pixel_bias.contiguous(), given.contiguous()
    runs = list(token_runs(tokens, hidden, factors_u.shape[2]))
    dtype = hidden.dtype if len(runs) == 1 else torch.float32
    dfactors_u, dpixel_bias = (torch.empty_like(tensor, dtype=dtype) for tensor in (factors_u, pixel_bias))
    constants = expand_constants("expand_bwd" if of_loss is None else "expand_loss_bwd", factors_u)
    factors_v.start_backward()
    for first, last in runs:
        inner = factors_v.inner(first, last)
        if hidden.shape[0]:
            expand_bwd_kernel[(hidden.shape[0],)](
                inner,
                factors_u,
                pixel_bias,
                given,
                *(of_loss or (None,) * 5),
                dfactors_u,
                dpixel_bias,
                tokens,
                first,
                last - first,
                OF_LOSS=of_loss is not None,
                ACCUMULATE=first > 0,
                STAGES=constants["num_stages"],
                **constants,
            )
        factors_v.add(first, last, inner)
    return *factors_v.gradients(), dfactors_u.to(hidden.dtype), dpixel_bias.to(hidden.dtype)


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
    factors_v = in_form(tokens, hidden, weight, bias, cu_bands.contiguous(), moments, offset, form)
    return expand_bwd(factors_v, hidden, factors_u, pixel_bias, tokens.shape[1], dprediction)

"""Launchers of hyper_embed, in the eager backend's signatures: tokens and all gradients, both forms.

Legend: B samples, S bands of all samples, K tokens, P pixels a patch, R rank, k hidden width, E width. The dense
products with the generator's weight, which the whole batch shares, are torch's own GEMMs.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.triton import launch
from specfast.kernels.triton.band_products import all_bands, band_contraction, band_matmul
from specfast.kernels.triton.hyper_embed_kernels import (
    hyper_embed_bwd_kernel,
    hyper_embed_dpatches_kernel,
    hyper_embed_fwd_kernel,
)

HIDDEN_LIMIT = 128  # the hidden vector of a band is one tile


def _rows(patches: Tensor) -> tuple[Tensor, int]:
    """Patches with whole patches side by side, and how many lie between one band and the next.

    The first patches of more (a slice along K) are taken as they are; other strides are copied.
    """
    _, tokens, pixels = patches.shape
    stride = patches.stride(0)
    if patches.stride()[1:] == (pixels, 1) and stride % pixels == 0 and stride >= tokens * pixels:
        return patches, stride // pixels
    return patches.contiguous(), tokens


def _constants(kernel: str, patches: Tensor, weight: Tensor) -> dict:
    pixels, (_, rank, hidden) = patches.shape[2], weight.shape
    sizes = {"P": pixels, "R": rank, "k": hidden}
    values = configs.config(kernel, patches.dtype, launch.architecture(patches.device), **sizes)
    return values | {
        "P": pixels,
        "R": rank,
        "HIDDEN": hidden,
        "BLOCK_P": min(values["BLOCK_P"], max(16, configs.bucket(pixels))),
        "BLOCK_K": max(16, configs.bucket(hidden)),
        "PRECISION": launch.precision(patches.dtype),
    }


def _flat_weight(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], weight.shape[1] * weight.shape[2])


def hyper_embed_fwd(
    patches: Tensor, factors_v: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, cu_bands: Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [B, K, E], moments [B, K, R, k] and sums [B, K, R] (the last two empty when direct)."""
    samples, tokens = cu_bands.shape[0] - 1, patches.shape[1]
    width, rank, inner = weight.shape
    if form == "direct":
        projected = torch.bmm(patches, factors_v.mT)
        out = band_contraction(projected, _factors_u(hidden, weight, bias), cu_bands.contiguous())
        return out, patches.new_empty(0), patches.new_empty(0)
    moments = patches.new_empty(samples, tokens, rank, inner)
    sums = patches.new_empty(samples, tokens, rank)
    if sums.numel():  # moments have none where the hidden width is 0
        patches, rows = _rows(patches)
        constants = _constants("hyper_embed_fwd", patches, weight)
        tiles = triton.cdiv(tokens, constants["BLOCK_N"]) * triton.cdiv(rank, constants["BLOCK_R"])
        hyper_embed_fwd_kernel[(samples * tiles,)](
            patches,
            factors_v.contiguous(),
            hidden.contiguous(),
            cu_bands.contiguous(),
            moments,
            sums,
            rows,
            tokens,
            **constants,
        )
    out = torch.addmm(sums.flatten(0, 1) @ bias.mT, moments.flatten(2).flatten(0, 1), _flat_weight(weight).mT)
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
    inputs = (patches, factors_v, hidden, weight, bias, cu_bands.contiguous())
    if form == "direct":
        return _direct_bwd(dtokens, *inputs, needs_dpatches)
    flat = dtokens.flatten(0, 1)
    dweight = (flat.mT @ moments.flatten(2).flatten(0, 1)).view(weight.shape)
    dbias = flat.mT @ sums.flatten(0, 1)
    dmoments, dsums = flat @ _flat_weight(weight), flat @ bias
    return *_bands_bwd(*inputs, dmoments, dsums, needs_dpatches), dweight, dbias


def _bands_bwd(patches, factors_v, hidden, weight, bias, cu_bands, dmoments, dsums, needs_dpatches):
    """Return dpatches, dfactors_v and dhidden from dmoments [B * K, R * k] and dsums [B * K, R]."""
    (bands, tokens, pixels), (_, rank, inner) = patches.shape, weight.shape
    dpatches = patches.new_empty(patches.shape if needs_dpatches else 0)
    dfactors = factors_v.new_empty(factors_v.shape)
    if not (bands and tokens and pixels and rank):
        return dpatches.zero_(), dfactors.zero_(), torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    patches, rows = _rows(patches)
    factors_v, hidden = factors_v.contiguous(), hidden.contiguous()

    constants = _constants("hyper_embed_bwd", patches, weight)
    tiles = launch.band_tiles(cu_bands, bands, constants["BLOCK_C"])
    slices = triton.cdiv(rank, constants["BLOCK_R"]) * triton.cdiv(pixels, constants["BLOCK_P"])
    dhidden = hidden.new_empty(slices, bands, inner, dtype=torch.float32)
    hyper_embed_bwd_kernel[(len(tiles) * slices,)](
        patches,
        factors_v,
        hidden,
        dmoments,
        dsums,
        *tiles,
        dfactors,
        dhidden,
        rows,
        tokens,
        bands,
        **constants,
    )
    if needs_dpatches:
        constants = _constants("hyper_embed_dpatches", patches, weight)
        tiles = launch.band_tiles(cu_bands, bands, constants["BLOCK_C"])
        others = triton.cdiv(tokens, constants["BLOCK_N"]) * triton.cdiv(pixels, constants["BLOCK_P"])
        hyper_embed_dpatches_kernel[(len(tiles) * others,)](
            factors_v, hidden, dmoments, dsums, *tiles, dpatches, tokens, **constants
        )
    return dpatches, dfactors, dhidden.sum(dim=0).to(hidden.dtype)


def _generator(weight: Tensor) -> Tensor:
    """The generator's last layer as [k, R * E], so that U of a band is [R, E]."""
    width, rank, inner = weight.shape
    return weight.permute(2, 1, 0).reshape(inner, rank * width)


def _factors_u(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """U of every band, transposed: [S, R, E]."""
    width, rank, _ = weight.shape
    return torch.addmm(bias.mT.reshape(rank * width), hidden, _generator(weight)).view(hidden.shape[0], rank, width)


def _direct_bwd(dtokens, patches, factors_v, hidden, weight, bias, cu_bands, needs_dpatches):
    bands, (width, rank, inner) = patches.shape[0], weight.shape
    each, of = all_bands(patches, bands), launch.sample_of_band(cu_bands, bands)
    dprojected = band_matmul(dtokens, _factors_u(hidden, weight, bias).mT, of, each, tokens="M")
    projected = torch.bmm(patches, factors_v.mT)
    dfactors_u = band_matmul(projected.mT, dtokens, each, of, tokens="K").view(bands, rank * width)
    del projected
    dhidden = dfactors_u @ _generator(weight).mT
    dweight = (hidden.mT @ dfactors_u).view(inner, rank, width).permute(2, 1, 0).contiguous()
    dbias = dfactors_u.sum(dim=0).view(rank, width).mT.contiguous()
    dpatches = torch.bmm(dprojected, factors_v) if needs_dpatches else patches.new_empty(0)
    return dpatches, torch.bmm(dprojected.mT, patches), dhidden, dweight, dbias

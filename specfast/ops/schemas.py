"""Schema and fake (meta) implementation of every registered operator; implementations are in backends.py.

Legend: B samples, S bands of all samples, K or M tokens a sample, N patches, P pixels a patch, E or D width, R rank,
k hidden width. Gradients are attached by autograd Functions in the operators' own files, outside these ops.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("specfast", "DEF")

_FACTORS = "Tensor hidden, Tensor weight, Tensor bias"
_LINEAR = f"Tensor tokens, {_FACTORS}, Tensor factors_u, Tensor pixel_bias"
_EMBED = f"Tensor patches, Tensor factors_v, {_FACTORS}, Tensor cu_bands"
_POOL = "Tensor image, Tensor index, Tensor cu_bands, int patch_size, SymInt[] grid, Tensor? valid, Tensor? extent"

_SCHEMAS = (
    f"patch_pool_fwd({_POOL}) -> (Tensor, Tensor, Tensor)",
    f"patch_pool_bwd(Tensor dpatches, Tensor daverage, Tensor dmaximum, {_POOL}) -> Tensor",
    f"hyper_embed_fwd({_EMBED}, str form) -> (Tensor, Tensor, Tensor)",
    f"hyper_embed_bwd(Tensor dtokens, {_EMBED}, Tensor moments, Tensor sums, str form, bool needs_dpatches)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"hyper_linear_fwd({_LINEAR}, Tensor cu_bands, str form) -> (Tensor, Tensor, Tensor)",
    f"hyper_linear_bwd(Tensor dprediction, {_LINEAR}, Tensor cu_bands, Tensor moments, Tensor offset, str form)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"hyper_linear_loss_fwd({_LINEAR}, Tensor target, Tensor valid, Tensor cu_bands, str form)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"hyper_linear_loss_bwd(Tensor dspectral, Tensor dcharbonnier, {_LINEAR}, Tensor target, Tensor valid,"
    " Tensor cu_bands, Tensor sums, Tensor moments, Tensor offset, str form)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "spectral_loss_fwd(Tensor prediction, Tensor target, Tensor valid, Tensor cu_bands)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "spectral_loss_bwd(Tensor dspectral, Tensor dcharbonnier, Tensor prediction, Tensor target, Tensor valid,"
    " Tensor cu_bands, Tensor sums) -> Tensor",
    "delta_pack(Tensor values, Tensor reference, Tensor(a!) residual, ScalarType wire) -> (Tensor, Tensor)",
    "delta_average_(Tensor(a!) values, Tensor reference, Tensor packed, Tensor scales) -> ()",
)
for _schema in _SCHEMAS:
    LIBRARY.define(_schema)
NAMES = tuple(schema.partition("(")[0] for schema in _SCHEMAS)


def _wide(tensor):
    return torch.promote_types(tensor.dtype, torch.float32)


def _like(*tensors):
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)


@torch.library.register_fake("specfast::patch_pool_fwd")
def _(image, index, cu_bands, patch_size, grid, valid, extent):
    bands, windows = image.shape[0], grid[0] * grid[1]
    return (
        image.new_empty(bands, index.shape[1], patch_size * patch_size),
        image.new_empty(bands, windows),
        image.new_empty(bands, windows),
    )


@torch.library.register_fake("specfast::patch_pool_bwd")
def _(dpatches, daverage, dmaximum, image, *_):
    return _like(image)[0]


@torch.library.register_fake("specfast::hyper_embed_fwd")
def _(patches, factors_v, hidden, weight, bias, cu_bands, form):
    samples, tokens = cu_bands.shape[0] - 1, patches.shape[1]
    out = patches.new_empty(samples, tokens, weight.shape[0])
    if form == "direct":
        return out, patches.new_empty(0), patches.new_empty(0)
    return (
        out,
        patches.new_empty(samples, tokens, *weight.shape[1:]),
        patches.new_empty(samples, tokens, weight.shape[1]),
    )


@torch.library.register_fake("specfast::hyper_embed_bwd")
def _(dtokens, patches, factors_v, hidden, weight, bias, cu_bands, moments, sums, form, needs_dpatches):
    return (_like(patches)[0] if needs_dpatches else patches.new_empty(0), *_like(factors_v, hidden, weight, bias))


@torch.library.register_fake("specfast::hyper_linear_fwd")
def _(tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands, form):
    prediction = tokens.new_empty(hidden.shape[0], tokens.shape[1], factors_u.shape[1])
    return prediction, *_moments(tokens, weight, form)


def _moments(tokens, weight, form):
    if form == "direct":
        return tokens.new_empty(0), tokens.new_empty(0)
    rank, _, inner = weight.shape
    return tokens.new_empty(*tokens.shape[:2], rank, inner), tokens.new_empty(*tokens.shape[:2], rank)


@torch.library.register_fake("specfast::hyper_linear_bwd")
def _(dprediction, tokens, hidden, weight, bias, factors_u, pixel_bias, *_):
    return _like(tokens, hidden, weight, bias, factors_u, pixel_bias)


def _loss_outputs(like, samples, tokens, pixels):
    dtype = _wide(like)
    three = (like.new_empty(samples, dtype=dtype) for _ in range(3))
    return *three, like.new_empty(samples, 3, tokens, pixels, dtype=dtype)


@torch.library.register_fake("specfast::hyper_linear_loss_fwd")
def _(tokens, hidden, weight, bias, factors_u, pixel_bias, target, valid, cu_bands, form):
    outputs = _loss_outputs(tokens, tokens.shape[0], tokens.shape[1], factors_u.shape[1])
    return *outputs, *_moments(tokens, weight, form)


@torch.library.register_fake("specfast::hyper_linear_loss_bwd")
def _(dspectral, dcharbonnier, tokens, hidden, weight, bias, factors_u, pixel_bias, *_):
    return _like(tokens, hidden, weight, bias, factors_u, pixel_bias)


@torch.library.register_fake("specfast::spectral_loss_fwd")
def _(prediction, target, valid, cu_bands):
    return _loss_outputs(prediction, cu_bands.shape[0] - 1, *prediction.shape[1:])


@torch.library.register_fake("specfast::spectral_loss_bwd")
def _(dspectral, dcharbonnier, prediction, *_):
    return _like(prediction)[0]


@torch.library.register_fake("specfast::delta_pack")
def _(values, reference, residual, wire):
    blocks = 0 if wire == torch.bfloat16 else (values.shape[0] + 255) // 256
    return torch.empty_like(values, dtype=wire), values.new_empty(blocks)


@torch.library.register_fake("specfast::delta_average_")
def _(values, reference, packed, scales):
    return None

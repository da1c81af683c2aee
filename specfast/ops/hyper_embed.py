"""hyper_embed: tokens from patches through factors that a hypernetwork generated for each sample and band."""

from __future__ import annotations

import torch
from torch import Tensor

from specfast.ops.checks import autocast, check_cu_bands, check_devices, check_kinds, check_shapes
from specfast.ops.planner import choose_form


def hyper_embed(
    patches: Tensor,
    factors_v: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    cu_bands: Tensor,
    *,
    form: str | None = None,
) -> Tensor:
    """Embed patches: ``tokens[b, n] = sum over bands c of U[c] (V[c] x[c, n])``, ``U[c] = weight hidden[c] + bias``.

    Args:
        patches: [S, K, P] pixels of the kept patches; S the bands of all samples.
        factors_v: [S, R, P], the generated right factor.
        hidden: [S, k], the U generator's last hidden vector.
        weight: [E, R, k] and
        bias: [E, R], the U generator's last layer.
        cu_bands: int32 [B + 1] band offsets of the samples.
        form: ``"direct"`` (generate U, then apply it), ``"reassociated"`` (never form U), or None for the cheaper one.

    Returns:
        tokens [B, K, E] in the dtype of the inputs (under autocast: the autocast dtype); float32 accumulation.

    Differentiable once with respect to every floating argument. Source: Ji et al. 2026, HyperEmbedding.

    Raises:
        TypeError, ValueError: arguments that do not fit each other, named with shapes; an unknown form.
    """
    sizes = check_shapes(
        "hyper_embed",
        {
            "patches": (patches, "S K P"),
            "factors_v": (factors_v, "S R P"),
            "hidden": (hidden, "S k"),
            "weight": (weight, "E R k"),
            "bias": (bias, "E R"),
        },
    )
    patches, factors_v, hidden, weight, bias = autocast(patches, factors_v, hidden, weight, bias)
    check_kinds(
        "hyper_embed", {"patches": patches, "factors_v": factors_v, "hidden": hidden, "weight": weight, "bias": bias}
    )
    check_cu_bands("hyper_embed", cu_bands, None, sizes["S"])
    check_devices("hyper_embed", {"patches": patches, "cu_bands": cu_bands})
    samples = cu_bands.shape[0] - 1
    form = choose_form(
        "hyper_embed",
        form,
        samples=samples,
        bands=sizes["S"],
        tokens=sizes["K"],
        width=sizes["E"],
        rank=sizes["R"],
        hidden=sizes["k"],
    )
    return HyperEmbedFunction.apply(patches, factors_v, hidden, weight, bias, cu_bands, form)


class HyperEmbedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, patches, factors_v, hidden, weight, bias, cu_bands, form):
        tokens, moments, sums = torch.ops.specfast.hyper_embed_fwd(
            patches, factors_v, hidden, weight, bias, cu_bands, form
        )
        ctx.save_for_backward(patches, factors_v, hidden, weight, bias, cu_bands, moments, sums)
        ctx.form = form
        return tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dtokens):
        gradients = torch.ops.specfast.hyper_embed_bwd(dtokens, *ctx.saved_tensors, ctx.form, ctx.needs_input_grad[0])
        return gradients[0] if ctx.needs_input_grad[0] else None, *gradients[1:], None, None

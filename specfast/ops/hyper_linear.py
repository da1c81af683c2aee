"""hyper_linear and hyper_linear_loss: pixels from tokens through generated factors, alone or with the loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specfast.ops.checks import autocast, check_cu_bands, check_devices, check_kinds, check_shapes
from specfast.ops.planner import choose_form
from specfast.ops.spectral_loss import check_target


def hyper_linear(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    cu_bands: Tensor,
    *,
    form: str | None = None,
) -> Tensor:
    """Predict pixels: ``U[c] (V[c] z[b, l]) + pixel_bias[c]`` with ``V[c] = weight hidden[c] + bias``.

    Args:
        tokens: [B, M, D] decoder tokens.
        hidden: [S, k], the V generator's last hidden vector; S the bands of all samples.
        weight: [R, D, k] and
        bias: [R, D], the V generator's last layer.
        factors_u: [S, P, R], the generated left factor.
        pixel_bias: [S, P].
        cu_bands: int32 [B + 1] band offsets of the samples.
        form: ``"direct"``, ``"reassociated"``, or None for the cheaper one.

    Returns:
        prediction [S, M, P] in the dtype of the inputs (under autocast: the autocast dtype).

    Differentiable once with respect to every floating argument. Source: Ji et al. 2026, HyperLinear decoder head.

    Raises:
        TypeError, ValueError: arguments that do not fit each other, named with shapes; an unknown form.
    """
    inputs, form = _prepare("hyper_linear", tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands, form)
    return HyperLinearFunction.apply(*inputs, cu_bands, form)


def hyper_linear_loss(
    tokens: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors_u: Tensor,
    pixel_bias: Tensor,
    target: Tensor,
    valid: Tensor,
    cu_bands: Tensor,
    *,
    form: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`spectral_loss` of :func:`hyper_linear`, without ever storing the prediction.

    Bands stream by in tiles; four sums a pixel are kept, and backward predicts each tile again.

    Args:
        tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands, form: as for :func:`hyper_linear`.
        target: [S, M, P] pixels to predict, any floating dtype; constant (no gradient).
        valid: bool [B, M, P]; pixels that are False do not count.

    Returns:
        Three [B] tensors (float32, or float64 for float64 inputs): the sum over valid pixels of 1 - cosine over bands,
        the sum of the band mean of sqrt(1 + d^2) - 1, and the number of valid pixels.

    Raises:
        TypeError, ValueError: arguments that do not fit each other, named with shapes; an unknown form; a target that
            requires a gradient.
    """
    shapes = {"target": (target, "S M P"), "valid": (valid, "B M P")}
    inputs, form = _prepare(
        "hyper_linear_loss", tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands, form, shapes
    )
    check_target("hyper_linear_loss", target, valid, "tokens", tokens)
    return HyperLinearLossFunction.apply(*inputs, target, valid, cu_bands, form)


def _prepare(op, tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands, form, more=()):
    arguments = {
        "tokens": (tokens, "B M D"),
        "hidden": (hidden, "S k"),
        "weight": (weight, "R D k"),
        "bias": (bias, "R D"),
        "factors_u": (factors_u, "S P R"),
        "pixel_bias": (pixel_bias, "S P"),
    }
    sizes = check_shapes(op, arguments | dict(more))
    check_cu_bands(op, cu_bands, sizes["B"], sizes["S"])
    check_devices(op, {"tokens": tokens, "cu_bands": cu_bands})
    inputs = autocast(tokens, hidden, weight, bias, factors_u, pixel_bias)
    check_kinds(op, dict(zip(arguments, inputs, strict=True)))
    form = choose_form(
        op,
        form,
        samples=sizes["B"],
        bands=sizes["S"],
        tokens=sizes["M"],
        width=sizes["D"],
        rank=sizes["R"],
        hidden=sizes["k"],
    )
    return inputs, form


class HyperLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands, form):
        inputs = (tokens, hidden, weight, bias, factors_u, pixel_bias, cu_bands)
        prediction, moments, offset = torch.ops.specfast.hyper_linear_fwd(*inputs, form)
        ctx.save_for_backward(*inputs, moments, offset)
        ctx.form = form
        return prediction

    @staticmethod
    @once_differentiable
    def backward(ctx, dprediction):
        return *torch.ops.specfast.hyper_linear_bwd(dprediction, *ctx.saved_tensors, ctx.form), None, None


class HyperLinearLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, hidden, weight, bias, factors_u, pixel_bias, target, valid, cu_bands, form):
        inputs = (tokens, hidden, weight, bias, factors_u, pixel_bias, target, valid, cu_bands)
        spectral, charbonnier, count, *saved = torch.ops.specfast.hyper_linear_loss_fwd(*inputs, form)
        ctx.save_for_backward(*inputs, *saved)
        ctx.form = form
        ctx.mark_non_differentiable(count)
        return spectral, charbonnier, count

    @staticmethod
    @once_differentiable
    def backward(ctx, dspectral, dcharbonnier, _):
        gradients = torch.ops.specfast.hyper_linear_loss_bwd(dspectral, dcharbonnier, *ctx.saved_tensors, ctx.form)
        return *gradients, None, None, None, None

"""spectral_loss: cosine over bands and Charbonnier of a prediction that is already there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specfast.ops.checks import check_cu_bands, check_devices, check_kinds, check_shapes


def spectral_loss(prediction: Tensor, target: Tensor, valid: Tensor, cu_bands: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the reconstruction loss of each sample over its valid pixels.

    Args:
        prediction: [S, M, P], S the bands of all samples.
        target: [S, M, P], any floating dtype; constant (no gradient).
        valid: bool [B, M, P]; pixels that are False do not count.
        cu_bands: int32 [B + 1] band offsets of the samples.

    Returns:
        Three [B] tensors (float32, or float64 for a float64 prediction): the sum over valid pixels of 1 - cosine over
        bands, the sum of the band mean of sqrt(1 + d^2) - 1, and the number of valid pixels.

    Differentiable once with respect to ``prediction``. Source: Ji et al. 2026, reconstruction loss.

    Raises:
        TypeError, ValueError: arguments that do not fit each other, named with shapes; a target that requires
            a gradient.
    """
    sizes = check_shapes(
        "spectral_loss",
        {"prediction": (prediction, "S M P"), "target": (target, "S M P"), "valid": (valid, "B M P")},
    )
    check_cu_bands("spectral_loss", cu_bands, sizes["B"], sizes["S"])
    check_devices("spectral_loss", {"prediction": prediction, "cu_bands": cu_bands})
    check_target("spectral_loss", target, valid, "prediction", prediction)
    return SpectralLossFunction.apply(prediction, target, valid, cu_bands)


def check_target(op: str, target: Tensor, valid: Tensor, like_name: str, like: Tensor) -> None:
    """Raise ValueError unless target is constant and floating, valid is bool, and both are where ``like`` is."""
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: target is constant and gets no gradient; pass target.detach()")
    check_kinds(op, {like_name: like, "target": target}, same_dtype=False)
    if valid.dtype != torch.bool:
        raise ValueError(f"{op}: valid must be bool; got {valid.dtype}")
    check_devices(op, {like_name: like, "valid": valid})


class SpectralLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, prediction, target, valid, cu_bands):
        inputs = (prediction, target, valid, cu_bands)
        spectral, charbonnier, count, sums = torch.ops.specfast.spectral_loss_fwd(*inputs)
        ctx.save_for_backward(*inputs, sums)
        ctx.mark_non_differentiable(count)
        return spectral, charbonnier, count

    @staticmethod
    @once_differentiable
    def backward(ctx, dspectral, dcharbonnier, _):
        return torch.ops.specfast.spectral_loss_bwd(dspectral, dcharbonnier, *ctx.saved_tensors), None, None, None

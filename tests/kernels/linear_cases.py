"""Arguments, gradients and reference of hyper_linear and hyper_linear_loss for their Triton launchers' tests."""

from __future__ import annotations

import torch

from specfast.kernels import reference
from specfast.kernels import triton as kernels
from tests.kernels.conftest import DEVICE
from tests.ops.conftest import Case

NAMES = ("tokens", "hidden", "weight", "bias", "factors_u", "pixel_bias")
MEDIUM = Case((4, 11), 10, pixels=20, rank=17, hidden=10, width=24)


def inputs_of(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    inputs = case.linear()
    # predictions of a few hundred products stay near the target's size, and small in float16
    return [inputs[name].mul(0.3).to(DEVICE, dtype) for name in NAMES]


def cu_bands_of(case: Case) -> torch.Tensor:
    return case.cu_bands.to(DEVICE)


def target_of(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    """target and valid"""
    target = case.target()
    return [target["target"].to(DEVICE, dtype), target["valid"].to(DEVICE)]


def dprediction_of(case: Case, dtype: torch.dtype) -> torch.Tensor:
    shape = sum(case.bands), case.tokens, case.pixels
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(DEVICE, dtype)


def dthree_of(case: Case) -> list[torch.Tensor]:
    """dspectral and dcharbonnier"""
    return [torch.linspace(low, 1.5, len(case.bands), device=DEVICE) for low in (0.5, 0.25)]


def run_linear(case, dtype, form, inputs=None, backend=kernels):
    """Return prediction and the six gradients."""
    inputs = inputs or inputs_of(case, dtype)
    prediction, *saved = backend.hyper_linear_fwd(*inputs, cu_bands_of(case), form)
    dprediction = dprediction_of(case, dtype)
    return prediction, *backend.hyper_linear_bwd(dprediction, *inputs, cu_bands_of(case), *saved, form)


def run_loss(case, dtype, form, inputs=None, target=None, backend=kernels):
    """Return spectral, charbonnier, count and the six gradients."""
    inputs = inputs or inputs_of(case, dtype)
    arguments = *inputs, *(target or target_of(case, dtype)), cu_bands_of(case)
    *three, sums, moments, offset = backend.hyper_linear_loss_fwd(*arguments, form)
    return *three, *backend.hyper_linear_loss_bwd(*dthree_of(case), *arguments, sums, moments, offset, form)


def _with_gradients(function, inputs, compute, weights):
    leaves = [value.to(compute).requires_grad_() for value in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [weight.to(out.dtype) for weight, out in zip(weights, outputs, strict=False)]
    gradients = [None] * len(leaves)
    if outputs[0].requires_grad:  # else there are no samples
        gradients = torch.autograd.grad(outputs[: len(weights)], leaves, weights, allow_unused=True)
    return *(out.detach() for out in outputs), *(
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    )


def linear_reference(case, dtype, compute: torch.dtype):
    """The same as :func:`run_linear` from autograd, in another precision but of the same numbers."""

    def function(*leaves):
        return reference.hyper_linear(*leaves, cu_bands_of(case))

    return _with_gradients(function, inputs_of(case, dtype), compute, [dprediction_of(case, dtype)])


def loss_reference(case, dtype, compute: torch.dtype):
    target, valid = target_of(case, dtype)

    def function(*leaves):
        return reference.hyper_linear_loss(*leaves, target.to(compute), valid, cu_bands_of(case))

    return _with_gradients(function, inputs_of(case, dtype), compute, dthree_of(case))

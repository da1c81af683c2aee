"""What specfast's own tests use to compare tensors, for users who test their operators against ours."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of ``expected``, in float64 (0 where both are zero or empty)."""
    actual, expected = actual.detach().double(), expected.detach().double()
    if expected.numel() == 0:
        return 0.0
    scale = expected.square().mean().sqrt()
    error = (actual - expected).square().mean().sqrt()
    return float(error / scale) if scale > 0 else float(error)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "tensor") -> None:
    """Raise AssertionError unless shapes agree, ``actual`` is finite and its relative RMS error is in ``tolerance``."""
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert bool(torch.isfinite(actual).all()), f"{name}: holds NaN or infinity"
    error = relative_rms(actual, expected)
    assert error <= tolerance, f"{name}: relative RMS error {error:.2e}, allowed {tolerance:.0e}"


def assert_unbiased(actual: Tensor, expected: Tensor, tolerance: float, name: str = "tensor") -> None:
    """Raise AssertionError if the signed mean error, over the mean magnitude, exceeds ``tolerance``.

    Finds a scale error or a dropped term that a relative RMS within a loose tolerance would hide.
    """
    difference = (actual.detach().double() - expected.detach().double()) * expected.detach().double().sign()
    bias = float(difference.mean() / expected.detach().double().abs().mean().clamp_min(1e-300))
    assert abs(bias) <= tolerance, f"{name}: signed mean error {bias:.2e}, allowed {tolerance:.0e}"

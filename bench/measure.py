"""Timing: providers interleaved in one process, medians with their spread, and no number for a wrong result."""

from __future__ import annotations

import statistics
import time

import torch

from bench.operators import OPERATORS, Shape
from specfast.testing import relative_rms

# relative RMS distance to the reference's result in the same precision, beyond which a row is an error
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def measure(
    operator: str, shape: Shape, dtype: torch.dtype, device: str, *, backward: bool, repeats: int
) -> list[dict]:
    """Return a row a provider: times in ms (p20, p50, p80), and the ratio of medians to the reference's.

    Raises:
        ArithmeticError: a provider's outputs or gradients do not agree with the reference's.
    """
    work = OPERATORS[operator](shape, dtype, device)
    inputs = {name: value.requires_grad_(backward) for name, value in work.differentiable.items()}

    def step(provider):
        outputs = work.providers[provider](inputs)
        if not backward:
            return [out.detach() for out in outputs]
        total = sum(out.float().sum() for out in outputs)
        return [*(out.detach() for out in outputs), *torch.autograd.grad(total, list(inputs.values()))]

    errors = {}
    expected = step("reference")
    for provider in work.providers:
        pairs = zip(step(provider), expected, strict=True)
        errors[provider] = max(relative_rms(actual, wanted) for actual, wanted in pairs)
        if not errors[provider] <= AGREEMENT[dtype]:
            raise ArithmeticError(
                f"{operator} {shape}: {provider} is off by {errors[provider]:.1e}; no time is reported"
            )
    del expected

    times = {provider: [] for provider in work.providers}
    for _ in range(repeats):
        for provider in work.providers:
            _synchronize(device)
            start = time.perf_counter()
            step(provider)
            _synchronize(device)
            times[provider].append(1e3 * (time.perf_counter() - start))
    base = statistics.median(times["reference"])
    rows = []
    for provider, values in times.items():
        p20, p50, p80 = (sorted(values)[round(q * (len(values) - 1))] for q in (0.2, 0.5, 0.8))
        rows.append(
            {
                "operator": operator,
                "provider": provider,
                "mode": "forward+backward" if backward else "forward",
                "shape": str(shape),
                "dtype": str(dtype).removeprefix("torch."),
                "p20_ms": round(p20, 3),
                "p50_ms": round(p50, 3),
                "p80_ms": round(p80, 3),
                "speedup": round(base / p50, 2),
                "difference": float(f"{errors[provider]:.2e}"),
            }
        )
    return rows


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()

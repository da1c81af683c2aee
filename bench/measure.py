"""One measurement: every provider of a work is checked, its memory taken, then all are timed in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.machine import Peaks, versions
from bench.memory import peak_memory
from bench.shapes import Shape, name_of
from bench.timing import Clock, interleave, quantiles
from specfast.testing import relative_rms

# Relative RMS error against float64, or float32 where that is what can be had, which a provider may have in any case;
# beyond it, it may have twice the reference's own.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@dataclass
class Provider:
    """One way to do the work.

    Attributes:
        setup: untimed; returns the call that is timed.
        outputs: turns what that call returned into named tensors that are compared; None: it computes something else.
        compiled: the first run compiles, so it says nothing of time or memory.
    """

    setup: Callable[[], Callable[[], Any]]
    outputs: Callable[[Any], dict[str, Tensor]] | None
    compiled: bool = False


@dataclass
class Work:
    """What is measured, by whom, and what must come out.

    Attributes:
        unit: operator, module, step or inference.
        kernel: name of the operator or model.
        mode: forward, backward, or full (both, and the optimizer of a step).
        expected: named tensors; None: those of the first provider.
        flop, bytes: least work, for the floor; 0: no floor is given.
        remember: gets the outputs of the first provider.
    """

    unit: str
    kernel: str
    mode: str
    shape: Shape
    dtype: torch.dtype
    providers: dict[str, Provider]
    expected: Callable[[], dict[str, Tensor]] | None = None
    flop: float = 0.0
    bytes: float = 0.0
    remember: Callable[[dict[str, Tensor]], None] = field(default=lambda outputs: None)


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds a provider and row, and the fewest and most runs (two of those over 8 s)."""

    budget_s: float = 3.0
    least: int = 3
    most: int = 15

    def repeats(self, milliseconds: float) -> int:
        """Runs of what takes so long."""
        fitting = int(1e3 * self.budget_s / max(milliseconds, 1e-3))
        return max(min(self.least, 2) if milliseconds > 8e3 else self.least, min(self.most, fitting))


def measure(work: Work, device: torch.device, clock: Clock, peaks: Peaks, effort: Effort) -> list[dict]:
    """Return a row a provider; one that failed has ``failed`` with the reason, and no times."""
    try:
        expected = work.expected() if work.expected else None
    except torch.OutOfMemoryError:
        reason = "out of memory in the computation to compare with"
        return [_row(work, name, failed=reason) | versions(device) for name in work.providers]
    rows, errors, first = {}, {}, {}
    for name, provider in work.providers.items():
        try:
            outputs, memory, first[name] = _first_run(provider, device, clock)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            rows[name] = _row(work, name, failed=" ".join(str(error).split())[:200])
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        rows[name] = _row(work, name, peak_memory=memory)
        if outputs is None:
            continue
        if expected is None:
            expected = outputs
            work.remember(outputs)
        errors[name] = worst_error(outputs, expected)
        del outputs
        allowed = max(TOLERANCE[work.dtype], 2 * errors.get("reference", 0.0))
        if name == "reference":
            allowed = 10 * TOLERANCE[work.dtype]
        rows[name]["relative_error"] = float(f"{errors[name]:.2e}")
        if not errors[name] <= allowed:
            rows[name]["failed"] = f"relative error {errors[name]:.1e}, allowed {allowed:.1e}: no time is reported"
    del expected
    good = {name: work.providers[name].setup for name in rows if "failed" not in rows[name]}
    repeats = {name: effort.repeats(first[name]) for name in good}
    for name, times in interleave(good, clock, repeats).items():
        rows[name] |= _timing(work, times, peaks)
    machine = versions(device)
    machine["peak_tflops"] = round(peaks.flops[work.dtype] / 1e12, 4)
    machine["peak_gbs"] = round(peaks.bandwidth / 1e9, 2)
    return [row | machine for row in rows.values()]


def worst_error(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative RMS error of the expected tensors; NaN, or nothing to compare, is beyond all limits."""
    errors = [relative_rms(outputs[name], value) for name, value in expected.items()]
    return max((error if error == error else float("inf") for error in errors), default=float("inf"))


def _first_run(provider: Provider, device: torch.device, clock: Clock):
    """Run until caches, compilers and clocks are warm; outputs, peak memory in bytes, and time in ms of the last."""
    for warm in (False, True):
        gc.collect()
        run = provider.setup()
        with peak_memory(device) as peak:
            kept = []
            milliseconds = clock(lambda run=run, kept=kept: kept.append(run()))
        result = kept.pop()
        if warm or (milliseconds > 5e3 and not provider.compiled):  # so long a run needs no other to warm up
            break
        result = None
    return provider.outputs and provider.outputs(result), peak.bytes, milliseconds


def _row(work: Work, provider: str, **values) -> dict:
    shape = work.shape
    return {
        "unit": work.unit,
        "kernel": work.kernel,
        "mode": work.mode,
        "shape": str(shape),
        "batch": shape.samples,
        "bands": shape.bands,
        "patches": shape.patches,
        "dtype": name_of(work.dtype),
        "provider": provider,
        **values,
    }


def _timing(work: Work, times: list[float], peaks: Peaks) -> dict:
    low, median, high = quantiles(times)
    row = {
        "p20_ms": round(low, 4),
        "p50_ms": round(median, 4),
        "p80_ms": round(high, 4),
        "runs": len(times),
        "samples_per_s": round(1e3 * work.shape.samples / median, 4),
    }
    if work.flop or work.bytes:
        floor = peaks.floor_ms(work.flop, work.bytes, work.dtype)
        row |= {
            "tflops": float(f"{work.flop / median / 1e9:.4g}"),
            "gbs": float(f"{work.bytes / median / 1e6:.4g}"),
            "floor_ms": round(floor, 4),
            "percent_of_floor": round(100 * floor / median, 1),
        }
    return row

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

# Relative RMS error of each output and gradient against float64, or float32 where that is what can be had, which a
# provider may have in any case; beyond it, it may have twice the reference's own, which has a limit, too.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
REFERENCE_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}


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
    machine = versions(device)
    machine["peak_tflops"] = round(peaks.flops[work.dtype] / 1e12, 4)
    machine["peak_gbs"] = round(peaks.bandwidth / 1e9, 2)
    rows = {name: _row(work, name) | machine for name in work.providers}
    try:
        expected = work.expected() if work.expected else None
    except torch.OutOfMemoryError:
        return [row | {"failed": "out of memory in the computation to compare with"} for row in rows.values()]
    allowed, first = None, {}
    for name, provider in work.providers.items():
        row = rows[name]
        try:
            outputs, row["peak_memory"], first[name] = _first_run(provider, device, clock)
            if outputs is None:
                continue
            if expected is None:
                expected = outputs
                work.remember(outputs)
            errors = errors_of(outputs, expected)
            del outputs
        except Exception as error:  # out of memory, shared memory or registers; no such kernel; no gradient
            row["failed"] = _reason(error)
        if "failed" in row:  # outside of the handler, so that what the traceback holds is free
            _give_back(device)
            continue
        row["relative_error"] = float(f"{max(errors.values()):.2e}")
        limits = allowed or dict.fromkeys(errors, TOLERANCE[work.dtype])
        if name == "reference":
            limits = dict.fromkeys(errors, REFERENCE_LIMIT[work.dtype])
        worst = max(errors, key=lambda output: errors[output] / limits[output])
        if not errors[worst] <= limits[worst]:
            row["failed"] = (
                f"relative error {errors[worst]:.1e} of {worst}, allowed {limits[worst]:.1e}: no time is reported"
            )
        elif name == "reference":
            allowed = {output: max(TOLERANCE[work.dtype], 2 * error) for output, error in errors.items()}
    good = {name: work.providers[name].setup for name, row in rows.items() if "failed" not in row}
    repeats = {name: effort.repeats(first[name]) for name in good}
    for name, times in interleave(good, clock, repeats).items():
        lower_bound = work.providers[name].outputs is None
        rows[name] |= _timing(work, times, peaks, floor=not lower_bound)
    return list(rows.values())


def errors_of(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative RMS error of each expected tensor; NaN is beyond all limits, and so is nothing to compare."""
    errors = {name: relative_rms(outputs[name], value) for name, value in expected.items()}
    return {name: error if error == error else float("inf") for name, error in errors.items()} or {
        "nothing": float("inf")
    }


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def _row(work: Work, provider: str) -> dict:
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
        "peak_memory": None,
    }


def _timing(work: Work, times: list[float], peaks: Peaks, *, floor: bool) -> dict:
    low, median, high = quantiles(times)
    row = {
        "p20_ms": round(low, 4),
        "p50_ms": round(median, 4),
        "p80_ms": round(high, 4),
        "runs": len(times),
        "samples_per_s": round(1e3 * work.shape.samples / median, 4),
    }
    if floor and (work.flop or work.bytes):
        least = peaks.floor_ms(work.flop, work.bytes, work.dtype)
        row |= {
            "tflops": float(f"{work.flop / median / 1e9:.4g}"),
            "gbs": float(f"{work.bytes / median / 1e6:.4g}"),
            "floor_ms": round(least, 4),
            "percent_of_floor": round(100 * least / median, 1),
        }
    return row

"""The clock, and how providers take turns: cold cache, warm clocks, medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PAUSE_CYCLES = 10_000_000  # about 5 ms
# more than the last-level cache of any device meant (H200: 50 MB; EPYC: 32 MB a core complex)
FLUSH_BYTES = {"cuda": 2**28, "cpu": 2**26}


class Clock:
    """Times one call in ms, after the caches were filled with something else.

    On a GPU by events around the call, behind a pause long enough for the host to have launched all of it: what counts
    is the device's time, as in a training loop whose host is ahead.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flush = torch.empty(FLUSH_BYTES[device.type], dtype=torch.int8, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        self.flush.zero_()
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            torch.cuda._sleep(PAUSE_CYCLES)
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize(self.device)
            return begin.elapsed_time(end)
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)


def interleave(
    setups: dict[str, Callable[[], Callable[[], object]]], clock: Clock, repeats: dict[str, int]
) -> dict[str, list[float]]:
    """Time each provider as often as asked for, spread evenly over the same stretch of time.

    A setup is called before each timed run, untimed, and returns what is timed.
    """
    rounds = max(repeats.values(), default=0)
    times = {name: [] for name in setups}
    for turn in range(rounds):
        for name, setup in setups.items():
            wanted = repeats[name]
            if (turn + 1) * wanted // rounds > turn * wanted // rounds:
                times[name].append(clock(setup()))
    return times


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p20, p50, p80 by linear interpolation."""
    points = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return tuple(torch.tensor(values, dtype=torch.float64).quantile(points).tolist())

"""How benchmarks measure: no time for a wrong result, turns, spread, memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.machine import Peaks
from bench.measure import TOLERANCE, Effort, Provider, Work, measure
from bench.memory import _glibc
from bench.shapes import TINY, Shape
from bench.timing import Clock, interleave, quantiles

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
PEAKS = Peaks({torch.float32: 1e9}, 1e9)
ONCE = Effort(budget_s=0.0, least=2, most=2)


def work(**results) -> Work:
    """Providers that return these tensors."""
    providers = {
        name: Provider(lambda value=value: lambda: value, lambda value: {"output": value})
        for name, value in results.items()
    }
    right = torch.arange(1.0, 9.0)
    return Work(
        "operator", "op", "full", Shape(2, 3, 64, TINY), torch.float32, providers, lambda: {"output": right}, flop=1e6
    )


def measured(work: Work) -> dict[str, dict]:
    return {row["provider"]: row for row in measure(work, CPU, Clock(CPU), PEAKS, ONCE)}


@pytest.mark.parametrize("wrong", ["scaled", "nan"])
def test_no_time_is_reported_for_a_wrong_result(wrong):
    right = torch.arange(1.0, 9.0)
    value = right * (1 + 3 * TOLERANCE[torch.float32])
    if wrong == "nan":
        value = right.clone()
        value[0] = torch.nan
    rows = measured(work(reference=right, specfast=value))
    assert rows["reference"]["p50_ms"] > 0
    assert "p50_ms" not in rows["specfast"]
    assert "no time is reported" in rows["specfast"]["failed"]


def test_a_provider_may_be_twice_as_wrong_as_the_reference():
    right = torch.arange(1.0, 9.0)
    error = 2 * TOLERANCE[torch.float32]
    rows = measured(work(reference=right * (1 + error), good=right * (1 + 1.9 * error), bad=right * (1 + 2.2 * error)))
    assert "p50_ms" in rows["good"]
    assert "failed" in rows["bad"]


@pytest.mark.parametrize("wrong", [1.01, torch.nan])
def test_a_wrong_reference_gets_no_time_and_widens_nothing(wrong):
    right = torch.arange(1.0, 9.0)
    rows = measured(work(reference=right * wrong, near=right * (1 + 2 * TOLERANCE[torch.float32]), good=right))
    assert "no time is reported" in rows["reference"]["failed"]
    assert "no time is reported" in rows["near"]["failed"]
    assert "p50_ms" in rows["good"]


def test_a_lower_bound_is_not_related_to_the_floor_of_other_work():
    job = work(reference=torch.arange(1.0, 9.0))
    job.providers["conv2d"] = Provider(job.providers["reference"].setup, None)
    rows = measured(job)
    assert rows["conv2d"]["p50_ms"] > 0
    assert "floor_ms" not in rows["conv2d"]
    assert "floor_ms" in rows["reference"]


def test_a_provider_that_cannot_run_is_named_and_the_others_are_measured():
    def refuse():
        raise RuntimeError("no kernel for it")

    job = work(reference=torch.arange(1.0, 9.0))
    job.providers["other"] = Provider(refuse, lambda value: {"output": value})
    rows = measured(job)
    assert rows["other"]["failed"] == "RuntimeError: no kernel for it"
    assert rows["reference"]["runs"] == 2


def test_rows_relate_time_to_the_floor():
    job = work(reference=torch.arange(1.0, 9.0))
    setup = job.providers["reference"].setup
    job.providers["reference"].setup = lambda: lambda: (time.sleep(2e-3), setup()())[1]  # long enough to be rounded
    row = measured(job)["reference"]
    assert row["floor_ms"] == pytest.approx(1.0)  # 1e6 FLOP at 1e9 a second
    assert row["percent_of_floor"] == pytest.approx(100 / row["p50_ms"], rel=0.01, abs=0.1)
    assert row["tflops"] == pytest.approx(1e-3 / row["p50_ms"], rel=0.01)
    assert row["samples_per_s"] == pytest.approx(2000 / row["p50_ms"], rel=0.01)
    assert {"device", "torch", "specfast", "commit", "threads", "peak_gbs"} <= set(row)


def test_the_floor_is_the_larger_of_arithmetic_and_traffic():
    peaks = Peaks({torch.float32: 1e12}, 1e9)
    assert peaks.floor_ms(4e9, 1e6, torch.float32) == pytest.approx(4.0)
    assert peaks.floor_ms(1e9, 5e6, torch.float32) == pytest.approx(5.0)


def test_providers_take_turns_over_the_whole_stretch():
    order = []
    setups = {name: (lambda name=name: lambda: order.append(name)) for name in ("a", "b")}
    times = interleave(setups, Clock(CPU), {"a": 6, "b": 2})
    assert {name: len(values) for name, values in times.items()} == {"a": 6, "b": 2}
    assert order == ["a", "a", "a", "b", "a", "a", "a", "b"]


def test_the_setup_is_not_timed():
    def slow_setup():
        time.sleep(0.05)
        return lambda: None

    (milliseconds,) = interleave({"a": slow_setup}, Clock(CPU), {"a": 1})["a"]
    assert milliseconds < 25


def test_quantiles_of_an_even_spread():
    assert quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))


def test_slow_runs_are_repeated_least():
    effort = Effort(budget_s=2.0, least=3, most=15)
    assert [effort.repeats(ms) for ms in (1.0, 200.0, 3000.0, 20000.0)] == [15, 10, 3, 2]


PEAKS_OF_KNOWN_TENSORS = """
import os, torch
from bench.memory import peak_memory

# kernels count resident pages by processor and add up roughly: one processor, so that the error stays small
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(1)
cpu = torch.device("cpu")
kept = torch.ones(5_000_000)  # there before, so it does not count

def run():
    first = torch.ones(10_000_000)
    second = first + 1  # 80 MB alive
    del first
    small = [torch.ones(100_000) for _ in range(50)]  # 60 MB
    return second.sum() + len(small) + kept[0]

run()
for _ in range(5):
    with peak_memory(cpu) as peak:
        run()
    with peak_memory(cpu) as nothing:
        pass
    print(peak.bytes, nothing.bytes)
"""


@pytest.mark.skipif(_glibc() is None, reason="peak memory of a process needs Linux with glibc")
def test_peak_memory_is_the_largest_sum_of_what_was_alive():
    """In a process of its own: threads that earlier tests left behind in this one may allocate meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS_OF_KNOWN_TENSORS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    measured = [[int(value) for value in line.split()] for line in done.stdout.splitlines()]
    peak, nothing = (statistics.median(values) for values in zip(*measured, strict=True))
    assert peak == pytest.approx(80e6, abs=6 * 2**20)
    assert nothing < 2**20

"""Tables, bars and figures say what the rows hold."""

from __future__ import annotations

import math

import pytest
import torch

from bench.network import plot, report
from bench.network.__main__ import _checked, line
from bench.network.timing import relative_error
from bench.results import ResultFile, write_rows


def row(provider: str, ms: float, cluster: str = "racks-4to1", shape: str = "N4-4MB", **changes) -> dict:
    found = {"unit": "network", "kernel": "exchange", "mode": cluster, "shape": shape, "dtype": "float32"}
    found |= {"provider": provider, "p50_ms": ms, "wire_bytes": 24_000_000, "uplink_bytes": 12_000_000, "commit": "abc"}
    return {**found, **changes}


def trained(provider: str, seed: int, losses: list[float], step_ms: float = 100.0, **changes) -> dict:
    curve = [[10 * number, number, loss] for number, loss in enumerate(losses)]
    numbers = {"final_loss": losses[-1], "seed": seed, "curve": curve, "disagreement": 1e-3}
    shape = f"N4-spectra-seed{seed}"
    return row(provider, step_ms, shape=shape, kernel="training", **numbers, **changes)


TRAINED = [
    *(trained("ddp", seed, [2.0, 1.5, 1.0 + 0.1 * seed]) for seed in range(3)),
    *(trained("dssync-planned", seed, [2.0, 1.0 + 0.1 * seed, 1.01 + 0.1 * seed]) for seed in range(3)),
    *(trained("dssync-static", seed, [2.0, 1.9, 1.8]) for seed in range(3)),
]


def test_tables_hold_times_ratios_and_bytes():
    rows = [row("ddp", 600.0), row("dssync-emissary", 400.0), row("ddp", 200.0, cluster="flat", uplink_bytes=0)]
    text = report.timing_table(rows, "exchange", "N4-4MB").splitlines()
    assert text[0] == "| N4-4MB, exchange | one switch | two racks, 4:1 |"
    assert text[2:] == ["| `ddp` | 200 | 600 |", "| `dssync-emissary` |  | 400 (1.50x) |"]
    text = report.bytes_table(rows, "N4-4MB").splitlines()
    assert text[2] == "| `ddp` | 24.0 | 24.0, 12.0 across |"


def test_bars_are_met_and_missed():
    rows = [row("ddp", 600.0), row("dssync-emissary", 401.0), row("dssync-every4", 300.0)]
    rows += [row("ddp", 10.0, cluster="unshaped"), row("dssync-grid", 10.6, cluster="unshaped")]
    found = {bar.name: bar for bar in report.bars(rows)}
    assert not found["4:1, a crossing every round over DDP"].met
    assert found["4:1, a crossing every 4th round over DDP"].met
    assert not found["fast network, N4-4MB: time over DDP's"].met
    assert str(found["4:1, a crossing every round over DDP"]).startswith("MISSED")


def test_final_losses_are_judged_in_the_spread_of_ddps():
    results = report.trainings(TRAINED, "racks-4to1", "spectra")
    assert results["ddp"].spread == pytest.approx(0.1)
    assert results["ddp"].mean == pytest.approx(1.1)
    found = {bar.name.split(", ")[2].split(":")[0]: bar for bar in report.bars(TRAINED)}
    assert found["dssync-planned"].value == pytest.approx(0.1)
    assert found["dssync-planned"].met
    assert found["dssync-static"].value == pytest.approx(7.0)
    assert found["dssync-static"].met  # the control is worse
    worse = [trained("dssync-static", seed, [2.0, 1.9, 1.11]) for seed in range(3)]
    assert not next(bar for bar in report.bars(TRAINED[:6] + worse) if "static" in bar.name).met


def test_time_to_the_target_is_read_off_the_curve():
    results = report.trainings(TRAINED, "racks-4to1", "spectra")
    target = report.TARGET_ROOM * 1.1
    expected = [1 + (1.5 - target) / (1.5 - final) if final <= target else math.inf for final in (1.0, 1.1, 1.2)]
    assert results["ddp"].to_target == pytest.approx(tuple(expected))
    assert results["dssync-static"].to_target == (math.inf,) * 3
    text = report.training_table(results, "spectra")
    assert "not reached" in text
    assert "| `dssync-planned` | 1.1100 ± 0.1000 | +0.1 |" in text


def test_a_wrong_exchange_has_no_time():
    right, wrong = (row("ddp", 5.0, relative_error=error) for error in (1e-7, 1e-3))
    assert _checked(right) == right
    assert "p50_ms" not in _checked(wrong)
    assert "relative error 0.001" in line(_checked(wrong))
    assert _checked(row("ddp-bf16", 5.0, relative_error=1e-3))["p50_ms"] == 5.0
    assert report.times([_checked(wrong)], "exchange", "racks-4to1", "N4-4MB") == {}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_exchange_that_makes_no_number_is_wrong(wrong):
    expected = torch.tensor([2.0, 4.0])
    assert relative_error(torch.tensor([2.0, 4.4]), expected) == pytest.approx(0.1)
    error = relative_error(torch.tensor([2.0, wrong]), expected)
    assert "p50_ms" not in _checked(row("ddp", 5.0, relative_error=error))


def test_files_are_read_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    write_rows(tmp_path / "network-timing.json", [row("ddp", 600.0, predicted_ms=480.0), row("dssync-emissary", 400.0)])
    ResultFile(tmp_path / "network-training.json").add(TRAINED)
    rows = report.read(tmp_path)
    assert len(rows) == 2 + len(TRAINED)
    figures = plot.draw(rows)
    assert set(figures) == {"network-exchange-n4-4mb", "network-training-spectra-racks-4to1"}
    assert all(png.startswith(b"\x89PNG") for png in figures.values())
    assert set(plot.STYLE) <= set(report.PROVIDERS)

"""Re-planning in running processes: all ranks change together, once, when it pays, and never by noise."""

from __future__ import annotations

import math
import random

import pytest
import torch

from specfast.dssync.communicator import DSSync
from specfast.dssync.planner import plan
from specfast.dssync.replanning import Replanner
from specfast.dssync.schedule import Schedule, make_schedule
from specfast.dssync.topology import Topology
from tests.dssync.processes import run

B = 1.25e9
NBYTES = 100e6
WORLD = 4
FLAT = Topology.uniform(1, WORLD, B, latency=0.0)
SLOW = Topology(((0, 1, 2, 3),), (B, B, B, B / 4), (math.inf,), 0.0, 0.0)


def watch(rank: int, factors: list[float], steps: int, topology: dict, **options) -> dict:
    """Steps whose time grows by this rank's factor after a third of them; returns what the replanner did when."""
    measured, changes = [], []

    def measure(group) -> Topology:
        measured.append(step)
        return Topology.from_json(topology)

    current = make_schedule("grid", WORLD, 2)
    replanner = Replanner(current, NBYTES, measure=measure, window=16, **options)
    draw = random.Random(rank)
    for step in range(steps):
        drifted = factors[rank] if step >= steps // 3 else 1.0
        new = replanner(0.1 * drifted * draw.lognormvariate(0, 0.1))
        if new is not None:
            changes.append((step, new.digest()))
    return {"measured": measured, "changes": changes, "schedule": replanner.schedule.digest()}


def test_all_ranks_change_together_once(tmp_path):
    results = run(WORLD, watch, [3.0] * WORLD, 900, SLOW.to_json(), tmp_path=tmp_path)
    assert all(result == results[0] for result in results)
    ((step, digest),) = results[0]["changes"]
    assert 300 < step < 300 + 5 * 32
    assert results[0]["measured"] == [step]
    assert digest == results[0]["schedule"] == plan(SLOW, NBYTES).schedule.digest()


def test_a_network_that_is_as_it_was_keeps_its_schedule(tmp_path):
    """Steps became slower for another reason: measured once, then left alone."""
    results = run(WORLD, watch, [3.0] * WORLD, 900, FLAT.to_json(), tmp_path=tmp_path)
    for result in results:
        assert result["changes"] == []
        assert len(result["measured"]) == 1
        assert result["schedule"] == make_schedule("grid", WORLD, 2).digest()


def test_half_of_the_ranks_do_not_decide_and_noise_does_not(tmp_path):
    for factors in ([3.0, 3.0, 1.0, 1.0], [1.0] * WORLD):
        results = run(WORLD, watch, factors, 600, SLOW.to_json(), tmp_path=tmp_path)
        assert all(result["measured"] == result["changes"] == [] for result in results)


def watch_in_vain(rank: int) -> dict:
    return watch(rank, [3.0] * WORLD, 600, SLOW.to_json(), max_disagreement=1e-9)


def test_all_stay_where_no_schedule_can_be_planned(tmp_path):
    """The first rank alone plans, and must not leave the others waiting for what it found."""
    for result in run(WORLD, watch_in_vain, tmp_path=tmp_path):
        assert result["changes"] == []
        assert len(result["measured"]) == 1
        assert result["schedule"] == make_schedule("grid", WORLD, 2).digest()


def clocked(rank: int) -> list:
    replanner = Replanner(make_schedule("grid", 2, 2), NBYTES, window=8)
    found = [replanner() for _ in range(100)]
    return [found.count(None), len(replanner._history)]


def test_own_clock(tmp_path):
    # the first call starts the clock
    for nothing, kept in run(2, clocked, tmp_path=tmp_path):
        assert nothing == 100
        assert 32 <= kept <= 40  # what is not looked at again is dropped


def rescheduled(rank: int, options: dict) -> dict:
    """Train, change the schedule on the way, and note the values after each round."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sync = DSSync(model, optimizer, group_size=2, **options)
    seen = []
    for step in range(6):
        if step == 3:
            sync.reschedule(make_schedule("random", WORLD, 2, seed=5))
        model.weight.grad = torch.full_like(model.weight, float((rank + 1) * (step + 1)))
        sync.step()
        seen.append(model.weight.detach().clone())
    with pytest.raises(ValueError, match="expected one of 4 ranks"):
        sync.reschedule(make_schedule("grid", 6, 2))
    sync.close()
    return {"values": seen, "schedule": sync.schedule.digest(), "round": sync.round}


def test_rounds_change_in_a_running_communicator(tmp_path):
    results = run(WORLD, rescheduled, {}, tmp_path=tmp_path)
    torch.manual_seed(0)
    weights = [torch.nn.Linear(3, 2, bias=False).weight.detach()] * WORLD
    before, after = make_schedule("grid", WORLD, 2), make_schedule("random", WORLD, 2, seed=5)
    for step in range(6):
        weights = [weight - 0.1 * (rank + 1) * (step + 1) for rank, weight in enumerate(weights)]
        partition = (before if step < 3 else after).partition(step)
        if step == 3:
            partition = ((0, 1, 2, 3),)
        means = {group: sum(weights[rank] for rank in group) / len(group) for group in partition}
        weights = [next(means[group] for group in partition if rank in group) for rank in range(WORLD)]
        for rank, result in enumerate(results):
            torch.testing.assert_close(result["values"][step], weights[rank])
    assert [(result["schedule"], result["round"]) for result in results] == [(after.digest(), 6)] * WORLD


def test_overlapped_round_is_finished_before_the_change(tmp_path):
    results = run(WORLD, rescheduled, {"overlap": True}, tmp_path=tmp_path)
    assert len({result["schedule"] for result in results}) == 1
    assert all(value.isfinite().all() for result in results for value in result["values"])


def differing(rank: int) -> str:
    model = torch.nn.Linear(3, 2)
    sync = DSSync(model, torch.optim.SGD(model.parameters(), lr=0.1), group_size=2)
    schedules = make_schedule("grid", 2, 2), Schedule(2, [[[0], [1]], [[0, 1]]], "every second round")
    with pytest.raises(ValueError, match="schedule") as caught:
        sync.reschedule(schedules[rank])
    sync.step()  # goes on as before
    sync.close()
    return str(caught.value)


def test_ranks_with_different_schedules_are_told(tmp_path):
    for message in run(2, differing, tmp_path=tmp_path):
        assert "schedule" in message

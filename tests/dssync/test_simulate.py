"""Disagreement against derived numbers within the sampling error, step times against arithmetic."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from specfast.dssync import cost, simulate
from specfast.dssync.partitions import GroupMeans
from specfast.dssync.schedule import Schedule, make_schedule, with_absent
from specfast.dssync.simulate import Compute, Rounds
from specfast.dssync.topology import Topology

COPIES = 4000


def slow_nic(world: int) -> Topology:
    return Topology((tuple(range(world)),), (1.0,) * (world - 1) + (0.25,), (math.inf,), 0.0, 0.0)


def errors(world: int, sigma: float, copies: int = COPIES) -> float:
    """Four standard errors of V, a mean of about ``world * copies`` squares."""
    return 4 * sigma * math.sqrt(2 / (copies * (world - 1)))


@pytest.mark.parametrize(
    ("world", "sizes", "factor"),
    [(16, [4] * 4, 0.2), (7, [3, 4], 0.1667), (13, [4, 4, 5], 0.1667), (10, [1, 3, 6], 0.2222)],
)
def test_random_partition_contracts_by_groups_less_one_over_world_less_one(world, sizes, factor):
    rounds = list(itertools.islice(simulate.random_partitions(world, sizes, seed=1), 300))
    before = 1 - 1 / world
    ratios = []
    for seed, partition in enumerate(rounds):
        after = simulate.disagreement([partition], 1, world=world, copies=16, noise=0.0, start=1.0, seed=seed)
        ratios.append(after[0] / before)
    assert abs(np.mean(ratios) - factor) < 4 * np.std(ratios) / math.sqrt(len(ratios))
    assert factor == pytest.approx((len(sizes) - 1) / (world - 1), abs=5e-5)


@pytest.mark.parametrize(
    ("world", "group_size", "expected"),
    [(16, 2, (0.4667, 0.2, 0.0667, 0.0)), (64, 4, (0.2381, 0.0476, 0.0))],
)
def test_grid_contracts_axis_by_axis(world, group_size, expected):
    schedule = make_schedule("grid", world, group_size)
    values = simulate.disagreement(schedule, len(expected), copies=COPIES, noise=0.0, start=1.0)
    before = 1 - 1 / world
    for number, (value, factor) in enumerate(zip(values, expected, strict=True), 1):
        assert factor == pytest.approx((group_size**-number - 1 / world) / before, abs=5e-5)
        assert value == pytest.approx(factor * before, abs=errors(world, max(factor, 1e-9)))
    assert values[-1] < 1e-28  # the residual is rounding


@pytest.mark.parametrize(
    ("world", "group_size", "grid", "random"),
    [(4, 2, 0.25, 0.375), (16, 4, 0.1875, 0.2344), (64, 8, 0.1094, 0.1230)],
)
def test_steady_state_with_noise(world, group_size, grid, random):
    schedule = make_schedule("grid", world, group_size)
    assert simulate.steady_disagreement(schedule) == pytest.approx(grid, abs=5e-5)
    values = simulate.disagreement(schedule, 300, copies=200)[20:]
    assert values.mean() == pytest.approx(grid, rel=0.02)
    groups = world // group_size
    shuffled = simulate.random_partitions(world, [group_size] * groups, seed=2)
    values = simulate.disagreement(shuffled, 3000, world=world, copies=40)[50:]
    blocks = values[: len(values) // 50 * 50].reshape(-1, 50).mean(axis=1)  # steps hang together, blocks hardly
    assert abs(values.mean() - random) < 4 * blocks.std() / math.sqrt(len(blocks))
    rho = (groups - 1) / (world - 1)
    assert random == pytest.approx((world - 1) / world * rho / (1 - rho), abs=5e-5)
    depth = round(math.log(world, group_size))
    assert grid == pytest.approx(sum(group_size**-j - group_size**-depth for j in range(1, depth + 1)), abs=5e-5)


def test_static_groups_drift_apart_without_end():
    """The control: each group's mean walks at random, and nothing holds the groups together."""
    static = make_schedule("static", 16, 4, allow_static=True)
    values = simulate.disagreement(static, 400, copies=400)
    assert values[399] == pytest.approx(400 * (1 / 4 - 1 / 16), rel=0.1)
    assert simulate.steady_disagreement(static, longest=512) > 20
    assert simulate.disagreement(make_schedule("grid", 16, 4), 400, copies=50).max() < 0.5


@pytest.mark.parametrize("kind", ["grid", "emissary"])
def test_sampled_steady_state_agrees_with_the_exact_one(kind, monkeypatch):
    topology = Topology.uniform(2, 8, 1.0, 1.0)
    schedule = make_schedule(kind, 16, 4, topology=topology)
    exact = simulate.steady_disagreement(schedule)
    monkeypatch.setattr(simulate, "_EXACT", 1)
    assert simulate.steady_disagreement(schedule) == pytest.approx(exact, rel=0.05)
    assert simulate.steady_disagreement(schedule) == simulate.steady_disagreement(schedule)


@pytest.mark.parametrize(("world", "group_size"), [(4, 2), (16, 4), (13, 3)])
def test_overlap_adds_the_noise_of_one_step(world, group_size):
    """The mean of the weights from before the step, to which the step's own noise is added."""
    schedule = make_schedule("grid", world, group_size)
    draw = np.random.default_rng(0)
    x = np.zeros((world, 500))
    values = []
    for step in range(600):
        x = GroupMeans(schedule.partition(step))(x) + draw.standard_normal(x.shape)
        values.append(simulate.variance(x))
    expected = simulate.steady_disagreement(schedule, overlap=True)
    assert expected == pytest.approx(simulate.steady_disagreement(schedule) + 1 - 1 / world)
    assert np.mean(values[100:]) == pytest.approx(expected, rel=0.02)


def test_local_sgd_steady_state():
    """A mean of all in each h-th step: (h - 1) / 2 (1 - 1/N) on average, which the planner's bound is measured in."""
    world, every = 8, 4
    alone = tuple((rank,) for rank in range(world))
    schedule = Schedule(world, (alone,) * (every - 1) + ((tuple(range(world)),),), "local")
    assert simulate.steady_disagreement(schedule) == pytest.approx((every - 1) / 2 * (1 - 1 / world))


def test_thousands_of_workers():
    schedule = make_schedule("grid", 4096, 64)
    values = simulate.disagreement(schedule, 4, copies=64, noise=0.0, start=1.0)
    assert values[0] == pytest.approx(1 / 64, rel=0.1)
    assert values[1] < 1e-28
    topology = Topology.uniform(256, 16, 1.0, 4.0)
    assert simulate.step_time(simulate.of_schedule(schedule, topology, 1.0), Compute(1.0, 0.1), steps=8) > 1


def test_sizes_must_fill_the_world():
    with pytest.raises(ValueError, match="sizes: expected them to add up to 8, the world; got 6"):
        next(simulate.random_partitions(8, [3, 3], seed=0))


# ---- time


def test_without_bottlenecks_a_step_is_compute_and_averaging():
    topology = Topology.uniform(1, 8, 1.0, latency=0.0)
    rounds = simulate.of_schedule(make_schedule("grid", 8, 2), topology, 1.0)
    assert simulate.step_time(rounds, Compute(3.0)) == pytest.approx(4.0)
    assert simulate.step_time(simulate.of_allreduce(topology, 1.0), Compute(3.0)) == pytest.approx(4.75)
    local = simulate.of_local_sgd(topology, 1.0, 5)
    assert simulate.step_time(local, Compute(3.0), steps=100) == pytest.approx(3.0 + 1.75 / 5)


def test_what_overlaps_hides():
    topology = Topology.uniform(1, 8, 1.0, latency=0.0)
    for seconds, expected in ((3.0, 3.0), (1.5, 0.5 + 1.75)):  # backward is two thirds
        rounds = simulate.of_allreduce(topology, 1.0, overlap="backward")
        assert simulate.step_time(rounds, Compute(seconds)) == pytest.approx(expected)
    schedule = make_schedule("grid", 8, 2)
    for seconds, expected in ((3.0, 3.0), (0.4, 1.0)):
        rounds = simulate.of_schedule(schedule, topology, 1.0, overlap="snapshot")
        assert simulate.step_time(rounds, Compute(seconds)) == pytest.approx(expected)


@pytest.mark.parametrize(("world", "expected"), [(16, 1.47), (64, 1.37)])
def test_slow_worker_in_random_pairs_every_fourth_round(world, expected):
    """Derived for one NIC at a quarter: nobody but those who meet the delayed ones waits."""
    topology, slow = slow_nic(world), world - 1
    rounds = []
    for number, partition in enumerate(
        itertools.islice(simulate.random_partitions(world, [2] * (world // 2), 3), 3000)
    ):
        apart = [[(rank,) for rank in group] if slow in group and number % 4 else [group] for group in partition]
        rounds.append(tuple(itertools.chain(*apart)))
    seconds = tuple(cost.round_times(groups, topology, 1.0) for groups in rounds)
    latest = simulate.finish_times(Rounds(tuple(rounds), seconds, "pairs"), 3000).max(axis=1)
    assert (latest[-1] - latest[999]) / 2000 == pytest.approx(expected, rel=0.02)


def test_shuffling_alone_cannot_beat_a_slow_worker_skipping_can():
    topology = slow_nic(16)
    pairs = make_schedule("grid", 16, 2)
    allreduce = simulate.step_time(simulate.of_allreduce(topology, 1.0))
    assert allreduce == pytest.approx(7.5)
    assert simulate.step_time(simulate.of_schedule(pairs, topology, 1.0)) == pytest.approx(4.0)
    skipped = simulate.step_time(simulate.of_schedule(with_absent(pairs, {15: 4}), topology, 1.0))
    rested = simulate.step_time(simulate.of_schedule(with_absent(pairs, {15: 8}, rest=3), topology, 1.0))
    assert skipped <= 1.75
    assert rested == pytest.approx(1.0)


def test_workers_that_run_ahead_still_share_the_uplink():
    """Of two racks of two, one pair crosses a round, and the other pair is free to start the next one: no gain."""
    topology = Topology.uniform(2, 2, 1.0, 0.5, 0.0)
    schedule = make_schedule("emissary", 4, 2, topology=topology)
    rounds = simulate.of_schedule(schedule, topology, 1.0)
    assert simulate.finish_times(rounds, 64).max() / 64 < 1.1  # what max-plus alone would say
    assert simulate.step_time(rounds) == pytest.approx(2.0)


def test_small_groups_wait_less_for_stragglers():
    topology = Topology.uniform(1, 64, 1e9, latency=0.0)
    work = Compute(1.0, stall=(0.02, 5.0))
    pairs = simulate.step_time(simulate.of_schedule(make_schedule("grid", 64, 2), topology, 1.0), work, steps=600)
    everybody = simulate.step_time(simulate.of_allreduce(topology, 1.0), work, steps=600)
    assert everybody == pytest.approx(1 + 4 * (1 - 0.98**64), rel=0.05)
    assert 1.08 < pairs < 0.8 * everybody


def test_jitter_keeps_the_mean_and_seeds_repeat():
    draw = simulate.generator(0)
    taken = np.concatenate([Compute(2.0, jitter=0.3).draw(1000, draw) for _ in range(50)])
    assert taken.mean() == pytest.approx(2.0, rel=0.01)
    assert np.log(taken).std() == pytest.approx(0.3, rel=0.02)
    assert Compute(2.0, slow={1: 3.0}).draw(3, draw).tolist() == [2.0, 6.0, 2.0]
    topology = Topology.uniform(1, 8, 1.0)
    rounds = simulate.of_schedule(make_schedule("grid", 8, 2), topology, 1.0)
    first, again, other = (simulate.finish_times(rounds, 20, Compute(1.0, 0.2), seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_persistently_slow_worker_sets_the_pace_of_all():
    topology = Topology.uniform(1, 8, 1e9, latency=0.0)
    rounds = simulate.of_schedule(make_schedule("grid", 8, 2), topology, 1.0)
    assert simulate.step_time(rounds, Compute(1.0, slow={3: 2.0})) == pytest.approx(2.0)


def test_unknown_names():
    topology = Topology.uniform(1, 4, 1.0)
    with pytest.raises(ValueError, match="kind: expected ring or hierarchical; got 'tree'"):
        simulate.of_allreduce(topology, 1.0, "tree")
    with pytest.raises(ValueError, match="overlap: expected one of none, backward, snapshot; got 'all'"):
        simulate.of_allreduce(topology, 1.0, overlap="all")

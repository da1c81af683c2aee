"""The cost model against times derived by hand: two racks, one slow NIC, flat networks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specfast.dssync import cost
from specfast.dssync.schedule import make_schedule
from specfast.dssync.topology import Topology

# two racks of M, NIC B = 1, uplink U; times in S/B. Ring in rack order, in random order, hierarchical, grid across the
# cut, emissary
TWO_RACKS = [
    (2, 0.5, 3.00, 4.00, 3.00, 2.50, 2.00),
    (8, 2.0, 1.88, 4.00, 2.25, 2.88, 1.71),
    (8, 0.5, 3.75, 16.0, 3.75, 8.88, 2.00),
    (8, 0.25, 7.50, 32.0, 5.75, 16.9, 4.00),
]


@pytest.mark.parametrize(("members", "uplink", "ring", "shuffled", "hierarchical", "across", "emissary"), TWO_RACKS)
def test_two_racks(members, uplink, ring, shuffled, hierarchical, across, emissary):
    topology = Topology.uniform(2, members, 1.0, uplink, 0.0)
    world = topology.world
    near = {"rel": 0.005}
    assert cost.allreduce_time(topology, 1.0) == pytest.approx(ring, **near)
    assert cost.hierarchical_time(topology, 1.0) == pytest.approx(hierarchical, **near)
    grid = make_schedule("racks", world, members, topology=topology)
    assert cost.schedule_time(grid, topology, 1.0) == pytest.approx(across, **near)
    pairs = make_schedule("emissary", world, members, topology=topology)
    assert cost.schedule_time(pairs, topology, 1.0) == pytest.approx(emissary, **near)
    draw = np.random.default_rng(0)
    times = [cost.allreduce_time(topology, 1.0, draw.permutation(world).tolist()) for _ in range(2000)]
    assert abs(np.mean(times) - shuffled) < 4 * np.std(times) / math.sqrt(2000) + 0.005 * shuffled


def test_crossing_in_each_fourth_round():
    topology = Topology.uniform(2, 8, 1.0, 0.25, 0.0)
    schedule = make_schedule("emissary", 16, 8, topology=topology, every=4)
    assert cost.schedule_time(schedule, topology, 1.0) == pytest.approx(2.31, abs=0.005)
    topology = Topology.uniform(2, 2, 1.0, 0.5, 0.0)
    schedule = make_schedule("emissary", 4, 2, topology=topology, every=4)
    assert cost.schedule_time(schedule, topology, 1.0) == pytest.approx((3 * 1 + 2) / 4)


@pytest.mark.parametrize(("world", "allreduce"), [(16, 7.50), (64, 7.88)])
def test_one_slow_nic(world, allreduce):
    topology = Topology((tuple(range(world)),), (1.0,) * (world - 1) + (0.25,), (math.inf,), 0.0, 0.0)
    assert cost.allreduce_time(topology, 1.0) == pytest.approx(allreduce, abs=0.005)
    assert cost.schedule_time(make_schedule("grid", world, 2), topology, 1.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("world", "group_size", "speed_up"),
    [(4, 2, 1.5), (16, 2, 1.875), (64, 2, 1.97), (16, 4, 1.25), (1024, 4, 1.33), (64, 8, 1.125), (400, 20, 1.05)],
)
def test_flat_network_by_bandwidth_alone(world, group_size, speed_up):
    topology = Topology.uniform(1, world, 1.0, latency=0.0)
    time = cost.schedule_time(make_schedule("grid", world, group_size), topology, 1.0)
    assert time == pytest.approx(cost.ring_time(group_size, 1.0, 1.0))
    assert cost.allreduce_time(topology, 1.0) / time == pytest.approx(speed_up, rel=0.003)
    assert speed_up == pytest.approx(((world - 1) / world) / ((group_size - 1) / group_size), rel=0.003)


@pytest.mark.parametrize(
    ("world", "group_size", "speed_up"), [(64, 2, 2.3), (64, 8, 1.3), (1024, 2, 7.1), (1024, 32, 3.4)]
)
def test_flat_network_with_latency(world, group_size, speed_up):
    topology = Topology.uniform(1, world, 1.25e9, latency=50e-6)
    time = cost.schedule_time(make_schedule("grid", world, group_size), topology, 25e6)
    assert cost.allreduce_time(topology, 25e6) / time == pytest.approx(speed_up, abs=0.05)


def test_singletons_cost_nothing_and_groups_of_a_round_share_an_uplink():
    topology = Topology.uniform(2, 3, 1.0, 0.5, 0.25, 2.0)
    alone, pair, other = cost.round_times([[1, 2], [0, 3], [4], [5]], topology, 1.0)[[2, 0, 1]]
    assert alone == 0
    assert pair == pytest.approx(1 + 2 * 0.25)  # at home: the NIC, and two hops
    assert other == pytest.approx(1 / 0.5 + 2 * 2.0)  # across: the uplink, and two longer hops
    both = cost.round_times([[0, 3], [1, 4], [2], [5]], topology, 1.0)
    assert both[0] == both[1] == pytest.approx(2 / 0.5 + 2 * 2.0)
    np.testing.assert_allclose(cost.uplink_times([[0, 3], [1, 4], [2], [5]], topology, 1.0), 4.0)


def test_racks_of_different_sizes():
    topology = Topology(((0, 1, 2), (3,)), (1.0,) * 4, (0.5, 4.0), 0.0, 0.0)
    # at home 2 * 2/3, across all of S over the slower uplink
    assert cost.hierarchical_time(topology, 1.0) == pytest.approx(4 / 3 + 1 / 0.5)
    assert cost.allreduce_time(topology, 1.0) == pytest.approx(1.5 / 0.5)

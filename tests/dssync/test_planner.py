"""Plans: the right family for each network, bounded disagreement, and a plain word where all-reduce is better."""

from __future__ import annotations

import json
import math

import pytest

from specfast.dssync import cost, planner, simulate
from specfast.dssync.planner import plan, replan
from specfast.dssync.schedule import Schedule, ScheduleError, make_schedule
from specfast.dssync.topology import Topology

B = 1.25e9
NBYTES = 100e6  # 80 ms over a NIC


def slow_nic(world: int, part: float = 0.25) -> Topology:
    return Topology((tuple(range(world)),), (B,) * (world - 1) + (part * B,), (math.inf,), 0.0, 0.0)


@pytest.mark.parametrize(("world", "gain"), [(4, 1.5), (16, 1.875), (64, 1.97)])
def test_flat_network_pairs(world, gain):
    made = plan(Topology.uniform(1, world, B, latency=0.0), NBYTES)
    assert made.schedule == make_schedule("grid", world, 2)
    assert made.gain == pytest.approx(gain, rel=0.005)
    assert not made.use_ddp
    assert made.contraction < 1e-12
    assert made.seconds == pytest.approx(0.080)


@pytest.mark.parametrize(("members", "uplink", "gain"), [(2, 0.5, 2.3), (4, 1.0, 1.5), (8, 0.5, 2.5), (8, 0.25, 4.0)])
def test_slow_cut_is_crossed_by_few_and_seldom(members, uplink, gain):
    topology = Topology.uniform(2, members, B, uplink * B, 0.0)
    made = plan(topology, NBYTES)
    assert made.schedule.kind == "emissary"
    assert "emissar" in made.label
    assert made.gain > gain
    assert made.disagreement <= planner.MAX_DISAGREEMENT
    assert made.contraction < 1
    # never a whole axis of the grid across the cut
    grid = make_schedule("racks", topology.world, members, topology=topology)
    assert made.seconds < 0.7 * cost.schedule_time(grid, topology, NBYTES)
    assert made.seconds < min(made.hierarchical_seconds, made.ring_seconds)


@pytest.mark.parametrize("world", [4, 16])
def test_slow_nic_sits_out(world):
    made = plan(slow_nic(world), NBYTES)
    slow = world - 1
    joined = [number for number in range(len(made.schedule.rounds)) if len(made.schedule.group_of(slow, number)) > 1]
    assert 0 < len(joined) <= len(made.schedule.rounds) / 4
    assert made.gain > 4
    assert made.contraction < 1
    assert made.disagreement <= planner.MAX_DISAGREEMENT


@pytest.mark.parametrize(
    ("racks", "slow", "part"),
    [(2, 1, 1 / 8), (2, 2, 1 / 16), (3, 0, 1 / 8), (3, 5, 1 / 16), (4, 1, 1 / 8), (4, 6, 1 / 16)],
)
def test_slow_nic_in_a_rack(racks, slow, part):
    """Some ways to let it sit out would not mix; the others are still considered."""
    bandwidth = [B] * (2 * racks)
    bandwidth[slow] *= part
    topology = Topology((tuple(range(racks)), tuple(range(racks, 2 * racks))), tuple(bandwidth), (B / 2, B / 2))
    made = plan(topology, NBYTES)
    assert made.gain > 2
    assert made.contraction < 1 - 1e-9
    assert made.disagreement <= planner.MAX_DISAGREEMENT
    assert any("slow NICs join" in one.label for one in made.considered)
    assert all(one.schedule.contraction() < 1 - 1e-9 for one in made.considered)


def test_racks_with_a_wide_uplink_are_one_flat_network():
    wide = plan(Topology.uniform(2, 8, B, 8 * B, 0.0), NBYTES)
    flat = plan(Topology.uniform(1, 16, B, latency=0.0), NBYTES)
    assert wide.seconds == pytest.approx(flat.seconds)


def test_bound_on_disagreement_is_kept_and_costs_time():
    topology = Topology.uniform(2, 8, B, B / 4, 0.0)
    plans = [plan(topology, NBYTES, max_disagreement=bound) for bound in (0.3, 0.8, 1.5)]
    for bound, made in zip((0.3, 0.8, 1.5), plans, strict=True):
        assert made.disagreement == simulate.steady_disagreement(made.schedule) <= bound
    assert plans[0].seconds > plans[1].seconds > plans[2].seconds
    with pytest.raises(
        ValueError, match=r"max_disagreement: no schedule settles below 0.001; the least reached is 0\.\d"
    ):
        plan(topology, NBYTES, max_disagreement=0.001)


def test_nothing_considered_is_faster_and_mixes_as_well():
    made = plan(Topology.uniform(2, 4, B, B, 50e-6), NBYTES)
    seconds = [one.seconds for one in made.considered]
    assert seconds == sorted(seconds)
    assert len({one.schedule.digest() for one in made.considered}) == len(made.considered) > 10
    for one in made.considered:
        if one.seconds < made.seconds / 1.03:
            assert simulate.steady_disagreement(one.schedule) > planner.MAX_DISAGREEMENT
        assert one.schedule.contraction() < 1 - 1e-9


def test_group_size_of_the_caller():
    made = plan(Topology.uniform(2, 6, B, B), NBYTES, group_size=3)
    assert made.schedule.world == 12
    assert made.label.endswith("groups of 3")
    with pytest.raises(ScheduleError, match="group_size: expected 2 to 12"):
        plan(Topology.uniform(2, 6, B, B), NBYTES, group_size=13)


def test_ddp_is_recommended_where_it_hides_its_communication():
    fast = Topology.uniform(1, 16, 40 * B, latency=5e-6)
    made = plan(fast, NBYTES, compute=0.100)
    assert made.ring_seconds == pytest.approx(0.100)
    assert made.use_ddp
    assert made.reason.startswith("use DDP: the best schedule saves nothing of a step, less than the 10% worth having")
    # the same network with nothing to hide behind, and the same work on a slow network
    assert not plan(fast, NBYTES).use_ddp
    assert not plan(Topology.uniform(1, 16, B), NBYTES, compute=0.010).use_ddp


def test_ddp_is_recommended_for_two_workers_and_one():
    two = plan(Topology.uniform(1, 2, B), NBYTES)
    assert (two.use_ddp, two.gain) == (True, pytest.approx(1))
    one = plan(Topology.uniform(1, 1, B), NBYTES)
    assert one.use_ddp
    assert one.schedule.rounds == (((0,),),)
    assert one.gain == 1.0


def test_overlap_hides_what_compute_is_long_enough_for():
    topology = Topology.uniform(1, 16, B)
    assert plan(topology, NBYTES, compute=0.2).seconds == pytest.approx(0.2801)
    hidden = plan(topology, NBYTES, compute=0.2, overlap="snapshot")
    assert hidden.seconds == pytest.approx(0.2)
    assert hidden.disagreement == pytest.approx(simulate.steady_disagreement(hidden.schedule) + 15 / 16)
    assert hidden.disagreement <= planner.MAX_DISAGREEMENT


def test_a_hierarchical_all_reduce_that_is_as_good_is_named():
    topology = Topology(((0, 1, 2, 3), (4, 5, 6, 7)), (B,) * 8, (B / 8, B / 8), 0.0, 0.0)
    made = plan(topology, NBYTES, max_disagreement=0.2)
    assert made.hierarchical_seconds < 0.9 * made.ring_seconds
    assert made.use_ddp
    assert made.reason.endswith("; an all-reduce that knows the racks saves 32%, with the exact mean")
    assert "knows the racks" not in plan(topology, NBYTES).reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbytes": 0}, "nbytes: expected a positive number; got 0"),
        ({"compute": -1}, "compute: expected 0 seconds or more; got -1"),
        ({"overlap": "backward"}, "overlap: expected none or snapshot; got 'backward'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**{"topology": Topology.uniform(1, 4, B), "nbytes": NBYTES, **options})


def test_json_holds_the_schedule():
    made = plan(Topology.uniform(2, 2, B, B / 2), NBYTES)
    content = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert Schedule.from_json(content["schedule"]) == made.schedule
    assert Topology.from_json(content["topology"]) == made.topology
    assert content["digest"] == made.schedule.digest()
    assert content["gain"] == made.gain


def test_every_rank_makes_the_same_plan():
    for topology in (Topology.uniform(2, 4, B, B), slow_nic(8)):
        assert plan(topology, NBYTES).schedule.digest() == plan(topology, NBYTES).schedule.digest()


def test_measured_noise_does_not_change_the_plan_by_much():
    """Plans for bandwidths some percent off predict times some percent off."""
    made = plan(Topology.uniform(2, 4, B, B), NBYTES)
    noisy = Topology(((0, 1, 2, 3), (4, 5, 6, 7)), tuple(B * (1 + 0.01 * (r % 3)) for r in range(8)), (0.97 * B, B))
    again = plan(noisy, NBYTES)
    assert again.seconds == pytest.approx(made.seconds, rel=0.06)
    assert planner.predict(made.schedule, noisy, NBYTES) == pytest.approx(again.seconds, rel=0.06)


# ---- second half of the hysteresis


def test_replan_only_for_a_gain():
    flat = Topology.uniform(1, 8, B, latency=0.0)
    current = plan(flat, NBYTES).schedule
    assert replan(current, flat, NBYTES) is None
    assert replan(current, Topology.uniform(1, 8, B / 2, latency=0.0), NBYTES) is None  # slower, but for all alike
    new = replan(current, slow_nic(8), NBYTES)
    assert new is not None
    assert new.seconds < 0.9 * planner.predict(current, slow_nic(8), NBYTES)
    assert new.schedule != current
    assert replan(new.schedule, slow_nic(8), NBYTES) is None  # it stays with what it chose


def test_two_networks_in_turn_do_not_make_plans_take_turns_unless_it_pays():
    current = plan(slow_nic(8, 0.6), NBYTES).schedule
    for part in (0.62, 0.58, 0.65, 0.55):
        assert replan(current, slow_nic(8, part), NBYTES) is None

"""Schedules: partitions of any world, that mix, the same everywhere."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specfast.dssync.partitions import GroupMeans, components, contraction
from specfast.dssync.schedule import KINDS, Schedule, ScheduleError, check, for_some, make_schedule, with_absent
from specfast.dssync.topology import Topology

quick = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def racks_of(*sizes: int) -> Topology:
    ends = np.cumsum(sizes).tolist()
    racks = tuple(tuple(range(end - size, end)) for end, size in zip(ends, sizes, strict=True))
    return Topology(racks, (1.0,) * ends[-1], (1.0,) * len(sizes))


def matrix(partition, world: int) -> np.ndarray:
    """The mixing matrix, written out."""
    mixing = np.zeros((world, world))
    for group in partition:
        mixing[np.ix_(group, group)] = 1 / len(group)
    return mixing


def product(rounds, world: int) -> np.ndarray:
    result = np.eye(world)
    for partition in rounds:
        result = matrix(partition, world) @ result
    return result


def assert_sound(schedule: Schedule) -> None:
    """Every round holds every rank once in canonical order, and the period mixes."""
    for partition in schedule.rounds:
        assert sorted(rank for group in partition for rank in group) == list(range(schedule.world))
        assert all(group == tuple(sorted(group)) for group in partition)
        assert list(partition) == sorted(partition)
    assert schedule.contraction() < 1 - 1e-9


def sizes_of(schedule: Schedule) -> set[int]:
    return {len(group) for partition in schedule.rounds for group in partition}


@pytest.mark.parametrize("kind", ["grid", "ragged", "random"])
@pytest.mark.parametrize("world", range(2, 65))
def test_every_world_and_group_size_mixes_and_leaves_nobody_alone(kind, world):
    for group_size in range(2, world + 1) if world < 24 else (2, 3, 4, 5, 7, 8, 16, world // 2, world - 1, world):
        schedule = make_schedule(kind, world, group_size, seed=world)
        assert_sound(schedule)
        assert min(sizes_of(schedule)) >= 2
        assert max(sizes_of(schedule)) <= min(world, max(3, 2 * group_size))


@quick
@given(
    world=st.integers(2, 1024),
    group_size=st.integers(2, 64),
    kind=st.sampled_from(["grid", "ragged", "random"]),
    seed=st.integers(0, 2**40),
)
def test_large_worlds(world, group_size, kind, seed):
    schedule = make_schedule(kind, world, min(world, group_size), seed=seed)
    assert_sound(schedule)
    assert min(sizes_of(schedule)) >= 2
    assert make_schedule(kind, world, min(world, group_size), seed=seed) == schedule


@quick
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    group_size=st.integers(2, 8),
    every=st.integers(1, 6) | st.none(),
    kind=st.sampled_from(["racks", "emissary"]),
)
def test_racks_of_any_sizes(sizes, group_size, every, kind):
    """Nothing is accepted that does not mix, and nothing refused but columns that are all there is."""
    topology = racks_of(*sizes)
    world = topology.world
    try:
        schedule = make_schedule(kind, world, min(group_size, world), topology=topology, every=every)
    except ScheduleError as error:
        assert "never mixes" in str(error)  # noqa: PT017 - the other cases pass
        assert (kind, every) == ("racks", 1)
        return
    assert_sound(schedule)
    for number, partition in enumerate(schedule.rounds):
        if every is not None and number % every != every - 1:
            assert all(len({topology.rack_of[rank] for rank in group}) == 1 for group in partition)


@quick
@given(
    world=st.integers(3, 40),
    group_size=st.integers(2, 6),
    joins=st.dictionaries(st.integers(0, 39), st.integers(1, 9), max_size=3),
    rest=st.integers(0, 3),
)
def test_any_slow_workers(world, group_size, joins, rest):
    joins = {rank: every for rank, every in joins.items() if rank < world}
    schedule = make_schedule("grid", world, min(group_size, world))
    try:
        away = with_absent(schedule, joins, rest=rest)
    except ScheduleError as error:
        assert "never mixes" in str(error)  # noqa: PT017 - the other cases pass
        assert rest or len(joins) > 1  # one slow worker alone always meets somebody
        return
    assert_sound(away)
    for rank, every in joins.items():
        met = [number for number in range(len(away.rounds)) if len(away.group_of(rank, number)) > 1]
        assert len(met) <= len(away.rounds) / every
        if rest == 0 and len(joins) == 1:
            assert len(met) == len(away.rounds) / every


@pytest.mark.parametrize(
    ("world", "group_size", "axes"),
    [(4, 2, (2, 2)), (12, 3, (3, 4)), (16, 4, (4, 4)), (16, 2, (2,) * 4), (24, 3, (2, 3, 4)), (64, 8, (8, 8))],
)
def test_grid_is_exact_in_any_window_of_as_many_rounds_as_axes(world, group_size, axes):
    schedule = make_schedule("grid", world, group_size)
    assert sorted(len(partition[0]) for partition in schedule.rounds) == sorted(axes)
    for start in range(len(axes)):
        window = [schedule.partition(start + number) for number in range(len(axes))]
        np.testing.assert_allclose(product(window, world), 1 / world, atol=1e-15)
    assert schedule.contraction() < 1e-12


def test_paper_example_of_four():
    assert make_schedule("grid", 4, 2).rounds == (((0, 1), (2, 3)), ((0, 2), (1, 3)))


@pytest.mark.parametrize(
    ("world", "worst"),
    [(5, 0.028), (7, 0.028), (11, 0.063), (13, 0.025), (17, 0.0225), (31, 0.016), (127, 0.0069)],
)
def test_ragged_grid_worst_case(world, worst):
    """V'/V of one cycle of rows and columns is at worst the squared second singular value."""
    schedule = make_schedule("ragged", world, round(world**0.5))
    assert len(schedule.rounds) == 2
    assert schedule.contraction() ** 2 == pytest.approx(worst, rel=0.02)
    dense = np.linalg.svd(product(schedule.rounds, world), compute_uv=False)[1]
    assert schedule.contraction() == pytest.approx(dense, abs=1e-12)


@pytest.mark.parametrize("world", [7, 13, 31, 97, 1021])
def test_prime_worlds_are_doubly_stochastic_means(world):
    schedule = make_schedule("grid", world, 4 if world < 100 else 32)
    x = np.random.default_rng(0).standard_normal(world)
    for partition in schedule.rounds:
        averaged = GroupMeans(partition)(x)
        assert averaged.mean() == pytest.approx(x.mean(), abs=1e-12)
        np.testing.assert_allclose(averaged, [x[list(g)].mean() for r in range(world) for g in partition if r in g])
    assert any("ragged" in note for note in schedule.notes)


def test_grid_says_what_it_did_when_the_group_size_does_not_divide():
    assert make_schedule("grid", 16, 4).notes == ()
    assert make_schedule("grid", 12, 3).notes == ("grid of 3 x 4: groups of 3 or 4 where 3 was asked for",)
    ragged, shape = make_schedule("grid", 11, 3).notes
    assert ragged == "11 has no factors near 3: a ragged grid"
    assert shape == "grid of 3 x 3 and 2 sharing places: groups of 3 or 4 where 3 was asked for"


@pytest.mark.parametrize("world", [97, 2500])
def test_contraction_by_iteration_and_by_decomposition_agree(world, monkeypatch):
    schedule = make_schedule("ragged", world, 5)
    direct = contraction(schedule.rounds, world)
    monkeypatch.setattr("specfast.dssync.partitions._DENSE", 1)
    assert contraction(schedule.rounds, world) == pytest.approx(direct, rel=1e-3)
    grid = make_schedule("grid", 64, 2)
    assert contraction(grid.rounds, 64) < 1e-9
    static = make_schedule("static", 64, 2, allow_static=True)
    assert contraction(static.rounds, 64) == pytest.approx(1, abs=1e-9)


# ---- what must be refused


def test_static_groups_are_refused_unless_they_are_the_control():
    with pytest.raises(ScheduleError, match=r"'static': it never mixes .* ranks \{0, 1\} and ranks \{2, 3\}; 4 sets"):
        make_schedule("static", 8, 2)
    static = make_schedule("static", 8, 2, allow_static=True)
    assert static.contraction() == pytest.approx(1)
    with pytest.raises(ScheduleError):
        check(static)


def test_emissaries_that_take_turns_by_halves_are_refused():
    """Half of each rack crosses, then the other half: two separate worlds, though everybody crosses all the time."""
    with pytest.raises(ScheduleError, match=r"nothing passes between ranks \{0, 1, 4, 5\} and ranks \{2, 3, 6, 7\}"):
        make_schedule("emissary", 8, 4, topology=racks_of(4, 4), emissaries=2, rotation=2)
    assert make_schedule("emissary", 8, 4, topology=racks_of(4, 4), emissaries=2).contraction() < 0.9
    assert make_schedule("emissary", 4, 2, topology=racks_of(2, 2)).contraction() < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ring", 4), "kind: expected one of grid, ragged, random, racks, emissary, static; got 'ring'"),
        (("grid", 0), "world: expected one rank or more; got 0"),
        (("grid", 4, 1), "group_size: expected 2 to 4, the number of ranks; got 1"),
        (("grid", 4, 5), "group_size: expected 2 to 4, the number of ranks; got 5"),
        (("racks", 4, 2), "topology: kind 'racks' needs to know the racks; got None"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ScheduleError) as caught:
        make_schedule(*arguments)
    assert str(caught.value) == message


def test_wrong_options():
    topology = racks_of(4, 4)
    for options, message in [
        ({"kind": "grid", "every": 2}, "every: belongs to kind racks and emissary; got kind 'grid'"),
        ({"kind": "racks", "rounds": 2}, "rounds: belongs to kind random; got kind 'racks'"),
        ({"kind": "emissary", "emissaries": 5}, "emissaries: expected 1 to 4"),
        ({"kind": "emissary", "every": 0}, "every: expected 1 or more; got 0"),
        ({"kind": "racks", "world": 6}, "topology: expected 6 ranks, the world; got 8"),
    ]:
        with pytest.raises(ScheduleError, match=message):
            make_schedule(**{"world": 8, "group_size": 4, "topology": topology, **options})
    with pytest.raises(ScheduleError, match="expected two racks or more"):
        make_schedule("emissary", 8, 4, topology=racks_of(8))


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([], "rounds: expected at least one; got none"),
        ([[[0, 1], [2]]], "round 0: expected each of the ranks 0 to 3 once; got missing 3"),
        ([[[0, 1], [2, 3]], [[0, 1], [1, 2, 3]]], "round 1: expected each of the ranks 0 to 3 once; got doubled 1"),
        ([[[0, 1], [2, 3, 7]]], "round 0: expected each of the ranks 0 to 3 once; got outside 7"),
        ([[[0, 1, 2, 3], []]], "round 0: a group is empty; expected at least one rank in each"),
    ],
)
def test_what_is_no_partition_is_no_schedule(rounds, message):
    with pytest.raises(ScheduleError) as caught:
        Schedule(4, rounds, "mine")
    assert str(caught.value) == message


# ---- racks


@pytest.mark.parametrize("members", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_racks_reach_exact_consensus(count, members):
    topology = racks_of(*[members] * count)
    schedule = make_schedule("racks", topology.world, members, topology=topology)
    assert schedule.contraction() < 1e-12
    home, *columns = schedule.rounds
    assert home == topology.racks
    assert all(len({topology.rack_of[rank] for rank in group}) == len(group) for part in columns for group in part)


@pytest.mark.parametrize("rotation", [None, 2, 8])
@pytest.mark.parametrize(("members", "emissaries"), [(8, 1), (8, 2), (16, 1)])
def test_difference_between_racks_contracts_as_derived(members, emissaries, rotation):
    """By 1 - q/(M - q) a round, however many sets of emissaries take turns."""
    topology = racks_of(members, members)
    rotation = rotation and min(rotation, members // emissaries)
    schedule = make_schedule(
        "emissary", 2 * members, members, topology=topology, emissaries=emissaries, rotation=rotation
    )
    x = np.repeat([1.0, -1.0], members)
    expected = 1.0
    for number in range(3 * len(schedule.rounds)):
        partition = schedule.partition(number)
        crossing = [group for group in partition if topology.rack_of[group[0]] != topology.rack_of[group[-1]]]
        assert len(crossing) == emissaries
        assert all(len(group) == 2 for group in crossing)
        x = GroupMeans(partition)(x)
        at_home = [rank for rank in range(members) if rank not in {r for group in crossing for r in group}]
        np.testing.assert_allclose(x[at_home], expected)
        expected *= 1 - emissaries / (members - emissaries)


def test_emissaries_cross_in_each_fourth_round_only():
    topology = racks_of(8, 8)
    schedule = make_schedule("emissary", 16, 8, topology=topology, every=4)
    for number in range(2 * len(schedule.rounds)):
        crossing = [g for g in schedule.partition(number) if g[0] < 8 <= g[-1]]
        assert len(crossing) == (1 if number % 4 == 3 else 0)
        assert number % 4 == 3 or schedule.partition(number) == topology.racks


@pytest.mark.parametrize("sizes", [(2, 1), (1, 3), (4, 1, 1), (1, 1), (1, 5, 2, 1)])
def test_emissaries_of_the_larger_racks_take_turns_where_another_has_one_member(sizes):
    topology = racks_of(*sizes)
    schedule = make_schedule("emissary", topology.world, 2, topology=topology)
    assert_sound(schedule)
    crossing = {rank for group in schedule.groups() for rank in group if len({topology.rack_of[r] for r in group}) > 1}
    for rack in topology.racks:
        assert len(crossing & set(rack)) == min(2, len(rack))


def test_emissaries_of_many_racks_meet_all_other_racks():
    topology = racks_of(4, 4, 4, 4)
    schedule = make_schedule("emissary", 16, 4, topology=topology)
    crossing = {
        tuple(topology.rack_of[rank] for rank in group)
        for group in schedule.groups()
        if topology.rack_of[group[0]] != topology.rack_of[group[-1]]
    }
    assert len(components([tuple(crossing)], 4)) == 1
    assert all(len(racks) == 2 for racks in crossing)
    assert max(sum(rank in group for group in schedule.groups()) for rank in range(16)) <= len(schedule.rounds)


# ---- slow workers


def test_slow_worker_joins_one_round_in_four_and_meets_everybody_in_turn():
    schedule = with_absent(make_schedule("grid", 16, 2), {5: 4})
    joined = [number for number in range(len(schedule.rounds)) if len(schedule.group_of(5, number)) > 1]
    assert len(joined) == len(schedule.rounds) / 4
    assert [number // 4 for number in joined] == list(range(len(joined)))
    assert {number % 4 for number in joined} == {0, 1, 2, 3}  # along every axis of the grid
    assert 0 < schedule.contraction() < 1
    assert schedule.notes == ("rank 5 joins one round in 4",)


def test_partners_of_a_slow_worker_rest_and_those_left_alone_find_each_other():
    grid = make_schedule("grid", 16, 2)
    schedule = with_absent(grid, {5: 4}, rest=3)
    assert schedule.contraction() < 1
    assert set(schedule.groups()) - set(grid.groups())
    for number in range(len(schedule.rounds), 2 * len(schedule.rounds)):
        resting = {rank for before in (1, 2, 3) for rank in schedule.group_of(5, number - before)} - {5}
        alone = {group[0] for group in schedule.partition(number) if len(group) == 1}
        assert resting <= alone
        # the one whose partner is slow and the one whose partner rests average with each other
        assert len(alone - resting - {5}) <= 1


def test_wrong_slow_workers():
    schedule = make_schedule("grid", 4, 2)
    assert with_absent(schedule, {}) is schedule
    for slow, rest, message in [
        ({4: 2}, 0, "slow: expected ranks 0 to 3; got 4"),
        ({1: 0}, 0, "slow: rank 1: expected to join every 1, 2, 3, ... rounds; got 0"),
        ({1: 2}, -1, "rest: expected 0 or more rounds; got -1"),
    ]:
        with pytest.raises(ScheduleError) as caught:
            with_absent(schedule, slow, rest=rest)
        assert str(caught.value) == message


# ---- those who are left


def test_a_schedule_for_some_of_the_ranks_is_made_in_the_same_way():
    racks = racks_of(4, 4)
    options = {"every": 4, "emissaries": 2, "rotation": 2}
    schedule = with_absent(make_schedule("emissary", 8, 4, topology=racks, **options), {6: 2})
    left = for_some(schedule, [7, 6, 5, 4, 2, 1, 0])
    expected = with_absent(make_schedule("emissary", 7, 4, topology=racks_of(3, 4), **options), {5: 2})
    assert left == expected
    assert left.notes == expected.notes
    again = for_some(left, [0, 3, 4, 5])  # and one of those left is lost, and so on
    options["emissaries"] = 1
    expected = make_schedule("emissary", 4, 4, topology=racks_of(1, 3), **options)
    assert again == with_absent(expected, {3: 2})
    assert for_some(again, [1, 2]) == make_schedule("grid", 2, 2)  # there are no two racks any more
    assert for_some(schedule, range(8)) is schedule
    assert for_some(schedule, [6]).rounds == (((0,),),)


@pytest.mark.parametrize(
    ("kind", "options"), [("grid", {}), ("ragged", {}), ("random", {"seed": 4, "rounds": 7}), ("static", {})]
)
def test_a_schedule_for_some_of_the_ranks_without_racks(kind, options):
    static = {"allow_static": kind == "static"}
    schedule = make_schedule(kind, 12, 3, **options, **static)
    assert for_some(schedule, range(1, 12)) == make_schedule(kind, 11, 3, **options, **static)
    assert for_some(schedule, [3, 8]).groups() == ((0, 1),)


def test_rounds_that_were_given_become_a_grid_for_some_of_the_ranks():
    given = Schedule(6, [[[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]]], "mine")
    assert for_some(given, range(5)) == make_schedule("grid", 5, 3)


@quick
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    kind=st.sampled_from(["racks", "emissary", "grid", "random"]),
    every=st.integers(2, 4) | st.none(),
    rotation=st.integers(1, 4) | st.none(),
    slow=st.dictionaries(st.integers(0, 19), st.integers(1, 5), max_size=2),
    rest=st.integers(0, 2),
    draw=st.randoms(use_true_random=False),
)
def test_whoever_is_left_mixes(sizes, kind, every, rotation, slow, rest, draw):
    topology = racks_of(*sizes)
    world = topology.world
    options = {"every": every} if kind in ("racks", "emissary") else {}
    options |= {"rotation": rotation} if kind == "emissary" else {}
    try:
        schedule = make_schedule(kind, world, min(3, world), topology=topology, **options)
        schedule = with_absent(schedule, {rank: joins for rank, joins in slow.items() if rank < world}, rest=rest)
    except ScheduleError:
        return
    schedule = Schedule.from_json(json.loads(json.dumps(schedule.to_json())))
    for _ in range(4):
        left = draw.sample(range(world), draw.randint(1, world))
        made = for_some(schedule, left)
        assert made.world == len(left)
        assert_sound(made)


# ---- the object


def test_rounds_repeat_and_groups_have_one_order():
    schedule = make_schedule("grid", 6, 2)
    assert schedule.partition(0) == ((0, 1), (2, 3), (4, 5))
    assert schedule.partition(1) == schedule.partition(3) == ((0, 2, 4), (1, 3, 5))
    assert schedule.group_of(3, 0) == schedule.group_of(3, 2) == (2, 3)
    assert schedule.groups() == ((0, 1), (2, 3), (4, 5), (0, 2, 4), (1, 3, 5))
    away = with_absent(schedule, {0: 2})
    assert (0,) not in away.groups()
    assert away.group_of(0, 1) == (0,)


def test_one_worker_alone():
    for kind in KINDS:
        schedule = make_schedule(kind, 1)
        assert schedule.rounds == (((0,),),)
        assert schedule.groups() == ()
        assert schedule.contraction() == 0


def test_groups_in_any_order_are_made_canonical():
    schedule = Schedule(4, [[[3, 2], [1, 0]]], "mine")
    assert schedule.rounds == (((0, 1), (2, 3)),)
    assert schedule.digest() == Schedule(4, [[[0, 1], [2, 3]]], "another").digest()


def test_json_round_trip():
    schedule = with_absent(make_schedule("random", 13, 4, seed=3), {2: 3})
    again = Schedule.from_json(json.loads(json.dumps(schedule.to_json())))
    assert again == schedule
    assert again.notes == schedule.notes
    assert again.digest() == schedule.digest()
    assert again.origin == schedule.origin
    with pytest.raises(ScheduleError, match="got no rounds"):
        Schedule.from_json({"kind": "grid", "world": 2})


def test_digests_tell_schedules_apart():
    schedules = [make_schedule("random", 8, 2, seed=seed) for seed in range(20)] + [make_schedule("grid", 8, 2)]
    assert len({schedule.digest() for schedule in schedules}) == len(schedules)


def test_random_draws_are_fixed_for_good():
    """A run resumed under another Python or numpy must draw the same groups."""
    schedule = make_schedule("random", 12, 3, seed=7)
    assert schedule.digest()[:16] == "b416de191a8a7317"
    state = random.getstate()
    make_schedule("random", 12, 3, seed=8)
    assert random.getstate() == state


@pytest.mark.parametrize("world", [7, 12, 64])
def test_random_groups_have_near_equal_sizes(world):
    for group_size in (2, 3, 5):
        sizes = sizes_of(make_schedule("random", world, group_size))
        assert max(sizes) - min(sizes) <= 1
        assert math.isclose(world / round(world / group_size), max(sizes), abs_tol=1) or min(sizes) == 2
    assert len(make_schedule("random", world, 3, rounds=9).rounds) == 9


_REPORT = """
import sys
from specfast.dssync.schedule import make_schedule
print(*[make_schedule(kind, 24, 4, seed=5).digest() for kind in ("grid", "random")])
assert "torch" not in sys.modules, "schedules must not need torch"
"""


def test_every_process_makes_the_same_schedule_without_torch():
    digests = {
        subprocess.run(
            [sys.executable, "-c", _REPORT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    own = [make_schedule(kind, 24, 4, seed=5).digest() for kind in ("grid", "random")]
    assert digests == {" ".join(own) + "\n"}


def test_components_are_what_the_groups_connect():
    rounds = [((0, 1), (2,), (3, 4)), ((0,), (1, 2), (3,), (4,))]
    assert components(rounds, 5) == [(0, 1, 2), (3, 4)]


def test_second_singular_value_is_one_exactly_where_groups_stay_apart():
    for seed, world in itertools.product(range(12), (5, 8)):
        draw = np.random.default_rng(seed)
        rounds = []
        for _ in range(2):
            ends = np.sort(draw.choice(np.arange(1, world), 3, replace=False))
            rounds.append(tuple(tuple(map(int, part)) for part in np.split(draw.permutation(world), ends)))
        mixes = np.linalg.svd(product(rounds, world), compute_uv=False)[1] < 1 - 1e-9
        assert mixes == (len(components(rounds, world)) == 1)

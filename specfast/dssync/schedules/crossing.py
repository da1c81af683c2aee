"""Schedules for ranks in racks, where the links between racks are the slow ones.

``racks`` averages within the racks, then whole columns across them: right where the uplinks carry that. ``emissary``
lets few workers of a rack cross at a time while the others average at home: right where they do not. Both can keep all
at home for most rounds. Legend: R racks, M members of a rack.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

from specfast.dssync.partitions import Group, Partition, ScheduleError
from specfast.dssync.schedules.grid import exact_axes, grid, nearest_axes


def grid_rounds(world: int, group_size: int) -> tuple[Partition, ...]:
    """Return the exact grid of ``world`` places if there is one near ``group_size``, else the folded one."""
    axes = exact_axes(world, group_size) or nearest_axes(world, group_size)
    return grid(world, axes)


class _Home:
    """What a rack's members do among themselves: the rounds of a grid, some members away."""

    def __init__(self, rack: Group, group_size: int):
        self.rack = rack
        self.rounds = grid_rounds(len(rack), min(group_size, len(rack)))

    @functools.cache  # noqa: B019 - dies with the schedule being made; equal rounds share their groups
    def groups(self, number: int, away: frozenset[int] = frozenset()) -> tuple[Group, ...]:
        """Return the groups of a round; whoever is left alone by ``away`` joins the smallest other group."""
        groups = [
            tuple(self.rack[place] for place in group if self.rack[place] not in away)
            for group in self.rounds[number % len(self.rounds)]
        ]
        groups = sorted(filter(None, groups), key=len)
        while len(groups) > 1 and len(groups[0]) == 1:
            alone, nearest, *others = groups
            groups = sorted([alone + nearest, *others], key=len)
        return tuple(groups)


def racks(world: int, racks: Sequence[Group], group_size: int, every: int | None = None) -> tuple[Partition, ...]:
    """Return the rounds of home grids, then of columns across the racks; exact if all racks are of one size.

    Args:
        every: cross in each ``every``-th round only; None: once all rounds at home are done.
    """
    homes = [_Home(rack, group_size) for rack in racks]
    cycle = max(len(home.rounds) for home in homes)
    crossings = [
        [column for among in among_racks for column in _columns([racks[rack] for rack in among])]
        for among_racks in (grid_rounds(len(racks), min(group_size, len(racks))) if len(racks) > 1 else ())
    ]
    stay = [[group for home in homes for group in home.groups(number)] for number in range(cycle)]
    if every is None:
        rounds = [*([] if max(map(len, racks)) == 1 else stay), *crossings]
    else:
        rounds = _interleaved(stay, crossings, every)
    return tuple(tuple(map(tuple, groups)) for groups in rounds)


def _columns(racks: Sequence[Group]) -> list[list[int]]:
    """One member of each rack a column; members that a smaller rack has no counterpart for join columns in turn."""
    columns: list[list[int]] = [[] for _ in range(min(map(len, racks)))]
    for rack in racks:
        for place, rank in enumerate(rack):
            columns[place % len(columns)].append(rank)
    return columns


def _interleaved(stay: list, crossings: list, every: int) -> list:
    """Each ``every``-th round crosses; the rounds at home go on where they were, or start anew if all fit between."""
    if not crossings:
        return stay
    if every - 1 >= len(stay):
        return [
            crossings[number // every] if number % every == every - 1 else stay[number % every % len(stay)]
            for number in range(every * len(crossings))
        ]
    at_home = itertools.cycle(stay)
    length = math.lcm(every * len(crossings), len(stay) * every // math.gcd(len(stay), max(1, every - 1)))
    return [
        crossings[number // every % len(crossings)] if number % every == every - 1 else next(at_home)
        for number in range(length)
    ]


def emissary(
    world: int,
    racks: Sequence[Group],
    group_size: int,
    every: int = 1,
    emissaries: int = 1,
    rotation: int | None = None,
) -> tuple[Partition, ...]:
    """Return rounds in which ``emissaries`` members of each rack average with those of another one, the rest at home.

    Args:
        every: cross in each ``every``-th round only.
        rotation: how many different sets of emissaries a rack has; None: two, or the next number that lets every set
            meet every other rack. More sets mix no better and cost communicators. Where all of a rack are emissaries in
            turn without averaging at home in between, the partners shift as well. Racks with fewer sets begin anew.

    Raises:
        ScheduleError: more emissaries than a rack has members.
    """
    smallest = min(map(len, racks))
    if len(racks) < 2:
        raise ScheduleError("emissary: expected two racks or more to cross between; got 1")
    if not 1 <= emissaries <= smallest:
        raise ScheduleError(f"emissaries: expected 1 to {smallest}, the members of the smallest rack; got {emissaries}")
    meetings = grid_rounds(len(racks), 2)  # pairs of racks: the fewest bytes over an uplink
    if rotation is None:
        fitting = (
            sets
            for sets in range(2, smallest // emissaries + 1)
            if math.gcd(sets, len(meetings)) == 1 and sets * emissaries <= smallest
        )
        # the largest rack, since the others of a rack never meet one that is away in every round
        rotation = next(fitting, min(2, max(map(len, racks))))
        shifting = 2 * emissaries >= smallest and smallest > 1
    else:
        shifting = False
    homes = [_Home(rack, group_size) for rack in racks]
    coprime = math.gcd(rotation, len(meetings)) == 1
    crossings = rotation * len(meetings) * (rotation if shifting else 1)
    cycle = math.lcm(*(len(home.rounds) for home in homes))
    restart = every - 1 >= cycle
    length = every * crossings if restart else math.lcm(every * crossings, cycle)

    def crossing(number: int, at_home: int) -> list[Group]:
        meeting = meetings[number % len(meetings)]
        which = (number if coprime else number // len(meetings)) % rotation
        shift = number // (rotation * len(meetings)) % rotation if shifting else 0
        groups: list[Group] = []
        for among in meeting:
            sent = []
            for place, rack in enumerate(among):
                members = homes[rack].rack
                first = (which + (shift if place else 0)) * emissaries
                sent.append([members[(first + number) % len(members)] for number in range(emissaries)])
                groups += homes[rack].groups(at_home, frozenset(sent[-1]))
            groups += [tuple(pair) for pair in zip(*sent, strict=True)]
        return groups

    rounds = []
    for number in range(length):
        at_home = number % every if restart else number
        if number % every == every - 1:
            groups = crossing(number // every % crossings, at_home % cycle)
        else:
            groups = [group for home in homes for group in home.groups(at_home % cycle)]
        rounds.append(tuple(groups))
    return tuple(rounds)

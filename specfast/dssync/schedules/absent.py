"""Slow workers sit out most rounds alone, so that they hold nobody back."""

from __future__ import annotations

import math
from collections.abc import Mapping

from specfast.dssync.partitions import Partition, ScheduleError
from specfast.dssync.schedules.shuffled import group_sizes

_LONGEST = 256  # rounds of a period, unless the schedule given is longer


def absent(rounds: tuple[Partition, ...], world: int, slow: Mapping[int, int], rest: int = 0) -> tuple[Partition, ...]:
    """Return the rounds with rank r of ``slow`` in each ``slow[r]``-th only, a group of one in the others.

    The rounds it joins are spread over all rounds of the given schedule. After each, the members of its group sit out
    ``rest`` rounds, to catch up with those who did not wait for it.

    Raises:
        ScheduleError: a rank outside the world, or a period that is not a positive number.
    """
    for rank, every in slow.items():
        if not 0 <= rank < world:
            raise ScheduleError(f"slow: expected ranks 0 to {world - 1}; got {rank}")
        if every < 1 or every != int(every):
            raise ScheduleError(f"slow: rank {rank}: expected to join every 1, 2, 3, ... rounds; got {every!r}")
    if rest < 0:
        raise ScheduleError(f"rest: expected 0 or more rounds; got {rest}")
    common = math.lcm(*slow.values())
    length = len(rounds) * common
    if length > max(_LONGEST, math.lcm(len(rounds), common)):
        length = math.lcm(len(rounds), common)
    alone: list[set[int]] = [set() for _ in range(length)]
    for rank, every in slow.items():
        joined = _joins(len(rounds), every, length)
        for number in range(length):
            if number not in joined:
                alone[number].add(rank)
    for rank, every in slow.items():
        for number in _joins(len(rounds), every, length):
            group = next(group for group in rounds[number % len(rounds)] if rank in group)
            held = {member for member in group if member not in alone[number]} - set(slow)
            for after in range(1, min(rest, every - 1) + 1):
                alone[(number + after) % length] |= held
    made = []
    for number, away in enumerate(alone):
        base = rounds[number % len(rounds)]
        groups = [[rank] for rank in away]
        bereft = []
        for group in base:
            present = [rank for rank in group if rank not in away]
            if len(present) == 1 < len(group):
                bereft += present
            elif present:
                groups.append(present)
        made.append(tuple(map(tuple, groups + _regrouped(bereft, max(map(len, base))))))
    return tuple(made)


def _regrouped(ranks: list[int], group_size: int) -> list[list[int]]:
    """Those whose partners are all away average with each other."""
    left = iter(ranks)
    return [[next(left) for _ in range(size)] for size in group_sizes(len(ranks), group_size)] if ranks else []


def _joins(cycle: int, every: int, length: int) -> set[int]:
    """One round of each ``every``, chosen so that all rounds of the cycle get their turn."""
    taken = [0] * cycle
    joined = set()
    for start in range(0, length, every):
        number = min(range(start, start + every), key=lambda number: (taken[number % cycle], number))
        taken[number % cycle] += 1
        joined.add(number)
    return joined

"""Ranks as points of a grid: round j averages along axis j. Exact where the axes multiply to the number of ranks.

Where they do not, the surplus ranks are folded in: each shares the place of another rank, so a group has a few members
more, none is alone, and every round still is a plain mean (doubly stochastic). Legend: N ranks, m an axis' length.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

from specfast.dssync.partitions import Partition


@functools.lru_cache(maxsize=4096)
def exact_axes(world: int, group_size: int) -> tuple[int, ...] | None:
    """Return the axes nearest to ``group_size`` that multiply to ``world``; None if one is off by more than twofold."""
    if group_size >= world or world <= 3:
        return (world,)
    low, high = max(2, -(-group_size // 2)), 2 * group_size
    found = [axes for axes in _products(world, low, high) if math.prod(axes) == world and len(axes) > 1]
    return min(found, key=lambda axes: (_distance(axes, group_size), len(axes), axes), default=None)


@functools.lru_cache(maxsize=4096)
def nearest_axes(world: int, group_size: int) -> tuple[int, ...]:
    """Return the axes whose groups, with the surplus folded in, come nearest to ``group_size``."""
    if group_size >= world or world <= 3:
        return (world,)
    low, high = max(2, -(-group_size // 2)), 2 * group_size
    for shortest in (low, 2):  # axes far shorter than asked only where nothing else fits
        found = [axes for axes in _products(world, shortest, high) if len(axes) > 1 and 2 * math.prod(axes) > world]
        if found:
            break
    return min(found, key=lambda axes: (_folded_distance(axes, world, group_size), -math.prod(axes), len(axes), axes))


def _products(most: int, low: int, high: int) -> Iterator[tuple[int, ...]]:
    """Every rising tuple of axes in [low, high] whose product is at most ``most``."""
    for axis in range(low, min(high, most) + 1):
        yield (axis,)
        yield from ((axis, *rest) for rest in _products(most // axis, axis, high))


def _distance(sizes, group_size: int) -> float:
    return round(max(abs(math.log(size / group_size)) for size in sizes), 9)


def _folded_distance(axes: tuple[int, ...], world: int, group_size: int) -> float:
    places = math.prod(axes)
    largest = (axis + -(-(world - places) // (places // axis)) for axis in axes)
    return _distance((*axes, *largest), group_size)


def grid(world: int, axes: tuple[int, ...]) -> tuple[Partition, ...]:
    """Return one round an axis; neighboring ranks are neighbors on the first axis.

    Surplus ranks go to places whose coordinates add up to 0 modulo the longest axis (then 1, and so on): no two such
    places share a line of any axis, so no group gets two before every group could have one.
    """
    places = list(itertools.product(*(range(axis) for axis in reversed(axes))))  # the first axis runs fastest
    order = sorted(range(len(places)), key=lambda place: (sum(places[place]) % max(axes), place))
    tenants = [1] * len(places)
    for number in range(world - len(places)):
        tenants[order[number % len(order)]] += 1
    rounds = []
    for axis in range(len(axes)):
        lines: dict[tuple[int, ...], list[int]] = {}
        rank = 0
        for place, count in zip(places, tenants, strict=True):
            coordinate = len(axes) - 1 - axis
            line = lines.setdefault(place[:coordinate] + place[coordinate + 1 :], [])
            line += range(rank, rank + count)
            rank += count
        rounds.append(tuple(map(tuple, lines.values())))
    return tuple(rounds)

"""Groups drawn at random, from a generator of our own."""

from __future__ import annotations

import hashlib
import math

from specfast.dssync.partitions import Partition, components


def group_sizes(world: int, group_size: int) -> list[int]:
    """Return near-equal sizes around ``group_size``, none of them 1 (unless there is one rank only)."""
    groups = max(1, min(round(world / group_size), world // 2))
    return [world // groups + (number < world % groups) for number in range(groups)]


def shuffled(world: int, group_size: int, seed: int, rounds: int | None = None) -> tuple[Partition, ...]:
    """Return ``rounds`` random partitions that together connect all ranks (default: twice what a grid would need).

    Few and fixed, because each group is a communicator. Each draw sorts the ranks by a hash of (seed, draw, rank):
    the same on every machine and in every version of Python and numpy, and no other generator is touched.
    """
    if rounds is None:
        rounds = 1 if group_size >= world else max(4, 2 * math.ceil(math.log(world, max(2, group_size)) - 1e-9))
    sizes = group_sizes(world, group_size)
    for attempt in range(64):
        drawn = tuple(_draw(world, sizes, f"{seed}/{attempt}/{number}") for number in range(rounds))
        if len(components(drawn, world)) == 1:
            break
    return drawn  # never connected (too few rounds): the check names who never meets


def order(world: int, salt: str) -> list[int]:
    """Return the ranks in an order that looks random and is the same everywhere."""

    def key(rank: int) -> bytes:
        return hashlib.blake2b(f"{salt}/{rank}".encode(), digest_size=16).digest()

    return sorted(range(world), key=key)


def _draw(world: int, sizes: list[int], salt: str) -> Partition:
    ranks = iter(order(world, salt))
    return tuple(tuple(next(ranks) for _ in range(size)) for size in sizes)

"""Partitions of the ranks, and what averaging over their groups does to a vector with one number a rank.

Legend: N ranks, D columns, k groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from specfast.errors import SpecfastError

Group = tuple[int, ...]  # sorted ranks
Partition = tuple[Group, ...]  # every rank exactly once, sorted by the groups' first ranks

_DENSE = 1024  # groups up to which the singular values are computed rather than iterated


class ScheduleError(SpecfastError, ValueError):
    """A schedule cannot be made, or would not bring the workers together; the message says why."""


def as_partition(groups: Iterable[Iterable[int]], world: int, name: str = "partition") -> Partition:
    """Return the groups in canonical order.

    Raises:
        ScheduleError: a group is empty, or a rank is missing, doubled or outside the world.
    """
    partition = tuple(sorted(tuple(sorted(int(rank) for rank in group)) for group in groups))
    if () in partition:
        raise ScheduleError(f"{name}: a group is empty; expected at least one rank in each")
    ranks = sorted(rank for group in partition for rank in group)
    if ranks != list(range(world)):
        outside = sorted({rank for rank in ranks if not 0 <= rank < world})
        doubled = sorted({a for a, b in itertools.pairwise(ranks) if a == b})
        missing = sorted(set(range(world)) - set(ranks))
        wrong = [
            f"{what} {_shortened(which)}"
            for what, which in (("missing", missing), ("doubled", doubled), ("outside", outside))
            if which
        ]
        raise ScheduleError(f"{name}: expected each of the ranks 0 to {world - 1} once; got {', '.join(wrong)}")
    return partition


def _shortened(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")


class GroupMeans:
    """The mixing matrix of one partition, as a function: ``means(x [N, ...])`` puts each group's mean in its rows."""

    def __init__(self, partition: Partition):
        self.sizes = np.array([len(group) for group in partition])
        self.order = np.array([rank for group in partition for rank in group])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(x[self.order], self.starts, axis=0)
        means = sums / self.sizes.reshape(-1, *[1] * (x.ndim - 1))
        out = np.empty_like(means, shape=x.shape)
        out[self.order] = np.repeat(means, self.sizes, axis=0)
        return out

    def basis(self) -> np.ndarray:
        """Return [N, k], orthonormal columns that span the vectors the averaging leaves as they are."""
        columns = np.zeros((len(self.order), len(self.sizes)))
        columns[self.order, np.repeat(np.arange(len(self.sizes)), self.sizes)] = np.repeat(
            1 / np.sqrt(self.sizes), self.sizes
        )
        return columns


def components(partitions: Iterable[Partition], world: int) -> list[Group]:
    """Return the sets of ranks that the groups of all partitions connect, largest first."""
    parent = list(range(world))

    def root(rank: int) -> int:
        while parent[rank] != rank:
            parent[rank] = parent[parent[rank]]
            rank = parent[rank]
        return rank

    for group in {group for partition in partitions for group in partition}:
        for rank in group[1:]:
            parent[root(rank)] = root(group[0])
    sets: dict[int, list[int]] = {}
    for rank in range(world):
        sets.setdefault(root(rank), []).append(rank)
    return sorted((tuple(ranks) for ranks in sets.values()), key=lambda ranks: (-len(ranks), ranks))


def contraction(partitions: Sequence[Partition], world: int) -> float:
    """Return the second singular value of the product of the mixing matrices, the first partition applied first.

    It is the factor by which the disagreement (root of the mean squared distance to the mean) shrinks at least in one
    period: 0 is exact consensus, 1 means that some disagreement is never touched.
    """
    rounds = [GroupMeans(partition) for partition in partitions]
    first, last = rounds[0], rounds[-1]
    if min(len(first.sizes), len(last.sizes)) == 1:
        return 0.0
    if min(len(first.sizes), len(last.sizes)) > _DENSE:
        return _iterated(rounds, world)
    # only vectors constant on the first groups survive the first round, and the result is constant on the last groups
    if len(first.sizes) > len(last.sizes):  # the transpose has the same singular values, and is the rounds reversed
        rounds, first, last = rounds[::-1], last, first
    product = first.basis()
    for means in rounds[1:]:
        product = means(product)
    return float(min(1.0, np.linalg.svd(last.basis().T @ product, compute_uv=False)[1]))


def _iterated(rounds: Sequence[GroupMeans], world: int, width: int = 24, sweeps: int = 60) -> float:
    """Subspace iteration on the product and its transpose, within the vectors of mean zero."""
    x = np.random.Generator(np.random.Philox(0)).standard_normal((world, width))
    value = 0.0
    for _ in range(sweeps):
        x -= x.mean(axis=0)
        x = np.linalg.qr(x)[0]
        y = x
        for means in rounds:
            y = means(y)
        y -= y.mean(axis=0)
        before, value = value, float(np.linalg.norm(y, 2))
        if abs(value - before) <= 1e-6 * value or value < 1e-12:
            break
        for means in reversed(rounds):
            y = means(y)
        x = y
    return min(1.0, value)

"""From timed exchanges between pairs of workers to a topology: racks, uplinks, slow NICs. Pure arithmetic.

Legend: N ranks, R rounds of exchanges; a round is a set of disjoint pairs that exchange at the same time, in both
directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from specfast.dssync.partitions import Group
from specfast.dssync.schedules.shuffled import order
from specfast.dssync.topology import Topology

Pair = tuple[int, int]
Phase = Callable[[Sequence[Sequence[Pair]], int], np.ndarray]

GAP = 1.25  # links of different kind differ by this factor at least
_SLOW = 1.5  # a NIC is slow if the median is faster by this factor
_TOURNAMENTS = 3  # every pair meets in as many different companies, if there are rounds enough
_FULL = 0.8  # an uplink that passes this part of what the NICs could send is no bottleneck
_NEARER = 1.2  # a rack is nearer than another if its latency is less by this factor
_MOVES = 20  # rounds of moving points between clusters
_TINY = 8  # bytes of the messages that latency is measured with


def tournament(players: int) -> list[list[Pair]]:
    """Return rounds of disjoint pairs in which everybody meets everybody once (the circle method)."""
    seats: list[int | None] = [*range(players), *([None] if players % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], seats[: len(seats) // 2 - 1 : -1], strict=True)
        rounds.append(sorted((min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None))
        seats[1:] = [seats[-1], *seats[1:-1]]
    return rounds


def clusters(distance: np.ndarray, gap: float = GAP) -> list[list[int]]:
    """Split points by the largest jump between average distances, if it is at least ``log(gap)``.

    Clusters are merged in order of their average distance (unknown pairs, NaN, do not count); the merges beyond the
    largest jump are undone. Without such a jump all belong together.
    """
    size = len(distance)
    known = ~np.isnan(distance)
    np.fill_diagonal(known, False)
    sums, counts = np.where(known, distance, 0.0), known.astype(float)
    average = np.where(known, distance, np.inf)
    np.fill_diagonal(average, np.inf)
    merges: list[tuple[float, int, int]] = []
    for _ in range(size - 1):
        first, second = divmod(int(np.argmin(average)), size)
        height = average[first, second]
        if math.isinf(height):  # the rest was never compared
            break
        merges.append((float(height), first, second))
        for matrix in (sums, counts):
            matrix[first] += matrix[second]
            matrix[:, first] += matrix[:, second]
        average[second] = average[:, second] = np.inf
        row = np.where(counts[first] > 0, sums[first] / np.maximum(counts[first], 1), np.inf)
        row[np.isinf(average).all(axis=1)] = np.inf  # those merged before
        row[first] = np.inf
        average[first] = average[:, first] = row
    heights = np.array([height for height, _, _ in merges])
    jumps = np.diff(heights, prepend=min(0.0, heights[0]) if len(heights) else 0.0)
    kept = len(merges)
    if len(jumps) > 1 and jumps[1:].max() >= math.log(gap):
        kept = 1 + int(np.argmax(jumps[1:]))
    members = {number: [number] for number in range(size)}
    for _, first, second in merges[:kept]:
        members[first] += members.pop(second)
    return _settled(sorted(map(sorted, members.values())), np.where(known, distance, np.nan))


def _settled(found: list[list[int]], distance: np.ndarray) -> list[list[int]]:
    """Move points to the cluster they are nearest to, on average, until nothing moves: mends early wrong merges."""
    for _ in range(_MOVES if len(found) > 1 else 0):
        near = np.full((len(distance), len(found)), np.inf)
        for number, cluster in enumerate(found):
            to = distance[:, cluster]
            counts = np.sum(~np.isnan(to), axis=1)
            near[counts > 0, number] = np.nansum(to, axis=1)[counts > 0] / counts[counts > 0]
        own = np.empty(len(distance), dtype=int)
        for number, cluster in enumerate(found):
            own[cluster] = number
            if len(cluster) == 1:  # has no company to compare with
                near[cluster, number] = -np.inf
        best = np.where(near.min(axis=1) < near[np.arange(len(own)), own], near.argmin(axis=1), own)
        if np.array_equal(best, own):
            break
        found = [np.flatnonzero(best == number).tolist() for number in range(len(found))]
        found = sorted(filter(None, found))
    return found


def survey(world: int, phase: Phase, nbytes: int, *, most_rounds: int = 192) -> Topology:
    """Measure latency, bandwidths and uplinks by exchanges, and return the topology they show.

    All pairs of a round exchange at the same time, so that pairs on different sides of a slow cut share it and show it;
    pairs meet several times in different company, since a cut is slow only for many. Racks are the clusters of links
    by bandwidth, without any those by latency. Then all members of two racks exchange at once: racks whose uplinks turn
    out to be no bottleneck are none. A slow NIC looks alike from everywhere: its rack is the one with least latency.

    Args:
        world: number of ranks.
        phase: runs rounds of exchanges of a number of bytes and returns [R, N] seconds, NaN for who had no partner;
            the same numbers on all ranks.
        nbytes: size of the messages that bandwidth is measured with.
        most_rounds: bound on the rounds; in large worlds some pairs stay unmeasured.
    """
    rounds = _rounds(world, most_rounds)
    once = tournament(world) if len(rounds) < most_rounds else rounds[::_TOURNAMENTS]
    latency = _matrix(world, once, phase(once, _TINY), np.minimum)
    hop = float(np.nanmedian(latency))
    seconds = phase(rounds, nbytes)
    rate = nbytes / np.maximum(seconds - hop, seconds / 10)  # latency is noisy, and never most of a large message
    nic = np.nanmax(rate, axis=0)
    slow = [rank for rank in range(world) if nic[rank] * _SLOW < np.median(nic)]
    lost = np.log(nic / rate)  # a pair is as fast as the slower of both NICs: the smaller loss is the link's
    met = _matrix(world, rounds, np.ones_like(lost), np.add)
    distance = _matrix(world, rounds, lost, np.add) / met
    notes: list[str] = []
    racks = _racks(distance, latency, slow, notes)
    if len(racks) == 1:
        racks = _racks(np.log(latency / np.nanmin(latency)), latency, slow, notes)
    uplinks = _uplinks(racks, nic, phase, nbytes)
    if all(map(math.isinf, uplinks)):
        racks, uplinks, notes = (tuple(range(world)),), (math.inf,), []
    number = {rank: rack for rack, ranks in enumerate(racks) for rank in ranks}
    pairs = sorted({pair for meeting in once for pair in meeting})
    inside = [latency[pair] for pair in pairs if number[pair[0]] == number[pair[1]]]
    across = [latency[pair] for pair in pairs if number[pair[0]] != number[pair[1]]]
    hop = float(np.median(inside)) if inside else hop
    return Topology(racks, tuple(nic), uplinks, hop, float(np.median(across)) if across else hop, tuple(notes))


def _rounds(world: int, most: int) -> list[list[Pair]]:
    """Several tournaments, the players seated anew for each.

    Too many rounds for a large world: a third brings neighboring ranks together, which are likely in one rack (ranks
    whose numbers differ in the low bits), the others are spread over the tournaments.
    """
    rounds = []
    for number in range(_TOURNAMENTS):
        seat = order(world, f"tournament {number}") if number else range(world)
        for pairs in tournament(world):
            rounds.append(sorted((min(seat[a], seat[b]), max(seat[a], seat[b])) for a, b in pairs))
    if len(rounds) > most:
        near = [
            [(rank, rank ^ bits) for rank in range(world) if rank < rank ^ bits < world]
            for bits in range(1, 1 + most // _TOURNAMENTS)
        ]
        spread = np.linspace(0, len(rounds) - 1, most - len(near)).round().astype(int)
        rounds = near + [rounds[number] for number in spread]
    return rounds


def _matrix(world: int, rounds: Sequence[Sequence[Pair]], values: np.ndarray, merge: np.ufunc) -> np.ndarray:
    """[N, N] of every pair that met: the smaller value of both ends (who started later waited less), merged."""
    matrix = np.full((world, world), np.nan)
    for pairs, row in zip(rounds, values, strict=True):
        for a, b in pairs:
            value = max(min(row[a], row[b]), 1e-9)
            matrix[a, b] = matrix[b, a] = value if np.isnan(matrix[a, b]) else merge(matrix[a, b], value)
    return matrix


def _racks(distance: np.ndarray, latency: np.ndarray, slow: list[int], notes: list[str]) -> tuple[Group, ...]:
    fast = [rank for rank in range(len(distance)) if rank not in slow]
    racks = [[fast[place] for place in cluster] for cluster in clusters(distance[np.ix_(fast, fast)])]
    for rank in slow if len(racks) > 1 else ():
        hops = np.array([np.mean(met) if len(met := _known(latency[rank, rack])) else np.inf for rack in racks])
        nearest, other = np.sort(hops)[:2]
        if nearest * _NEARER < other:
            home = racks[int(np.argmin(hops))]
        else:
            home = min(racks, key=lambda rack: min(abs(rank - member) for member in rack if member not in slow))
            notes.append(f"rank {rank} has a slow NIC: its rack is a guess from the ranks beside it")
        home.append(rank)
    if len(racks) == 1:
        racks = [list(range(len(distance)))]
    return tuple(sorted(tuple(sorted(rack)) for rack in racks))


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _uplinks(racks: Sequence[Group], nic: np.ndarray, phase: Phase, nbytes: int) -> tuple[float, ...]:
    """What every rack sends when all its members exchange with another rack's; infinite if the NICs are the limit."""
    if len(racks) == 1:
        return (math.inf,)
    meetings = tournament(len(racks))
    rounds = [
        [(min(pair), max(pair)) for a, b in meeting for pair in zip(racks[a], racks[b], strict=False)]
        for meeting in meetings
    ]
    passed = np.zeros(len(racks))
    possible = np.zeros(len(racks))
    for meeting, pairs, row in zip(meetings, rounds, phase(rounds, nbytes), strict=True):
        rates = {pair: nbytes / min(row[pair[0]], row[pair[1]]) for pair in pairs}
        for a, b in meeting:
            own = [pair for pair in pairs if pair[0] in racks[a] + racks[b]]
            total = sum(rates[pair] for pair in own)
            limit = sum(min(nic[pair[0]], nic[pair[1]]) for pair in own)
            for rack in (a, b):
                if total > passed[rack]:
                    passed[rack], possible[rack] = total, limit
    return tuple(
        math.inf if total >= _FULL * limit else float(total) for total, limit in zip(passed, possible, strict=True)
    )

"""How long a round takes on a network: ring all-reduces in parallel, each as slow as its slowest link.

A ring over n workers sends 2 (n-1)/n S bytes over each of its edges, in 2 (n-1) hops of the latency alpha:
T = 2 (n-1)/n S/B + 2 (n-1) alpha. Rings of one round share the uplinks: an uplink's time is all bytes that leave (or
enter) its rack over its bandwidth. Rings follow the order of ranks, as communicators do.

All groups are timed as rings, also those of up to eight, which do not run as such (``specfast.dssync.exchange``). Two
exchange everything: the same bytes, in one hop where the model counts two. Three to eight send each other shards: the
same bytes through each NIC, in fewer hops, but each member sends to each, so more of them cross where such a group
spans racks (4 + 4 members: 2 S in the first half alone, where the ring of both halves has 1.75 S). So the model
overrates latency, and underrates groups of three to eight across an uplink; pairs across it it has right.

Legend: S bytes, B bytes/s, N ranks, k groups, R racks, M members of a rack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specfast.dssync.schedule import Schedule
from specfast.dssync.topology import Topology


def ring_time(workers: int, nbytes: float, bandwidth: float, latency: float = 0.0) -> float:
    """Return the seconds of a ring all-reduce of ``nbytes`` among workers on a flat network."""
    return 2 * (workers - 1) / workers * nbytes / bandwidth + 2 * (workers - 1) * latency


class _Edges:
    """The edges of rings along which groups average at the same time: who sends how many bytes to whom."""

    def __init__(self, groups: Sequence[Sequence[int]], topology: Topology, nbytes: float):
        self.sizes = np.array([len(group) for group in groups])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.source = np.array([rank for group in groups for rank in group])
        self.target = np.roll(self.source, -1)
        self.target[self.starts + self.sizes - 1] = self.source[self.starts]
        self.volume = np.repeat(2 * (self.sizes - 1) / self.sizes * nbytes, self.sizes)
        rack = np.asarray(topology.rack_of)
        self.leaving, self.entering = rack[self.source], rack[self.target]
        self.crosses = self.leaving != self.entering
        crossing, racks = self.volume[self.crosses], len(topology.racks)
        self.out = np.bincount(self.leaving[self.crosses], crossing, racks) / np.asarray(topology.uplink)
        self.into = np.bincount(self.entering[self.crosses], crossing, racks) / np.asarray(topology.uplink)


def round_times(groups: Sequence[Sequence[int]], topology: Topology, nbytes: float) -> np.ndarray:
    """Return [k] seconds that the groups take when they average at the same time, each along a ring in its order."""
    edges = _Edges(groups, topology, nbytes)
    bandwidth, crosses = np.asarray(topology.bandwidth), edges.crosses
    seconds = edges.volume / np.minimum(bandwidth[edges.source], bandwidth[edges.target])
    uplink = np.maximum(edges.out[edges.leaving[crosses]], edges.into[edges.entering[crosses]])
    seconds[crosses] = np.maximum(seconds[crosses], uplink)
    hop = np.where(np.logical_or.reduceat(crosses, edges.starts), topology.latency_across, topology.latency)
    return np.maximum.reduceat(seconds, edges.starts) + 2 * (edges.sizes - 1) * hop


def uplink_times(groups: Sequence[Sequence[int]], topology: Topology, nbytes: float) -> np.ndarray:
    """Return [R] seconds for which the averaging of the groups occupies each rack's uplink."""
    edges = _Edges(groups, topology, nbytes)
    return np.maximum(edges.out, edges.into)


def schedule_time(schedule: Schedule, topology: Topology, nbytes: float) -> float:
    """Return the mean seconds a round if all workers waited for the slowest group of each: an upper bound.

    Without a barrier a slow group holds back only those who meet its members later; see ``simulate.step_time``.
    """
    return float(np.mean([round_times(groups, topology, nbytes).max() for groups in schedule.rounds]))


def allreduce_time(topology: Topology, nbytes: float, order: Sequence[int] | None = None) -> float:
    """Return the seconds of one ring all-reduce over all ranks, in rank order or another one."""
    return float(round_times([order or range(topology.world)], topology, nbytes)[0])


def hierarchical_time(topology: Topology, nbytes: float) -> float:
    """Return the seconds of an all-reduce in three steps: scatter in the racks, shards across them, gather.

    The M shards of a rack cross at the same time, each in a ring over the racks.
    """
    racks = len(topology.racks)
    inside = across = 0.0
    for rack, uplink in zip(topology.racks, topology.uplink, strict=True):
        nic = min(topology.bandwidth[rank] for rank in rack)
        inside = max(inside, ring_time(len(rack), nbytes, nic, topology.latency))
        if racks > 1:
            over_uplink = ring_time(racks, nbytes, uplink, topology.latency_across)
            across = max(across, over_uplink, ring_time(racks, nbytes / len(rack), nic, topology.latency_across))
    return inside + across

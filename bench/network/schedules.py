"""Who averages with whom on each emulated cluster."""

from __future__ import annotations

from bench.network.clusters import Cluster
from specfast.dssync.planner import plan
from specfast.dssync.schedule import Schedule, make_schedule, with_absent
from specfast.dssync.topology import Topology

EVERY = 4  # rounds
KINDS = {  # and what they are for
    "two-phase": "",
    "grid": "",
    "static": "",
    "emissary": "racks",
    "every4": "racks or a slow link",
    "planned": "links of known rates",
}
MBIT = 125_000.0  # bytes


def topology_of(cluster: Cluster) -> Topology | None:
    """The network as the planner knows it; None where no link has a known rate."""
    if not cluster.shaped:
        return None
    uplink = float("inf") if cluster.uplink_mbit is None else cluster.uplink_mbit * MBIT
    return Topology(
        racks=cluster.racks,
        bandwidth=tuple(rate * MBIT for rate in cluster.nic_mbit),
        uplink=(uplink,) * len(cluster.racks),
        latency=1e-4 + 1e-3 * cluster.delay_ms,
        latency_across=1e-4 + 1e-3 * cluster.delay_ms,
    )


def schedule_of(kind: str, cluster: Cluster, message_bytes: int) -> Schedule:
    """Return the schedule of a kind for this cluster.

    two-phase: pairs of neighbors, then the same moved on by one (DS-Sync as first published, for 4 workers); grid: the
    default; static: the control; emissary: one pair crosses between the racks each round; every4: the slow link is
    used each fourth round; planned: what the planner finds.

    Raises:
        ValueError: an unknown kind, or one that needs a slow link where there is none.
    """
    world = cluster.workers
    if kind not in KINDS:
        raise ValueError(f"schedule: expected one of {', '.join(KINDS)}; got {kind!r}")
    if not fits(kind, cluster):
        raise ValueError(f"schedule: {kind!r} needs {KINDS[kind]}; cluster {cluster.name!r} has none")
    if kind == "two-phase":
        neighbors = tuple((rank, rank + 1) for rank in range(0, world, 2))
        shifted = ((0, world - 1), *((rank, rank + 1) for rank in range(1, world - 2, 2)))
        return Schedule(world, (neighbors, shifted), kind)
    if kind in ("grid", "static"):
        return make_schedule(kind, world, 2, allow_static=True)
    topology = topology_of(cluster)
    if kind == "planned":
        return plan(topology, message_bytes).schedule
    if len(cluster.racks) > 1:
        return make_schedule("emissary", world, 2, topology=topology, every=1 if kind == "emissary" else EVERY)
    return with_absent(make_schedule("grid", world, 2), dict.fromkeys(topology.slow_ranks(), EVERY))


def fits(kind: str, cluster: Cluster) -> bool:
    """Whether the cluster has what this kind of schedule is for."""
    if kind == "emissary":
        return len(cluster.racks) > 1
    if kind == "every4":
        return len(cluster.racks) > 1 or len(set(cluster.nic_mbit)) > 1
    return kind != "planned" or cluster.shaped

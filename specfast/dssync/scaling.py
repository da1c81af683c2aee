"""Step time and disagreement against the number of workers, for DS-Sync and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from specfast.dssync import planner, simulate
from specfast.dssync.schedule import make_schedule
from specfast.dssync.topology import GBIT, Topology

WORLDS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RING, HIERARCHICAL, LOCAL = "ring", "hierarchical", "local SGD"
GRID, PLANNED, OVERLAPPED = "DS-Sync, grid", "DS-Sync, planned", "DS-Sync, overlap"


@dataclass(frozen=True)
class Cluster:
    """A network that grows by racks, and what the workers on it do.

    Attributes:
        rack: workers in a full rack; smaller worlds are one rack.
        nic: bytes/s.
        oversubscription: how many times a rack's NICs exceed its uplink.
        latency: seconds a hop.
        nbytes: size of the parameters.
        compute: forward and backward of a step.
        group_size: of the grid; None: the square root of the world.
        every: steps between the averages of local SGD.
    """

    rack: int = 16
    nic: float = 10 * GBIT
    oversubscription: float = 4.0
    latency: float = 50e-6
    nbytes: float = 100e6
    compute: simulate.Compute = field(default_factory=simulate.Compute)
    group_size: int | None = None
    every: int = 8

    def topology(self, world: int) -> Topology:
        """Return the network of ``world`` workers; the last rack may be smaller."""
        sizes = [self.rack] * (world // self.rack) + ([world % self.rack] if world % self.rack else [])
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        return Topology(
            tuple(tuple(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)),
            (self.nic,) * world,
            tuple(size * self.nic / self.oversubscription if len(sizes) > 1 else math.inf for size in sizes),
            self.latency,
            self.latency,
        )


@dataclass(frozen=True)
class Point:
    """One strategy at one world size: seconds a step, steady-state disagreement (noise of variance 1 a step)."""

    world: int
    strategy: str
    detail: str
    seconds: float
    disagreement: float

    def to_json(self) -> dict:
        """Return the point as plain numbers and text."""
        return asdict(self)


def sweep(
    cluster: Cluster,
    worlds: Sequence[int] = WORLDS,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Point]:
    """Simulate all strategies at all world sizes.

    Args:
        cluster: network and work.
        worlds: numbers of workers, 2 or more each.
        steps: length of each time simulation; None: 64, or four periods of the schedule if that is more.
        seed: of the workers' jitter and stalls, the same for all strategies.
        progress: told what is being simulated.
    """
    if wrong := [world for world in worlds if world < 2]:
        raise ValueError(f"worlds: expected 2 workers or more; got {wrong[0]}")
    points = []
    for world in worlds:
        progress(f"{world} workers")
        topology = cluster.topology(world)

        def time(rounds: simulate.Rounds) -> float:
            return simulate.step_time(rounds, cluster.compute, steps=steps, seed=seed)

        for kind in (RING, HIERARCHICAL):
            rounds = simulate.of_allreduce(topology, cluster.nbytes, kind, overlap="backward")
            points.append(Point(world, kind, "all-reduce", time(rounds), 0.0))
        local = simulate.of_local_sgd(topology, cluster.nbytes, cluster.every)
        spread = (cluster.every - 1) / 2 * (1 - 1 / world)
        points.append(Point(world, LOCAL, f"average in one step of {cluster.every}", time(local), spread))
        grid = make_schedule("grid", world, cluster.group_size and min(cluster.group_size, world))
        rounds = simulate.of_schedule(grid, topology, cluster.nbytes)
        shape = " x ".join(str(len(groups[0])) for groups in grid.rounds)
        points.append(Point(world, GRID, shape, time(rounds), simulate.steady_disagreement(grid)))
        planned = [(PLANNED, "none")]
        if cluster.compute.seconds:  # else there is nothing to hide behind
            planned.append((OVERLAPPED, "snapshot"))
        for name, overlap in planned:
            made = planner.plan(topology, cluster.nbytes, compute=cluster.compute.seconds, overlap=overlap)
            rounds = simulate.of_schedule(made.schedule, topology, cluster.nbytes, overlap=overlap)
            points.append(Point(world, name, made.label, time(rounds), made.disagreement))
    return points

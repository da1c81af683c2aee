"""What a schedule does to thousands of workers, on one CPU: how far they drift apart, and how long steps take.

Consensus: every worker adds independent noise to its vector, then groups average. Time: a worker's group starts when
its last member arrives and ends for all together (max-plus), with stragglers, jitter and the network's bottlenecks.
Legend: N ranks, D independent copies simulated side by side, V = 1/N sum (x_i - mean)^2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specfast.dssync import cost
from specfast.dssync.partitions import GroupMeans, Partition
from specfast.dssync.schedule import Schedule
from specfast.dssync.topology import Topology

OVERLAPS = ("none", "backward", "snapshot")
_EXACT = 128  # ranks up to which a steady state is computed exactly
_SAMPLES = 16384  # N x D of a steady state beyond


def generator(seed: int) -> np.random.Generator:
    """Return a generator of its own; no global state is read or changed."""
    return np.random.Generator(np.random.Philox(seed))


def random_partitions(world: int, sizes: Sequence[int], seed: int) -> Iterator[Partition]:
    """Yield a freshly drawn partition into groups of the given sizes, without end."""
    if sum(sizes) != world:
        raise ValueError(f"sizes: expected them to add up to {world}, the world; got {sum(sizes)}")
    draw = generator(seed)
    ends = np.cumsum(sizes)[:-1]
    while True:
        ranks = draw.permutation(world)
        yield tuple(tuple(group.tolist()) for group in np.split(ranks, ends))


def variance(x: np.ndarray) -> float:
    """Return V of x [N, D], averaged over the D copies."""
    return float(np.mean((x - x.mean(axis=0)) ** 2))


def disagreement(
    rounds: Schedule | Iterable[Partition],
    steps: int,
    *,
    world: int | None = None,
    copies: int = 64,
    noise: float = 1.0,
    start: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Simulate steps and return V [steps] after the averaging of each.

    Args:
        rounds: a schedule, or partitions for as many steps.
        steps: how many.
        world: number of ranks; a schedule knows it.
        copies: independent simulations that V is the mean of.
        noise: standard deviation of what every worker adds before each averaging.
        start: standard deviation of the workers' values before the first step.
        seed: of the simulation's own generator.
    """
    if isinstance(rounds, Schedule):
        world = rounds.world
        period = [GroupMeans(partition) for partition in rounds.rounds]
        averages: Iterable[GroupMeans] = (period[step % len(period)] for step in range(steps))
    else:
        averages = map(GroupMeans, rounds)
    draw = generator(seed)
    x = start * draw.standard_normal((world, copies))
    values = np.empty(steps)
    for step, means in zip(range(steps), averages, strict=False):
        if noise:
            x += noise * draw.standard_normal(x.shape)
        x = means(x)
        values[step] = variance(x)
    return values


def steady_disagreement(schedule: Schedule, *, overlap: bool = False, longest: int = 4096) -> float:
    """Return the V that a schedule settles at when every worker's step adds noise of variance 1, mean over a period.

    With ``overlap`` the averaging works on the weights from before the step, whose own noise stays until the next one:
    V is more by that noise, 1 - 1/N.

    Below 1, workers differ by less than what one step of noise makes of them; averaging all in every h-th step would
    give (h - 1) / 2 (1 - 1/N). Up to 128 ranks the covariance of the ranks is followed, which is exact; beyond, a
    simulation with a sampling error of about a percent. Either ends when V has settled, or after ``longest`` steps:
    then the schedule hardly mixes, and V says so by being large.
    """
    period = [GroupMeans(partition) for partition in schedule.rounds]
    exact = schedule.world <= _EXACT
    values = (_covariance if exact else _sampled)(period, schedule.world)
    settled = _settled(values, len(period), 0.005 if exact else 0.02, longest)
    return settled + (1 - 1 / schedule.world if overlap else 0.0)


def _settled(values: Iterator[float], period: int, tolerance: float, longest: int) -> float:
    steps = max(16, 2 * period) // period * period
    before, taken = math.inf, 0
    while True:
        value = float(np.mean([next(values) for _ in range(steps)][-period * max(1, steps // 2 // period) :]))
        taken += steps
        if abs(value - before) <= tolerance * value or value < 1e-20 or taken + 2 * steps > longest:
            return value
        before, steps = value, 2 * steps


def _covariance(period: Sequence[GroupMeans], world: int) -> Iterator[float]:
    noise = np.eye(world) - 1 / world  # of what is left when the mean is taken away
    covariance = np.zeros((world, world))
    for means in itertools.cycle(period):
        covariance = means(means(covariance + noise).T)
        yield float(np.trace(covariance)) / world


def _sampled(period: Sequence[GroupMeans], world: int) -> Iterator[float]:
    draw = generator(0)
    x = np.zeros((world, max(4, _SAMPLES // world)), np.float32)
    for means in itertools.cycle(period):
        x = means(x + draw.standard_normal(x.shape, np.float32))
        yield variance(x)


@dataclass(frozen=True)
class Rounds:
    """The rounds of a strategy as the time simulation needs them.

    Attributes:
        groups: one partition a round.
        seconds: what each group's averaging takes, one array a round.
        name: for people.
        overlap: what the averaging hides behind: "none"; "backward" (gradients leave while the rest of the backward
            pass runs, as in DDP); "snapshot" (weights from before the step travel during forward and backward).
        floor: seconds a round that the busiest uplink needs for what passes it, whenever that happens. Groups of one
            round share it in ``seconds``; workers that run ahead share it with those of another round.
    """

    groups: tuple[Partition, ...]
    seconds: tuple[np.ndarray, ...]
    name: str
    overlap: str = "none"
    floor: float = 0.0

    def __post_init__(self):
        if self.overlap not in OVERLAPS:
            raise ValueError(f"overlap: expected one of {', '.join(OVERLAPS)}; got {self.overlap!r}")


def of_schedule(schedule: Schedule, topology: Topology, nbytes: float, *, overlap: str = "none") -> Rounds:
    """Return the rounds of a schedule, timed by the cost model."""
    distinct = set(schedule.rounds)
    seconds = {groups: cost.round_times(groups, topology, nbytes) for groups in distinct}
    uplinks = {groups: cost.uplink_times(groups, topology, nbytes) for groups in distinct}
    floor = float(np.mean([uplinks[groups] for groups in schedule.rounds], axis=0).max())
    return Rounds(schedule.rounds, tuple(seconds[groups] for groups in schedule.rounds), schedule.kind, overlap, floor)


def of_allreduce(topology: Topology, nbytes: float, kind: str = "ring", *, overlap: str = "none") -> Rounds:
    """Return the one round of a global all-reduce of kind "ring" or "hierarchical"."""
    functions: dict[str, Callable] = {"ring": cost.allreduce_time, "hierarchical": cost.hierarchical_time}
    if kind not in functions:
        raise ValueError(f"kind: expected ring or hierarchical; got {kind!r}")
    return Rounds(((tuple(range(topology.world)),),), (np.array([functions[kind](topology, nbytes)]),), kind, overlap)


def of_local_sgd(topology: Topology, nbytes: float, every: int) -> Rounds:
    """Return local SGD: a ring all-reduce in each ``every``-th step, nothing in between."""
    alone = tuple((rank,) for rank in range(topology.world))
    ring = of_allreduce(topology, nbytes)
    return Rounds(
        (alone,) * (every - 1) + ring.groups, (np.zeros(topology.world),) * (every - 1) + ring.seconds, "local SGD"
    )


@dataclass(frozen=True)
class Compute:
    """What the workers do between averagings.

    Attributes:
        seconds: forward and backward of a step.
        jitter: spread of each worker's step, standard deviation of the logarithm; the mean stays.
        stall: probability that a worker's step stalls, and the factor it then takes longer by.
        slow: rank -> factor by which it is always slower.
        backward: part of the step that the backward pass takes.
    """

    seconds: float = 0.0
    jitter: float = 0.0
    stall: tuple[float, float] = (0.0, 1.0)
    slow: Mapping[int, float] | None = None
    backward: float = 2 / 3

    def draw(self, world: int, draw: np.random.Generator) -> np.ndarray:
        """Return [N] seconds of one step."""
        taken = np.full(world, self.seconds)
        for rank, factor in (self.slow or {}).items():
            taken[rank] *= factor
        if self.jitter:
            taken *= np.exp(self.jitter * draw.standard_normal(world) - self.jitter**2 / 2)
        if self.stall[0]:
            taken[draw.random(world) < self.stall[0]] *= self.stall[1]
        return taken


def finish_times(rounds: Rounds, steps: int, compute: Compute | None = None, seed: int = 0) -> np.ndarray:
    """Simulate steps from time 0 and return [steps, N], when each worker is done with each."""
    compute = compute or Compute()
    world = sum(map(len, rounds.groups[0]))
    draw = generator(seed)
    layouts = {groups: GroupMeans(groups) for groups in set(rounds.groups)}
    period = [(layouts[groups], seconds) for groups, seconds in zip(rounds.groups, rounds.seconds, strict=True)]
    done = np.empty((steps, world))
    ready = np.zeros(world)
    for step in range(steps):
        layout, seconds = period[step % len(period)]
        taken = compute.draw(world, draw)
        arrived = ready + taken
        sending = {"none": arrived, "backward": arrived - compute.backward * taken, "snapshot": ready}[rounds.overlap]
        order, starts, sizes = layout.order, layout.starts, layout.sizes
        end = np.maximum.reduceat(sending[order], starts) + seconds
        if rounds.overlap == "backward":  # the last gradients leave when the slowest worker has them
            end = np.maximum(end, np.maximum.reduceat(arrived[order], starts))
        ready = np.empty(world)
        ready[order] = np.repeat(end, sizes)
        if rounds.overlap == "snapshot":
            ready = np.maximum(ready, arrived)
        done[step] = ready
    return done


def step_time(rounds: Rounds, compute: Compute | None = None, *, steps: int | None = None, seed: int = 0) -> float:
    """Return the seconds that a step takes in the long run: the slope of the second half of a simulation.

    Args:
        rounds: what is averaged when, from :func:`of_schedule`, :func:`of_allreduce` or :func:`of_local_sgd`.
        compute: the workers' own part.
        steps: length of the simulation, made whole periods; None: 64 steps or four periods, whichever is more.
    """
    period = len(rounds.groups)
    periods = max(2, -(-(steps or 64) // period)) if steps else max(4, -(-64 // period))
    half = periods // 2 * period
    latest = finish_times(rounds, 2 * half, compute, seed).max(axis=1)
    return max(rounds.floor, float((latest[-1] - latest[half - 1]) / half))

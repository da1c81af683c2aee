"""Which schedule to use on a network: candidates timed by the cost model, the fastest that mixes well enough.

The planner also says when not to use one: where the gain over the ring all-reduce of DistributedDataParallel is small,
the exact mean is the better choice. Its plan depends on its arguments alone, so every rank comes to the same one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specfast.dssync import simulate
from specfast.dssync.partitions import ScheduleError
from specfast.dssync.schedule import Schedule, make_schedule, with_absent
from specfast.dssync.topology import Topology

MAX_DISAGREEMENT = 1.5
MIN_GAIN = 0.10
_MANY = 512  # ranks beyond which fewer group sizes are tried
_TIE = 0.03  # candidates this near to the fastest are told apart by how well they mix


@dataclass(frozen=True)
class Candidate:
    """One schedule that was considered.

    Attributes:
        label: how it is made, in words.
        schedule: its rounds.
        seconds: predicted time of a step.
    """

    label: str
    schedule: Schedule
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What the planner found.

    Attributes:
        topology: what it was made for.
        schedule: the best schedule, also where DDP would be the better choice.
        label: how the schedule is made, in words.
        seconds: predicted time of a step with it.
        ring_seconds: of a step with DDP's ring all-reduce; hierarchical_seconds: with one that knows the racks.
        disagreement: steady state with noise of variance 1 a step (``simulate.steady_disagreement``).
        contraction: of one period, see :meth:`Schedule.contraction`.
        use_ddp: the gain is too small to give up the exact mean.
        reason: why, in a sentence.
        considered: all candidates, fastest first.
    """

    topology: Topology
    schedule: Schedule
    label: str
    seconds: float
    ring_seconds: float
    hierarchical_seconds: float
    disagreement: float
    contraction: float
    use_ddp: bool
    reason: str
    considered: tuple[Candidate, ...] = ()

    @property
    def gain(self) -> float:
        """How many times faster a step is than with DDP."""
        return self.ring_seconds / self.seconds if self.seconds else 1.0

    def to_json(self) -> dict:
        """Return the plan as plain numbers, text and lists."""
        return {
            "use_ddp": self.use_ddp,
            "reason": self.reason,
            "label": self.label,
            "schedule": self.schedule.to_json(),
            "digest": self.schedule.digest(),
            "contraction": self.contraction,
            "disagreement": self.disagreement,
            "seconds": self.seconds,
            "ring_seconds": self.ring_seconds,
            "hierarchical_seconds": self.hierarchical_seconds,
            "gain": self.gain,
            "topology": self.topology.to_json(),
            "considered": [{"label": one.label, "seconds": one.seconds} for one in self.considered],
        }


def plan(
    topology: Topology,
    nbytes: float,
    *,
    group_size: int | None = None,
    compute: float = 0.0,
    overlap: str = "none",
    max_disagreement: float = MAX_DISAGREEMENT,
    min_gain: float = MIN_GAIN,
) -> Plan:
    """Choose a schedule for a network and a message.

    Of the candidates whose steady-state disagreement is at most ``max_disagreement``, the one with the shortest step;
    among those within 3% of it, the one that disagrees least.

    Args:
        topology: racks, bandwidths and latency.
        nbytes: what one worker's average is made of: bytes of the parameters as they travel.
        group_size: how many average together; None: whatever is best.
        compute: seconds of a step's forward and backward. All-reduce hides behind the backward pass as in DDP; without
            ``compute`` the times are those of the synchronization alone.
        overlap: "none", or "snapshot" where the averaging runs during forward and backward: it hides the time, and
            adds nearly 1 to the disagreement.
        max_disagreement: bound on the workers' mean squared distance to their mean, in units of the noise that a step
            adds. The default is what averaging all in each fourth step would give.
        min_gain: saving below which DDP is recommended, as a part of its step.

    Raises:
        ScheduleError: the group size does not fit the world.
        ValueError: a number is out of range, or nothing mixes as well as asked for.
    """
    if not nbytes > 0:
        raise ValueError(f"nbytes: expected a positive number; got {nbytes}")
    if compute < 0:
        raise ValueError(f"compute: expected 0 seconds or more; got {compute}")
    if overlap not in ("none", "snapshot"):
        raise ValueError(f"overlap: expected none or snapshot; got {overlap!r}")
    work = simulate.Compute(compute)
    ring, hierarchical = (
        simulate.step_time(simulate.of_allreduce(topology, nbytes, kind, overlap="backward"), work)
        for kind in ("ring", "hierarchical")
    )
    considered = sorted(
        (
            Candidate(label, schedule, predict(schedule, topology, nbytes, compute=compute, overlap=overlap))
            for label, schedule in candidates(topology, group_size)
        ),
        key=lambda one: one.seconds,
    )
    best, disagreement = _choose(considered, max_disagreement, overlap == "snapshot")
    saved = 1 - best.seconds / ring if ring else 0.0
    use_ddp = saved < min_gain
    return Plan(
        topology,
        best.schedule,
        best.label,
        best.seconds,
        ring,
        hierarchical,
        disagreement,
        best.schedule.contraction(),
        use_ddp,
        _reason(saved, ring, hierarchical, best.seconds, min_gain),
        tuple(considered),
    )


def predict(
    schedule: Schedule, topology: Topology, nbytes: float, *, compute: float = 0.0, overlap: str = "none"
) -> float:
    """Return the predicted seconds of a step with a schedule, nobody waiting but for the members of its group."""
    return simulate.step_time(
        simulate.of_schedule(schedule, topology, nbytes, overlap=overlap), simulate.Compute(compute)
    )


def _choose(considered: Sequence[Candidate], most: float, overlap: bool) -> tuple[Candidate, float]:
    found: list[tuple[float, float, Candidate]] = []
    least = math.inf
    for one in considered:
        if found and one.seconds > (1 + _TIE) * found[0][2].seconds:
            break
        value = simulate.steady_disagreement(one.schedule, overlap=overlap)
        least = min(least, value)
        if value <= most:
            found.append((value, one.seconds, one))
    if not found:
        raise ValueError(f"max_disagreement: no schedule settles below {most:g}; the least reached is {least:.3g}")
    disagreement, _, best = min(found, key=lambda entry: entry[:2])
    return best, disagreement


def _reason(saved: float, ring: float, hierarchical: float, seconds: float, min_gain: float) -> str:
    if saved < min_gain:
        compared = f"saves {100 * saved:.0f}%" if saved > 0.005 else "saves nothing"
        text = f"use DDP: the best schedule {compared} of a step, less than the {100 * min_gain:.0f}% worth having"
    else:
        text = f"use DS-Sync: it saves {100 * saved:.0f}% of a step with DDP's all-reduce"
    if hierarchical < (1 - min_gain) * ring and (1 - min_gain) * hierarchical < seconds:
        rest = 100 * (1 - hierarchical / ring)
        text += f"; an all-reduce that knows the racks saves {rest:.0f}%, with the exact mean"
    return text


@functools.lru_cache(maxsize=2)  # planning twice for one network, with and without overlap, makes them once
def candidates(topology: Topology, group_size: int | None = None) -> tuple[tuple[str, Schedule], ...]:
    """Return a label and a schedule for everything worth trying on a network, each set of rounds once."""
    found: dict[str, tuple[str, Schedule]] = {}
    slow = topology.slow_ranks()
    for label, schedule in _candidates(topology, group_size):
        for how, one in ((label, schedule), *_with_slow_away(label, schedule, slow)):
            found.setdefault(one.digest(), (how, one))
    return tuple(found.values())


def _sizes(topology: Topology) -> list[int]:
    world = topology.world
    sizes = [2, 4, *map(len, topology.racks)]
    if world <= _MANY:
        sizes += [8, 16, round(world**0.5), 3]
    # one group of all is the all-reduce itself: worth a round only among few, where others rest
    return [size for size in dict.fromkeys(sizes) if 2 <= size < world or size == world <= 8]


def _candidates(topology: Topology, group_size: int | None) -> Iterator[tuple[str, Schedule]]:
    world = topology.world
    if world == 1:
        yield "one worker", make_schedule("grid", 1)
        return
    for size in _sizes(topology) if group_size is None else [group_size]:
        yield f"grid, groups of {size}", make_schedule("grid", world, size)
        if len(topology.racks) == 1:
            continue
        for every in (None, 2, 4, 8):
            when = "" if every is None else f", across in one round of {every}"
            yield from _made(f"racks, groups of {size}{when}", "racks", topology, size, every=every)
        for emissaries in (1, 2):
            for every in (1, 2, 4, 8):
                when = "" if every == 1 else f" in one round of {every}"
                label = f"{emissaries} emissar{'y' if emissaries == 1 else 'ies'} a rack{when}, groups of {size}"
                yield from _made(label, "emissary", topology, size, every=every, emissaries=emissaries)


def _made(label: str, kind: str, topology: Topology, size: int, **options) -> Iterator[tuple[str, Schedule]]:
    try:
        yield label, make_schedule(kind, topology.world, size, topology=topology, **options)
    except ScheduleError:  # does not fit these racks, or would never mix
        return


def _with_slow_away(label: str, schedule: Schedule, slow: dict[int, float]) -> Iterator[tuple[str, Schedule]]:
    """The same schedule with slow workers sitting out, for as long as they need at least and twice as long."""
    if not slow or len(slow) == schedule.world:
        return
    for factor in (1, 2):
        joins = {rank: factor * max(4, 2 ** math.ceil(math.log2(times) - 1e-9)) for rank, times in slow.items()}
        for rest in (0, math.ceil(max(slow.values()) - 1e-9) - 1):
            rested = f", their partners resting {rest}" if rest else ""
            rounds = " or ".join(map(str, sorted(set(joins.values()))))
            try:
                yield f"{label}; slow NICs join one round in {rounds}{rested}", with_absent(schedule, joins, rest=rest)
            except ScheduleError:  # who is to cross is away when it should, or rests: it would never mix
                continue


def replan(
    current: Schedule,
    topology: Topology,
    nbytes: float,
    *,
    min_gain: float = MIN_GAIN,
    **options,
) -> Plan | None:
    """Return a plan for a network measured anew if it beats the current schedule on that network; else None.

    The second half of the hysteresis (the first is ``drift``): a new schedule must save ``min_gain`` of a step as
    predicted for the same topology, so that two schedules of nearly equal cost never take turns.

    Args:
        current: the schedule in use.
        topology: as measured now.
        nbytes: see :func:`plan`, also for ``options``.
    """
    new = plan(topology, nbytes, **options)
    timing = {name: options[name] for name in ("compute", "overlap") if name in options}
    now = predict(current, topology, nbytes, **timing)
    return new if new.seconds < (1 - min_gain) * now else None

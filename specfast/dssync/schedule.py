"""Who averages with whom in which round: pure functions of world, topology and seed, the same on every rank.

A schedule is a period of rounds, each a partition of the ranks into groups that average at the same time. It is refused
unless the rounds of a period connect all ranks: only then does the second singular value of the product of their mixing
matrices lie below 1, and disagreement die out (Wang et al., arXiv 2007.03298). Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from specfast.dssync.partitions import (
    Group,
    Partition,
    ScheduleError,
    as_partition,
    components,
    contraction,
)
from specfast.dssync.schedules import absent, crossing, grid, shuffled

if TYPE_CHECKING:
    from specfast.dssync.topology import Topology

__all__ = [
    "KINDS",
    "Group",
    "Origin",
    "Partition",
    "Schedule",
    "ScheduleError",
    "check",
    "for_some",
    "make_schedule",
    "with_absent",
]

KINDS = {
    "grid": "averages along one axis of a grid of the ranks a round: exact consensus after all axes",
    "ragged": "the grid for numbers of ranks that have no fitting factors: surplus ranks share places",
    "random": "a few partitions drawn from the seed, in turn",
    "racks": "a grid within each rack, then columns across the racks",
    "emissary": "few workers of each rack cross at a time, the others average at home",
    "static": "the same groups every round: never mixes; the control of experiments",
}
_OF_RACKS = ("racks", "emissary")
_OPTIONS = {"rounds": ("random",), "every": _OF_RACKS}
_OPTIONS |= {"emissaries": ("emissary",), "rotation": ("emissary",)}


@dataclass(frozen=True)
class Origin:
    """What a schedule was made with, so that another can be made in the same way for some of its ranks.

    Attributes:
        group_size: that was asked for.
        seed: of kind "random".
        racks: of kinds "racks" and "emissary".
        options: those of ``rounds``, ``every``, ``emissaries`` and ``rotation`` that were given.
        absences: slow workers and rest, of each :func:`with_absent`.
    """

    group_size: int
    seed: int = 0
    racks: tuple[Group, ...] | None = None
    options: Mapping[str, int] = field(default_factory=dict)
    absences: tuple[tuple[Mapping[int, int], int], ...] = ()

    def to_json(self) -> dict:
        """Return plain lists, text and numbers."""
        racks = None if self.racks is None else [list(rack) for rack in self.racks]
        absences = [[sorted(slow.items()), rest] for slow, rest in self.absences]
        plain = {"group_size": self.group_size, "seed": self.seed, "racks": racks}
        return plain | {"options": dict(self.options), "absences": absences}

    @classmethod
    def from_json(cls, content: Mapping) -> Origin:
        """Return what :meth:`to_json` described."""
        racks = content["racks"] and tuple(tuple(rack) for rack in content["racks"])
        absences = tuple((dict(slow), rest) for slow, rest in content["absences"])
        return cls(content["group_size"], content["seed"], racks, dict(content["options"]), absences)


@dataclass(frozen=True)
class Schedule:
    """The rounds of one period; step t uses ``rounds[t % len(rounds)]``.

    Attributes:
        world: number of ranks.
        rounds: partitions of the ranks into groups.
        kind: the family it comes from.
        notes: what had to be decided for the caller, in words.
        origin: what it was made with; None: its rounds were given as they are.

    Raises:
        ScheduleError: there is no round, or one is not a partition of the ranks.
    """

    world: int
    rounds: tuple[Partition, ...]
    kind: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.world < 1:
            raise ScheduleError(f"world: expected one rank or more; got {self.world}")
        rounds = tuple(as_partition(groups, self.world, f"round {i}") for i, groups in enumerate(self.rounds))
        if not rounds:
            raise ScheduleError("rounds: expected at least one; got none")
        object.__setattr__(self, "rounds", rounds)
        object.__setattr__(self, "notes", tuple(self.notes))

    def partition(self, number: int) -> Partition:
        """Return the groups of round ``number``, which may be beyond one period."""
        return self.rounds[number % len(self.rounds)]

    def group_of(self, rank: int, number: int) -> Group:
        """Return the group of ``rank`` in round ``number``; the rank alone if it sits out."""
        if rank not in self._by_rank:
            if not 0 <= rank < self.world:
                raise ScheduleError(f"rank: expected 0 to {self.world - 1}; got {rank}")
            self._by_rank[rank] = tuple(next(group for group in groups if rank in group) for groups in self.rounds)
        return self._by_rank[rank][number % len(self.rounds)]

    @functools.cached_property
    def _by_rank(self) -> dict[int, tuple[Group, ...]]:
        """The groups of those ranks that were asked for: each process asks for its own, at every step."""
        return {}

    def groups(self) -> tuple[Group, ...]:
        """Return the distinct groups of two or more, in the one order in which all ranks make their communicators."""
        return tuple(dict.fromkeys(group for partition in self.rounds for group in partition if len(group) > 1))

    def contraction(self) -> float:
        """Return the second singular value of one period's product of mixing matrices; 0 is exact consensus."""
        return contraction(self.rounds, self.world)

    def digest(self) -> str:
        """Return a hash of who averages with whom when; ranks compare it at the start."""
        canonical = json.dumps([self.world, self.rounds], separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict:
        """Return the schedule as plain lists, text and numbers."""
        rounds = [[list(group) for group in partition] for partition in self.rounds]
        plain = {"kind": self.kind, "world": self.world, "rounds": rounds, "notes": list(self.notes)}
        return plain | {"origin": self.origin and self.origin.to_json()}

    @classmethod
    def from_json(cls, content: Mapping) -> Schedule:
        """Return the schedule that :meth:`to_json` described, its partitions checked."""
        if missing := sorted({"kind", "world", "rounds"} - set(content)):
            raise ScheduleError(f"schedule: expected the keys kind, world and rounds; got no {', '.join(missing)}")
        origin = content.get("origin")
        origin = origin and Origin.from_json(origin)
        return cls(content["world"], content["rounds"], content["kind"], content.get("notes", ()), origin)


def check(schedule: Schedule, *, allow_static: bool = False) -> Schedule:
    """Return the schedule if its rounds bring all ranks together.

    The averaging of a round is an orthogonal projection, so a period's second singular value is 1 exactly when some
    vector other than a constant is constant on all groups: when the groups leave the ranks in separate sets. That is
    tested without rounding, for any number of ranks.

    Args:
        allow_static: let a schedule of kind "static" pass.

    Raises:
        ScheduleError: it never mixes; the message names ranks that never meet.
    """
    apart = components(schedule.rounds, schedule.world)
    if len(apart) > 1 and not (allow_static and schedule.kind == "static"):
        first, second = (_listed(ranks) for ranks in apart[:2])
        raise ScheduleError(
            f"schedule {schedule.kind!r}: it never mixes (the second singular value of a period is 1): nothing passes "
            f"between ranks {first} and ranks {second}; {len(apart)} sets of ranks stay apart"
        )
    return schedule


def _listed(ranks: Iterable[int]) -> str:
    ranks = list(ranks)
    return "{" + ", ".join(map(str, ranks[:6])) + (", ..." if len(ranks) > 6 else "") + "}"


def make_schedule(
    kind: str,
    world: int,
    group_size: int | None = None,
    *,
    seed: int = 0,
    topology: Topology | None = None,
    rounds: int | None = None,
    every: int | None = None,
    emissaries: int | None = None,
    rotation: int | None = None,
    allow_static: bool = False,
) -> Schedule:
    """Make a schedule and check it.

    Args:
        kind: one of :data:`KINDS`.
        world: number of ranks.
        group_size: how many average together, 2 to ``world``; groups come as near to it as the world allows. None: the
            square root of the world, rounded.
        seed: of kind "random"; the others are determined without.
        topology: where the racks are; needed by "racks" and "emissary".
        rounds: of kind "random": how many partitions take turns.
        every: of "racks" and "emissary": cross between racks in each ``every``-th round only.
        emissaries: of "emissary": how many of a rack cross at a time (default: 1).
        rotation: of "emissary": how many sets of emissaries take turns (default: as few as mix well).
        allow_static: let kind "static", which never mixes, pass the check.

    Raises:
        ScheduleError: an argument is wrong or does not fit the kind, or the schedule would never mix.
    """
    if kind not in KINDS:
        raise ScheduleError(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}")
    if world < 1:
        raise ScheduleError(f"world: expected one rank or more; got {world}")
    if group_size is None:
        group_size = min(world, max(2, round(world**0.5)))
    if world == 1:
        return Schedule(1, (((0,),),), kind)
    if not 2 <= group_size <= world:
        raise ScheduleError(f"group_size: expected 2 to {world}, the number of ranks; got {group_size}")
    given = {"rounds": rounds, "every": every, "emissaries": emissaries, "rotation": rotation}
    for name, value in given.items():
        if value is not None and kind not in _OPTIONS[name]:
            raise ScheduleError(f"{name}: belongs to kind {' and '.join(_OPTIONS[name])}; got kind {kind!r}")
        if value is not None and value < 1:
            raise ScheduleError(f"{name}: expected 1 or more; got {value}")
    racks = _racks_of(kind, world, topology) if kind in _OF_RACKS else None
    options = {name: value for name, value in given.items() if value is not None}
    return check(_made(kind, world, Origin(group_size, seed, racks, options)), allow_static=allow_static)


def _made(kind: str, world: int, origin: Origin) -> Schedule:
    notes: list[str] = []
    group_size, options = origin.group_size, origin.options
    if kind in ("grid", "ragged"):
        made = _grid(kind, world, group_size, notes)
    elif kind == "random":
        made = shuffled.shuffled(world, group_size, origin.seed, **options)
    elif kind == "static":
        ranks = iter(range(world))
        made = ([[next(ranks) for _ in range(size)] for size in shuffled.group_sizes(world, group_size)],)
    elif kind == "racks":
        made = crossing.racks(world, origin.racks, group_size, **options)
    else:
        made = crossing.emissary(world, origin.racks, group_size, **options)
    return Schedule(world, made, kind, tuple(notes), origin)


def _grid(kind: str, world: int, group_size: int, notes: list[str]) -> tuple[Partition, ...]:
    axes = grid.exact_axes(world, group_size) if kind == "grid" else None
    if axes is None:
        axes = grid.nearest_axes(world, group_size)
        if kind == "grid":
            notes.append(f"{world} has no factors near {group_size}: a ragged grid")
    made = grid.grid(world, axes)
    sizes = sorted({len(group) for partition in made for group in partition})
    if sizes != [group_size]:
        shape = " x ".join(map(str, axes))
        surplus = world - math.prod(axes)
        folded = f" and {surplus} sharing places" if surplus else ""
        notes.append(f"grid of {shape}{folded}: groups of {_or(sizes)} where {group_size} was asked for")
    return made


def _or(sizes: list[int]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))


def _racks_of(kind: str, world: int, topology: Topology | None) -> tuple[Group, ...]:
    if topology is None:
        raise ScheduleError(f"topology: kind {kind!r} needs to know the racks; got None")
    if topology.world != world:
        raise ScheduleError(f"topology: expected {world} ranks, the world; got {topology.world}")
    return topology.racks


def with_absent(schedule: Schedule, slow: Mapping[int, int], *, rest: int = 0) -> Schedule:
    """Let slow workers sit out: rank r of ``slow`` joins each ``slow[r]``-th round and is alone in the others.

    Args:
        schedule: the rounds of all others.
        slow: rank -> how many rounds it takes part once in.
        rest: rounds that the members of a slow worker's group sit out afterwards, so that the time they lost waiting
            for it is not passed on.

    Raises:
        ScheduleError: a wrong rank or period, or the result would never mix.
    """
    if not slow:
        return schedule
    rounds = absent.absent(schedule.rounds, schedule.world, slow, rest)
    said = ", ".join(f"rank {rank} joins one round in {every}" for rank, every in sorted(slow.items()))
    origin = schedule.origin
    if origin is not None:
        origin = replace(origin, absences=(*origin.absences, (dict(slow), rest)))
    return check(replace(schedule, rounds=rounds, notes=(*schedule.notes, said), origin=origin))


def for_some(schedule: Schedule, ranks: Collection[int]) -> Schedule:
    """Return a schedule for some of the ranks, renumbered in their order: for those who are left after a fault.

    It is made in the same way, slow workers sitting out as before, as far as that fits those who are left: not more
    emissaries than a rack has members, a grid where there are no two racks any more, nobody sitting out where the rest
    would not mix. Rounds that were given as they are cannot be made for others; a grid takes their place.
    """
    if len(ranks) == schedule.world:
        return schedule
    number = {rank: new for new, rank in enumerate(sorted(ranks))}
    world = len(number)
    if world == 1:
        return Schedule(1, (((0,),),), schedule.kind)
    kind, origin = schedule.kind, schedule.origin
    if origin is None:
        kind, origin = "grid", Origin(max(map(len, schedule.groups()), default=2))
    size, options, racks = min(origin.group_size, world), dict(origin.options), None
    grid = "grid", Origin(size)
    if kind in _OF_RACKS:
        kept = [tuple(number[rank] for rank in rack if rank in number) for rack in origin.racks]
        racks = tuple(filter(None, kept))
        if "emissaries" in options:
            options["emissaries"] = min(options["emissaries"], *map(len, racks))
    same = grid if racks is not None and len(racks) < 2 else (kind, Origin(size, origin.seed, racks, options))
    absences = []
    for slow, rest in origin.absences:
        left = {number[rank]: every for rank, every in slow.items() if rank in number}
        if len(left) < world:  # else they are slow beside nobody
            absences.append((left, rest))
    for (kind, origin), away in ((same, absences), (same, ()), (grid, ())):
        with contextlib.suppress(ScheduleError):  # it would not mix
            made = check(_made(kind, world, origin), allow_static=kind == "static")
            for slow, rest in away:
                made = with_absent(made, slow, rest=rest)
            return made
    raise AssertionError("a grid always mixes")

"""Who is missing when a round fails, and how those who are left agree to go on without them.

Nothing here runs while all is well. When a collective has failed or timed out, its members meet in the key-value store
through which torch.distributed made the process group: each writes a record, calls those of whom there is none, and
names who does not answer. All keys live under the number of a generation (0 at the start, one more after each change of
the world), so no record of an earlier failure, or of a worker that was stopped and continued, is taken for a new one.

The store is kept by torchrun's agent, or by rank 0 where processes were started by hand. When it is gone nobody can
agree on anything: the error then says that it is the store that does not answer.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from specfast.dssync import liveness
from specfast.errors import SpecfastError

# Beyond the times agreed on, what the store gets to answer the last questions.
_SLACK_S = 5.0
# Worlds that may fail one after the other with nobody missing, before it is given up.
_TRIES = 3


class SyncError(SpecfastError, RuntimeError):
    """A round could not be completed; the parameters are those from after this rank's own step.

    Attributes:
        step: number of the optimizer step whose average failed, from 0.
        round: number of the round; None for a mean over all workers.
        group: ranks that were to average.
        missing: ranks that gave no sign of life, or never came; empty if all did, or if that cannot be told.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int = -1,
        round: int | None = None,
        group: Sequence[int] = (),
        missing: Sequence[int] = (),
    ):
        super().__init__(message)
        self.step = step
        self.round = round
        self.group = tuple(group)
        self.missing = tuple(missing)

    def __reduce__(self):
        # the default would lose the keywords when a launcher sends the error to another process
        return _restore, (type(self), self.args, self.__dict__)


class ExcludedError(SyncError):
    """This rank was silent for too long: the others went on without it, and it must not touch their rounds."""


class StoreError(SyncError):
    """The key-value store does not answer, so it cannot be told who is missing, nor agreed how to go on."""


def _caused(error: SyncError, cause: BaseException) -> SyncError:
    error.__cause__ = cause
    return error


def _restore(kind: type[SyncError], arguments: tuple, state: dict) -> SyncError:
    error = kind(*arguments)
    error.__dict__.update(state)
    return error


@dataclass(frozen=True)
class Agreement:
    """The world that the survivors of a failure go on with: the same on all of them.

    Attributes:
        generation: its number. Groups made for it carry it in their names.
        ranks: its members, by the ranks they were started with.
        step: of the next average: steps that the farthest of them has done. The others do theirs alone until then.
        schedule: of these ranks, as JSON, where one was chosen for this world; empty: they make one like the last.
    """

    generation: int
    ranks: tuple[int, ...]
    step: int
    schedule: str = ""

    def to_json(self) -> str:
        """Return what is decided on, beside the generation that it is decided for."""
        return json.dumps({"ranks": list(self.ranks), "step": self.step, "schedule": self.schedule})

    @classmethod
    def from_json(cls, generation: int, content: str | bytes) -> Agreement:
        """Return what :meth:`to_json` wrote."""
        world = json.loads(content)
        return cls(generation, tuple(world["ranks"]), world["step"], world["schedule"])


def grace(timeout_s: float) -> float:
    """Return how much of a timeout is for finding out who is missing; a process that lives answers at once."""
    return min(5.0, timeout_s / 6)


def explain(
    store: dist.Store,
    *,
    generation: int,
    rank: int,
    ranks: Sequence[int],
    step: int,
    round: int | None,
    group: Sequence[int],
    cause: BaseException,
    waited: bool,
    grace_s: float,
    linger: bool = True,
) -> SyncError:
    """Return the one error that says why a collective failed; called by each rank on which it did.

    A member that had left its group because of an earlier failure is not the culprit: its record says who is. Close
    this rank's groups first (:func:`specfast.dssync.liveness.close_group`), or members that wait for nobody but this
    rank learn of the failure too late to meet it.

    Args:
        generation: number of the world that failed. A rank fails at most once in a generation.
        ranks: the whole world, of which ``group`` was to average in ``round`` after ``step``.
        cause: what the collective raised.
        waited: the collective's timeout was used up: members that live, but never came, are at fault.
        grace_s: how long to wait for signs of life.
        linger: this process may end now: if it keeps the store, let the others read it first.
    """
    place = {"step": step, "round": round, "group": list(group)}
    about = f"DSSync: {_where(place)} failed on rank {rank}"
    kept = f"Rank {rank} holds the parameters from after its own step {step}."
    try:
        found = liveness.within(3 * grace_s + _SLACK_S, lambda: _meet(store, generation, rank, place, waited, grace_s))
    except (RuntimeError, TimeoutError) as error:
        gone = (0,) if rank != 0 and liveness.kept_by_rank_0(store) else ()
        message = f"{about}, and {_store_gone(store, error)}. {kept}"
        return _caused(StoreError(message, step=step, round=round, group=group, missing=gone), cause)
    clauses = []
    if found.silent:
        clauses.append(f"no sign of life from {_named(found.silent)} in {grace_s:g} s: dead, stopped or cut off")
    for other, where in found.hanging.items():
        clauses.append(f"rank {other} lives but did not come: it is at step {where}")
    for other, where in found.left.items():
        clauses.append(f"rank {other} had left at {_where(where)}")
    if found.told:
        clauses.append(f"the others miss {_named(found.told)}")
    if found.given_up:
        clauses.append("the others had given up this rank, of which they saw nothing for too long")
    elif not found.missing:
        clauses.append(f"nobody is missing, it was the exchange itself: {_first_line(cause)}")
    if linger and rank == 0 and liveness.kept_by_rank_0(store):
        others = set(ranks) - set(found.missing)
        with contextlib.suppress(RuntimeError, TimeoutError):
            liveness.within(2 * grace_s, lambda: _linger(store, generation, others, grace_s))
    message = f"{about}: {'; '.join(clauses)}. {kept}"
    return _caused(SyncError(message, step=step, round=round, group=group, missing=found.missing), cause)


def agree_on_survivors(
    store: dist.Store,
    *,
    generation: int,
    rank: int,
    ranks: Sequence[int],
    step: int,
    absent: Collection[int] = (),
    grace_s: float,
    patience_s: float,
) -> Agreement:
    """Agree with the other survivors on the next world; the same answer on all of them.

    The first to come convenes: it decides as soon as all are here or known to be absent. The store takes one decision
    only. A rank that comes after it is excluded.

    Args:
        generation: number of the world to come: one more than that of the world that failed.
        ranks: the world that failed.
        step: number of optimizer steps that this rank has done.
        absent: ranks that need not be waited for (they are members all the same if they come in time).
        grace_s: how long to wait for signs of life of those who are not here.
        patience_s: how long to wait for those who live, but compute.

    Raises:
        ExcludedError: the others have decided without this rank.
        StoreError: the store does not answer.
    """
    decision = f"{generation}/decision"

    def agree() -> Agreement:
        start = time.monotonic()
        if not store.check([decision]):
            for other in absent:
                store.set(f"{generation}/absent/{other}", "")
            store.set(f"{generation}/present/{rank}", str(step))
            first = store.add(f"{generation}/arrived", 1) == 1
            # the others leave it to the first, unless it is lost as well
            if first or not liveness.appears(store, decision, start + patience_s + grace_s):
                _convene(store, generation, ranks, grace_s, start + patience_s)
        return Agreement.from_json(generation, store.get(decision))

    where = {"step": step - 1, "group": ranks}
    try:
        world = liveness.within(patience_s + 3 * grace_s + _SLACK_S, agree)
    except (RuntimeError, TimeoutError) as error:
        raise StoreError(
            f"DSSync: rank {rank} cannot agree with the other survivors: {_store_gone(store, error)}.", **where
        ) from error
    if rank not in world.ranks:
        raise ExcludedError(
            f"DSSync: rank {rank} came too late: {_named(world.ranks)} went on without it at step {world.step}, "
            f"as generation {generation}. It holds the parameters from after its own step {step - 1}; end this process "
            "and start it again with rejoin=True to take part.",
            **where,
        )
    return world


def recover(
    store: dist.Store,
    *,
    generation: int,
    rank: int,
    ranks: Sequence[int],
    step: int,
    error: SyncError,
    rebuild: Callable[[Agreement], None],
    grace_s: float,
    patience_s: float,
) -> Agreement:
    """Bring this rank into the world that the survivors agree on; return what was agreed.

    Args:
        generation, ranks: of the world that failed.
        step: number of optimizer steps that this rank has done.
        error: what :func:`explain` said.
        rebuild: makes the groups of the new world and has all of it exchange something, so that it fails if a member
            is lost again; it then closes what it made, and those left agree anew.
        grace_s, patience_s: as for :func:`agree_on_survivors`.

    Raises:
        ExcludedError, StoreError: as :func:`agree_on_survivors`.
        SyncError: the new worlds failed as well, with nobody missing.
    """
    for _ in range(_TRIES + len(ranks)):
        if isinstance(error, StoreError):
            break
        generation += 1
        agreement = agree_on_survivors(
            store,
            generation=generation,
            rank=rank,
            ranks=ranks,
            step=step,
            absent=error.missing,
            grace_s=grace_s,
            patience_s=patience_s,
        )
        ranks = agreement.ranks
        start = time.monotonic()
        try:
            rebuild(agreement)
            return agreement
        except RuntimeError as cause:
            error = explain(
                store,
                generation=generation,
                rank=rank,
                ranks=ranks,
                step=step - 1,
                round=None,
                group=ranks,
                cause=cause,
                waited=time.monotonic() - start > patience_s / 2,
                grace_s=grace_s,
                linger=False,
            )
    raise error


@dataclass(frozen=True)
class _Found:
    """What a meeting showed: silent ranks, live ones that did not come, those who left before, and those others miss.

    Attributes:
        hanging: by rank, the step it says it is at.
        left: by rank, its record.
        given_up: the others miss this rank.
    """

    silent: tuple[int, ...]
    hanging: dict[int, int]
    left: dict[int, dict]
    told: tuple[int, ...]
    given_up: bool

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(sorted({*self.silent, *self.hanging, *self.told}))


def _meet(store: dist.Store, generation: int, rank: int, place: dict, waited: bool, grace_s: float) -> _Found:
    """Write this rank's record, wait for the group's, and return what they show."""
    start = time.monotonic()
    failed, found, blamed = (f"{generation}/{name}" for name in ("failed", "found", "blamed"))
    store.set(f"{failed}/{rank}", json.dumps(place))
    others = [other for other in place["group"] if other != rank]
    calls = {other: liveness.call(store, other) for other in others}
    came: dict[int, dict] = {}
    alive: dict[int, int] = {}
    left: dict[int, dict] = {}
    while True:
        for other in others:
            if other not in came and store.check([f"{failed}/{other}"]):
                came[other] = json.loads(store.get(f"{failed}/{other}"))
                if came[other] != place and came[other]["step"] <= place["step"]:
                    left[other] = came[other]
            if other not in alive and calls[other] is not None and store.check([calls[other]]):
                alive[other] = int(store.get(calls[other]))
        # Those who live may still compute. They need not be waited for once it is clear why this rank failed.
        explained = came.keys() | alive.keys() if left else came.keys()
        if len(explained) == len(others) or time.monotonic() - start > grace_s:
            break
        liveness.pause()
    silent = tuple(other for other in others if other not in came and other not in alive)
    # if somebody had left, those who live wait in vain like this rank, and are on their way
    hanging = {other: at for other, at in alive.items() if waited and not left and other not in came}
    mine = {*silent, *hanging}
    store.set(f"{found}/{rank}", json.dumps(sorted(mine)))
    told: set[int] = set()
    # Who left before knows why. Of those who failed here, one may have waited longer than this rank, and know more.
    for other in sorted(came):
        key = f"{blamed}/{other}" if other in left else f"{found}/{other}"
        if liveness.appears(store, key, start + 2 * grace_s):
            told.update(json.loads(store.get(key)))
    result = _Found(silent, hanging, left, tuple(sorted(told - mine - {rank})), rank in told)
    store.set(f"{blamed}/{rank}", json.dumps(result.missing))
    return result


def _convene(store: dist.Store, generation: int, ranks: Sequence[int], grace_s: float, decide_at: float) -> None:
    """Decide on the world of those who come: when all have, or the rest is absent, or time is up."""
    decision = f"{generation}/decision"
    steps: dict[int, int] = {}
    calls: dict[int, tuple[str | None, float]] = {}
    while not store.check([decision]):
        now = time.monotonic()
        waiting = []
        for rank in set(ranks) - steps.keys():
            if store.check([f"{generation}/present/{rank}"]):
                steps[rank] = int(store.get(f"{generation}/present/{rank}"))
            elif not store.check([f"{generation}/absent/{rank}"]):
                waiting.append(rank)
        if not waiting or now >= decide_at:
            world = Agreement(generation, tuple(sorted(steps)), max(steps.values()))
            store.compare_set(decision, "", world.to_json())
            return
        for rank in waiting:
            if rank not in calls:
                calls[rank] = (liveness.call(store, rank), now)
            key, since = calls[rank]
            if key is not None and now - since > grace_s:
                if store.check([key]):
                    del calls[rank]  # it lived then: ask again
                else:
                    store.set(f"{generation}/absent/{rank}", "")
        liveness.pause()


def _linger(store: dist.Store, generation: int, ranks: Collection[int], grace_s: float) -> None:
    """Keep the store's host alive until the others, who may find out in a later round, know what happened."""
    deadline = time.monotonic() + grace_s
    for other in ranks:
        liveness.appears(store, f"{generation}/blamed/{other}", deadline)


def _store_gone(store: dist.Store, error: BaseException) -> str:
    host = "in rank 0's process, which is dead or stopped" if liveness.kept_by_rank_0(store) else "by torchrun's agent"
    return (
        f"the key-value store through which the ranks find each other does not answer ({_first_line(error)}); "
        f"it is kept {host}"
    )


def _where(place: dict) -> str:
    what = "the mean over all" if place["round"] is None else f"round {place['round']}"
    return f"step {place['step']}, {what}, group {tuple(place['group'])}"


def _named(ranks: Collection[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

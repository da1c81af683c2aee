"""Who takes part: the schedule over the present workers, their process groups, and what happens when one is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync import faults, joining, liveness
from specfast.dssync.agreement import agree, broadcast
from specfast.dssync.groups import GroupPool
from specfast.dssync.schedule import Schedule, for_some
from specfast.dssync.symmetric import SymmetricMean


class Workers:
    """The present world of one communicator.

    Ranks are places in ``process_group``, for as long as the communicator lives; ranks of the schedule are places among
    those present.

    Args:
        schedule: over all workers.
        name: of this communicator, see :func:`specfast.dssync.agreement.agree`; None: this worker was started again,
            and asks the others to let it in.
        facts: what must be as it is with the others.
        averaged: what workers that come back get from the others, who all have the same then.
        own: what they get from one of the others, each of whom has its own.
        elastic: go on without workers that are lost.
        symmetric: device of tensors to be averaged through symmetric memory; None: none are.

    Attributes:
        ranks: who is present.
        generation: how often the world has changed.
        first_round: of this generation; earlier ones are left out.
        renewed: the round that begins this generation by a mean over all; None in the first one.
        patience: seconds that a round may take.
        failure: why no more rounds are possible.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        name: str | None,
        facts: Mapping[str, Any],
        averaged: Sequence[Tensor],
        own: Sequence[Tensor],
        process_group: dist.ProcessGroup | None,
        timeout: float,
        elastic: bool,
        symmetric: torch.device | None,
    ):
        self.schedule, self.elastic, self.timeout = schedule, elastic, timeout
        # a round has what is left of the timeout when its members have found out who is missing
        self.grace = faults.grace(timeout)
        self.patience = timeout - 2 * self.grace
        self.failure: faults.SyncError | None = None
        self.rank = dist.get_rank(process_group)
        self.ranks = tuple(range(schedule.world))
        self.generation = 0
        self.begin_at(None)
        self._process_group, self._facts, self._device = process_group, facts, symmetric
        self._averaged, self._own = averaged, own
        self._at_first = schedule
        self._chosen = schedule, self.ranks  # last, and for whom: what schedules of fewer workers are made like
        store = liveness.own_connection(liveness.default_store(process_group))
        self._name = joining.announce(store, process_group, name)
        self._store = dist.PrefixStore(self._name, store)
        if name is None:
            agreement, new, (chosen, ranks) = joining.ask(self._store, rank=self.rank, facts=facts)
            self.ranks = tuple(rank for rank in agreement.ranks if rank not in new)
            self._chosen = Schedule.from_json(chosen), tuple(ranks)
            self._rebuild(agreement)
        else:
            self._pool = self._make_pool(schedule, self.ranks, 0)
        self._sentinel = liveness.Sentinel(self._store, rank=self.rank, interval_s=self.grace / 4)

    @property
    def everyone(self) -> dist.ProcessGroup | None:
        """The process group of all; None if nobody else is left."""
        return self._pool.world

    def group(self, round: int) -> dist.ProcessGroup | None:
        """Return this rank's process group in a round; None if it is alone."""
        return self._pool.of(round)

    def symmetric(self, group: dist.ProcessGroup) -> SymmetricMean | None:
        """Return what averages in a group through symmetric memory; None if nothing does."""
        return self._pool.symmetric(group)

    @property
    def nbytes(self) -> int:
        """Memory held by the groups, as far as it is ours."""
        return self._pool.nbytes

    def members(self, round: int) -> tuple[int, ...]:
        """Return the ranks of this rank's group in a round."""
        return tuple(self.ranks[place] for place in self._pool.members(round))

    def at_round(self, number: int) -> None:
        """Note where this rank is, for those who may ask."""
        self._sentinel.step = number

    def leave(self) -> None:
        """Break the connections, so that members that wait for this rank fail, too, and come to meet it."""
        self._pool.abort()

    def recover(
        self, cause: BaseException, *, step: int, round: int | None, group: Sequence[int], done: int, waited: bool
    ) -> None:
        """Explain a failed exchange; if elastic, agree on a new world with the other survivors, and enter it.

        Args:
            step, round, group: whose mean failed.
            done: number of rounds this rank has done or tried.
            waited: the timeout was used up.

        Raises:
            SyncError: not elastic, or it cannot be agreed.
        """
        error = self.failure = faults.explain(
            self._store,
            generation=self.generation,
            rank=self.rank,
            ranks=self.ranks,
            step=step,
            round=round,
            group=group,
            cause=cause,
            waited=waited,
            grace_s=self.grace,
            linger=not self.elastic,
        )
        if not self.elastic:
            raise error
        try:
            faults.recover(
                self._store,
                generation=self.generation,
                rank=self.rank,
                ranks=self.ranks,
                step=done,
                error=error,
                rebuild=self._rebuild,
                grace_s=self.grace,
                patience_s=self.timeout,
            )
        except faults.SyncError as final:
            self.failure = final
            raise
        self.failure = None

    def asking(self) -> dict[int, str]:
        """Return the lost ranks that ask to be let in, with tokens; called by all, the same on all."""
        found: list[dict[int, str]] = [{}]
        if self.rank == self.ranks[0]:
            absent = set(range(self._at_first.world)) - set(self.ranks)
            found = [joining.asking(self._store, absent=absent, facts=self._facts)]
        if self.everyone is not None:
            dist.broadcast_object_list(found, group_src=0, group=self.everyone)
        return found[0]

    def admit(self, tokens: Mapping[int, str], done: int) -> None:
        """Enter a new world with those who asked; called by all, at the same round and with equal values.

        Raises:
            RuntimeError: somebody was lost; the others are to :meth:`recover`.
        """
        self._enter(tuple(sorted({*self.ranks, *tokens})), done, tokens=tokens)

    def reschedule(self, schedule: Schedule, done: int) -> None:
        """Take other rounds from now on; called by all, at the same round and with the same schedule.

        Raises:
            MismatchError: ranks differ; all go on as before.
            RuntimeError: somebody was lost; the others are to :meth:`recover`.
        """
        if self.everyone is not None:
            agree({"schedule": schedule.digest(), "round": done}, self.everyone)
        self._enter(self.ranks, done, schedule=json.dumps(schedule.to_json()))

    def _enter(
        self, ranks: tuple[int, ...], done: int, *, tokens: Mapping[int, str] | None = None, schedule: str = ""
    ) -> None:
        """Enter another world of our own accord.

        It is decided on in the store, like one after a fault, so that those whom a fault meets on the way find it, too.
        """
        if self.rank == self.ranks[0]:
            world = faults.Agreement(self.generation + 1, ranks, done, schedule)
            joining.decide(self._store, tokens or {}, world, (self._chosen[0].to_json(), self._chosen[1]))
        if self.everyone is not None:
            agree({}, self.everyone)  # nobody looks for the decision before it is there
        agreement = faults.agree_on_survivors(
            self._store,
            generation=self.generation + 1,
            rank=self.rank,
            ranks=self.ranks,
            step=done,
            grace_s=self.grace,
            patience_s=self.timeout,
        )
        self.generation = agreement.generation  # also if it fails now: its number is used up
        before = self._pool
        self._rebuild(agreement)
        before.close()

    def begin_at(self, renewed: int | None) -> None:
        """Take part from that round on, which is a mean over all; None: from the first one on."""
        self.renewed, self.first_round = renewed, renewed or 0

    def close(self) -> None:
        """Give the process groups back."""
        self._sentinel.close()
        self._pool.close()

    def _rebuild(self, agreement: faults.Agreement) -> None:
        if agreement.schedule:  # noted before anything can fail: all who read it make the next ones like it
            self._chosen = Schedule.from_json(json.loads(agreement.schedule)), agreement.ranks
        schedule = self._schedule_for(agreement.ranks)
        pool = self._make_pool(schedule, agreement.ranks, agreement.generation)
        try:
            if pool.world is not None:
                agree({"schedule": schedule.digest()}, pool.world)
                if not set(agreement.ranks) <= set(self.ranks):
                    source = next(place for place, rank in enumerate(agreement.ranks) if rank in self.ranks)
                    # each has its own of these: only those who are new, and the one that sends, have a use for its
                    keep = self.rank in self.ranks and self.rank != agreement.ranks[source]
                    own = [torch.empty_like(tensor) for tensor in self._own] if keep else self._own
                    broadcast([*self._averaged, *own], source, pool.world)
        except BaseException:
            pool.abort()
            raise
        self._pool, self.schedule, self.ranks = pool, schedule, agreement.ranks
        self.generation = agreement.generation
        self.begin_at(agreement.step)

    def _make_pool(self, schedule: Schedule, ranks: tuple[int, ...], generation: int) -> GroupPool:
        return GroupPool(
            schedule,
            process_group=self._process_group,
            timeout=self.patience,
            name=self._name,
            generation=generation,
            ranks=ranks,
            symmetric=self._device,
        )

    def _schedule_for(self, ranks: tuple[int, ...]) -> Schedule:
        """Make a schedule like the one chosen last, if it was for all of these workers, else like the first one."""
        schedule, over = self._chosen
        if not set(ranks) <= set(over):
            schedule, over = self._at_first, tuple(range(self._at_first.world))
        return for_some(schedule, [over.index(rank) for rank in ranks])

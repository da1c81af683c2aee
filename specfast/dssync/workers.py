"""Who takes part: the schedule over the present workers, their process groups, and what happens when one is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync import faults, joining, liveness
from specfast.dssync.agreement import agree, broadcast
from specfast.dssync.groups import GroupPool
from specfast.dssync.schedule import KINDS, Schedule, make_schedule
from specfast.dssync.symmetric import SymmetricMean
from specfast.dssync.topology import Topology


class Workers:
    """The present world of one communicator.

    Ranks are places in ``process_group``, for as long as the communicator lives; ranks of the schedule are places among
    those present.

    Args:
        schedule: over all workers.
        name: of this communicator, see :func:`specfast.dssync.agreement.agree`; None: this worker was started again,
            and asks the others to let it in.
        facts: what must be as it is with the others.
        tensors: what workers that come back get from the others.
        elastic: go on without workers that are lost.
        symmetric: device of tensors to be averaged through symmetric memory; None: none are.
        topology, group_size, seed: what a schedule of fewer workers is made with.

    Attributes:
        ranks: who is present.
        generation: how often the world has changed.
        first_round: of this generation; earlier ones are left out.
        patience: seconds that a round may take.
        failure: why no more rounds are possible.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        name: str | None,
        facts: Mapping[str, Any],
        tensors: Sequence[Tensor],
        process_group: dist.ProcessGroup | None,
        timeout: float,
        elastic: bool,
        symmetric: torch.device | None,
        topology: Topology | None,
        group_size: int | None,
        seed: int,
    ):
        self.schedule, self.elastic, self.timeout = schedule, elastic, timeout
        # a round has what is left of the timeout when its members have found out who is missing
        self.grace = faults.grace(timeout)
        self.patience = timeout - 2 * self.grace
        self.failure: faults.SyncError | None = None
        self.rank = dist.get_rank(process_group)
        self.ranks = tuple(range(schedule.world))
        self.generation = self.first_round = 0
        self._process_group, self._facts, self._tensors = process_group, facts, tensors
        self._topology, self._group_size, self._seed = topology, group_size, seed
        self._at_first, self._device = schedule, symmetric
        store = liveness.default_store(process_group)
        self._name = joining.announce(store, process_group, name)
        self._store = dist.PrefixStore(self._name, store)
        if name is None:
            agreement, new = joining.ask(self._store, rank=self.rank, facts=facts)
            self.ranks = tuple(rank for rank in agreement.ranks if rank not in new)
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
        if self.rank == self.ranks[0]:
            ranks = tuple(sorted({*self.ranks, *tokens}))
            joining.decide(self._store, tokens, faults.Agreement(self.generation + 1, ranks, done))
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

    def reschedule(self, schedule: Schedule, first_round: int) -> None:
        """Take other rounds from ``first_round`` on, all workers together; a new generation with the same members."""
        generation = self.generation + 1
        pool = self._make_pool(schedule, self.ranks, generation)
        try:
            if pool.world is not None:
                agree({"schedule": schedule.digest(), "round": first_round}, pool.world)
        except BaseException:
            pool.abort()
            raise
        self._pool.close()
        self._pool, self.schedule = pool, schedule
        self.generation, self.first_round = generation, first_round

    def close(self) -> None:
        """Give the process groups back."""
        self._sentinel.close()
        self._pool.close()

    def _rebuild(self, agreement: faults.Agreement) -> None:
        schedule = self._schedule_for(agreement.ranks)
        pool = self._make_pool(schedule, agreement.ranks, agreement.generation)
        try:
            if pool.world is not None:
                agree({"schedule": schedule.digest()}, pool.world)
                if not set(agreement.ranks) <= set(self.ranks):
                    source = next(place for place, rank in enumerate(agreement.ranks) if rank in self.ranks)
                    broadcast(self._tensors, source, pool.world)
        except BaseException:
            pool.abort()
            raise
        self._pool, self.schedule, self.ranks = pool, schedule, agreement.ranks
        self.generation, self.first_round = agreement.generation, agreement.step

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
        """Make a schedule like the first one for some of the workers."""
        if len(ranks) == self._at_first.world:
            return self._at_first
        kind = self._at_first.kind if self._at_first.kind in KINDS else "grid"
        if len(ranks) == 1:
            return Schedule(1, (((0,),),), kind)
        topology = self._topology.subset(ranks) if self._topology else None
        if kind in ("racks", "emissary") and (topology is None or len(topology.racks) < 2):
            kind = "grid"
        size = self._group_size or max(map(len, self._at_first.groups()), default=2)
        return make_schedule(
            kind,
            len(ranks),
            min(size, len(ranks)),
            seed=self._seed,
            topology=topology,
            allow_static=kind == "static",
        )

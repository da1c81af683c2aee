"""One round: begun, completed, and only then accepted, so that nothing half-averaged is ever seen."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync.buffers import BUCKET_BYTES
from specfast.dssync.exchange import (
    Exchange,
    ReduceExchange,
    all_finite,
    all_gather,
    chunks,
    make_exchange,
    staging_for,
)
from specfast.dssync.symmetric import SymmetricExchange, SymmetricMean
from specfast.dssync.wire import CompressedExchange, WireState
from specfast.errors import SpecfastError

ON_NONFINITE = ("raise", "skip", "ignore")


class NonFiniteError(SpecfastError, ArithmeticError):
    """A worker's values are NaN or infinite; nobody's were averaged with them."""

    def __init__(self, message: str, ranks: Sequence[int] = ()):
        super().__init__(message)
        self.ranks = tuple(ranks)


@dataclass
class Round:
    """A round under way.

    Attributes:
        number: of the round; None outside the schedule.
        members: ranks in the group, in order.
        everyone: whether it is a mean over all workers.
        sources: the buckets that are averaged; of an overlapped round a snapshot of them.
        exchanges: each with the numbers of its buckets.
        packed: the exchange of what has no buckets of its own (momentum), if there is one.
        present: by place, whose values count; everybody's, where None.
        flags: by place, whose values are finite, once that has been received.
        completed: whether the means are here.
        means: by bucket, once the round is settled: then it needs no exchange any more.
    """

    number: int | None
    members: tuple[int, ...]
    everyone: bool
    sources: list[Tensor]
    group: dist.ProcessGroup | None = None
    exchanges: list[tuple[Exchange, list[int]]] = field(default_factory=list)
    packed: Exchange | None = None
    present: list[bool] | None = None
    flags: tuple[Tensor, dist.Work] | None = None
    completed: bool = False
    means: list[Tensor] | None = None

    @property
    def counts(self) -> bool:
        """Whether this worker's own values do."""
        return self.present is None or self.present[self.group.rank()]

    def drain(self) -> None:
        """Wait until nothing of it is under way any more."""
        for exchange in self.all_exchanges():
            exchange.drain()
        if self.flags is not None:
            with contextlib.suppress(RuntimeError):
                self.flags[1].wait()

    def all_exchanges(self) -> list[Exchange]:
        return [exchange for exchange, _ in self.exchanges] + ([self.packed] if self.packed else [])


class Averager:
    """Averages buckets in process groups, by way of a staging copy.

    Args:
        buckets: one-dimensional tensors, averaged in place.
        wire: ``"float32"``: buckets are sent as they are; ``"bfloat16"`` or ``"float8"``: float32 buckets are sent as
            compressed differences from their values at this moment, which must be the same on all workers.
        overlap: rounds are completed long after they began, while the buckets may change.
        on_nonfinite: what to do about values that are not finite, see :class:`~specfast.dssync.DSSync`.
    """

    def __init__(
        self, buckets: Sequence[Tensor], *, wire: str = "float32", overlap: bool = False, on_nonfinite: str = "raise"
    ):
        self.buckets = list(buckets)
        self._wire, self._overlap, self._on_nonfinite = wire, overlap, on_nonfinite
        narrow = [wire != "float32" and bucket.dtype == torch.float32 for bucket in self.buckets]
        self._narrow = [number for number, is_narrow in enumerate(narrow) if is_narrow]
        self._plain = [number for number, is_narrow in enumerate(narrow) if not is_narrow]
        self.wire = WireState([self.buckets[number] for number in self._narrow], wire) if self._narrow else None
        self._staging = [staging_for(self.buckets[number]) for number in self._plain]
        self._snapshot = [torch.empty_like(bucket) for bucket in self.buckets] if overlap else []

    @property
    def nbytes(self) -> int:
        """Memory held beside the buckets."""
        held = sum(tensor.nbytes for tensor in (*self._staging, *self._snapshot))
        return held + (self.wire.nbytes if self.wire else 0)

    def renewed(self) -> Averager:
        """Return one with memory of its own, which nothing that is late can write to, and this one's residuals."""
        new = Averager(self.buckets, wire=self._wire, overlap=self._overlap, on_nonfinite=self._on_nonfinite)
        if self.wire:
            new.wire.take(self.wire)
        return new

    def begin(self, *args, **options) -> Round | None:
        """Make a round and start it; for arguments and result see :meth:`make`."""
        made = self.make(*args, **options)
        if made is not None:
            self.start(made)
        return made

    @torch.no_grad()
    def make(
        self,
        group: dist.ProcessGroup,
        members: tuple[int, ...],
        *,
        number: int | None = None,
        everyone: bool = False,
        packed: Sequence[Tensor] = (),
        symmetric: SymmetricMean | None = None,
    ) -> Round | None:
        """Return a round that is yet to be started; None if no member's values are finite and such are to be skipped.

        Args:
            group: of this rank in this round.
            members: its ranks, by place.
            number: of the round, to be remembered.
            everyone: the group is the whole world: the mean is exact, and becomes the reference of compressed rounds.
            packed: more buckets, averaged in their own memory.
            symmetric: of this group; used for buckets that are sent as they are.
        """
        sources = self.buckets
        if self._overlap:
            torch._foreach_copy_(self._snapshot, self.buckets)
            sources = self._snapshot
        present = None
        if self._on_nonfinite == "skip":
            flags, work = _gather_flags([*sources, *packed], group)
            work.wait()
            present = [bool(flag) for flag in flags.tolist()]
            if not any(present):
                return None
            present = None if all(present) else present
        exchanges: list[tuple[Exchange, list[int]]] = []
        numbers, staging = list(self._plain), list(self._staging)
        if self.wire and everyone:
            owed = self.wire.owed([sources[number] for number in self._narrow])
            exchanges.append((ReduceExchange(owed, owed, group, present, unattended=self._overlap), self._narrow))
        elif self.wire and present:
            # a mean of some members only is rare: no need to compress it
            numbers, staging = numbers + self._narrow, staging + self.wire.scratch
        elif self.wire:
            narrow = [sources[number] for number in self._narrow]
            exchanges.append((CompressedExchange(narrow, self.wire, group), self._narrow))
        if numbers:
            plain = [sources[number] for number in numbers]
            if symmetric and present is None and not self._overlap:
                exchanges.append((SymmetricExchange(plain, staging, symmetric), numbers))
            elif everyone:
                reduced = ReduceExchange(plain, staging, group, present, unattended=self._overlap)
                exchanges.append((reduced, numbers))
            else:
                made = make_exchange(plain, staging, group, present=present, unattended=self._overlap)
                exchanges.append((made, numbers))
        momentum = None
        if packed:
            momentum = ReduceExchange(list(packed), list(packed), group, present, unattended=self._overlap)
        return Round(number, members, everyone, sources, group, exchanges, momentum, present)

    @torch.no_grad()
    def start(self, made: Round) -> None:
        """Begin to send. If this fails, what has begun nevertheless writes to this object's memory: drain the round."""
        for exchange, _ in made.exchanges:
            exchange.start()
        if self._on_nonfinite == "raise":  # looked at while the values are under way
            packed = made.packed.sources if made.packed else []
            made.flags = _gather_flags([*made.sources, *packed], made.group)
        if made.packed:
            made.packed.start()

    @torch.no_grad()
    def complete(self, under_way: Round) -> None:
        """Wait until the means are here; the buckets are as they were.

        Raises:
            RuntimeError: what the backend raises when a member is gone or late.
            NonFiniteError: some member's values are not finite.
        """
        if under_way.completed:
            return
        for exchange in under_way.all_exchanges():
            exchange.finish()
        if under_way.flags is not None:
            flags, work = under_way.flags
            work.wait()
            wrong = [rank for rank, flag in zip(under_way.members, flags.tolist(), strict=True) if not flag]
            if wrong:
                raise NonFiniteError(_blame(wrong), wrong)
        under_way.completed = True

    @torch.no_grad()
    def accept(self, under_way: Round) -> None:
        """Let the means take the buckets' place: exactly, or where a bucket has changed since, by what they differ."""
        if under_way.means is not None:
            for bucket, snapshot, mean in zip(self.buckets, under_way.sources, under_way.means, strict=True):
                _shift(bucket, snapshot, mean)
            return
        for exchange, numbers in under_way.exchanges:
            # a worker whose own values did not count has nothing to add to the mean
            if self._overlap and under_way.counts:
                for place, number in enumerate(numbers):
                    _shift(self.buckets[number], under_way.sources[number], exchange.mean(place))
            else:
                exchange.write([self.buckets[number] for number in numbers])
            self._settle_wire(exchange, numbers, under_way.everyone)

    @torch.no_grad()
    def settle(self, under_way: Round) -> None:
        """Turn a completed round into one that needs no exchange any more, to be saved; its means are yet to come.

        They stay in the staging memory, which nothing else uses before they are accepted.
        """
        if under_way.means is not None:
            return
        means: dict[int, Tensor] = {}
        for exchange, numbers in under_way.exchanges:
            means |= {number: exchange.mean(place) for place, number in enumerate(numbers)}
            self._settle_wire(exchange, numbers, under_way.everyone)
        under_way.means = [means[number] for number in range(len(self.buckets))]
        under_way.exchanges, under_way.packed = [], None

    def settled(self, number: int, means: Sequence[Tensor], snapshot: Sequence[Tensor], *, everyone: bool) -> Round:
        """Return the round that was saved with these means and this snapshot."""
        torch._foreach_copy_(self._snapshot, list(snapshot))
        copies = [torch.empty_like(bucket).copy_(mean) for bucket, mean in zip(self.buckets, means, strict=True)]
        return Round(number, (), everyone, self._snapshot, completed=True, means=copies)

    def _settle_wire(self, exchange: Exchange, numbers: list[int], everyone: bool) -> None:
        if isinstance(exchange, CompressedExchange):
            self.wire.accept_residual()
        elif everyone and self.wire and numbers is self._narrow:
            self.wire.renew([exchange.mean(place) for place in range(len(numbers))])


def _gather_flags(sources: Sequence[Tensor], group: dist.ProcessGroup) -> tuple[Tensor, dist.Work]:
    """Start to tell whose values are finite, by place in the group: a reading pass and a tiny all-gather."""
    mine = all_finite(sources).to(torch.uint8).reshape(1)
    flags = mine.new_empty(group.size())
    return flags, all_gather(flags, mine, group=group, async_op=True)


def _shift(target: Tensor, snapshot: Tensor, mean: Tensor) -> None:
    """Add mean - snapshot where the target has changed since the snapshot; elsewhere take the mean, bit for bit."""
    for now, before, average in chunks(target, snapshot, mean):
        torch.where(now == before, average, now + (average - before), out=now)


def _blame(ranks: Sequence[int]) -> str:
    return (
        f"DSSync: values of rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} are NaN or infinite; "
        "nothing was averaged with them. Find out why, or let such workers' values be left out with on_nonfinite='skip'"
    )


@torch.no_grad()
def disagreement(parts: Sequence[Tensor], group: dist.ProcessGroup) -> float:
    """Return the root mean square distance of the members' tensors to their mean, in units of the mean's norm."""
    sums = torch.zeros(2, dtype=torch.float64, device=parts[0].device)
    for part in parts:
        for piece in part.split(BUCKET_BYTES // part.element_size()):
            mean = piece.to(torch.promote_types(piece.dtype, torch.float32), copy=True)
            dist.all_reduce(mean, group=group)
            mean /= group.size()
            distance = torch.linalg.vector_norm(piece - mean, dtype=torch.float64)
            norm = torch.linalg.vector_norm(mean, dtype=torch.float64)
            sums += torch.stack([distance, norm]).square().to(sums.device)
    dist.all_reduce(sums, group=group)
    distance, norm = sums.sqrt().tolist()
    return distance / norm if norm else distance

"""How the mean of buckets over a group is computed: three ways, chosen by the group's size.

All leave the buckets alone and the mean in a staging copy, with the same bits on all members. Two members exchange the
whole (one hop). Up to eight send each other shards, average their own and gather the means (two hops, the bytes of a
ring, which needs 2 (g - 1) hops). Both add in float32 in the order of ranks and divide once. Larger groups use the
backend's all-reduce, whose order is its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

DIRECT_RANKS = 8
_CACHED = 2**17  # elements that stay in a core's cache between the passes over them
# Gloo sends a message each way on a connection one after the other, but several of them side by side: a pair of large
# ones takes twice the time of the link (measured: 4 MB at 200 Mbit/s 328 ms, in pieces 168 ms). Each piece costs 0.3 ms
# of a processor, so there are few, and none is small.
PIECES, PIECE_BYTES = 16, 2**17
WIDE_BUCKETS = 2  # of float32 copies under way: one is reduced while another is converted

# torch 2.13 renamed it
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def staging_for(bucket: Tensor) -> Tensor:
    """Return memory for the mean of a bucket, with room for shards that do not divide it."""
    return bucket.new_empty(bucket.numel() + DIRECT_RANKS)


class Exchange:
    """The mean of some buckets over a group, from ``start`` to ``finish``.

    Args:
        sources: the buckets; must not change before ``finish``.
        staging: as many tensors from :func:`staging_for`.
        group: process group.
        present: by place in the group, whose buckets count; everyone's, where None.
    """

    def __init__(
        self,
        sources: Sequence[Tensor],
        staging: Sequence[Tensor],
        group: dist.ProcessGroup,
        present: Sequence[bool] | None = None,
    ):
        self.sources, self.staging, self.group = sources, staging, group
        self.size, self.place = group.size(), group.rank()
        self.present = [True] * self.size if present is None else list(present)
        self._works: list[dist.Work | None] = []

    def start(self) -> None:
        """Begin to send; returns at once."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait for the mean (on a GPU: let the current stream wait).

        Raises:
            RuntimeError: what the backend raises when a member is gone or late.
        """
        raise NotImplementedError

    def mean(self, number: int) -> Tensor:
        """Return the mean of a bucket, in the staging memory."""
        return self._staged(number)

    def write(self, targets: Sequence[Tensor]) -> None:
        """Write the means to the targets, which may be the sources."""
        torch._foreach_copy_(list(targets), [self.mean(number) for number in range(len(self.sources))])

    def _staged(self, number: int) -> Tensor:
        return self.staging[number][: self.sources[number].numel()]

    def drain(self) -> None:
        """Wait until nothing is under way any more, successful or not."""
        for work in self._works:
            with contextlib.suppress(RuntimeError):
                work.wait()
        self._works = []


class PairExchange(Exchange):
    def start(self) -> None:
        self._averaged = [False] * len(self.sources)
        for number, source in enumerate(self.sources):
            # one by one: should a piece fail, those before it are known, and can be waited for
            self._works.extend(swap(source, self._staged(number), self.group))

    def finish(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []

    def mean(self, number: int) -> Tensor:
        received = self._staged(number)
        if not self._averaged[number]:
            self._average(number, received)
            self._averaged[number] = True
        return received

    def write(self, targets: Sequence[Tensor]) -> None:
        for number, target in enumerate(targets):
            if self._averaged[number] or target is not self.sources[number]:
                target.copy_(self.mean(number))
            else:  # at once to where it belongs
                self._average(number, target)

    def _average(self, number: int, out: Tensor) -> None:
        mean_in_order(self._present_parts(number), out)

    def _present_parts(self, number: int) -> list[Tensor]:
        pair = [self.sources[number], self._staged(number)]
        if self.place:
            pair.reverse()
        return [part for part, counts in zip(pair, self.present, strict=True) if counts]


class ShardExchange(Exchange):
    def start(self) -> None:
        for source, staging in zip(self.sources, self.staging, strict=True):
            sizes = self._shards(source)
            mine = sizes[self.place]
            received = staging[: self.size * mine]
            work = dist.all_to_all_single(received, source, [mine] * self.size, sizes, group=self.group, async_op=True)
            self._works.append(work)

    def finish(self) -> None:
        for number, (source, staging) in enumerate(zip(self.sources, self.staging, strict=True)):
            self._works[number].wait()
            sizes = self._shards(source)
            mine, full = sizes[self.place], sizes[0]
            received = staging[: self.size * mine].view(self.size, mine)
            # into the first one's place: the others' cannot be overwritten before they are read
            mean_in_order([received[place] for place in range(self.size) if self.present[place]], out=received[0])
            begin = self.place * full
            if self.place:
                staging[begin : begin + mine].copy_(received[0])
            self._works[number] = all_gather(
                staging[: self.size * full], staging[begin : begin + full], group=self.group, async_op=True
            )
        for work in self._works:
            work.wait()
        self._works = []

    def _shards(self, source: Tensor) -> list[int]:
        """Return how many elements each member averages: the last ones may have fewer, or none."""
        full = -(-source.numel() // self.size)
        return [max(0, min(full, source.numel() - place * full)) for place in range(self.size)]


class ReduceExchange(Exchange):
    """By the backend's all-reduce. Sources may be the staging itself: then the mean takes their place.

    A sum of half-precision numbers in half precision would round at every hop, so those buckets are sent as float32
    copies: :data:`WIDE_BUCKETS` of them at a time, the next when one has come back. Unattended, there is nobody to send
    the next: all are sent at once, and the copies of all are held until then.
    """

    def __init__(
        self,
        sources: Sequence[Tensor],
        staging: Sequence[Tensor],
        group: dist.ProcessGroup,
        present: Sequence[bool] | None = None,
        *,
        unattended: bool = False,
    ):
        super().__init__(sources, staging, group, present)
        self._most = len(sources) if unattended else WIDE_BUCKETS
        self._wide: dict[int, Tensor] = {}

    def start(self) -> None:
        while len(self._works) < len(self.sources) and len(self._wide) < self._most:
            self._start_next()

    def _start_next(self) -> None:
        number = len(self._works)
        source, total = self.sources[number], self._staged(number)
        if _accumulator(source.dtype) != source.dtype:
            total = self._wide[number] = torch.empty_like(source, dtype=torch.float32)
        if not self.present[self.place]:
            total.zero_()
        elif total.data_ptr() != source.data_ptr():
            total.copy_(source)
        self._works.append(dist.all_reduce(total, group=self.group, async_op=True))

    def finish(self) -> None:
        count = sum(self.present)
        for number in range(len(self.sources)):
            self._works[number].wait()
            staged = self._staged(number)
            if number in self._wide:
                staged.copy_(self._wide[number].div_(count))
                # the work holds on to the copy as well
                del self._wide[number]
                self._works[number] = None
                self.start()
            else:
                staged.div_(count)
        self._works = []

    def drain(self) -> None:
        self._works = [work for work in self._works if work is not None]
        super().drain()
        self._wide = {}


def swap(sent: Tensor, received: Tensor, group: dist.ProcessGroup) -> Iterator[dist.Work]:
    """Start, as one goes on, to exchange equally long tensors between the two members of a group, in pieces."""
    length = max(1, sent.numel())
    if sent.device.type == "cpu":
        length = max(-(-length // PIECES), PIECE_BYTES // sent.element_size())
    for source, target in zip(sent.split(length), received.split(length), strict=True):
        splits = [0, 0]
        splits[1 - group.rank()] = source.numel()
        yield dist.all_to_all_single(target, source, splits, splits, group=group, async_op=True)


def make_exchange(
    sources: Sequence[Tensor],
    staging: Sequence[Tensor],
    group: dist.ProcessGroup,
    *,
    present: Sequence[bool] | None = None,
    unattended: bool = False,
) -> Exchange:
    """Return the way for a group of this size; an unattended one goes to its end without this process's help."""
    size = group.size()
    if size == 2:
        return PairExchange(sources, staging, group, present)
    if size <= DIRECT_RANKS and not unattended:
        return ShardExchange(sources, staging, group, present)
    return ReduceExchange(sources, staging, group, present, unattended=unattended)


def mean_in_order(parts: Sequence[Tensor], out: Tensor) -> None:
    """Write the mean of equally long tensors, added in float32 (or float64) in their order.

    ``out`` may be the first or the second of them.
    """
    dtype = _accumulator(out.dtype)
    for chunk, first, *others in chunks(out, *parts):
        if not others:
            chunk.copy_(first)
            continue
        total = torch.add(first, others[0], out=chunk) if dtype == out.dtype else first.to(dtype).add_(others[0])
        for other in others[1:]:
            total += other
        total.div_(len(parts))
        if total is not chunk:
            chunk.copy_(total)


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut equally long tensors alike: on a CPU into pieces that stay in its cache, elsewhere not at all."""
    length = tensors[0].numel()
    step = _CACHED if tensors[0].device.type == "cpu" else max(length, 1)
    yield from zip(*(tensor.split(step) for tensor in tensors), strict=True)


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return whether all values are finite (a bool scalar), by one sum over each tensor."""
    sums = [tensor.sum(dtype=_accumulator(tensor.dtype)) for tensor in tensors]
    return torch.stack([total.double().to(sums[0].device) for total in sums]).isfinite().all()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

"""Compressed rounds: what is sent is each worker's difference from a common reference, in two bytes or one a number.

Parameters rounded to bfloat16 would lose small updates for good. Their differences from a reference that is the same on
all workers are small, and what rounding loses of them is kept by the sender and sent later (error feedback): over all
workers, parameters plus residuals have the mean they would have without compression.

Up to three members send each other everything (one hop). In larger groups each member averages one shard of the
differences, rounds it once more and sends it to all, so that bytes do not grow with the group; what this second
rounding loses of a mean of g is g times as much in the sum, and goes to the residual of the member that did it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync.exchange import Exchange, all_gather, staging_for, swap
from specfast.ops import delta_average_, delta_pack

WIRES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}
GATHER_RANKS = 3
BLOCK = 256  # elements of float8 that share a scale: shards end between blocks


class WireState:
    """What compression of some float32 buckets needs to know: three copies of them.

    Attributes:
        reference: the same bits on all workers.
        residual: what this worker has not yet sent.
        scratch: staging memory, as :func:`~specfast.dssync.exchange.staging_for` gives it.
    """

    def __init__(self, buckets: Sequence[Tensor], wire: str):
        self.dtype = WIRES[wire]
        self.reference = [bucket.clone() for bucket in buckets]
        self._residual = [staging_for(bucket).zero_() for bucket in buckets]
        self.scratch = [staging_for(bucket) for bucket in buckets]

    @property
    def residual(self) -> list[Tensor]:
        return [_like(residual, reference) for residual, reference in zip(self._residual, self.reference, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.reference, *self._residual, *self.scratch))

    def accept_residual(self) -> None:
        """Take the residual that lies in the scratch memory: what was packed from it has arrived."""
        self._residual, self.scratch = self.scratch, self._residual

    def renew(self, means: Sequence[Tensor]) -> None:
        """Take a mean over all workers, to which each gave its residual, as the reference."""
        torch._foreach_copy_(self.reference, list(means))
        self.forgive()

    def forgive(self) -> None:
        """Forget what was not sent."""
        torch._foreach_zero_(self._residual)

    def digest(self) -> str:
        """Return a hash of the reference's bits; on a GPU, this copies it to the host."""
        found = hashlib.sha256()
        for reference in self.reference:
            found.update(reference.cpu().view(torch.uint8).numpy())
        return found.hexdigest()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return copies in the host's memory: a device may have no room for them."""
        return {
            "reference": [reference.to("cpu", copy=True) for reference in self.reference],
            "residual": [residual.to("cpu", copy=True) for residual in self.residual],
        }

    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        self._take(state["reference"], state["residual"])

    def take(self, other: WireState) -> None:
        """Go on from where another one of the same buckets is."""
        self._take(other.reference, other.residual)

    def _take(self, reference: Sequence[Tensor], residual: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.reference, list(reference))
        torch._foreach_copy_(self.residual, list(residual))

    def owed(self, buckets: Sequence[Tensor]) -> list[Tensor]:
        """Write the buckets with their residuals to the scratch memory, and return them."""
        owed = [_like(scratch, bucket) for scratch, bucket in zip(self.scratch, buckets, strict=True)]
        for total, bucket, residual in zip(owed, buckets, self.residual, strict=True):
            torch.add(bucket, residual, out=total)
        return owed


class CompressedExchange(Exchange):
    """The mean of float32 buckets over a group, by differences from the reference.

    Args:
        sources: the buckets.
        state: their reference and residuals; ``state.accept_residual()`` is to follow when the means are accepted.
        group: process group.
    """

    def __init__(self, sources: Sequence[Tensor], state: WireState, group: dist.ProcessGroup):
        super().__init__(sources, state.scratch, group)
        self._state = state
        self._received: list[tuple[Tensor, Tensor]] = []  # packed, and the scales of float8
        self._arrivals: list[list[dist.Work]] = []  # by bucket

    def start(self) -> None:
        for number, source in enumerate(self.sources):
            left = _like(self.staging[number], source).copy_(self._state.residual[number])
            packed, scales = delta_pack(source, self._state.reference[number], left, self._state.dtype)
            if self.size <= GATHER_RANKS:
                self._received.append(self._gather(packed, scales))
            else:
                self._received.append(self._scatter(packed, scales))
            self._arrivals.append(self._works[sum(map(len, self._arrivals)) :])

    def finish(self) -> None:
        if self.size > GATHER_RANKS:
            for number in range(len(self.sources)):
                for work in self._arrivals[number]:
                    work.wait()
                self._received[number] = self._average_shard(number)
        for work in self._works:
            work.wait()
        self._works = []

    def mean(self, number: int) -> Tensor:
        return self._apply(number, torch.empty_like(self.sources[number]))

    def write(self, targets: Sequence[Tensor]) -> None:
        for number, target in enumerate(targets):
            self._apply(number, target)

    def _apply(self, number: int, out: Tensor) -> Tensor:
        return delta_average_(out, self._state.reference[number], *self._parts(number))

    def _parts(self, number: int) -> tuple[Tensor, Tensor]:
        """Return what arrived as rows: of all members, or, of larger groups, one row that is their mean."""
        length = self.sources[number].numel()
        packed, scales = self._received[number]
        rows = 1 if self.size > GATHER_RANKS else self.size
        blocks = _blocks(length) if scales.numel() else 0
        return (
            packed.view(rows, packed.numel() // rows)[:, :length],
            scales.view(rows, scales.numel() // rows)[:, :blocks],
        )

    def _average_shard(self, number: int) -> tuple[Tensor, Tensor]:
        """Average this member's shard of the differences, round the mean, and send it to all."""
        packed, scales = self._received[number]
        shards = self._shards(self.sources[number].numel())
        length, full = shards[self.place], shards[0]
        zeros = torch.zeros(length, dtype=torch.float32, device=packed.device)
        mean, lost = torch.empty_like(zeros), torch.zeros_like(zeros)
        rows = scales.view(self.size, scales.numel() // self.size)
        delta_average_(mean, zeros, packed.view(self.size, length), rows)
        packed, scales = delta_pack(mean, zeros, lost, self._state.dtype)
        begin = self.place * full
        self.staging[number][begin : begin + length].add_(lost, alpha=self.size)
        # backends gather equal lengths only
        blocks = 0 if self._state.dtype == torch.bfloat16 else _blocks(full)
        return self._gather(_padded(packed, full), _padded(scales, blocks))

    def _shards(self, length: int) -> list[int]:
        """Return how many elements each member averages, whole blocks but for the last."""
        full = -(-length // (self.size * BLOCK)) * BLOCK
        return [max(0, min(full, length - place * full)) for place in range(self.size)]

    def _gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Start to collect everybody's tensors, one after the other."""
        collected = tuple(tensor.new_empty(self.size * tensor.numel()) for tensor in tensors)
        for tensor, out in zip(tensors, collected, strict=True):
            if tensor.numel() and self.size == 2:
                rows = _bytes(out).view(2, -1)
                rows[self.place].copy_(_bytes(tensor))
                self._works.extend(swap(_bytes(tensor), rows[1 - self.place], self.group))
            elif tensor.numel():
                self._works.append(all_gather(_bytes(out), _bytes(tensor), group=self.group, async_op=True))
        return collected

    def _scatter(self, packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Start to send each member its shard, and to receive everybody's part of this member's."""
        shards = self._shards(packed.numel())
        blocks = [_blocks(shard) if scales.numel() else 0 for shard in shards]
        received = []
        for tensor, sizes in ((packed, shards), (scales, blocks)):
            width, mine = tensor.element_size(), sizes[self.place]
            received.append(tensor.new_empty(self.size * mine))
            if any(sizes):
                work = dist.all_to_all_single(
                    _bytes(received[-1]),
                    _bytes(tensor),
                    [mine * width] * self.size,
                    [size * width for size in sizes],
                    group=self.group,
                    async_op=True,
                )
                self._works.append(work)
        return received[0], received[1]


def _like(staging: Tensor, bucket: Tensor) -> Tensor:
    return staging[: bucket.numel()]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)  # backends know neither float8 nor, some of them, bfloat16


def _blocks(length: int) -> int:
    return -(-length // BLOCK)


def _padded(tensor: Tensor, length: int) -> Tensor:
    if tensor.numel() == length:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(length - tensor.numel())])

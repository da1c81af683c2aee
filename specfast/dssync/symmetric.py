"""The mean over a group inside one node: GPUs read each other's memory in one kernel; the library does the rest.

Two kernels, chosen by how many bytes each moves and how often the ranks must meet: in a one-shot every rank reads
everything of everybody, in a two-shot each makes the mean of a share and reads the others'. Both add in float32 in the
order of the ranks and divide once, so results have the same bits on all ranks and do not depend on the choice. Large
tensors, and groups whose GPUs cannot address each other, go through the backend's all-reduce.

The kernels have been compiled, and run in Triton's interpreter by processes that share memory; not yet on GPUs.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync.exchange import Exchange
from specfast.errors import SpecfastError
from specfast.ops.symmetric import DTYPES, MOST_RANKS, symmetric_layout, symmetric_mean_, symmetric_unsupported

CAPACITY = 8 << 20
ONE_SHOT_BYTES = 512 << 10  # of 8 ranks; see form_of
_POLL_S = 1e-6  # about what a look at the flags takes
_logger = logging.getLogger(__name__)


class AbsentRankError(SpecfastError, RuntimeError):
    """A rank did not come to a mean within the timeout."""


def form_of(nbytes: int, world: int, capacity: int = CAPACITY) -> str:
    """Return ``"one_shot"``, ``"two_shot"`` or ``"library"`` for a tensor of so many bytes.

    With W ranks, a one-shot reads (W - 1) S bytes and meets once, a two-shot 2 (W - 1) / W S bytes and meets twice:
    the second meeting pays once (W - 1) (1 - 2 / W) S exceeds what passes in its time. Eight ranks switch at 512 KiB
    (a rule of thumb for NVLink, to be measured), two never do.
    """
    if nbytes > capacity:
        return "library"
    return "one_shot" if _saved(nbytes, world) <= _saved(ONE_SHOT_BYTES, 8) else "two_shot"


def _saved(nbytes: int, world: int) -> float:
    return nbytes * (world - 1) * (1 - 2 / world)


class SymmetricMean:
    """Means over a process group, in place. All members make it together, and call it alike.

    Calls are in order of one stream, read nothing back and may be captured in a CUDA graph.

    Args:
        group: process group; None: all processes.
        device: of the tensors.
        capacity: bytes of the largest tensor that goes through symmetric memory.
        timeout: seconds, roughly, after which a kernel stops waiting for a rank; see :meth:`check`.

    Attributes:
        group: process group.
        reason: why symmetric memory is not used, in any member's words; empty where it is.
        extra_bytes: memory held on the device: two capacities, and flags.

    Raises:
        ValueError: a capacity or timeout that is not positive.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        device: torch.device | str,
        *,
        capacity: int = CAPACITY,
        timeout: float = 300.0,
    ):
        for name, value in (("capacity", capacity), ("timeout", timeout)):
            if value <= 0:
                raise ValueError(f"SymmetricMean: {name} must be positive; got {value}")
        self.group = dist.group.WORLD if group is None else group
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:  # as tensors name it
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.rank, self.world = self.group.rank(), self.group.size()
        self.capacity, self.extra_bytes = capacity, 0
        self._polls = min(int(timeout / _POLL_S), (1 << 31) - 1)
        # all or none, at every step: one member that went another way would leave the others waiting
        self.reason = self._any_reason(_reason(self.device, self.world), node=_node())
        if not self.reason:
            self.reason = self._any_reason(self._make_memory())
        if self.reason:
            _logger.info("SymmetricMean: %s; the backend's all-reduce is used", self.reason)

    def _any_reason(self, reason: str, node: str = "") -> str:
        """The first reason that a member has, or that not all are on one node."""
        found: list = [None] * self.world
        dist.all_gather_object(found, (reason, node), group=self.group)
        reasons = [f"rank {rank}: {one}" for rank, (one, _) in enumerate(found) if one]
        if not reasons and len({one for _, one in found}) > 1:
            return "the group spans several nodes"
        return reasons[0] if reasons else ""

    def _make_memory(self) -> str:
        """Make this rank's buffer and learn where the others' are; the reason where that fails."""
        import torch.distributed._symmetric_memory as symmetric_memory  # needs parts of torch that not every build has

        size, self._half, programs = symmetric_layout(self.world, self.capacity)
        try:
            self._memory = symmetric_memory.empty(size, dtype=torch.uint8, device=self.device)
            self._handle = symmetric_memory.rendezvous(self._memory, self.group)
            # a pool may place the tensor inside a larger allocation, the same on all ranks
            start = self._memory.data_ptr() - self._handle.buffer_ptrs[self.rank]
            addresses = [pointer + start for pointer in self._handle.buffer_ptrs]
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            return f"symmetric memory cannot be had ({str(error).splitlines()[0]})"
        self._memory.zero_()
        self._buffers = torch.tensor(addresses, dtype=torch.int64, device=self.device)
        self._state = torch.zeros(2, programs, dtype=torch.int32, device=self.device)
        torch.cuda.synchronize(self.device)  # the flags are zeros before anybody is told to go on
        self.extra_bytes = self._memory.nbytes + self._buffers.nbytes + self._state.nbytes
        return ""

    def form_of(self, values: Tensor) -> str:
        """Return how a tensor would be averaged: ``"one_shot"``, ``"two_shot"`` or ``"library"``."""
        fits = not self.reason and values.dtype in DTYPES and values.device == self.device
        return form_of(values.nbytes, self.world, self.capacity) if fits else "library"

    @torch.no_grad()
    def mean_(self, values: Tensor, *, form: str | None = None) -> Tensor:
        """Replace ``values`` [n] by their mean over the group, with the same bits on all members, and return it.

        Args:
            values: contiguous; the same shape and dtype on all members.
            form: instead of the choice of :meth:`form_of`; the same on all members.
        """
        form = self.form_of(values) if form is None else form
        if form == "library":
            wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
            dist.all_reduce(wide, group=self.group)
            wide.div_(self.world)
            return values if wide is values else values.copy_(wide)
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with on_device:
            given = {"rank": self.rank, "half": self._half, "polls": self._polls}
            symmetric_mean_(values, self._buffers, self._state, two_shot=form == "two_shot", **given)
        return values

    def check(self) -> None:
        """Wait for the device and raise if a rank has not come to any mean so far.

        What was averaged then is not to be used: each block of it is either the mean or what it was. The object is of
        no more use either.

        Raises:
            AbsentRankError: with the ranks whose flags stayed behind.
        """
        if self.reason or not bool(self._state[1].any()):
            return
        programs = self._state.shape[1]
        flags = self._memory[: 4 * programs * self.world].view(torch.int32).view(programs, self.world)
        # not less than the count of calls: at the first of two meetings those who came raise less than that. And a
        # difference, so that flags may wrap around.
        behind = (flags - flags[:, self.rank, None] < 0).any(dim=0).nonzero().flatten().tolist()
        raise AbsentRankError(f"SymmetricMean: ranks {behind} of the group did not come to a mean within the timeout")


def _reason(device: torch.device, world: int) -> str:
    """Why this rank cannot take part; empty if nothing is known to speak against it."""
    if device.type != "cuda":
        return f"tensors on {device.type}"
    if world > MOST_RANKS:
        return f"{world} ranks, over {MOST_RANKS}"
    return symmetric_unsupported(device) or ""


def _node() -> str:
    """The same on all processes of a machine, also in its containers, and on no other machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else platform.node()


class SymmetricExchange(Exchange):
    """The mean of buckets over a group through a :class:`SymmetricMean`; everyone's buckets count.

    Its bits are those of the exchanges by messages between up to eight members. ``finish`` waits for the device, unless
    all went through the library: a member that is gone must not leave half an average.
    """

    def __init__(self, sources: Sequence[Tensor], staging: Sequence[Tensor], mean: SymmetricMean):
        super().__init__(sources, staging, mean.group)
        self._mean = mean

    def start(self) -> None:
        for number, source in enumerate(self.sources):
            self._mean.mean_(self.mean(number).copy_(source))

    def finish(self) -> None:
        if any(self._mean.form_of(source) != "library" for source in self.sources):
            self._mean.check()

"""Times the links of a running process group, and returns the same topology on all ranks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist

from specfast.dssync import links
from specfast.dssync.links import Pair
from specfast.dssync.topology import Topology, TopologyError

Exchange = Callable[[Sequence[Pair], int, int], float]  # (pairs of the round, partner, bytes) -> seconds


def measure_topology(
    process_group: dist.ProcessGroup | None = None,
    *,
    nbytes: int = 4 << 20,
    repeats: int = 5,
    most_rounds: int = 192,
    device: torch.device | None = None,
    exchange: Exchange | None = None,
) -> Topology:
    """Measure latency, NICs, racks and uplinks by exchanges between pairs; all ranks call it and get the same.

    It takes at most ``most_rounds`` rounds of ``repeats`` large messages (3 (N - 1) rounds among N ranks if that is
    less), a third as many of tiny ones, some more across the racks found, and a few small collectives. Nothing else
    should use the network meanwhile.

    Args:
        process_group: None: the default one.
        nbytes: size of the large messages: what the averaging sends at a time.
        repeats: exchanges a pair and size, of which the median counts.
        most_rounds: see above; in large worlds some pairs stay unmeasured.
        device: where the messages lie; None: the current GPU if the group has NCCL, else the CPU.
        exchange: stands in for the timed exchange, in tests.

    Raises:
        TopologyError: there is no process group of two or more.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise TopologyError("measure_topology: expected an initialized process group (run under torchrun); got none")
    world, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    if world < 2:
        raise TopologyError("measure_topology: expected two processes or more; got 1")
    if nbytes < 1 or repeats < 1 or most_rounds < 1:
        raise TopologyError(f"measure_topology: expected positive numbers; got {nbytes}, {repeats}, {most_rounds}")
    if device is None:
        device = device_of(process_group)
    timed = exchange or _TimedExchange(process_group, device)

    def phase(rounds: Sequence[Sequence[Pair]], size: int) -> np.ndarray:
        own = torch.full((len(rounds),), float("nan"), dtype=torch.float64)
        for number, pairs in enumerate(rounds):
            dist.barrier(process_group)  # the pairs of a round load the network together
            partner = next((a + b - rank for a, b in pairs if rank in (a, b)), None)
            if partner is not None:
                own[number] = statistics.median(timed(pairs, partner, size) for _ in range(repeats))
        everybody = [torch.empty(len(rounds), dtype=torch.float64, device=device) for _ in range(world)]
        dist.all_gather(everybody, own.to(device), group=process_group)
        return torch.stack(everybody, dim=1).cpu().numpy()

    topology = links.survey(world, phase, nbytes, most_rounds=most_rounds)
    found = [topology.to_json()]  # the same arithmetic on all, but not surely the same versions of numpy
    dist.broadcast_object_list(found, group=process_group, group_src=0, device=device)
    return Topology.from_json(found[0])


def device_of(process_group: dist.ProcessGroup | None) -> torch.device:
    """Return where the messages of a group's workers lie: on the current GPU if it has NCCL, else on the CPU.

    Not by the name of its backend: a group made without one, or by "cpu:gloo,cuda:nccl", has one for each device.
    """
    group = dist.group.WORLD if process_group is None else process_group
    gpu = torch.device("cuda")
    if torch.cuda.is_available() and gpu in group._device_types and group._get_backend(gpu).name().lower() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


class _TimedExchange:
    """Sends a message to the partner while receiving one from it; both start when both are ready."""

    def __init__(self, process_group: dist.ProcessGroup | None, device: torch.device):
        self.group = process_group
        self.device = device
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, pairs: Sequence[Pair], partner: int, nbytes: int) -> float:
        self._swap(partner, 1)  # opens the connection, and lets both start together
        start = time.perf_counter()
        self._swap(partner, nbytes)
        return time.perf_counter() - start

    def _swap(self, partner: int, nbytes: int) -> None:
        if nbytes not in self.buffers:
            sent = torch.zeros(nbytes, dtype=torch.uint8, device=self.device)
            self.buffers[nbytes] = sent, torch.empty_like(sent)
        sent, received = self.buffers[nbytes]
        operations = [
            dist.P2POp(dist.isend, sent, group=self.group, group_peer=partner),
            dist.P2POp(dist.irecv, received, group=self.group, group_peer=partner),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

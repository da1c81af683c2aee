"""One process, or several started by torchrun: who am I, and how do we agree."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: 0 to size - 1; size: number of processes; device: where this one computes.
        group: torch's name for these processes; None if they are all that torchrun started, or this one alone.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def table(self, values: Tensor) -> Tensor:
        """Return the values [n] of each process as rows [size, n], to all."""
        if self.size == 1:
            return values[None]
        rows = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(rows, values, group=self.group)
        return torch.stack(rows)

    def gather(self, value: Any) -> list | None:
        """Return the values of all processes to rank 0, None to the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value to all."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model in DistributedDataParallel, or itself if this is the only process."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            process_group=self.group,
        )

    def alone(self) -> World:
        """Return the world of this process only."""
        return World(0, 1, self.device)

    def domains(self, size: int) -> tuple[World, World]:
        """Split the processes into domains of ``size`` neighbors; all must call it.

        Returns:
            this process's domain, and the processes that have its place in the other domains.
        """
        shape = (self.size // size, size)
        mesh = dist.init_device_mesh(self.device.type, shape, mesh_dim_names=("across", "domain"))
        domain, across = (
            World(mesh.get_local_rank(name), mesh.size(number), self.device, mesh.get_group(name))
            for name, number in (("domain", 1), ("across", 0))
        )
        return domain, across


@contextlib.contextmanager
def connect(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; leave them at the end.

    A process group that is there already is used and left as it is.

    Args:
        device: ``"auto"`` (CUDA where there is one), or a torch device. Under torchrun ``"cuda"`` is the GPU of the
            process's local rank.

    Raises:
        ValueError: the device is unknown or not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    joined = dist.is_available() and dist.is_initialized()
    own_group = not joined and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if own_group:
        nccl = place.type == "cuda"
        dist.init_process_group("nccl" if nccl else "gloo", device_id=place if nccl else None)
    try:
        if joined or own_group:
            yield World(dist.get_rank(), dist.get_world_size(), place)
        else:
            yield World(0, 1, place)
    finally:
        if own_group:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N; got {name!r}") from None
    if place.type == "cuda":
        if not cuda:
            raise ValueError(f"device: {name} was asked for, but torch {torch.__version__} finds no CUDA device")
        place = torch.device("cuda", local_rank if place.index is None else place.index)
        if place.index >= torch.cuda.device_count():
            raise ValueError(f"device: {place} was asked for; there are {torch.cuda.device_count()} CUDA devices")
    return place

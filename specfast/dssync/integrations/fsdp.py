"""DS-Sync with FSDP2: within a group of workers the model is sharded, across such groups the shards are averaged.

A DeviceMesh has the two dimensions. FSDP2 gets the sharding one *alone*, DS-Sync the replicating one:

    mesh = init_device_mesh("cuda", (replicas, shards), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh["shard"])         # in HSDP it would be mesh=mesh
    sync = ShardSync(model, optimizer, mesh=mesh["replicate"], group_size=4)
    ...
    model(batch).backward()                        # gradients are averaged within the sharding group
    sync.step()

Why not HSDP with its all-reduce switched off: ``set_requires_all_reduce(False)`` is for gradient accumulation; torch
then keeps the reduced gradients to itself, ``parameter.grad`` stays None and the optimizer does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from specfast.dssync.communicator import DSSync
from specfast.dssync.schedule import Schedule


class ShardSync:
    """A :class:`~specfast.dssync.DSSync` for a model that ``fully_shard`` has sharded.

    It has DSSync's methods but ``admit_``: a worker that is lost takes its shards along, so there is no going on
    without it. FSDP2 owns the memory of its shards, so they are not moved into flat buffers: they are copied there and
    back each round (one pass over this worker's shards, which are 1/S of the parameters for S workers a sharding
    group). Memory beyond DSSync's own is one copy of the shards. With ``overlap``, a step with a closure hides nothing.

    Args:
        model: sharded over a mesh of one dimension; parameters left out of sharding and float buffers are averaged too.
        optimizer: over the model's parameters.
        mesh: the replicating dimension, a mesh of one dimension; or give ``process_group``: the workers that hold the
            same shards as this one.
        options: of DSSync, but not ``momentum`` (it belongs to the sharded parameters), ``elastic`` and ``rejoin``.

    Raises:
        ValueError: nothing is sharded, or over the replicas as well; both or neither of mesh and process_group; an
            option that does not work here.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        mesh: DeviceMesh | None = None,
        process_group: dist.ProcessGroup | None = None,
        **options,
    ):
        if (mesh is None) == (process_group is None):
            raise ValueError("mesh: expected either mesh or process_group, of the workers that hold the same shards")
        for name in ("momentum", "elastic", "rejoin"):
            if options.get(name):
                raise ValueError(f"{name}: not with sharded parameters; got {name}=True")
        if mesh is not None:
            if mesh.ndim != 1:
                raise ValueError(f'mesh: expected one dimension, as mesh["replicate"]; got {mesh}')
            process_group = mesh.get_group()
        _check_sharding(model, dist.get_process_group_ranks(process_group))
        self._model = model
        self._overlap = bool(options.get("overlap"))
        self._copies = _Copies(model)
        self._sync = DSSync(self._copies, _LocalStep(optimizer, self), process_group=process_group, **options)
        self._load()  # the first replica's parameters

    def step(self, closure: Callable | None = None) -> Any:
        """Do the local step, then average the shards in the current group."""
        if self._overlap:  # a correction is due before the local step
            self._store()
            if closure is not None:  # which computes on the shards, not on the copies that are corrected
                self._sync._settle()
                self._load()
        loss = self._sync.step(closure)
        self._load()
        return loss

    def average_(self) -> None:
        """Do a round without an optimizer step: see :meth:`DSSync.average_ <specfast.dssync.DSSync.average_>`."""
        with self._stored():
            self._sync.average_()

    def no_sync(self) -> AbstractContextManager:
        """See :meth:`DSSync.no_sync <specfast.dssync.DSSync.no_sync>`."""
        return self._sync.no_sync()

    def consensus_(self) -> None:
        """Replace the parameters by their mean over all replicas."""
        with self._stored():
            self._sync.consensus_()

    def trajectory_(self) -> None:
        """Replace the parameters by the mean over all replicas of their running means."""
        with self._stored():
            self._sync.trajectory_()

    def reschedule(self, schedule: Schedule) -> None:
        """See :meth:`DSSync.reschedule <specfast.dssync.DSSync.reschedule>`."""
        with self._stored():
            self._sync.reschedule(schedule)

    def consensus_distance(self) -> float:
        """Return DSSync's measure of disagreement, of the shards that this worker holds."""
        self._store()
        return self._sync.consensus_distance()

    def state_dict(self) -> dict:
        """Return the communicator's state; like the shards, each worker's own."""
        return self._sync.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict`; load the model and the optimizer first."""
        with self._stored():
            self._sync.load_state_dict(state)

    def close(self) -> None:
        """Give the communicators back."""
        self._sync.close()

    def __enter__(self) -> ShardSync:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self.consensus_()
        finally:
            self.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("schedule", "round", "rank", "world", "group", "extra_bytes"):
            return getattr(self._sync, name)
        raise AttributeError(f"'ShardSync' object has no attribute {name!r}")

    @contextmanager
    def _stored(self) -> Iterator[None]:
        """Within it the copies are what the shards were, and what becomes of them becomes of the shards."""
        self._store()
        yield
        self._load()

    @torch.no_grad()
    def _store(self) -> None:
        """Copy the shards to where they are averaged."""
        torch._foreach_copy_(self._copies.tensors(), _local_tensors(self._model))

    @torch.no_grad()
    def _load(self) -> None:
        """Copy them back."""
        torch._foreach_copy_(_local_tensors(self._model), self._copies.tensors())


class _Copies(nn.Module):
    """What DSSync takes for the model: a copy of every local tensor, under its name."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._names = [name.replace(".", "/") for name, _ in _named_tensors(model)]  # a module's own hold no dots
        trained = {name.replace(".", "/"): parameter.requires_grad for name, parameter in model.named_parameters()}
        persistent = {name.replace(".", "/") for name in model.state_dict()}
        for name, tensor in zip(self._names, _local_tensors(model), strict=True):
            if name in trained:
                self.register_parameter(name, nn.Parameter(tensor.clone(), requires_grad=trained[name]))
            else:
                self.register_buffer(name, tensor.clone(), persistent=name in persistent)

    def tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]


class _LocalStep(torch.optim.Optimizer):
    """The optimizer as DSSync calls it: its step works on the shards, and leaves the result in the copies."""

    def __init__(self, optimizer: torch.optim.Optimizer, owner: ShardSync):
        self._optimizer, self._owner = optimizer, owner
        self.param_groups = [{"params": list(owner._copies.parameters())}]

    @property
    def state(self):
        return self._optimizer.state

    def step(self, closure: Callable | None = None) -> Any:
        if self._owner._overlap:
            self._owner._load()
        loss = self._optimizer.step(closure)
        self._owner._store()
        return loss


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def _local_tensors(model: nn.Module) -> list[Tensor]:
    """Return what this worker holds; asked for each time, since FSDP2 may replace its shards."""
    tensors = [tensor for _, tensor in _named_tensors(model)]
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors]


def _check_sharding(model: nn.Module, replicas: list[int]) -> None:
    """Raise ValueError unless parameters are sharded, and each over one worker of ``replicas`` only: this one."""
    sharded = [(name, tensor) for name, tensor in model.named_parameters() if isinstance(tensor, DTensor)]
    if not sharded:
        raise ValueError("model: expected parameters sharded by fully_shard; for a plain module use DSSync")
    for name, tensor in sharded:
        mesh = tensor.device_mesh
        if mesh.ndim > 1 and any(isinstance(placement, Replicate) for placement in tensor.placements):
            raise ValueError(
                f"model: {name} is replicated over a dimension of {mesh}, where FSDP2 all-reduces its gradient; give "
                'fully_shard the sharding dimension alone, as mesh["shard"], and ShardSync the other'
            )
        if len(both := set(mesh.mesh.flatten().tolist()) & set(replicas)) != 1:
            raise ValueError(
                f"model: {name} is sharded over workers of which {sorted(both)} are among the replicas {replicas}; "
                "expected this one alone, the two being dimensions of one mesh"
            )

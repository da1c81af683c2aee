"""An optimizer's state as something to average: floating tensors of their parameter's shape, packed for each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync.agreement import MismatchError
from specfast.dssync.buffers import PackedTensors


class Momentum:
    """The state of an optimizer that is of its parameters' shapes: momentum buffers, Adam's moments.

    It stays where the optimizer keeps it, because optimizers replace it (on loading a checkpoint, for one); each round
    packs a copy, which is averaged in place and copied back.

    Args:
        optimizer: over parameters of the model.
        parameters: those that are averaged, in the same order on all ranks. Each gets a place, also if it has no state:
            it may have on other ranks, or later.
        entries: what is averaged of their state, with dtypes; the same on all ranks.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], entries: Mapping[str, torch.dtype]
    ):
        self.entries = dict(sorted(entries.items()))
        self._optimizer, self._parameters = optimizer, list(parameters)
        owners = [(parameter, dtype) for parameter in self._parameters for dtype in self.entries.values()]
        self._packed = PackedTensors([owner for owner, _ in owners], [dtype for _, dtype in owners])

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes

    @property
    def buckets(self) -> list[Tensor]:
        return self._packed.buckets

    def pack(self) -> list[Tensor]:
        """Copy the state to the buckets, and return them."""
        self._packed.pack(self._tensors())
        return self.buckets

    def unpack(self) -> None:
        """Copy the buckets back to the state; entries the optimizer does not have are left out."""
        self._packed.unpack(self._tensors())

    def _tensors(self) -> list[Tensor | None]:
        state = self._optimizer.state
        found = [
            (state.get(parameter, {}).get(key), parameter) for parameter in self._parameters for key in self.entries
        ]
        return [value if _averaged("", value, parameter) else None for value, parameter in found]


def find_entries(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], process_group: dist.ProcessGroup
) -> dict[str, torch.dtype]:
    """Return what the optimizers of all ranks hold that can be averaged; called by all, the same on all.

    A rank may have nothing yet, when its first step overflowed or it was started again, or not what another has, when
    some parameter had no gradient there. Before any step there is nothing anywhere.

    Raises:
        MismatchError: the optimizers are of different kinds.
    """
    mine: dict[str, torch.dtype] = {}
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if _averaged(key, value, parameter):
                _widen(mine, key, value.dtype)
    everyone: list[tuple[str, dict[str, torch.dtype]]] = [("", {})] * process_group.size()
    dist.all_gather_object(everyone, (type(optimizer).__name__, mine), group=process_group)
    common: dict[str, torch.dtype] = {}
    for rank, (kind, entries) in enumerate(everyone):
        if kind != everyone[0][0]:
            raise MismatchError(
                f"DSSync: optimizer must be of the same kind on all ranks: {everyone[0][0]} on rank 0, {kind} on "
                f"rank {rank}"
            )
        for key, dtype in entries.items():
            _widen(common, key, dtype)
    return common


def clear_nonfinite(optimizer: torch.optim.Optimizer) -> None:
    """Set what is NaN or infinite in an optimizer's state to zero."""
    for entries in optimizer.state.values():
        for value in entries.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                torch.nan_to_num_(value, nan=0.0, posinf=0.0, neginf=0.0)


def _widen(entries: dict[str, torch.dtype], key: str, dtype: torch.dtype) -> None:
    # of a model in several dtypes, the narrow ones' state finds room in the wider one
    entries[key] = torch.promote_types(entries.get(key, dtype), dtype)


def _averaged(key: str, value: object, parameter: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape == parameter.shape
        and key != "step"  # of a parameter without dimensions
    )

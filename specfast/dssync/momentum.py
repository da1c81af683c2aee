"""An optimizer's state as something to average: floating tensors of their parameter's shape, packed for each round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specfast.dssync.buffers import PackedTensors


class Momentum:
    """The state of an optimizer that is of its parameters' shapes: momentum buffers, Adam's moments.

    It stays where the optimizer keeps it, because optimizers replace it (on loading a checkpoint, for one); each round
    packs a copy, which is averaged in place and copied back.

    Args:
        optimizer: has done a step, or has loaded its state.
        parameters: in the same order on all ranks.

    Attributes:
        keys: names of the entries that are averaged.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]):
        self._optimizer, self._parameters = optimizer, list(parameters)
        found: dict[str, torch.dtype] = {}
        for parameter in self._parameters:
            for key, value in optimizer.state.get(parameter, {}).items():
                if _averaged(key, value, parameter):
                    found.setdefault(key, value.dtype)
        self.keys = sorted(found)
        # entries of parameters that had no gradient so far get a place, too: they may have on other ranks, or later
        entries = [(parameter, found[key]) for parameter in self._parameters for key in self.keys]
        self._packed = PackedTensors([owner for owner, _ in entries], [dtype for _, dtype in entries])

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
        entries = [
            (state.get(parameter, {}).get(key), parameter) for parameter in self._parameters for key in self.keys
        ]
        return [value if _averaged("", value, parameter) else None for value, parameter in entries]


def clear_nonfinite(optimizer: torch.optim.Optimizer) -> None:
    """Set what is NaN or infinite in an optimizer's state to zero."""
    for entries in optimizer.state.values():
        for value in entries.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                torch.nan_to_num_(value, nan=0.0, posinf=0.0, neginf=0.0)


def _averaged(key: str, value: object, parameter: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape == parameter.shape
        and key != "step"  # of a parameter without dimensions
    )

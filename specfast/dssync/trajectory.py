"""The average of the trajectory: each worker's running mean of its weights, then the mean of these over all workers.

It is the ensemble with which Wang et al. (arXiv 2007.03298) end a training: stochastic weight averaging (Izmailov et
al., 2018) over workers, too. Statistics of BatchNorm layers do not belong to the averaged weights and are to be
recomputed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Trajectory:
    """Which rounds' weights go into the average: every ``every``-th one, from round ``start`` on (counted from 0)."""

    start: int
    every: int = 1

    def __post_init__(self):
        if self.start < 0 or self.every < 1:
            raise ValueError(
                f"trajectory: expected start of 0 or more, every of 1 or more; got start={self.start}, "
                f"every={self.every}"
            )

    def takes(self, round: int) -> bool:
        return round >= self.start and (round - self.start) % self.every == 0


class RunningMean:
    """The mean of what some tensors were, in float32 at least.

    Attributes:
        count: how often they were added; the memory is taken at the first time.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._tensors = list(tensors)
        self.means: list[Tensor] = []
        self.count = 0

    @property
    def nbytes(self) -> int:
        return sum(mean.nbytes for mean in self.means)

    @torch.no_grad()
    def add(self) -> None:
        """Add the tensors' present values."""
        self.count += 1
        if self.count == 1:
            wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in self._tensors]
            self.means = [tensor.to(dtype, copy=True) for tensor, dtype in zip(self._tensors, wide, strict=True)]
            return
        for mean, tensor in zip(self.means, self._tensors, strict=True):
            mean.lerp_(tensor.to(mean.dtype), 1 / self.count)

    @torch.no_grad()
    def write(self, weight: float = 1.0) -> None:
        """Overwrite the tensors with their mean times a weight."""
        for mean, tensor in zip(self.means, self._tensors, strict=True):
            tensor.copy_(mean if weight == 1.0 else mean * weight)

    def state_dict(self) -> dict[str, Any]:
        # copies in the host's memory: a device may have no room for them
        return {"count": self.count, "means": [mean.to("cpu", copy=True) for mean in self.means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.means = [
            mean.to(tensor.device, copy=True) for mean, tensor in zip(state["means"], self._tensors, strict=False)
        ]


@torch.no_grad()
def recompute_batch_norm(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Set the statistics of a model's BatchNorm layers to those of the batches under its present weights.

    The layers' running mean and variance become the plain averages of the batches' own; batches should be about as
    large as in training. All other layers are in evaluation mode meanwhile (no dropout), and every mode is as before
    afterwards. Where each worker passes batches of its own, follow with ``sync.consensus_()``, which averages them.

    Args:
        model: on the device of the batches.
        batches: what is fed to it; of a tuple or list, the first element.
        forward: called with the model and a batch instead of ``model(batch)``.

    Raises:
        ValueError: there are BatchNorm layers, but no batch.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("batches: expected at least one; got none")
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # cumulative
        for batch in itertools.chain([first], batches):
            if forward is not None:
                forward(model, batch)
            else:
                model(batch[0] if isinstance(batch, (list, tuple)) else batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode

"""DSSyncOptimizer: a communicator in the shape of an optimizer, for code that calls ``optimizer.step()`` itself.

Also here is what is known of Adam under local gradients. Adam divides by the root of its averaged squared gradient; a
worker's own gradient is noisier than the mean over all, its square larger and the step smaller: where noise is all
there is, by the square root of the number of workers. :func:`adam_learning_rate_scale` measures how much it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

STATE = "dssync"  # key of the communicator's state within the optimizer's

_HOOKS = (
    "register_step_pre_hook",
    "register_step_post_hook",
    "register_state_dict_pre_hook",
    "register_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
)


class Communicator(Protocol):
    """What DSSync offers, and everything with its interface."""

    def step(self, closure: Callable | None = None) -> Any: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class DSSyncOptimizer(torch.optim.Optimizer):
    """An optimizer whose ``step()`` is the local step and the average in the current group.

    Learning-rate schedulers, ``GradScaler``, gradient clipping, ``zero_grad`` and checkpoints see an optimizer; what is
    set here (a learning rate, a parameter group's option) is set in ``optimizer``, and the other way round.

    A worker whose gradients overflowed under ``GradScaler`` leaves its local step out and still takes part in the
    round: were it to stay away, as an optimizer that is skipped does, its group would wait for it.

    Args:
        optimizer: does the local step; the one that ``sync`` was made with.
        sync: a :class:`~specfast.dssync.DSSync`, or what has its ``step``, ``state_dict`` and ``load_state_dict``.
        scaled: there may be a ``GradScaler``. Lightning clips gradients only where it is told that there is none.

    Example::

        sync = DSSync(model, optimizer, group_size=4)
        optimizer = DSSyncOptimizer(optimizer, sync)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, sync: Communicator, *, scaled: bool = True):
        # not Optimizer.__init__: groups, state and hooks are those of the wrapped optimizer
        if isinstance(optimizer, DSSyncOptimizer):
            raise TypeError("optimizer: expected the optimizer of the local step; got a DSSyncOptimizer")
        self.optimizer, self.sync = optimizer, sync
        # GradScaler then calls step() whether or not gradients are finite, and hands over found_inf and grad_scale
        self._step_supports_amp_scaling = scaled or getattr(optimizer, "_step_supports_amp_scaling", False)
        for name in _HOOKS:
            setattr(self, name, getattr(optimizer, name))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    def __repr__(self) -> str:
        return f"DSSyncOptimizer({self.optimizer!r})"

    def __getstate__(self):
        raise TypeError("DSSyncOptimizer holds process groups, which no copy can; save its state_dict()")

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the local optimizer; its parameters must be of the model that is averaged already."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the local optimizer's state with the communicator's beside it; every worker has its own."""
        return {**self.optimizer.state_dict(), STATE: self.sync.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave; of a plain optimizer's state the rounds start anew."""
        own = {name: value for name, value in state_dict.items() if name != STATE}
        self.optimizer.load_state_dict(own)
        if STATE in state_dict:
            self.sync.load_state_dict(state_dict[STATE])

    def step(self, closure: Callable | None = None):
        """Do the local step, then the group's average; return the closure's loss, if there is one."""
        found_inf, grad_scale = self.__dict__.get("found_inf"), self.__dict__.get("grad_scale")
        if found_inf is None:  # no GradScaler, or a disabled one
            return self.sync.step(closure)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf, self.optimizer.grad_scale = found_inf, grad_scale
            try:
                return self.sync.step(closure)
            finally:
                del self.optimizer.found_inf, self.optimizer.grad_scale
        if found_inf.item():
            with self._withheld_gradients():
                return self.sync.step(closure)
        if grad_scale is not None:  # None: unscale_() has been called
            self._unscale(grad_scale)
        return self.sync.step(closure)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    @contextlib.contextmanager
    def _withheld_gradients(self) -> Iterator[None]:
        """Have the local optimizer find no gradients: it then changes neither parameters nor its state."""
        held = [(parameter, parameter.grad) for parameter in self._parameters()]
        for parameter, _ in held:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient

    def _unscale(self, grad_scale: Tensor) -> None:
        inverse = grad_scale.double().reciprocal().float()  # as GradScaler does
        with torch.no_grad():
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(inverse.to(parameter.grad.device, non_blocking=True))


def adam_learning_rate_scale(parameters: Iterable[Tensor], process_group: dist.ProcessGroup | None = None) -> float:
    """Return by how much Adam's steps shrink when each worker uses its own gradient, not the mean over all.

    Call it on all workers after a backward pass whose gradients were not averaged, early in training; multiply the
    learning rate by it, or by a value between 1 and it. It is the root of (mean over workers of the gradient's squared
    norm) / (squared norm of the mean gradient): 1 where all gradients agree, the square root of the number of workers
    where they are noise. One all-reduce of the gradients, in float32; the gradients stay as they are.

    Args:
        parameters: of the model; those without a gradient are left out, and must be the same ones on all workers.
        process_group: the workers; all, by default. Without torch.distributed the scale is 1.

    Raises:
        ValueError: no parameter has a gradient, or their mean is zero or not finite.
    """
    gradients = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
    if not gradients:
        raise ValueError("parameters: expected some with a gradient; call it after a backward pass")
    if not (dist.is_available() and dist.is_initialized()):
        return 1.0
    flat = torch.cat([gradient.float().flatten() for gradient in gradients])
    squares = flat.double().square().sum()
    dist.all_reduce(flat, group=process_group)
    dist.all_reduce(squares, group=process_group)
    size = dist.get_world_size(process_group)
    of_mean = flat.double().div_(size).square().sum()
    ratio = float(squares / size / of_mean)
    if not ratio < float("inf"):
        raise ValueError(f"parameters: expected finite gradients whose mean is not zero; got a ratio of {ratio}")
    return max(1.0, ratio) ** 0.5

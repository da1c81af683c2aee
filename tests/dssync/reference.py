"""DS-Sync in plain torch, all workers in one process: what the communicator must compute, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from specfast.dssync.schedule import Schedule


def mean(values: Sequence[Tensor]) -> Tensor:
    """Add in the order of ranks, in float32 at least, and divide once."""
    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = values[0].to(wide)
    for value in values[1:]:
        total = total + value
    return (total / len(values)).to(values[0].dtype)


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]


def average_groups(tensors: Sequence[Sequence[Tensor]], groups: Sequence[Sequence[int]]) -> None:
    """Average ``tensors[rank]`` within each group of ranks."""
    with torch.no_grad():
        for group in groups:
            for place in range(len(tensors[0])):
                result = mean([tensors[rank][place] for rank in group])
                for rank in group:
                    tensors[rank][place].copy_(result)


def states(optimizers: Sequence[torch.optim.Optimizer], models: Sequence[nn.Module]) -> list[list[Tensor]]:
    """Return each optimizer's state of its parameters' shapes, in one order."""
    found = []
    for optimizer, model in zip(optimizers, models, strict=True):
        tensors = []
        for parameter in model.parameters():
            state = optimizer.state.get(parameter, {})
            tensors += [state[key] for key in sorted(state) if key != "step" and isinstance(state[key], Tensor)]
        found.append(tensors)
    return found


def train(
    schedule: Schedule,
    make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]],
    loss: Callable[[nn.Module, int, int], Tensor],
    steps: int,
    *,
    momentum: bool = False,
    overlap: bool = False,
    local: Sequence[int] = (),
) -> list[nn.Module]:
    """Return the workers' models after so many steps.

    Args:
        make: model and optimizer of a rank; all begin with rank 0's values.
        loss: of a model, rank and step.
        momentum: average the optimizers' states, too.
        overlap: what is averaged after a step takes effect before the next one's update.
        local: steps without a round.
    """
    models, optimizers = zip(*(make(rank) for rank in range(schedule.world)), strict=True)
    tensors = [averaged_tensors(model) for model in models]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    round_number, correction = 0, None
    for step in range(steps):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            loss(model, rank, step).backward()
        if correction is not None:
            _correct(tensors, *correction)
            correction = None
        for optimizer in optimizers:
            optimizer.step()
        if step in local:
            continue
        groups = schedule.partition(round_number)
        if overlap:
            before = [[tensor.detach().clone() for tensor in own] for own in tensors]
            after = [[tensor.clone() for tensor in own] for own in before]
            average_groups(after, groups)
            correction = before, after
        else:
            average_groups(tensors, groups)
        if momentum:
            average_groups(states(optimizers, models), groups)
        round_number += 1
    return list(models)


def _correct(tensors, before, after) -> None:
    with torch.no_grad():
        for own, old, new in zip(tensors, before, after, strict=True):
            for tensor, snapshot, average in zip(own, old, new, strict=True):
                tensor.copy_(torch.where(tensor == snapshot, average, tensor + (average - snapshot)))

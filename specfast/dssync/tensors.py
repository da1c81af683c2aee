"""Which tensors of a model are averaged, and which stay each worker's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

AVERAGE = ("parameters", "trainable", "buffers")
PARAMETER = "parameter "  # prefix of a parameter's name, apart from buffers'


def split_tensors(model: nn.Module, average: Sequence[str]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the tensors to be averaged, by name, and all others; parameters first, each once.

    Raises:
        ValueError: unknown words, or nothing is left to average.
    """
    wanted = {average} if isinstance(average, str) else set(average)
    if not wanted or wanted - set(AVERAGE) or {"parameters", "trainable"} <= wanted:
        raise ValueError(f"average: expected parameters or trainable, and buffers; got {average!r}")
    averaged: dict[str, Tensor] = {}
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        floating = parameter.is_floating_point() or parameter.is_complex()
        if floating and ("parameters" in wanted or ("trainable" in wanted and parameter.requires_grad)):
            averaged[PARAMETER + name] = parameter
        else:
            others.append(parameter)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            local = name.rpartition(".")[2]
            persistent = local not in module._non_persistent_buffers_set
            constant = not buffer.is_floating_point() or not bool(buffer.isfinite().all())
            if "buffers" in wanted and persistent and not constant:
                averaged[f"buffer {name}"] = buffer
            else:
                others.append(buffer)
    averaged = _once(averaged)
    if not averaged:
        raise ValueError(f"model: expected floating-point {' or '.join(sorted(wanted))}; it has none")
    kept = {id(tensor) for tensor in averaged.values()}
    return averaged, [tensor for tensor in others if id(tensor) not in kept]


def places_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Tensor | None], str]]:
    """Return where the model holds each of the tensors: its name there, a module's dictionary, and the key in it.

    A tied parameter has several places, of which each may be given another tensor.
    """
    wanted = {id(tensor) for tensor in tensors.values()}
    places = []
    for prefix, module in model.named_modules():
        for kind, held in ((PARAMETER, module._parameters), ("buffer ", module._buffers)):
            for key, tensor in held.items():
                if tensor is not None and id(tensor) in wanted:
                    places.append((f"{kind}{prefix}.{key}" if prefix else kind + key, held, key))
    return places


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise where the optimizer changes parameters that the model does not have: they would never be averaged."""
    ours = {id(parameter) for parameter in model.parameters()}
    groups = enumerate(optimizer.param_groups)
    strangers = [number for number, group in groups if any(id(parameter) not in ours for parameter in group["params"])]
    if strangers:
        raise ValueError(
            f"optimizer: expected parameters of the model only; those in parameter group {strangers[0]} are not "
            "all its own (was the optimizer made before the model was replaced or wrapped in a copy?)"
        )


def _once(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    return {name: tensor for name, tensor in tensors.items() if not (id(tensor) in seen or seen.add(id(tensor)))}

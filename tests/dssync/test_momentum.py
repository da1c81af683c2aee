"""Which entries of an optimizer's state are averaged, when they are found, and on which ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from specfast.dssync import DSSync
from specfast.dssync.agreement import MismatchError
from specfast.dssync.momentum import find_entries
from tests.dssync.processes import run
from tests.dssync.test_communicator import TIMEOUT_S


def make(average: tuple[str, ...] = ("parameters", "buffers")) -> tuple[nn.Module, torch.optim.Optimizer, DSSync]:
    """Return a model of two layers, SGD that leaves them as they are, and a communicator of all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    return model, optimizer, DSSync(model, optimizer, momentum=True, average=average, timeout=TIMEOUT_S)


def give(model: nn.Module, value: float | None, layers: tuple[int, ...] = (0, 1)) -> None:
    """Give some layers a gradient, all others none."""
    for number, layer in enumerate(model):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value) if number in layers and value is not None else None


def held(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> float | None:
    buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
    assert buffer is None or bool((buffer == buffer.flatten()[0]).all())
    return None if buffer is None else buffer.flatten()[0].item()


def _looked_at_before_the_first_step(rank: int, first: str):
    model, optimizer, sync = make()
    if first == "distance":
        assert sync.consensus_distance() == 0.0
    elif first == "consensus":
        sync.consensus_()
    elif first == "admit":
        assert sync.admit_() == ()
    else:  # a step that overflowed everywhere
        give(model, None)
        sync.step()
    give(model, 1.0 + rank)
    sync.step()
    found = [held(optimizer, parameter) for parameter in model.parameters()]
    sync.close()
    return found


@pytest.mark.parametrize("first", ["distance", "consensus", "admit", "overflow"])
def test_what_comes_before_the_first_step_does_not_turn_it_off(first, tmp_path):
    assert run(2, _looked_at_before_the_first_step, first, tmp_path=tmp_path) == [[1.5] * 4] * 2


def _overflowed_in_rank_1(rank: int):
    model, optimizer, sync = make()
    found = []
    for step in range(2):
        give(model, 4.0 if rank == 0 or step else None)
        sync.step()
        found.append(held(optimizer, model[0].weight))
    sync.close()
    return found


def test_a_rank_without_any_yet_takes_part(tmp_path):
    # 4 and nothing: 2; then 2 / 2 + 4 and 4
    assert run(2, _overflowed_in_rank_1, tmp_path=tmp_path) == [[2.0, 4.5], [None, 4.5]]


def _frozen(rank: int, where: str):
    model, optimizer, sync = make()
    if where == "everywhere" or rank == 1:
        model[0].requires_grad_(False)
    found = []
    for step in range(2):
        if step:
            model[0].requires_grad_(True)
        give(model, 2.0 + 2 * rank, (0, 1) if model[0].weight.requires_grad else (1,))
        sync.step()
        found.append([held(optimizer, layer.weight) for layer in model])
    sync.close()
    return found


@pytest.mark.parametrize("where", ["everywhere", "on one rank"])
def test_layers_that_are_frozen_at_first(where, tmp_path):
    found = run(2, _frozen, where, tmp_path=tmp_path)
    last = [3.0, 3.0 / 2 + 3.0]
    if where == "everywhere":
        assert found == [[[None, last[0]], [3.0, last[1]]]] * 2
    else:  # 2 and nothing: 1; then 1 / 2 + 2 and 4
        assert found == [[[1.0, last[0]], [3.25, last[1]]], [[None, last[0]], [3.25, last[1]]]]


def _only_what_is_averaged(rank: int):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    model.register_buffer("average", torch.zeros(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    with pytest.raises(ValueError, match="momentum: expected average to name parameters or trainable, too"):
        DSSync(model, optimizer, momentum=True, average=("buffers",), timeout=TIMEOUT_S)
    with DSSync(model, optimizer, momentum=True, average="trainable", timeout=TIMEOUT_S) as sync:
        give(model, 1.0, (1,))  # the other layer's has no place
        before = sync.extra_bytes
        sync.step()
        return (sync.extra_bytes - before) // sync._buffers.nbytes


def test_memory_is_that_of_what_is_averaged(tmp_path):
    assert run(2, _only_what_is_averaged, tmp_path=tmp_path) == [1, 1]


def _different(rank: int):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    kinds = (torch.optim.SGD, torch.optim.AdamW)
    sync = DSSync(model, kinds[rank](model.parameters(), lr=0.1), momentum=True, timeout=TIMEOUT_S)
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(MismatchError, match="same kind on all ranks: SGD on rank 0, AdamW on rank 1"):
        sync.step()
    sync.close()


def test_different_optimizers_are_refused(tmp_path):
    run(2, _different, tmp_path=tmp_path)


def _several_dtypes(rank: int):
    parameters = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    parameters[rank].grad = torch.ones_like(parameters[rank])
    optimizer.step()
    return find_entries(optimizer, parameters, dist.group.WORLD)


def test_narrow_state_finds_room_in_the_wider_one(tmp_path):
    expected = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}
    assert run(2, _several_dtypes, tmp_path=tmp_path) == [expected] * 2

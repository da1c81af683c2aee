"""Stopped after any step and started again in new processes: the same numbers as without."""

from __future__ import annotations

import re

import pytest
import torch

from specfast.dssync import DSSync, Schedule, make_schedule
from specfast.dssync.agreement import MismatchError
from specfast.dssync.trajectory import Trajectory
from specfast.errors import CheckpointError
from tests.dssync.processes import run
from tests.dssync.test_communicator import TIMEOUT_S, make, train, values

RAGGED = Schedule(4, (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0,), (1,), (2, 3))), "random")
CASES = {
    "plain": {"group_size": 2},
    "overlap with momentum": {"group_size": 2, "overlap": True, "momentum": True, "global_every": 4},
    # two workers sit the third round out, which is under way when the first processes end
    "ragged with overlap and momentum": {"schedule": RAGGED, "overlap": True, "momentum": True},
    "bfloat16": {"group_size": 2, "wire": "bfloat16", "global_every": 4},
    "float8, overlapped, in a group of four": {"group_size": 4, "wire": "float8", "overlap": True, "global_every": 4},
    "trajectory": {"group_size": 2, "trajectory": Trajectory(1, 2)},
}
STEPS, STOP = 6, 3  # the fourth round, a mean over all where there is one, is under way when the processes end


def _result(sync: DSSync, model) -> list[torch.Tensor]:
    found = values(model)
    if sync._options.trajectory:
        sync.trajectory_()
    else:
        sync.consensus_()
    sync.close()
    return found + values(model)


def _uninterrupted(rank: int):
    out = {}
    for name, options in CASES.items():
        model, optimizer = make(rank, "AdamW")
        sync = DSSync(model, optimizer, timeout=TIMEOUT_S, **options)
        train(sync, model, rank, range(STEPS))
        out[name] = _result(sync, model)
    return out


def _first_part(rank: int, stop: int):
    out = {}
    for name, options in CASES.items():
        model, optimizer = make(rank, "AdamW")
        sync = DSSync(model, optimizer, timeout=TIMEOUT_S, **options)
        train(sync, model, rank, range(stop))
        out[name] = {"sync": sync.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        out[name] = {key: _copied(state) for key, state in out[name].items()}
        if name == "overlap with momentum":  # saving changes nothing
            train(sync, model, rank, range(stop, STEPS))
            out["went on"] = _result(sync, model)
        sync.close()
    return out


def _copied(state):
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state


def _second_part(rank: int, saved: list[dict], stop: int):
    out = {}
    for name, options in CASES.items():
        state = saved[rank][name]
        model, optimizer = make(rank + 50, "AdamW")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        sync = DSSync(model, optimizer, timeout=TIMEOUT_S, broadcast_from=None, **options)
        sync.load_state_dict(state["sync"])
        assert sync.round == stop
        train(sync, model, rank, range(stop, STEPS))
        out[name] = _result(sync, model)
    return out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(4, _uninterrupted, tmp_path=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stop", [STOP, STOP + 1])
def test_a_run_that_was_stopped_gives_the_same_numbers(uninterrupted, stop, tmp_path):
    saved = run(4, _first_part, stop, tmp_path=tmp_path)
    resumed = run(4, _second_part, saved, stop, tmp_path=tmp_path)
    for rank in range(4):
        for name in CASES:
            whole = uninterrupted[rank][name]
            assert all(torch.equal(a, b) for a, b in zip(whole, resumed[rank][name], strict=True)), (rank, name)
        name = "overlap with momentum"
        assert all(torch.equal(a, b) for a, b in zip(uninterrupted[rank][name], saved[rank]["went on"], strict=True))


def _misfits(rank: int):
    """Load states that do not fit, each for a reason of its own; return the messages."""
    messages = []

    def communicator(**options) -> DSSync:
        model, optimizer = make(rank)
        sync = DSSync(model, optimizer, timeout=TIMEOUT_S, **{"group_size": 2, **options})
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, rank + 1.0)
        return sync

    source = communicator(overlap=True)
    source.step()
    state = source.state_dict()
    source.close()
    for options in ({}, {"overlap": True, "schedule": make_schedule("random", 4, 2, seed=9)}):
        target = communicator(**options)
        with pytest.raises(CheckpointError) as raised:
            target.load_state_dict(state)
        messages.append(str(raised.value))
        target.close()
    target = communicator(overlap=True)
    for name, value in (("rank", (rank + 1) % 4), ("world", 8)):
        with pytest.raises(CheckpointError) as raised:
            target.load_state_dict({**state, name: value})
        messages.append(str(raised.value))
    # after a consensus, one state serves all; one of another round on one rank is found out before the first mean
    target.consensus_()
    shared = target.state_dict()
    assert shared["rank"] is None
    target.load_state_dict({**shared, "round": 7 if rank == 1 else 5})
    parameters = target.optimizer.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in parameters]
    target.optimizer.zero_grad()
    with pytest.raises(MismatchError) as raised:
        target.step()
    messages.append(str(raised.value))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    target.close()
    # compressed differences mean nothing without a common reference
    model, optimizer = make(rank)
    apart = DSSync(model, optimizer, wire="bfloat16", broadcast_from=None, timeout=TIMEOUT_S)
    with pytest.raises(MismatchError) as raised:
        apart.step()
    messages.append(str(raised.value))
    apart.close()
    return messages


def test_states_that_do_not_fit_are_refused(tmp_path):
    for rank, messages in enumerate(run(4, _misfits, tmp_path=tmp_path)):
        expected = [
            "overlap is True; expected False as here",
            "schedule is '.*'; expected '.*' as here",
            f"rank is {(rank + 1) % 4}; expected {rank} as here",
            "world is 8; expected 4 as here",
            "round must be the same on all ranks; rank 1 differs from rank 0: 5 on rank 0, 7 on rank 1",
            "reference must be the same on all ranks; ranks 1, 2, 3 differ from rank 0",
        ]
        for message, pattern in zip(messages, expected, strict=True):
            assert re.search(pattern, message), message

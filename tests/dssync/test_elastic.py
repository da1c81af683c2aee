"""Worlds that change in a running communicator, in processes that live: other rounds, lost workers, and those let in.

A worker is lost as far as the others can tell when it answers nobody and has closed its connections.
"""

from __future__ import annotations

import time

import pytest
import torch

from specfast.dssync import DSSync, Schedule, joining, make_schedule
from specfast.dssync.agreement import MismatchError
from specfast.dssync.faults import SyncError
from specfast.dssync.replanning import Replanner
from specfast.dssync.schedule import for_some, with_absent
from specfast.dssync.topology import Topology
from tests.dssync.processes import run
from tests.dssync.test_communicator import TIMEOUT_S, make, train, values

FAULT_TIMEOUT_S = 24.0
RACKS = Topology.uniform(2, 2, 1.0, 0.5)


def vanish(sync: DSSync) -> None:
    """Be lost, without an end of the process."""
    sync._workers._sentinel.close()
    sync._workers.leave()


def communicator(rank: int, **options) -> tuple[DSSync, torch.nn.Module]:
    model, optimizer = make(rank)
    return DSSync(model, optimizer, group_size=2, timeout=FAULT_TIMEOUT_S, elastic=True, **options), model


def _several_worlds(rank: int) -> list:
    sync, model = communicator(rank)
    replanner = Replanner(sync, 1e6, window=4)
    noted = []
    train(sync, model, rank, range(2))
    # ranks that differ are told, which uses nothing up: the next attempt is made, and then a fault is survived
    odd = make_schedule("random", 4, 2, seed=rank)
    with pytest.raises(MismatchError, match="schedule must be the same on all ranks"):
        sync.reschedule(odd)
    chosen = with_absent(make_schedule("emissary", 4, 2, topology=RACKS), {2: 2})
    sync.reschedule(chosen)
    noted.append((sync.schedule == chosen, sync.group, sync._workers.generation))
    train(sync, model, rank, range(2, 4))
    assert replanner() is None
    if rank == 3:
        vanish(sync)
        return noted
    assert replanner() is None  # its all-gather fails, and is done again by those left
    assert replanner.schedule is not chosen
    left = for_some(chosen, (0, 1, 2))
    noted.append((sync.schedule == left, sync.group, sync._workers.generation))
    train(sync, model, rank, range(4, 8))
    assert replanner() is None
    if rank == 2:
        vanish(sync)
        return noted
    sync.reschedule(make_schedule("grid", 3, 3))  # for a world that is no more
    noted.append((sync.schedule == for_some(left, (0, 1)), sync.group, sync._workers.generation))
    train(sync, model, rank, range(8, 10))
    sync.consensus_()
    return [*noted, values(model)]


def test_other_rounds_and_lost_workers(tmp_path):
    results = run(4, _several_worlds, tmp_path=tmp_path)
    assert [result[0] for result in results] == [(True, (0, 1, 2, 3), 1)] * 4
    assert [result[1] for result in results[:3]] == [(True, (0, 1, 2), 2)] * 3
    for result in results[:2]:
        same, group, generation = result[2]
        assert same
        assert group == (0, 1)
        assert generation == 3
    assert all(torch.equal(a, b) for a, b in zip(results[0][3], results[1][3], strict=True))


def _one_error(rank: int) -> tuple:
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, group_size=2, timeout=FAULT_TIMEOUT_S)
    if rank == 2:
        vanish(sync)
        return ()
    with pytest.raises(SyncError) as raised:
        sync.reschedule(make_schedule("random", 3, 2))
    with pytest.raises(SyncError):
        sync.step()
    return raised.value.missing


def test_a_worker_lost_before_a_change_is_named(tmp_path):
    assert run(3, _one_error, tmp_path=tmp_path) == [(2,), (2,), ()]


def _comes_back(rank: int) -> tuple:
    """Other rounds are chosen, rank 2 is lost, and comes back as a new process would."""
    sync, model = communicator(rank)
    train(sync, model, rank, range(2))
    chosen = Schedule(3, [[[0, 1], [2]], [[0], [1, 2]]], "mine")
    sync.reschedule(chosen)
    train(sync, model, rank, range(2, 4))
    model[1].num_batches_tracked.fill_(100 + rank)
    if rank == 2:
        vanish(sync)
        joining._MADE.clear()
        sync, model = communicator(rank + 50, rejoin=True)
        assert sync.round == 5
    else:
        train(sync, model, rank, range(4, 5))
        while not sync.admit_():
            time.sleep(0.1)
    counts = model[1].num_batches_tracked.item()
    held = values(model), sync.group, sync.schedule == chosen, sync._rounds.state_dict()["renewed"]
    train(sync, model, rank, range(5, 7))
    sync.consensus_()
    sync.close()
    return counts, held, values(model)


def test_a_worker_that_comes_back_learns_what_it_has_missed(tmp_path):
    results = run(3, _comes_back, tmp_path=tmp_path)
    # what is not averaged stays each worker's own; the new one begins with another's
    assert [result[0] for result in results] == [101, 102, 101]
    for counts, (held, *told), end in results:
        assert told == [(0, 1, 2), True, 5]
        assert all(torch.equal(a, b) for a, b in zip(held, results[0][1][0], strict=True)), counts
        assert all(torch.equal(a, b) for a, b in zip(end, results[0][2], strict=True))


def _resumed(rank: int) -> tuple:
    """Go on from right after a change of rounds, and from the same state in a new communicator."""
    after = make_schedule("random", 4, 2, seed=5)
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, group_size=2, timeout=TIMEOUT_S)
    train(sync, model, rank, range(3))
    sync.reschedule(after)
    state = sync.state_dict()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momentum = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    groups = [sync.group]
    train(sync, model, rank, range(3, 5))
    went_on = values(model)
    sync.close()
    model, optimizer = make(rank + 50)
    model.load_state_dict(weights)
    for parameter, buffer in zip(model.parameters(), momentum, strict=True):
        optimizer.state[parameter]["momentum_buffer"] = buffer
    sync = DSSync(model, optimizer, schedule=after, broadcast_from=None, timeout=TIMEOUT_S)
    sync.load_state_dict(state)
    groups.append(sync.group)
    train(sync, model, rank, range(3, 5))
    later = sync.state_dict()["renewed"]
    sync.close()
    return groups, later, went_on, values(model)


def test_a_run_resumed_right_after_a_change_of_rounds_gives_the_same_numbers(tmp_path):
    for groups, later, went_on, resumed in run(4, _resumed, tmp_path=tmp_path):
        assert groups == [(0, 1, 2, 3)] * 2
        assert later is None
        assert all(torch.equal(a, b) for a, b in zip(went_on, resumed, strict=True))

"""Rounds that take effect later: with a closure, with a worker that is left out, and when they are given up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specfast.dssync import DSSync, Schedule, averaging
from tests.dssync.processes import run
from tests.dssync.test_communicator import TIMEOUT_S, loss, make, values

PAIRS = Schedule(4, (((0, 1), (2, 3)), ((0, 2), (1, 3))), "random")
STEPS = 4


def _trained(rank: int, with_closure: bool) -> list[torch.Tensor]:
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, schedule=PAIRS, overlap=True, timeout=TIMEOUT_S)

    def backward() -> torch.Tensor:
        assert (sync._rounds.pending is not None) == (sync.round > 0)  # it is hidden by what follows
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        found = loss(model, rank, sync.round)
        found.backward()
        return found

    for _ in range(STEPS):
        if with_closure:
            assert sync.step(backward).requires_grad
        else:
            backward()
            sync.step()
    sync.consensus_()
    sync.close()
    return values(model)


def _with_and_without_a_closure(rank: int):
    return _trained(rank, False), _trained(rank, True)


def test_a_closure_hides_the_exchange_and_gives_the_same_numbers(tmp_path):
    for without, with_closure in run(4, _with_and_without_a_closure, tmp_path=tmp_path):
        assert all(torch.equal(a, b) for a, b in zip(without, with_closure, strict=True))


class Careless(torch.optim.SGD):
    """Never calls its closure."""

    def step(self, closure=None):
        return super().step()


class Perturbing(torch.optim.SGD):
    """Computes the gradient elsewhere, and then puts the parameters back (sharpness-aware minimization)."""

    @torch.no_grad()
    def step(self, closure=None):
        before = [parameter.clone() for group in self.param_groups for parameter in group["params"]]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.1)
        with torch.enable_grad():
            found = closure()
        for group in self.param_groups:
            for parameter, value in zip(group["params"], before, strict=True):
                parameter.copy_(value)
        super().step()
        return found


def _closures(rank: int, kind: str):
    torch.manual_seed(rank)
    model = nn.Linear(3, 2)
    optimizer = {
        "several": lambda given: torch.optim.LBFGS(given, max_iter=3),
        "none": lambda given: Careless(given, lr=0.1),
        "late": lambda given: Perturbing(given, lr=0.1),
    }[kind](model.parameters())
    sync = DSSync(model, optimizer, overlap=True, timeout=TIMEOUT_S)

    def closure():
        optimizer.zero_grad()
        found = (model(torch.ones(1, 3)) - rank).square().sum()
        found.backward()
        return found

    if kind == "late":
        with pytest.raises(RuntimeError, match="Perturbing changes the parameters before it calls the closure"):
            sync.step(closure)
        sync.close()
        return []
    for step in range(3):
        closure()
        sync.step(closure)
        assert sync._rounds.pending.number == step  # the one before it has taken effect
    sync.consensus_()
    sync.close()
    return values(model)


@pytest.mark.parametrize("kind", ["several", "none", "late"])
def test_closures_that_are_not_called_once_and_first(kind, tmp_path):
    first, second = run(2, _closures, kind, tmp_path=tmp_path)
    assert all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(first, second, strict=True))


def _comes_back(rank: int, options: dict):
    """Rank 1's parameters are spoiled once; its own gradients are NaN from then on, until it has the others' mean."""
    model, optimizer = make(0, "AdamW")
    sync = DSSync(
        model, optimizer, schedule=PAIRS, overlap=True, on_nonfinite="skip", momentum=True, timeout=TIMEOUT_S, **options
    )
    finite = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(model, rank, step).backward()
        if step == 1 and rank == 1:
            model[3].weight.grad[0, 0] = float("nan")
        sync.step()
        if step == 1:
            saved = sync.state_dict()
            assert (saved["pending"] is None) == (rank == 1)
        finite.append(all(bool(value.isfinite().all()) for value in values(model)))
    sync.consensus_()
    sync.close()
    return finite, values(model)


@pytest.mark.parametrize("options", [{}, {"wire": "bfloat16", "global_every": 2}])
def test_a_worker_that_was_left_out_comes_back(options, tmp_path):
    found = run(4, _comes_back, options, tmp_path=tmp_path)
    assert [finite for finite, _ in found] == [[True] * STEPS] * 4
    for _, tensors in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][1], tensors, strict=True))


def _given_up(rank: int):
    """Go back with a round under way, then run out of memory in the middle of starting one."""
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, schedule=PAIRS, overlap=True, timeout=TIMEOUT_S)
    saved = sync.state_dict()

    def backward(step: int) -> None:
        optimizer.zero_grad()
        loss(model, rank, step).backward()

    backward(0)
    sync.step()
    (exchange, _), flags = sync._rounds.pending.exchanges[0], sync._rounds.pending.flags[1]
    assert exchange._works
    sync.load_state_dict(saved)
    assert not exchange._works  # nothing is written to the staging memory any more
    assert flags.is_completed()
    assert sync._rounds.pending is None

    made = []
    make_round, gather = averaging.Averager.make, averaging._gather_flags

    def no_memory(*args):
        raise torch.OutOfMemoryError("no memory")

    averaging.Averager.make = lambda *args, **options: made.append(make_round(*args, **options)) or made[-1]
    averaging._gather_flags = no_memory
    backward(0)
    with pytest.raises(torch.OutOfMemoryError):
        sync.step()
    assert [exchange._works for exchange, _ in made[0].exchanges] == [[]]
    assert sync._rounds.pending is None
    averaging._gather_flags = gather
    sync.consensus_()
    sync.close()
    return values(model)


def test_a_round_that_is_given_up_is_waited_for(tmp_path):
    found = run(4, _given_up, tmp_path=tmp_path)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def _saved(rank: int):
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, schedule=PAIRS, overlap=True, timeout=TIMEOUT_S)
    loss(model, rank, 0).backward()
    sync.step()
    state = sync.state_dict()["pending"]
    (staging,) = sync._rounds.averager._staging
    (mean,) = sync._rounds.pending.means
    assert mean.data_ptr() == staging.data_ptr()  # no copy stays here
    assert state["means"][0].data_ptr() != staging.data_ptr()
    assert torch.equal(state["means"][0], mean)
    sync.close()


def test_saving_leaves_no_copies_behind(tmp_path):
    run(4, _saved, tmp_path=tmp_path)

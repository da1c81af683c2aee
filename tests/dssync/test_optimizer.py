"""A communicator as an optimizer: schedulers, GradScaler and checkpoints see no difference."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from specfast.dssync.optimizer import DSSyncOptimizer, adam_learning_rate_scale
from tests.dssync import processes


class Recorder:
    """A communicator of one worker: counts its rounds."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.rounds = optimizer, 0

    def step(self, closure=None):
        loss = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.rounds += 1
        return loss

    def state_dict(self) -> dict:
        return {"round": self.rounds}

    def load_state_dict(self, state: dict) -> None:
        self.rounds = state["round"]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


@pytest.fixture(params=OPTIMIZERS, name="make")
def _make(request):
    """Return a function that makes a model, its optimizer, and that optimizer in a DSSyncOptimizer."""

    def make():
        model = make_model()
        optimizer = OPTIMIZERS[request.param](model.parameters())
        return model, optimizer, DSSyncOptimizer(optimizer, Recorder(optimizer))

    return make


def losses(model: nn.Module, steps: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield model(torch.randn(3, 4, generator=generator)).square().mean()


def test_it_is_the_local_optimizer_and_a_round(make):
    model, optimizer, wrapped = make()
    assert isinstance(wrapped, torch.optim.Optimizer)
    for loss in losses(model, 3):
        wrapped.zero_grad()
        loss.backward()
        wrapped.step()
    reference, local, _ = make()
    for loss in losses(reference, 3):
        local.zero_grad()
        loss.backward()
        local.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    assert wrapped.sync.rounds == 3
    assert wrapped.state is optimizer.state
    assert wrapped.defaults is optimizer.defaults
    wrapped.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_closure_is_handed_on():
    model = make_model()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    wrapped = DSSyncOptimizer(optimizer, Recorder(optimizer))
    calls = []

    def closure():
        calls.append(1)
        wrapped.zero_grad()
        loss = next(losses(model, 1))
        loss.backward()
        return loss

    assert wrapped.step(closure).item() > 0
    assert len(calls) > 1
    assert wrapped.sync.rounds == 1


SCHEDULERS = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "one-cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=8),
    "sequence": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_learning_rate_schedulers(make, schedule):
    (model, optimizer, wrapped), (reference, local, _) = make(), make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it sees no step of the optimizer
        ours, theirs = SCHEDULERS[schedule](wrapped), SCHEDULERS[schedule](local)
        for a, b in zip(losses(model, 5), losses(reference, 5), strict=True):
            for loss, stepped, scheduler in ((a, wrapped, ours), (b, local, theirs)):
                stepped.zero_grad()
                loss.backward()
                stepped.step()
                scheduler.step()
            assert optimizer.param_groups[0]["lr"] == local.param_groups[0]["lr"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_plateau_scheduler(make):
    _, optimizer, wrapped = make()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(wrapped, patience=0)
    before = optimizer.param_groups[0]["lr"]
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] < before


def scaled_steps(model, optimizer, *, clip: bool, overflow: int | None = None):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for number, loss in enumerate(losses(model, 4)):
        optimizer.zero_grad()
        scaler.scale(loss * (float("inf") if number == overflow else 1.0)).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
    return scaler


@pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])
@pytest.mark.parametrize("overflow", [None, 2], ids=["finite", "overflow"])
def test_grad_scaler(make, clip, overflow):
    """Bitwise as without the wrapper; a step that overflows is left out, and its round is not."""
    (model, optimizer, wrapped), (reference, local, _) = make(), make()
    ours = scaled_steps(model, wrapped, clip=clip, overflow=overflow)
    theirs = scaled_steps(reference, local, clip=clip, overflow=overflow)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    assert ours.get_scale() == theirs.get_scale()
    assert wrapped.sync.rounds == 4
    assert not hasattr(optimizer, "found_inf")
    # steps taken are counted alike: the one left out is not among them
    if counted := [state["step"] for state in optimizer.state.values() if "step" in state]:
        assert counted[0] == next(iter(local.state.values()))["step"] == (4 if overflow is None else 3)


def test_who_unscales_is_said_as_lightning_asks(make):
    _, optimizer, wrapped = make()
    assert wrapped._step_supports_amp_scaling
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    assert DSSyncOptimizer(optimizer, wrapped.sync, scaled=False)._step_supports_amp_scaling == fused


def test_disabled_grad_scaler(make):
    model, _, wrapped = make()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for loss in losses(model, 2):
        scaler.scale(loss).backward()
        scaler.step(wrapped)
        scaler.update()
    assert wrapped.sync.rounds == 2


def test_state_goes_round(make):
    model, optimizer, wrapped = make()
    for loss in losses(model, 3):
        loss.backward()
        wrapped.step()
    saved = pickle.loads(pickle.dumps(wrapped.state_dict()))
    _, fresh, other = make()
    other.load_state_dict(saved)
    assert other.sync.rounds == 3
    assert other.param_groups is fresh.param_groups  # loading replaces the list
    for name, value in optimizer.state_dict()["state"][0].items():
        loaded = fresh.state_dict()["state"][0][name]
        assert torch.equal(loaded, value) if isinstance(value, torch.Tensor) else loaded == value, name
    assert saved.keys() == {"state", "param_groups", "dssync"}  # nothing was taken out of what was given


def test_a_plain_optimizers_state_is_taken(make):
    model, _, wrapped = make()
    wrapped.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.25).state_dict())
    assert wrapped.param_groups[0]["lr"] == 0.25
    assert wrapped.sync.rounds == 0


def test_hooks_and_groups_are_those_of_the_local_optimizer(make):
    model, optimizer, wrapped = make()
    seen = []
    wrapped.register_step_post_hook(lambda *_: seen.append(1))
    wrapped.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.5})
    assert len(optimizer.param_groups) == len(wrapped.param_groups) == 2
    next(losses(model, 1)).backward()
    wrapped.step()
    assert seen == [1]
    assert type(optimizer).__name__ in repr(wrapped)


def test_what_cannot_be_is_refused(make):
    _, _, wrapped = make()
    with pytest.raises(TypeError, match="optimizer: expected the optimizer of the local step"):
        DSSyncOptimizer(wrapped, wrapped.sync)
    with pytest.raises(TypeError, match="save its state_dict"):
        copy.deepcopy(wrapped)


def _overflow_in_rank_1(rank: int) -> tuple[list[float], list[float], int]:
    from specfast.dssync import DSSync

    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sync = DSSync(model, optimizer)
    wrapped = DSSyncOptimizer(optimizer, sync)
    start = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.ones(1, 3)).sum() * (float("inf") if rank else 1.0)).backward()
    scaler.step(wrapped)  # alone, rank 1 would skip it, and rank 0 wait
    scaler.update()
    moved = model.weight.detach() - start
    sync.close()
    return moved.flatten().tolist(), model.weight.flatten().tolist(), int(scaler.get_scale())


def test_a_worker_that_overflows_takes_part_in_the_round(tmp_path):
    (moved, weights, scale), (_, other, other_scale) = processes.run(2, _overflow_in_rank_1, tmp_path=tmp_path)
    assert moved == pytest.approx([-0.25] * 3, abs=1e-6)  # half of rank 0's step of 0.5
    assert weights == other
    assert (scale, other_scale) == (8, 4)


def _scale(rank: int) -> list[float]:
    found = []
    for gradient in (torch.ones(4), torch.eye(4)[rank], torch.tensor([2.0, float(rank) - 0.5, 0.0, 0.0])):
        parameter = nn.Parameter(torch.zeros(4))
        parameter.grad = gradient.clone()
        found.append(adam_learning_rate_scale([parameter, nn.Parameter(torch.zeros(2))]))
        assert torch.equal(parameter.grad, gradient)
    parameter.grad = torch.tensor([1.0 - 2 * rank, 0.0, 0.0, 0.0])  # the mean is zero
    with pytest.raises(ValueError, match="mean is not zero"):
        adam_learning_rate_scale([parameter])
    return found


def test_learning_rate_scale_of_adam(tmp_path):
    expected = [1.0, 2.0**0.5, ((4.0 + 0.25) / 4.0) ** 0.5]
    for found in processes.run(2, _scale, tmp_path=tmp_path):
        assert found == pytest.approx(expected, rel=1e-6)


def test_learning_rate_scale_alone():
    parameter = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match="after a backward pass"):
        adam_learning_rate_scale([parameter])
    parameter.grad = torch.ones(4)
    assert not dist.is_initialized()
    assert adam_learning_rate_scale([parameter]) == 1.0

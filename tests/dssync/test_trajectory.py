"""The average over rounds and workers, and statistics recomputed for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specfast.dssync import DSSync
from specfast.dssync.trajectory import RunningMean, Trajectory, recompute_batch_norm
from tests.dssync.processes import run
from tests.dssync.test_communicator import TIMEOUT_S, make, train, values


def test_which_rounds_count():
    assert [number for number in range(12) if Trajectory(3, 4).takes(number)] == [3, 7, 11]
    with pytest.raises(ValueError, match="trajectory: expected start of 0 or more, every of 1 or more; got start=-1"):
        Trajectory(-1)
    with pytest.raises(ValueError, match="every=0"):
        Trajectory(0, 0)


def test_a_running_mean_is_kept_in_float32():
    torch.manual_seed(0)
    tensor = torch.zeros(2000, dtype=torch.bfloat16)
    running, exact = RunningMean([tensor]), torch.zeros(2000, dtype=torch.float64)
    for _ in range(50):
        tensor.copy_(1 + torch.rand(2000))
        running.add()
        exact += tensor.double() / 50
    assert running.means[0].dtype == torch.float32
    torch.testing.assert_close(running.means[0].double(), exact, rtol=1e-5, atol=0.0)
    running.write()
    torch.testing.assert_close(tensor, exact.bfloat16())


def _ensemble(rank: int, wire: str):
    model, optimizer = make(rank)
    options = {"wire": wire, "trajectory": Trajectory(1, 2), "timeout": TIMEOUT_S}
    sync = DSSync(model, optimizer, group_size=2, **options)
    with pytest.raises(ValueError, match="nothing was added yet to the running means of ranks \\[0, 1, 2, 3\\]"):
        sync.trajectory_()
    seen, bare = [], sync.extra_bytes
    for step in range(6):
        train(sync, model, rank, range(step, step + 1))
        if step in (1, 3, 5):
            seen.append(values(model))
    assert sync.extra_bytes - bare == sync._buffers.nbytes  # one float32 copy of what is averaged
    sync.trajectory_()
    sync.close()
    return seen, values(model)


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_the_ensemble_is_the_mean_over_rounds_and_workers(wire, tmp_path):
    found = run(4, _ensemble, wire, tmp_path=tmp_path)
    for place, result in enumerate(found[0][1]):
        seen = [tensors[place].double() for worker in found for tensors in worker[0]]
        assert len(seen) == 12
        torch.testing.assert_close(result.double(), torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)
        assert all(torch.equal(result, worker[1][place]) for worker in found)


def _net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, momentum=0.3), nn.Dropout(0.9), nn.Linear(8, 2))


def test_batch_norm_statistics_are_those_of_the_batches():
    model = _net()
    model[3].eval()
    batches = [torch.randn(6, 5) for _ in range(4)]
    random_state = torch.get_rng_state()
    recompute_batch_norm(model, ([batch, "label"] for batch in batches))
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout was off
    features = [model[0](batch) for batch in batches]
    mean = torch.stack([feature.mean(0) for feature in features]).mean(0)
    variance = torch.stack([feature.var(0) for feature in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.3
    assert [module.training for module in model] == [True, True, True, False]


def test_batch_norm_needs_batches_and_can_be_fed_by_the_caller():
    model = _net()
    with pytest.raises(ValueError, match="batches: expected at least one; got none"):
        recompute_batch_norm(model, [])
    recompute_batch_norm(model, [{"x": torch.ones(4, 5)}], forward=lambda module, batch: module(batch["x"]))
    torch.testing.assert_close(model[1].running_mean, model[0](torch.ones(5)).detach())
    with pytest.raises(RuntimeError, match="broken"):
        recompute_batch_norm(model, [torch.ones(4, 5)], forward=_broken)
    assert model.training
    assert model[1].momentum == 0.3
    recompute_batch_norm(nn.Linear(2, 2), [])  # nothing to do


def _broken(model: nn.Module, batch: torch.Tensor) -> None:
    raise RuntimeError("broken")

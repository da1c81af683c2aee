"""DS-Sync across the groups of workers that FSDP2 shards a model over: two replicas of two shards, on CPUs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from specfast.dssync import DSSync, Trajectory, make_schedule
from specfast.dssync.integrations.fsdp import ShardSync
from specfast.dssync.optimizer import DSSyncOptimizer
from tests.dssync import processes

STEPS = 4


def make_mesh():
    return dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def make_model(seed: int = 0) -> nn.Module:
    """Sizes that two shards do not divide, and one row only, of which a worker has none."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 1))


def shard(model: nn.Module, mesh, **options) -> nn.Module:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def batch(rank: int, number: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(100 * rank + number))


def local(model: nn.Module) -> list[Tensor]:
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.to_local() if hasattr(t, "to_local") else t).detach().clone() for t in tensors]


def train(model, optimizer, step, rank: int, first: int = 0, steps: int = STEPS) -> list[Tensor]:
    for number in range(first, first + steps):
        optimizer.zero_grad()
        model(batch(rank, number)).square().mean().backward()
        step()
    return local(model)


def replica_mean_(model: nn.Module, group: dist.ProcessGroup) -> None:
    """The reference: plain all-gather and mean of every local tensor."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            mine = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            if mine.is_floating_point() and mine.numel():
                both = [torch.empty_like(mine) for _ in range(2)]
                dist.all_gather(both, mine.contiguous(), group=group)
                mine.copy_((both[0] + both[1]) / 2)


def _bitwise(rank: int, optimizer_name: str) -> None:
    mesh = make_mesh()

    def make(seed):
        model = shard(make_model(seed), mesh["shard"])
        return model, getattr(torch.optim, optimizer_name)(model.parameters(), lr=0.05)

    model, optimizer = make(seed=rank // 2)  # the replicas begin with different models
    sync = ShardSync(model, optimizer, mesh=mesh["replicate"])
    actual = train(model, optimizer, sync.step, rank)
    assert sync.round == STEPS
    assert sync.world == 2
    sync.close()

    model, optimizer = make(seed=0)

    def step():
        optimizer.step()
        replica_mean_(model, mesh["replicate"].get_group())

    expected = train(model, optimizer, step, rank)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))

    # and it is what plain modules give, each with the mean gradient of its replica
    plain = make_model(0)
    optimizer = getattr(torch.optim, optimizer_name)(plain.parameters(), lr=0.05)

    def plain_step():
        for parameter in plain.parameters():
            dist.all_reduce(parameter.grad, group=mesh["shard"].get_group())
            parameter.grad /= 2
        optimizer.step()
        replica_mean_(plain, mesh["replicate"].get_group())

    train(plain, optimizer, plain_step, rank)
    for sharded, whole in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(sharded.full_tensor(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_shards_are_averaged_bitwise(tmp_path, optimizer):
    processes.run(4, _bitwise, optimizer, tmp_path=tmp_path)


def _overlap(rank: int) -> float:
    mesh = make_mesh()
    model = shard(make_model(), mesh["shard"])
    sharded_optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sync = ShardSync(model, sharded_optimizer, mesh=mesh["replicate"], overlap=True)
    train(model, sharded_optimizer, sync.step, rank)
    sync.consensus_()
    actual = local(model)
    sync.close()

    # DSSync itself, on plain tensors that hold the same shards and get the same gradients
    reference = shard(make_model(), mesh["shard"])
    tensors = nn.ParameterList(
        nn.Parameter(parameter.to_local().detach().clone()) for parameter in reference.parameters()
    )
    optimizer = torch.optim.SGD(tensors, lr=0.05)
    sync = DSSync(tensors, optimizer, process_group=mesh["replicate"].get_group(), overlap=True)
    for number in range(STEPS):
        reference.zero_grad()
        reference(batch(rank, number)).square().mean().backward()
        for mine, sharded in zip(tensors, reference.parameters(), strict=True):
            mine.grad = sharded.grad.to_local().clone()
        sync.step()
        with torch.no_grad():
            for mine, sharded in zip(tensors, reference.parameters(), strict=True):
                sharded.to_local().copy_(mine)
    sync.consensus_()
    sync.close()
    assert all(torch.equal(a, b) for a, b in zip(actual, tensors, strict=False))


def test_overlapped_rounds_correct_the_shards(tmp_path):
    processes.run(4, _overlap, tmp_path=tmp_path)


def _frozen_and_ignored(rank: int) -> None:
    mesh = make_mesh()
    model = make_model(seed=rank // 2)
    model[0].requires_grad_(False)
    left_out = model[4].weight
    fully_shard(model, mesh=mesh["shard"], ignored_params={left_out})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    sync = ShardSync(model, optimizer, mesh=mesh["replicate"])
    torch.testing.assert_close(model[0].weight.full_tensor(), make_model(0)[0].weight)
    with torch.no_grad():
        left_out.fill_(float(rank // 2))
    sync.consensus_()
    assert torch.equal(left_out, torch.full_like(left_out, 0.5))
    before = sync.round
    with sync.no_sync():
        train(model, optimizer, sync.step, rank, steps=1)
    assert sync.round == before
    assert sync.consensus_distance() > 0
    sync.consensus_()
    assert sync.consensus_distance() < 1e-7
    sync.close()


def test_frozen_and_ignored_parameters(tmp_path):
    processes.run(4, _frozen_and_ignored, tmp_path=tmp_path)


def _other_methods(rank: int) -> None:
    """A round without a step, a closure, other rounds, the mean of the trajectory, and an end that fails."""
    mesh = make_mesh()

    def make(**options):
        model = shard(make_model(), mesh["shard"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return model, optimizer, ShardSync(model, optimizer, mesh=mesh["replicate"], **options)

    model, optimizer, sync = make()
    expected = train(model, optimizer, sync.step, rank)
    sync.close()

    model, optimizer, sync = make()

    def step_and_round():
        optimizer.step()
        sync.average_()

    actual = train(model, optimizer, step_and_round, rank)
    assert sync.round == STEPS
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    sync.reschedule(make_schedule("random", 2, 2, seed=1))
    assert sync.schedule.kind == "random"
    with pytest.raises(RuntimeError, match="trouble"), sync:
        raise RuntimeError("trouble")
    with pytest.raises(RuntimeError, match="closed"):
        sync.step()

    model, optimizer, sync = make(overlap=True)
    for number in range(STEPS):

        def closure(number=number):
            optimizer.zero_grad()
            found = model(batch(rank, number)).square().mean()
            found.backward()
            return found

        assert sync.step(closure) > 0
    sync.consensus_()
    sync.close()
    # the same as with a mean that takes effect before the gradient is computed
    expected_model, optimizer, sync = make(overlap=True)
    for number in range(STEPS):
        sync._store()
        sync._sync._settle()
        sync._load()
        train(expected_model, optimizer, sync.step, rank, first=number, steps=1)
    sync.consensus_()
    sync.close()
    assert all(torch.equal(a, b) for a, b in zip(local(model), local(expected_model), strict=True))

    model, optimizer, sync = make(trajectory=Trajectory(0))
    seen = [train(model, optimizer, sync.step, rank, first=number, steps=1) for number in range(2)]
    sync.trajectory_()
    sync.close()
    for first, second, mean in zip(*seen, local(model), strict=True):
        if mean.is_floating_point():
            torch.testing.assert_close(mean, (first + second) / 2)


def test_the_other_methods(tmp_path):
    processes.run(4, _other_methods, tmp_path=tmp_path)


def _resume(rank: int, overlap: bool) -> None:
    mesh = make_mesh()

    def make():
        model = shard(make_model(), mesh["shard"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        return model, optimizer, ShardSync(model, optimizer, mesh=mesh["replicate"], overlap=overlap)

    model, optimizer, sync = make()
    expected = train(model, optimizer, sync.step, rank, steps=2 * STEPS)
    sync.close()

    model, optimizer, sync = make()
    wrapped = DSSyncOptimizer(optimizer, sync)
    train(model, wrapped, wrapped.step, rank)
    saved = wrapped.state_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    sync.close()

    model, optimizer, sync = make()
    model.load_state_dict(saved[1])
    wrapped = DSSyncOptimizer(optimizer, sync)
    wrapped.load_state_dict(saved[0])
    actual = train(model, wrapped, wrapped.step, rank, first=STEPS)
    sync.close()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("overlap", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "overlap"])
def test_resume_is_bitwise(tmp_path, overlap):
    processes.run(4, _resume, overlap, tmp_path=tmp_path)


def _refusals(rank: int) -> None:
    mesh = make_mesh()
    replicas = mesh["replicate"]

    model = shard(make_model(), mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match=r"is replicated over a dimension of DeviceMesh.*where FSDP2 all-reduces"):
        ShardSync(model, optimizer, mesh=replicas)
    # the switch that HSDP has for it leaves the optimizer without gradients
    model.set_requires_all_reduce(False)
    model(batch(rank, 0)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())

    model = shard(make_model(), mesh["shard"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match="expected either mesh or process_group"):
        ShardSync(model, optimizer)
    with pytest.raises(ValueError, match="mesh: expected one dimension"):
        ShardSync(model, optimizer, mesh=mesh)
    with pytest.raises(ValueError, match=r"are among the replicas \[\d, \d\]"):
        ShardSync(model, optimizer, mesh=mesh["shard"])
    for option in ("momentum", "elastic", "rejoin"):
        with pytest.raises(ValueError, match=f"{option}: not with sharded parameters"):
            ShardSync(model, optimizer, mesh=replicas, **{option: True})
    with pytest.raises(ValueError, match="expected parameters sharded by fully_shard"):
        ShardSync(make_model(), optimizer, mesh=replicas)


def test_what_cannot_work_is_refused(tmp_path):
    processes.run(4, _refusals, tmp_path=tmp_path)

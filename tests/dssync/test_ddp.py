"""DS-Sync within DistributedDataParallel: bitwise what plain modules with a mean of each group give."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from specfast.dssync import DSSync
from specfast.dssync.integrations.ddp import local_ddp, use_local_gradients
from tests.dssync import processes

STEPS = 5


class Model(nn.Module):
    """A normalized layer with running statistics, and a branch that only some batches use."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Tensor, branch: bool = True) -> Tensor:
        x = self.body(x)
        return self.branch(x) if branch else x


def make_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Model()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def batch(rank: int, number: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 * rank + number))


def group_mean_(model: nn.Module, groups: list[tuple[int, ...]], rank: int) -> None:
    """The reference: parameters and float buffers become the plain mean over this rank's pair."""
    tensors = [t.data for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    flat = torch.cat([t.flatten() for t in tensors])
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    (group,) = (group for group in groups if rank in group)
    mean = torch.stack([everyone[member] for member in group]).sum(dim=0) / len(group)
    for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def backward(model: nn.Module, rank: int, number: int, accumulate: int, unused: bool = False) -> None:
    for part in range(accumulate):
        skip = getattr(model, "no_sync", None) if part < accumulate - 1 else None
        use_branch = not (unused and (rank + number) % 2)
        if skip is None:
            model(batch(rank, 10 * number + part), use_branch).square().mean().backward()
        else:
            with skip():
                model(batch(rank, 10 * number + part), use_branch).square().mean().backward()


def state(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def _reference(rank: int, rounds: list, accumulate: int, unused: bool = False) -> list[Tensor]:
    model, optimizer = make_model()
    for number in range(STEPS):
        optimizer.zero_grad()
        backward(model, rank, number, accumulate, unused)
        optimizer.step()
        group_mean_(model, rounds[number % len(rounds)], rank)
    return state(model)


def _in_ddp(rank: int, options: dict, accumulate: int) -> None:
    model, optimizer = make_model()
    before = torch.get_rng_state()
    ddp = use_local_gradients(DistributedDataParallel(model, bucket_cap_mb=0.0005, **options))
    sync = DSSync(model, optimizer, group_size=2)
    for number in range(STEPS):
        optimizer.zero_grad()
        backward(ddp, rank, number, accumulate)
        assert sync.round == number  # there are several buckets, and the round is one
        sync.step()
    assert torch.equal(torch.get_rng_state(), before)
    actual, rounds = state(model), sync.schedule.rounds
    sync.close()
    expected = _reference(rank, rounds, accumulate)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "accumulate"),
    [({}, 1), ({}, 2), ({"gradient_as_bucket_view": True}, 2), ({"static_graph": True}, 1)],
    ids=["plain", "no-sync", "views", "static"],
)
def test_inside_ddp_bitwise(tmp_path, options, accumulate):
    processes.run(4, _in_ddp, options, accumulate, tmp_path=tmp_path)


def _without_hook(rank: int) -> bool:
    model, optimizer = make_model()
    ddp = DistributedDataParallel(model, broadcast_buffers=False)
    sync = DSSync(model, optimizer, group_size=2)
    for number in range(STEPS):
        optimizer.zero_grad()
        backward(ddp, rank, number, 1)
        sync.step()
    actual, rounds = state(model), sync.schedule.rounds
    sync.close()
    return all(torch.equal(a, b) for a, b in zip(actual, _reference(rank, rounds, 1), strict=True))


def test_without_the_hook_gradients_are_global(tmp_path):
    """The control: the comparison above can fail."""
    assert not any(processes.run(2, _without_hook, tmp_path=tmp_path))


def _uneven(rank: int) -> int:
    """After the first steps, workers do different numbers of passes: with any global work they would hang or mix."""
    model, optimizer = make_model()
    ddp = use_local_gradients(DistributedDataParallel(model, bucket_cap_mb=0.0005))
    sync = DSSync(model, optimizer)
    passes = [1, 1, 3 if rank else 1, 1 if rank else 4]
    for number, count in enumerate(passes):
        optimizer.zero_grad()
        for part in range(count):
            ddp(batch(rank, 10 * number + part)).sum().backward()
        sync.step()
    sync.consensus_()
    sync.close()
    return sum(passes)


def test_nothing_global_is_left_in_a_pass(tmp_path):
    assert processes.run(2, _uneven, tmp_path=tmp_path) == [7, 6]


def _in_domains(rank: int) -> None:
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "domain"))
    model, optimizer = make_model()
    model.body[1] = nn.Identity()  # statistics would be of each worker's own batches
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ddp = use_local_gradients(DistributedDataParallel(model, bucket_cap_mb=0.0005), domain=mesh["domain"].get_group())
    sync = DSSync(model, optimizer, process_group=mesh["replicate"].get_group())
    for number in range(STEPS):
        optimizer.zero_grad()
        backward(ddp, rank, number, 1)
        sync.step()
    actual = state(model)
    sync.close()

    model, _ = make_model()
    model.body[1] = nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number in range(STEPS):
        gradients = []
        for member in (rank - rank % 2, rank - rank % 2 + 1):
            optimizer.zero_grad()
            backward(model, member, number, 1)
            gradients.append([parameter.grad / 2 for parameter in model.parameters()])
        for parameter, first, second in zip(model.parameters(), *gradients, strict=True):
            parameter.grad = first + second
        optimizer.step()
        group_mean_(model, [(0, 2), (1, 3)], rank)
    assert all(torch.equal(a, b) for a, b in zip(actual, state(model), strict=True))


def test_gradients_averaged_within_a_fast_domain(tmp_path):
    """Two domains of two: the domain has one gradient, and groups are formed across domains."""
    processes.run(4, _in_domains, tmp_path=tmp_path)


def _unused(rank: int) -> None:
    model, optimizer = make_model()
    ddp = local_ddp(model, find_unused_parameters=True)
    sync = DSSync(model, optimizer, group_size=2)
    for number in range(STEPS):
        optimizer.zero_grad()
        backward(ddp, rank, number, 1, unused=True)
        used = (rank + number) % 2 == 0
        assert (model.branch.weight.grad is not None) == used  # else weight decay and momentum would act on it
        sync.step()
    actual, rounds = state(model), sync.schedule.rounds
    sync.close()
    expected = _reference(rank, rounds, 1, unused=True)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_unused_parameters_stay_this_workers_matter(tmp_path):
    processes.run(4, _unused, tmp_path=tmp_path)


def _unused_in_domain(rank: int) -> None:
    model, _ = make_model()
    ddp = local_ddp(model, domain=dist.group.WORLD, find_unused_parameters=True)
    for number in range(2):
        model.zero_grad()
        # in the first pass one worker uses the branch, in the second nobody does
        ddp(batch(rank, number), rank == 0 and number == 0).square().mean().backward()
        assert (model.branch.weight.grad is not None) == (number == 0)
    weight = model.body[0].weight.grad
    everyone = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(everyone, weight)
    assert torch.equal(*everyone)


def test_unused_parameters_are_agreed_upon_in_a_domain(tmp_path):
    processes.run(2, _unused_in_domain, tmp_path=tmp_path)


def _refusals(rank: int) -> None:
    model, _ = make_model()
    with pytest.raises(TypeError, match="model: expected a DistributedDataParallel; got a Model"):
        use_local_gradients(model)
    with pytest.raises(ValueError, match="find_unused_parameters=True makes DDP all-reduce a bitmap"):
        use_local_gradients(DistributedDataParallel(model, find_unused_parameters=True))
    with pytest.raises(ValueError, match="process_group: local_ddp communicates within domain"):
        local_ddp(model, process_group=dist.group.WORLD)
    model.body[1] = nn.SyncBatchNorm(16)
    with pytest.raises(ValueError, match=r"body\.1 is a SyncBatchNorm over workers \[0, 1\]"):
        local_ddp(model)
    with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU"):  # torch's word: ours has passed it
        local_ddp(model, domain=dist.group.WORLD)


def test_what_would_communicate_globally_is_refused(tmp_path):
    processes.run(2, _refusals, tmp_path=tmp_path)

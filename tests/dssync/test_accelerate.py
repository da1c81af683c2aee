"""The Accelerate helper, where accelerate is installed: same numbers as DSSync on the bare module."""

from __future__ import annotations

import copy
import importlib.util
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from specfast.dssync import DSSync
from tests.dssync import processes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="accelerate is not installed: pip install accelerate",
)
STEPS = 4


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.02)


def batches(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(6, 4, generator=generator) for _ in range(2 * STEPS)]


def environment(rank: int) -> None:
    """What a launcher sets; the process group is there already."""
    world = str(dist.get_world_size())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def _accelerated(rank: int) -> None:
    environment(rank)
    from accelerate import Accelerator

    from specfast.dssync.integrations.accelerate import prepare

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == 2
    bare, plain = make()
    with pytest.raises(TypeError, match="optimizer: expected one that accelerator"):
        prepare(accelerator, bare, accelerator.prepare_optimizer(plain))
    bare, plain = make()
    model, optimizer, sync = prepare(accelerator, bare, plain)
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.ExponentialLR(plain, 0.9))
    assert isinstance(model, nn.parallel.DistributedDataParallel)
    for x in batches(rank):
        with accelerator.accumulate(model):
            accelerator.backward(model(x).square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert sync.round == STEPS
    sync.close()

    reference, optimizer = make()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    sync = DSSync(reference, optimizer)
    for number, x in enumerate(batches(rank)):
        (reference(x).square().mean() / 2).backward()
        if number % 2:
            sync.step()
            for _ in range(accelerator.num_processes):  # Accelerate counts a step for each process
                scheduler.step()
            optimizer.zero_grad()
    sync.close()
    assert plain.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), reference.parameters(), strict=True))


class Tied(nn.Module):
    """Parameters of one dtype that DSSync lays side by side, two of them tied, and float buffers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def _saved_and_loaded(rank: int, folder: str) -> None:
    environment(rank)
    from accelerate import Accelerator
    from safetensors.torch import load_file

    from specfast.dssync.integrations.accelerate import prepare

    accelerator = Accelerator(cpu=True)

    def make_prepared(seed: int):
        torch.manual_seed(seed)
        bare = Tied()
        optimizer = torch.optim.AdamW(bare.parameters(), lr=0.02)
        return bare, *prepare(accelerator, bare, optimizer)

    def train(model, optimizer, part: slice) -> None:
        for x in batches(rank)[part]:
            optimizer.zero_grad()
            accelerator.backward(model(x).square().mean())
            optimizer.step()

    bare, model, optimizer, sync = make_prepared(0)
    train(model, optimizer, slice(0, 3))
    sync.consensus_()
    expected = {name: value.clone() for name, value in bare.state_dict().items()}
    moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    accelerator.save_state(folder + "/state")
    accelerator.save_model(model, folder + "/model")
    accelerator.wait_for_everyone()
    saved = load_file(folder + "/model/model.safetensors")
    assert expected.keys() - saved.keys() == {"last.weight"}  # as of a model that nobody has laid flat
    assert all(torch.equal(saved[name], expected[name]) for name in saved)

    train(model, optimizer, slice(3, 5))
    addresses = [parameter.data_ptr() for parameter in bare.parameters()]
    accelerator.load_state(folder + "/state")
    assert addresses == [parameter.data_ptr() for parameter in bare.parameters()]
    assert sync.round == 3
    for name, value in bare.state_dict().items():
        assert torch.equal(value, expected[name]), name
    everyone = [torch.empty_like(moments) for _ in range(2)]
    dist.all_gather(everyone, moments)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], everyone[0])  # the main process's
    train(model, optimizer, slice(3, 5))  # what was loaded is averaged
    sync.consensus_()
    for value in bare.state_dict().values():
        dist.all_gather(everyone := [torch.empty_like(value) for _ in range(2)], value)
        assert torch.equal(*everyone)

    # what is asked for itself is given; a copy of the model gives itself, too
    kept = bare.state_dict(keep_vars=True)
    assert all(kept[name] is parameter for name, parameter in bare.named_parameters())
    average = copy.deepcopy(bare)
    average.state_dict()["norm.running_mean"].fill_(7.0)
    assert bool((average.norm.running_mean == 7.0).all())
    sync.close()


def test_accelerate_saves_and_loads_the_whole_model(tmp_path):
    processes.run(2, _saved_and_loaded, str(tmp_path / "saved"), tmp_path=tmp_path)


def test_inside_accelerate_bitwise(tmp_path):
    processes.run(2, _accelerated, tmp_path=tmp_path)

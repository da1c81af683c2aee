"""The Accelerate helper, where accelerate is installed: same numbers as DSSync on the bare module."""

from __future__ import annotations

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
    reason='accelerate is not installed: pip install "specfast[accelerate]"',
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


def test_inside_accelerate_bitwise(tmp_path):
    processes.run(2, _accelerated, tmp_path=tmp_path)

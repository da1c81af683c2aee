"""The mean over ranks through symmetric memory, interpreted: one rank among others' memory, and real processes."""

from __future__ import annotations

import pytest
import torch

from specfast.kernels import configs
from specfast.kernels.triton import symmetric_all_reduce as kernels
from specfast.ops import symmetric
from tests.dssync.processes import run

CASES = [(2, 7001), (3, 1), (3, 100), (3, 2048), (3, 7001), (8, 2049)]  # ranks, elements
BLOCKS, BLOCK = 3, 1024  # of the interpreter's grid, so that some have several tiles and some have none
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for GPUs where there is none")


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(kernels, "BLOCKS", BLOCKS)
    with configs.override("symmetric_mean", BLOCK=BLOCK):
        yield


class Node:
    """The memory of all ranks, in this process."""

    def __init__(self, world: int, capacity: int):
        size, self.half, programs = symmetric.symmetric_layout(world, capacity)
        self.header = kernels.header_bytes(world)
        self.memory = [torch.zeros(size, dtype=torch.uint8) for _ in range(world)]
        self.buffers = torch.tensor([memory.data_ptr() for memory in self.memory])
        self.states = [torch.zeros(2, programs, dtype=torch.int32) for _ in range(world)]

    def flags(self, rank: int) -> torch.Tensor:
        """[BLOCKS, W] that a rank waits for."""
        return self.memory[rank][: 4 * BLOCKS * len(self.memory)].view(torch.int32).view(BLOCKS, -1)

    def half_of(self, rank: int, call: int, like: torch.Tensor) -> torch.Tensor:
        """What the kernels read of a rank in a call, counted from 1."""
        start = self.header + call % 2 * self.half
        return self.memory[rank][start : start + like.nbytes].view(like.dtype)

    def mean(self, values: torch.Tensor, rank: int, *, two_shot: bool, polls: int = 10) -> None:
        given = {"rank": rank, "half": self.half, "two_shot": two_shot, "polls": polls}
        symmetric.symmetric_mean_(values, self.buffers, self.states[rank], **given)


def mean_of(rows: list[torch.Tensor]) -> torch.Tensor:
    """In float32, in the order of the ranks, divided and rounded once."""
    total = rows[0].float()
    for row in rows[1:]:
        total = total + row.float()
    return (total / len(rows)).to(rows[0].dtype)


def rows_of(world: int, count: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).mul(3).to(dtype) for _ in range(world)]


@interpreted
@pytest.mark.parametrize(("world", "count"), CASES)
def test_one_shot_among_peers_that_are_there(world, count, dtype):
    """All others have written their halves and raised their flags; every rank then computes the same bits."""
    node, rows = Node(world, 32_000), rows_of(world, count, dtype)
    results = []
    for rank in range(world):
        for other, row in enumerate(rows):
            node.half_of(other, 1, row).copy_(row if other != rank else torch.full_like(row, torch.nan))
            node.flags(rank)[:, other] = 2
        values = rows[rank].clone()
        node.mean(values, rank, two_shot=False)
        results.append(values)
        assert node.states[rank].tolist() == [[2] * BLOCKS, [0] * BLOCKS]
        assert all((node.flags(other)[:, rank] == 2).all() for other in range(world))
    assert all(torch.equal(result, mean_of(rows)) for result in results)


@interpreted
@pytest.mark.parametrize(("world", "count"), CASES)
def test_two_shot_among_peers_that_are_there(world, count, dtype):
    """The others' own shards already hold the mean; this rank makes that of its own, and gathers."""
    rows, shard = rows_of(world, count, dtype), 16 * -(-count // (16 * world))
    for rank in range(world):
        node = Node(world, 32_000)
        for other, row in enumerate(rows):
            half = node.half_of(other, 1, row)
            half.copy_(row)
            own = slice(other * shard, (other + 1) * shard)
            half[own] = mean_of(rows)[own] if other != rank else torch.nan
            node.flags(rank)[:, other] = 2
        values = rows[rank].clone()
        node.mean(values, rank, two_shot=True)
        assert torch.equal(values, mean_of(rows))
        own = slice(rank * shard, (rank + 1) * shard)
        assert torch.equal(node.half_of(rank, 1, values)[own], mean_of(rows)[own])


@interpreted
@pytest.mark.parametrize("two_shot", [False, True])
@pytest.mark.parametrize("flag", [0, 1])
def test_a_rank_that_does_not_come_leaves_values_as_they_are(two_shot, flag):
    """Flag 1: it came to the first meeting of two, and no further."""
    node, rows = Node(2, 4000), rows_of(2, 900, torch.float32)
    node.flags(0)[:, 0] = 2
    node.flags(0)[:, 1] = flag
    values = rows[0].clone()
    node.mean(values, 0, two_shot=two_shot, polls=3)
    assert torch.equal(values, rows[0])
    assert node.states[0][1].tolist() == [1] * BLOCKS


@interpreted
def test_flags_may_wrap_around():
    node, rows = Node(2, 4000), rows_of(2, 900, torch.float32)
    largest = torch.iinfo(torch.int32).max
    node.states[0][0] = largest - 1
    node.flags(0)[:, 0] = largest - 1
    node.flags(0)[:, 1] = -(1 << 31)  # largest + 1
    node.half_of(1, 0, rows[1]).copy_(rows[1])
    values = rows[0].clone()
    node.mean(values, 0, two_shot=False)
    assert torch.equal(values, mean_of(rows))
    assert node.states[0][0].tolist() == [-(1 << 31)] * BLOCKS


CALLS = [(True, 700), (False, 700), (True, 3000), (True, 1), (False, 2048), (False, 3000), (True, 2999), (False, 33)]


def _rank(rank: int, world: int, folder: str) -> list[torch.Tensor]:
    """Calls of both kinds and of several sizes, one after the other, with nothing but the kernels to synchronize."""
    kernels.BLOCKS = BLOCKS
    configs.override("symmetric_mean", BLOCK=BLOCK).__enter__()
    size, half, programs = symmetric.symmetric_layout(world, 12_000)
    memory = [torch.from_file(f"{folder}/{r}", shared=True, size=size, dtype=torch.uint8) for r in range(world)]
    buffers = torch.tensor([one.data_ptr() for one in memory])
    state = torch.zeros(2, programs, dtype=torch.int32)
    results = []
    for number, (two_shot, count) in enumerate(CALLS):
        values = rows_of(world, count, torch.float32, seed=number)[rank]
        symmetric.symmetric_mean_(values, buffers, state, rank=rank, half=half, two_shot=two_shot, polls=1 << 30)
        results.append(values)
    assert not state[1].any()
    return results


@interpreted
@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_memory(world, tmp_path):
    """Flags and halves are all that keeps the ranks apart and together."""
    size, _, _ = symmetric.symmetric_layout(world, 12_000)
    for rank in range(world):
        (tmp_path / str(rank)).write_bytes(bytes(size))
    for results in run(world, _rank, world, str(tmp_path), tmp_path=tmp_path):
        for number, (_, count) in enumerate(CALLS):
            assert torch.equal(results[number], mean_of(rows_of(world, count, torch.float32, seed=number)))


def test_errors_name_the_argument():
    buffers, state = torch.zeros(2, dtype=torch.int64), torch.zeros(2, BLOCKS, dtype=torch.int32)
    given = {"rank": 0, "half": 1024, "two_shot": False, "polls": 1}
    with pytest.raises(ValueError, match=r"values must be one of torch.float32, .*; got torch.float64"):
        symmetric.symmetric_mean_(torch.zeros(3).double(), buffers, state, **given)
    with pytest.raises(ValueError, match=r"values must be contiguous \[n\]; got \[3\], strides \(2,\)"):
        symmetric.symmetric_mean_(torch.zeros(6)[::2], buffers, state, **given)
    with pytest.raises(ValueError, match=r"values must be of at most 1024 bytes; got 1028"):
        symmetric.symmetric_mean_(torch.zeros(257), buffers, state, **given)
    with pytest.raises(ValueError, match=r"buffers must be of 1 to 64 ranks; got 65"):
        symmetric.symmetric_mean_(torch.zeros(3), torch.zeros(65, dtype=torch.int64), state, **given)

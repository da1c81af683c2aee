"""SymmetricMean: its choices, agreement to go without, and its kernels where several ranks can share a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from specfast.dssync import symmetric
from specfast.dssync.exchange import staging_for
from specfast.dssync.symmetric import CAPACITY, AbsentRankError, SymmetricExchange, SymmetricMean, form_of
from specfast.ops.symmetric import symmetric_layout
from tests.dssync.processes import run

COUNTS = [1, 17, 4096, 100_003, 700_001]


def mean_of(rows: list[torch.Tensor]) -> torch.Tensor:
    """In float32, in the order of the ranks, divided and rounded once."""
    total = rows[0].float()
    for row in rows[1:]:
        total = total + row.float()
    return (total / len(rows)).to(rows[0].dtype)


def rows_of(world: int, count: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).mul(3).to(dtype) for _ in range(world)]


def test_the_form_follows_from_bytes_and_ranks():
    assert form_of(512 << 10, 8) == "one_shot"
    assert form_of((512 << 10) + 1, 8) == "two_shot"
    assert form_of(CAPACITY, 2) == "one_shot"  # a two-shot of two moves as much, and meets twice
    assert [form_of(1 << 20, world) for world in (2, 3, 4, 8)] == ["one_shot", "one_shot", "one_shot", "two_shot"]
    assert form_of(4 << 20, 4) == "two_shot"
    assert form_of(CAPACITY + 1, 2) == "library"
    assert form_of(1000, 2, capacity=999) == "library"


def _on_cpus(rank: int, world: int) -> tuple:
    mean = SymmetricMean(None, "cpu")
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        values = rows_of(world, 1000, dtype)[rank]
        assert mean.form_of(values) == "library"
        assert mean.mean_(values) is values
        results.append(values)
    mean.check()
    return mean.reason, mean.extra_bytes, results


def test_without_gpus_the_library_does_it_and_says_why(tmp_path):
    for reason, extra_bytes, results in run(3, _on_cpus, 3, tmp_path=tmp_path):
        assert reason == "rank 0: tensors on cpu"
        assert extra_bytes == 0
        for values in results:
            expected = mean_of(rows_of(3, 1000, values.dtype))
            torch.testing.assert_close(values, expected, rtol=2**-8 if values.dtype == torch.bfloat16 else 0, atol=1e-6)


def _one_cannot(rank: int) -> str:
    from specfast.dssync import symmetric

    symmetric._reason = lambda device, world: "no luck" if rank == 1 else ""
    symmetric.SymmetricMean._make_memory = lambda self: pytest.fail("not all can")
    return SymmetricMean(None, "cpu").reason


def test_one_rank_that_cannot_is_enough(tmp_path):
    assert run(2, _one_cannot, tmp_path=tmp_path) == ["rank 1: no luck"] * 2


def _several_nodes(rank: int) -> str:
    from specfast.dssync import symmetric

    symmetric._reason = lambda device, world: ""
    symmetric._node = lambda: f"node {rank}"
    return SymmetricMean(None, "cpu").reason


def test_a_group_of_several_nodes_goes_without(tmp_path):
    assert run(2, _several_nodes, tmp_path=tmp_path) == ["the group spans several nodes"] * 2


def _no_memory(rank: int) -> str:
    """The library has no symmetric memory for CPUs, and says so by an exception."""
    from specfast.dssync import symmetric

    symmetric._reason = lambda device, world: ""
    mean = SymmetricMean(None, "cpu", capacity=1000)
    assert mean.form_of(torch.zeros(10)) == "library"
    return mean.reason


def test_memory_that_cannot_be_had_is_a_reason(tmp_path):
    first, second = run(2, _no_memory, tmp_path=tmp_path)
    assert first == second
    assert first.startswith("rank 0: symmetric memory cannot be had (")


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="SymmetricMean: capacity must be positive; got 0"):
        SymmetricMean(None, "cpu", capacity=0)
    with pytest.raises(ValueError, match="SymmetricMean: timeout must be positive; got -1"):
        SymmetricMean(None, "cpu", timeout=-1)


class _Alone(SymmetricMean):
    """One rank of a group whose others are not here."""

    def _any_reason(self, reason: str, node: str = "") -> str:
        return ""

    def _make_memory(self) -> str:
        size, self._half, programs = symmetric_layout(self.world, self.capacity)
        self.memories = [torch.zeros(size, dtype=torch.uint8) for _ in range(self.world)]
        self._memory = self.memories[self.rank]
        self._buffers = torch.tensor([memory.data_ptr() for memory in self.memories])
        self._state = torch.zeros(2, programs, dtype=torch.int32)
        return ""


def _group(rank: int, world: int) -> SimpleNamespace:
    return SimpleNamespace(rank=lambda: rank, size=lambda: world)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for GPUs where there is none")
@pytest.mark.parametrize(("form", "raised"), [("one_shot", 2), ("two_shot", 1), ("two_shot", 2)])
def test_only_ranks_that_did_not_come_are_named(form, raised, monkeypatch):
    """Ranks 0 and 3 came to the meeting that rank 1 waits in: in a two-shot the first, or the second, of two."""
    from specfast.kernels import configs
    from specfast.kernels.triton import symmetric_all_reduce as kernels

    monkeypatch.setattr(kernels, "BLOCKS", 2)
    mean = _Alone(_group(1, 4), "cpu", capacity=1024, timeout=3e-6)
    flags = mean._memory[: 4 * 2 * 4].view(torch.int32).view(2, 4)
    flags[:, 0] = flags[:, 3] = raised
    flags[:, 2] = raised - 1
    values = torch.arange(200.0)
    with configs.override("symmetric_mean", BLOCK=1024):
        mean.mean_(values, form=form)
    assert torch.equal(values, torch.arange(200.0))
    with pytest.raises(AbsentRankError, match=r"ranks \[2\] of the group did not come to a mean"):
        mean.check()


def test_the_current_gpu_is_named_as_tensors_name_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(symmetric, "_reason", lambda device, world: "")
    assert _Alone(_group(0, 2), "cuda").device == torch.device("cuda", 3)
    assert _Alone(_group(0, 2), "cuda:1").device == torch.device("cuda", 1)


def _on_one_gpu(rank: int, world: int) -> None:
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    mean = SymmetricMean(None, device, capacity=4 << 20)
    assert mean.reason == ""
    for number, count in enumerate(COUNTS):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            rows = rows_of(world, count, dtype, seed=number)
            for form in ("one_shot", "two_shot", "library"):
                values = rows[rank].to(device)
                mean.mean_(values, form=form)
                if form == "library":
                    torch.testing.assert_close(values.cpu(), mean_of(rows), rtol=2**-7, atol=1e-6)
                else:
                    assert torch.equal(values.cpu(), mean_of(rows)), (form, count, dtype)
    _beside_torchs_own(rank, world, device, mean)
    _in_a_graph(rank, world, device, mean)
    mean.check()
    dist.barrier()
    _with_an_absent_rank(rank, device)


def _beside_torchs_own(rank: int, world: int, device: torch.device, mean: SymmetricMean) -> None:
    import torch.distributed._symmetric_memory as symmetric_memory

    rows = rows_of(world, 4096, torch.float32, seed=9)
    shared = symmetric_memory.empty(4096, dtype=torch.float32, device=device)
    symmetric_memory.rendezvous(shared, dist.group.WORLD)
    name = dist.group.WORLD.group_name
    for operator in ("one_shot_all_reduce", "two_shot_all_reduce_"):
        shared.copy_(rows[rank])
        torch.cuda.synchronize()
        dist.barrier()
        theirs = getattr(torch.ops.symm_mem, operator)(shared, "sum", name) / world
        torch.testing.assert_close(mean.mean_(rows[rank].to(device)), theirs)
        dist.barrier()


def _in_a_graph(rank: int, world: int, device: torch.device, mean: SymmetricMean) -> None:
    values = torch.zeros(5000, device=device)
    mean.mean_(values, form="one_shot")  # compiles; not to be captured
    mean.mean_(values, form="two_shot")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mean.mean_(values, form="one_shot")
        mean.mean_(values, form="two_shot")
    for seed in range(5):
        rows = rows_of(world, 5000, torch.float32, seed=seed)
        values.copy_(rows[rank])
        graph.replay()
        assert torch.equal(values.cpu(), mean_of([mean_of(rows)] * world))


def _with_an_absent_rank(rank: int, device: torch.device) -> None:
    mean = SymmetricMean(None, device, capacity=1 << 20, timeout=0.5)
    if rank > 0:
        values = torch.randn(1000, device=device)
        before = values.clone()
        mean.mean_(values)
        with pytest.raises(AbsentRankError, match=r"ranks \[0\] of the group did not come to a mean"):
            mean.check()
        assert torch.equal(values, before)
    dist.barrier()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_on_one_gpu(world, tmp_path):
    """Over Gloo, for NCCL refuses two ranks on one GPU."""
    run(world, _on_one_gpu, world, tmp_path=tmp_path, timeout_s=400)


def _exchange(rank: int, world: int) -> list[torch.Tensor]:
    buckets = [rows_of(world, count, torch.float32, seed=count)[rank] for count in (300, 7)]
    before = [bucket.clone() for bucket in buckets]
    exchange = SymmetricExchange(buckets, [staging_for(bucket) for bucket in buckets], SymmetricMean(None, "cpu"))
    exchange.start()
    exchange.finish()
    assert all(torch.equal(bucket, old) for bucket, old in zip(buckets, before, strict=True))
    exchange.write(buckets)
    return buckets


def test_an_exchange_leaves_the_buckets_alone_until_they_are_written(tmp_path):
    results = run(2, _exchange, 2, tmp_path=tmp_path)
    for place, count in enumerate((300, 7)):
        expected = mean_of(rows_of(2, count, torch.float32, seed=count))
        assert all(torch.equal(buckets[place], expected) for buckets in results)

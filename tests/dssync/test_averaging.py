"""Means over groups: three ways of exchange, compressed ones, and the groups themselves."""

from __future__ import annotations

import hashlib
import time
import weakref

import pytest
import torch
import torch.distributed as dist

from specfast.dssync import Schedule, exchange
from specfast.dssync import wire as wire_module
from specfast.dssync.averaging import Averager, disagreement
from specfast.dssync.exchange import (
    DIRECT_RANKS,
    WIDE_BUCKETS,
    PairExchange,
    ReduceExchange,
    ShardExchange,
    make_exchange,
    staging_for,
)
from specfast.dssync.groups import GroupPool
from specfast.dssync.wire import GATHER_RANKS, CompressedExchange, WireState
from tests.dssync import reference
from tests.dssync.processes import run

LENGTHS = (1, 2, 3, 7, 1000, 4099, 140_001)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def numbers(rank: int, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(length, generator=generator, dtype=torch.float64).to(dtype)


def digest(tensors: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors)).hexdigest()


def exchanged(rank: int, sizes: tuple[int, ...]):
    """Average in groups of the first so many ranks; return kinds and hashes of the results by size."""
    out = {}
    for size in sizes:
        group = dist.new_group(range(size))
        if rank >= size:
            continue
        for present in (None, [place != 1 for place in range(size)]):
            sources = [numbers(rank, length, dtype) for dtype in DTYPES for length in LENGTHS]
            before = digest(sources)
            under_way = make_exchange(sources, list(map(staging_for, sources)), group, present=present)
            under_way.start()
            under_way.finish()
            assert digest(sources) == before
            results = [under_way.mean(number).clone() for number in range(len(sources))]
            under_way.write(sources)
            assert digest(sources) == digest(results)
            out[size, present is None] = type(under_way), [digest([result]) for result in results]
    return out


def test_the_mean_in_the_order_of_ranks_bit_for_bit(tmp_path):
    found = run(5, exchanged, (2, 3, 5), tmp_path=tmp_path)
    for size, kind in ((2, PairExchange), (3, ShardExchange), (5, ShardExchange)):
        for everyone in (True, False):
            members = [rank for rank in range(size) if everyone or rank != 1]
            expected = [
                digest([reference.mean([numbers(member, length, dtype) for member in members])])
                for dtype in DTYPES
                for length in LENGTHS
            ]
            for rank in range(size):
                assert found[rank][size, everyone] == (kind, expected), (size, rank, everyone)


def reduced(rank: int):
    exchange.DIRECT_RANKS = 2
    group = dist.group.WORLD
    out = []
    for present in (None, [True, False, True]):
        sources = [numbers(rank, length, dtype) for dtype in DTYPES for length in LENGTHS]
        under_way = make_exchange(sources, list(map(staging_for, sources)), group, present=present)
        assert type(under_way) is ReduceExchange
        under_way.start()
        under_way.finish()
        results = [under_way.mean(number) for number in range(len(sources))]
        out.append((digest(results), [result.double() for result in results]))
        in_place = [numbers(rank, length) for length in LENGTHS]
        packed = ReduceExchange(in_place, in_place, group, present)
        packed.start()
        packed.finish()
        assert digest(in_place) == digest(results[: len(LENGTHS)])
    return out


def test_larger_groups_reduce_with_the_same_bits_on_all(tmp_path):
    found = run(3, reduced, tmp_path=tmp_path)
    for number, members in enumerate(([0, 1, 2], [0, 2])):
        assert len({worker[number][0] for worker in found}) == 1
        results = iter(found[0][number][1])
        for dtype in DTYPES:
            for length in LENGTHS:
                exact = torch.stack([numbers(rank, length, dtype).double() for rank in members]).mean(0)
                rounded = torch.finfo(dtype).eps
                torch.testing.assert_close(next(results), exact, rtol=2 * rounded, atol=2 * rounded)


def widened(rank: int, unattended: bool, drained: bool):
    """Return how many float32 copies there are at most at the same time, and what comes out."""
    reduce, copies, most = dist.all_reduce, [], 0

    def held() -> int:
        for _ in range(200):  # the backend's thread lets go of a finished one a moment later
            alive = sum(copy() is not None for copy in copies)
            if alive <= len(under_way._wide):
                break
            time.sleep(0.01)
        return alive

    def counted(tensor, **options):
        nonlocal most
        if tensor.dtype == torch.float32:
            copies.append(weakref.ref(tensor))
        most = max(most, held())
        return reduce(tensor, **options)

    dist.all_reduce = counted
    dtypes = [torch.bfloat16] * 4 + [torch.float64] + [torch.float16] * 3 + [torch.float64]
    sources = [numbers(10 * rank + number, 500, dtype) for number, dtype in enumerate(dtypes)]
    under_way = ReduceExchange(sources, list(map(staging_for, sources)), dist.group.WORLD, unattended=unattended)
    under_way.start()
    if drained:
        under_way.drain()
        assert held() == 0
        return most, []
    under_way.finish()
    assert held() == 0
    return most, [under_way.mean(number).clone() for number in range(len(sources))]


@pytest.mark.parametrize(("unattended", "most"), [(False, WIDE_BUCKETS), (True, 7)])
def test_half_precision_is_widened_a_few_buckets_at_a_time(unattended, most, tmp_path):
    found = run(2, widened, unattended, False, tmp_path=tmp_path)
    for number, (mean, other) in enumerate(zip(found[0][1], found[1][1], strict=True)):
        both = [numbers(10 * rank + number, 500, mean.dtype) for rank in range(2)]
        assert torch.equal(mean, reference.mean(both))
        assert torch.equal(mean, other)
    assert [worker[0] for worker in found] == [most] * 2
    assert run(2, widened, unattended, True, tmp_path=tmp_path) == [(most, [])] * 2


def compressed(rank: int, wire: str, rounds: int):
    """Average the same values again and again; return sums of values and residuals, and digests."""
    group, size = dist.group.WORLD, dist.get_world_size()
    buckets = [torch.zeros(length) for length in LENGTHS]
    state = WireState(buckets, wire)
    own = [numbers(rank, length) for length in LENGTHS]
    for bucket, value in zip(buckets, own, strict=True):
        bucket.copy_(value)
    sent = 0
    scatter, gather = dist.all_to_all_single, wire_module.all_gather

    def counted_scatter(out, tensor, received, given, **options):
        nonlocal sent
        sent += tensor.element_size() * (sum(given) - given[rank])
        return scatter(out, tensor, received, given, **options)

    def counted_gather(out, tensor, *args, **options):
        nonlocal sent
        sent += tensor.nbytes * (size - 1)
        return gather(out, tensor, *args, **options)

    dist.all_to_all_single, wire_module.all_gather = counted_scatter, counted_gather
    history = []
    for _ in range(rounds):
        under_way = CompressedExchange(buckets, state, group)
        under_way.start()
        under_way.finish()
        means = [under_way.mean(number) for number in range(len(buckets))]
        under_way.write(buckets)
        assert digest(means) == digest(buckets)
        state.accept_residual()
        owed = [bucket.double() + residual.double() for bucket, residual in zip(buckets, state.residual, strict=True)]
        history.append((digest(buckets), [bucket.clone() for bucket in buckets], owed))
    per_round = sent / rounds
    return history, per_round


@pytest.mark.parametrize("wire", ["bfloat16", "float8"])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_compressed_means(world, wire, tmp_path):
    found = run(world, compressed, wire, 4, tmp_path=tmp_path)
    exact = [torch.stack([numbers(rank, length).double() for rank in range(world)]).mean(0) for length in LENGTHS]
    unit = {"bfloat16": 2.0**-8, "float8": 2.0**-4}[wire]
    for number in range(4):
        # the same bits on all members, whatever was lost
        assert len({worker[0][number][0] for worker in found}) == 1
        for place, mean in enumerate(exact):
            # what one loses is kept: values plus residuals have the exact mean at all times
            owed = torch.stack([worker[0][number][2][place] for worker in found]).mean(0)
            torch.testing.assert_close(owed, mean, rtol=1e-6, atol=1e-6)
    biggest = max(numbers(rank, LENGTHS[-1]).abs().max().item() for rank in range(world))
    # one rounding of each difference, and in larger groups one more of their mean
    error = (found[0][0][0][1][-1].double() - exact[-1]).abs().max().item()
    assert 0 < error < unit * biggest * (1 if world <= GATHER_RANKS else 2)
    # the bias of many roundings vanishes
    mean_error = (found[0][0][0][1][-1].double() - exact[-1]).mean().item()
    assert abs(mean_error) < 5 * unit * biggest / LENGTHS[-1] ** 0.5
    # bytes do not grow with the group
    plain = 2 * (world - 1) / world * 4 * sum(LENGTHS)
    width = {"bfloat16": 2, "float8": 1 + 4 / 256}[wire]
    scattered = 2 * (world - 1) / world if world > GATHER_RANKS else world - 1
    assert found[0][1] / plain == pytest.approx(scattered * width / (plain / sum(LENGTHS)), rel=0.05)


def averaged(rank: int, wire: str):
    """Residuals flow into the mean over all, which all then hold, and refer to."""
    buckets = [torch.zeros(5000), torch.zeros(40, dtype=torch.bfloat16)]
    averager = Averager(buckets, wire=wire)
    total = torch.zeros(5000, dtype=torch.float64)
    for step in range(3):
        for bucket in buckets:
            noise = numbers(10 * step + rank, bucket.numel())
            bucket.add_(noise)
        total += numbers(10 * step + rank, 5000)
        under_way = averager.begin(dist.group.WORLD, (0, 1), everyone=step == 2)
        averager.complete(under_way)
        averager.accept(under_way)
    assert not any(residual.any() for residual in averager.wire.residual)
    assert torch.equal(averager.wire.reference[0], buckets[0])
    room = DIRECT_RANKS  # in staging, residual and scratch
    assert averager.nbytes == 4 * (5000 + 2 * (5000 + room)) + 2 * (40 + room)
    return digest(buckets), buckets[0].double(), total, averager.wire.digest()


def test_a_mean_over_all_pays_what_compression_owes(tmp_path):
    found = run(2, averaged, "float8", tmp_path=tmp_path)
    assert found[0][0] == found[1][0]
    assert found[0][3] == found[1][3]
    expected = (found[0][2] + found[1][2]) / 2
    torch.testing.assert_close(found[0][1], expected, rtol=1e-6, atol=2e-6)


UNEVEN = Schedule(5, (((0, 1), (2, 3), (4,)), ((0, 2, 4), (1, 3)), ((0,), (1, 4), (2,), (3,))), "random")


def pooled(rank: int):
    """Members of a group have made different numbers of groups before it; two pools; a part of the world."""
    pools = [GroupPool(UNEVEN, timeout=30.0, name=name) for name in ("first", "second")]
    pools.append(GroupPool(UNEVEN, timeout=30.0, name="first", generation=1))
    sums = []
    for pool in pools:
        for number in range(4):
            group = pool.of(number)
            assert (group is None) == (len(pool.members(number)) == 1)
            value = torch.tensor([2.0**rank])
            if group is not None:
                assert dist.get_process_group_ranks(group) == list(pool.members(number))
                dist.all_reduce(value, group=group)
            sums.append(value.item())
    if rank in (1, 3, 4):
        part = GroupPool(Schedule(3, (((0, 2), (1,)), ((0, 1, 2),)), "random"), name="part", ranks=(1, 3, 4))
        value = torch.tensor([2.0**rank])
        assert part.members(0) == ((0, 2) if rank != 3 else (1,))
        if part.of(0) is not None:
            dist.all_reduce(value, group=part.of(0))
        sums.append(value.item())
        part.close()
    made = {group.group_name for pool in pools for group in pool.groups}
    for pool in pools:
        pool.close()
        assert pool.groups == []
    return sums, len(made)


def test_groups_of_an_uneven_schedule(tmp_path):
    found = run(5, pooled, tmp_path=tmp_path)
    for rank, (sums, made) in enumerate(found):
        once = [sum(2.0**member for member in UNEVEN.group_of(rank, number)) for number in range(4)]
        assert sums[:12] == once * 3
        own = {UNEVEN.group_of(rank, number) for number in range(3)} - {(rank,)}
        assert made == 3 * (len(own) + 1)  # its own groups and the world's: no others
        if rank in (1, 3, 4):
            assert sums[12] == (8.0 if rank == 3 else 18.0)


def test_a_schedule_of_another_world_is_refused(tmp_path):
    run(2, _other_world, tmp_path=tmp_path)


def _other_world(rank: int):
    with pytest.raises(ValueError, match="schedule: expected one of 2 ranks; got one of 5"):
        GroupPool(UNEVEN)


def _disagreement(rank: int):
    part = numbers(rank, 1000)
    return disagreement([part[:400], part[400:].double()], dist.group.WORLD)


def test_disagreement_is_relative_to_the_mean(tmp_path):
    found = run(3, _disagreement, tmp_path=tmp_path)
    values = torch.stack([numbers(rank, 1000).double() for rank in range(3)])
    mean = values.mean(0)
    expected = ((values - mean).square().sum(1).mean().sqrt() / mean.norm()).item()
    assert found == [pytest.approx(expected, rel=1e-5)] * 3

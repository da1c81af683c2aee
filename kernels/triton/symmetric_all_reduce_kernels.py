"""The mean over the ranks of a node, read from the memory of all of them: one kernel, no library.

Every rank owns a buffer that all ranks can address: flags, then two halves of equal size which calls take in turn. Rank
r's flag f of block b lies in the buffer of the rank that waits for it. Flags only grow, by two a call, so that nothing
is ever reset and CUDA graphs can replay a call: each block keeps its count in ``counters``.

Why nothing is overwritten too early: a rank writes a half again two calls later. By then its call in between has seen
a flag of every rank, which each raised in its own call in between, after its kernel of the first call had ended.

Sums are in float32 and in the order of the ranks, divided once and rounded once: the same bits on all ranks, whichever
kernel ran. Legend: n elements, W ranks; a program is a block of the grid, the same one on all ranks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load(pointer, offsets, end, FULL: tl.constexpr):
    if FULL:
        return tl.load(pointer + offsets, cache_modifier=".cg")
    else:
        return tl.load(pointer + offsets, mask=offsets < end, other=0.0, cache_modifier=".cg")


@triton.jit
def store(pointer, offsets, values, end, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + offsets, values)
    else:
        tl.store(pointer + offsets, values, mask=offsets < end)


@triton.jit
def memory_of(buffers_ptr, rank, offset, DTYPE: tl.constexpr):
    """A pointer into a rank's buffer, ``offset`` bytes from its start."""
    address = tl.load(buffers_ptr + rank) + offset
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def meet(buffers_ptr, count, rank, polls, WORLD: tl.constexpr, BLOCK_W: tl.constexpr):
    """Raise this block's flags to ``count`` and wait for those of all ranks: what each wrote before, all see after.

    Returns 0 if they have not come after so many polls, else 1.
    """
    other = tl.arange(0, BLOCK_W)
    there = other < WORLD
    first = tl.program_id(0) * WORLD
    bases = tl.load(buffers_ptr + other, mask=there, other=0)
    theirs = bases.to(tl.pointer_type(tl.int32)) + (first + rank)
    mine = tl.load(buffers_ptr + rank).to(tl.pointer_type(tl.int32)) + first + other
    tl.debug_barrier()  # all threads' stores come before the flags
    tl.atomic_xchg(theirs, tl.zeros_like(other) + count, mask=there, sem="release", scope="sys")
    seen = tl.atomic_add(mine, tl.zeros_like(other), mask=there, sem="acquire", scope="sys")
    behind = tl.min(tl.where(there, seen - count, 0), axis=0)  # a difference, so that it may wrap around
    left = polls
    while (behind < 0) & (left > 0):
        seen = tl.atomic_add(mine, tl.zeros_like(other), mask=there, sem="acquire", scope="sys")
        behind = tl.min(tl.where(there, seen - count, 0), axis=0)
        left -= 1
    tl.debug_barrier()  # all threads' loads come after the flags
    return (behind >= 0).to(tl.int32)


@triton.jit
def copy_tile(to_ptr, from_ptr, start, end, FULL: tl.constexpr, BLOCK: tl.constexpr):
    offsets = start + tl.arange(0, BLOCK)
    store(to_ptr, offsets, load(from_ptr, offsets, end, FULL), end, FULL)


@triton.jit
def copy_part(to_ptr, from_ptr, begin, end, BLOCK: tl.constexpr):
    """Copy this block's share of the elements from ``begin`` to ``end``."""
    for step in range(tl.program_id(0) * BLOCK, end - begin, tl.num_programs(0) * BLOCK):
        start = begin + step
        if start + BLOCK <= end:
            copy_tile(to_ptr, from_ptr, start, end, True, BLOCK)
        else:
            copy_tile(to_ptr, from_ptr, start, end, False, BLOCK)


@triton.jit
def mean_tile(to_ptr, buffers_ptr, offset, start, end, FULL: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr):
    DTYPE: tl.constexpr = to_ptr.dtype.element_ty
    offsets = start + tl.arange(0, BLOCK)
    memory, parts = (), ()  # all on their way before the first is waited for
    for rank in tl.static_range(WORLD):
        memory = memory + (memory_of(buffers_ptr, rank, offset, DTYPE),)  # noqa: RUF005  Triton knows no other way
    for rank in tl.static_range(WORLD):
        parts = parts + (load(memory[rank], offsets, end, FULL),)  # noqa: RUF005
    sums = parts[0].to(tl.float32)
    for rank in tl.static_range(1, WORLD):
        sums += parts[rank].to(tl.float32)
    mean = tl.div_rn(sums, tl.zeros_like(sums) + WORLD)
    store(to_ptr, offsets, mean.to(DTYPE), end, FULL)


@triton.jit
def mean_part(to_ptr, buffers_ptr, offset, begin, end, WORLD: tl.constexpr, BLOCK: tl.constexpr):
    """Write the mean over all ranks of this block's share of the elements from ``begin`` to ``end``."""
    for step in range(tl.program_id(0) * BLOCK, end - begin, tl.num_programs(0) * BLOCK):
        start = begin + step
        if start + BLOCK <= end:
            mean_tile(to_ptr, buffers_ptr, offset, start, end, True, WORLD, BLOCK)
        else:
            mean_tile(to_ptr, buffers_ptr, offset, start, end, False, WORLD, BLOCK)


@triton.jit(do_not_specialize=["n", "rank", "header", "half", "polls"])
def one_shot_mean_kernel(
    values_ptr,
    buffers_ptr,
    counters_ptr,
    failures_ptr,
    n,
    rank,
    header,
    half,
    polls,
    WORLD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every rank reads all of every rank: one meeting, W - 1 times the bytes."""
    block = tl.program_id(0)
    count = tl.load(counters_ptr + block) + 2
    offset = header + ((count >> 1) & 1) * half
    copy_part(memory_of(buffers_ptr, rank, offset, values_ptr.dtype.element_ty), values_ptr, 0, n, BLOCK)
    if meet(buffers_ptr, count, rank, polls, WORLD, BLOCK_W) > 0:
        mean_part(values_ptr, buffers_ptr, offset, 0, n, WORLD, BLOCK)
    else:
        tl.store(failures_ptr + block, 1)
    tl.store(counters_ptr + block, count)


@triton.jit(do_not_specialize=["n", "shard", "rank", "header", "half", "polls"])
def two_shot_mean_kernel(
    values_ptr,
    buffers_ptr,
    counters_ptr,
    failures_ptr,
    n,
    shard,
    rank,
    header,
    half,
    polls,
    WORLD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every rank makes the mean of its own shard (in units of 16 elements), then reads those of the others.

    Two meetings, 2 (W - 1) / W times the bytes. Nobody else reads a rank's own shard of its own buffer before it holds
    the mean, so it is made in place.
    """
    block = tl.program_id(0)
    count = tl.load(counters_ptr + block) + 2
    offset = header + ((count >> 1) & 1) * half
    DTYPE: tl.constexpr = values_ptr.dtype.element_ty
    own = memory_of(buffers_ptr, rank, offset, DTYPE)
    for other in tl.static_range(WORLD):
        copy_part(own, values_ptr, tl.minimum(other * shard * 16, n), tl.minimum((other + 1) * shard * 16, n), BLOCK)
    met = meet(buffers_ptr, count - 1, rank, polls, WORLD, BLOCK_W)
    if met > 0:
        begin = tl.minimum(rank * shard * 16, n)
        mean_part(own, buffers_ptr, offset, begin, tl.minimum(begin + shard * 16, n), WORLD, BLOCK)
        met = meet(buffers_ptr, count, rank, polls, WORLD, BLOCK_W)
    if met > 0:
        for other in tl.static_range(WORLD):
            theirs = memory_of(buffers_ptr, other, offset, DTYPE)
            copy_part(
                values_ptr, theirs, tl.minimum(other * shard * 16, n), tl.minimum((other + 1) * shard * 16, n), BLOCK
            )
    else:
        tl.store(failures_ptr + block, 1)
    tl.store(counters_ptr + block, count)

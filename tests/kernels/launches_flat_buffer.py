"""Calls of the flat-buffer operators' Triton launchers for the compile tests; see launches.py and harness.py."""

from __future__ import annotations

import torch

from specfast.kernels import triton as kernels
from specfast.kernels.triton import symmetric_all_reduce

COUNTS = [(256 * 16, 256 * 3 + 7), (256 * 64, 5), (1 << 16, 256 * 8 + 1)]  # rows that are aligned, and others


def delta(dtype, size):
    """Numbers are always float32; what is sent is bfloat16 or float8."""
    for aligned, other in COUNTS:
        for count in (aligned, other):
            values = torch.zeros(count)
            for wire in (torch.bfloat16, torch.float8_e4m3fn):
                _, scales = kernels.delta_pack(values, values, values, wire)
                rows = torch.zeros(3, count, dtype=wire)
                kernels.delta_average_(values, values, rows, scales.repeat(3, 1))
        yield


def symmetric(dtype, size):
    for number, counts in enumerate(COUNTS):
        for count in counts:
            for world in (2, 8):
                half = symmetric_all_reduce.half_bytes(count * dtype.itemsize)
                state = torch.zeros(2, symmetric_all_reduce.BLOCKS, dtype=torch.int32)
                buffers = torch.zeros(world, dtype=torch.int64)
                peers = symmetric_all_reduce.Peers(buffers, state, number % world, half)
                for two_shot in (False, True):
                    symmetric_all_reduce.symmetric_mean_(torch.zeros(count, dtype=dtype), peers, two_shot, 1 << 30)
        yield


LAUNCHES = {"delta": delta, "symmetric": symmetric}
# Kernels that multiply no matrices.
WITHOUT_DOT = {"delta_average_kernel", "delta_pack_kernel", "one_shot_mean_kernel", "two_shot_mean_kernel"}

"""Launchers of the mean over the ranks of a node, through buffers that all of them can address."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.triton import launch
from specfast.kernels.triton.symmetric_all_reduce_kernels import one_shot_mean_kernel, two_shot_mean_kernel

BLOCKS = 32  # programs of every launch: the same number always, so that each meets its like on the other ranks
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PAGE = 1024  # bytes that flags and halves are multiples of


class Peers(NamedTuple):
    """What a rank knows of the buffers of all ranks; addresses as its own device sees them.

    Attributes:
        buffers: int64 [W] addresses.
        state: int32 [2, BLOCKS], zeros at first: flags raised by each block, and whether it ever waited in vain.
        rank: this rank.
        half: bytes that one call can take.
    """

    buffers: Tensor
    state: Tensor
    rank: int
    half: int


def header_bytes(world: int) -> int:
    return triton.cdiv(4 * BLOCKS * world, _PAGE) * _PAGE


def buffer_bytes(world: int, half: int) -> int:
    """Size of each rank's buffer, all zeros at first."""
    return header_bytes(world) + 2 * half


def half_bytes(capacity: int) -> int:
    """The least ``half`` for calls of so many bytes."""
    return triton.cdiv(capacity, _PAGE) * _PAGE


def symmetric_mean_(values: Tensor, peers: Peers, two_shot: bool, polls: int) -> None:
    """Replace values [n] by their mean over all ranks; every rank calls it with the same n, dtype and ``two_shot``."""
    count, world = values.numel(), peers.buffers.numel()
    if not count:
        return
    constants = configs.config("symmetric_mean", values.dtype, launch.architecture(values.device))
    constants |= {"WORLD": world, "BLOCK_W": configs.bucket(world)}
    common = (peers.rank, header_bytes(world), peers.half, polls)
    memory = (values, peers.buffers, peers.state[0], peers.state[1])
    if two_shot:
        two_shot_mean_kernel[(BLOCKS,)](*memory, count, triton.cdiv(count, 16 * world), *common, **constants)
    else:
        one_shot_mean_kernel[(BLOCKS,)](*memory, count, *common, **constants)

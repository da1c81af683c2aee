"""symmetric_mean_: the mean of a tensor over the ranks of a node, through memory that all of them can address.

The memory itself comes from ``torch.distributed._symmetric_memory``; :class:`specfast.dssync.symmetric.SymmetricMean`
makes it and chooses between the two kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_RANKS = 64


def symmetric_unsupported(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, or None."""
    try:
        from specfast.kernels.triton import launch
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return launch.unsupported(torch.empty(0, device=device))


def symmetric_layout(world: int, capacity: int) -> tuple[int, int, int]:
    """Return, for calls of up to ``capacity`` bytes, the bytes of a rank's buffer and of its half, and the programs."""
    from specfast.kernels.triton import symmetric_all_reduce as kernels

    half = kernels.half_bytes(capacity)
    return kernels.buffer_bytes(world, half), half, kernels.BLOCKS


def symmetric_mean_(
    values: Tensor, buffers: Tensor, state: Tensor, *, rank: int, half: int, two_shot: bool, polls: int
) -> None:
    """Replace ``values`` by their mean over all ranks, in one kernel on the current stream.

    Sums are in float32 and in the order of the ranks: all ranks get the same bits, with either kernel. All of them must
    call it with the same shape, dtype and ``two_shot``, and one call after the other. If a rank does not come,
    ``values`` stay as they are, in whole or in part, and ``state[1]`` is not zero; the memory is then of no more use.

    Args:
        values: [n] in float32, bfloat16 or float16, contiguous, of at most ``half`` bytes.
        buffers: int64 [W], the addresses of the ranks' buffers, laid out as :func:`symmetric_layout` says, zeros at
            first.
        state: int32 [2, programs], zeros at first.
        rank: this rank.
        half: bytes of half a buffer.
        two_shot: each rank makes the mean of its own share and reads the others' (2 (W - 1) / W times the bytes, two
            meetings) instead of reading everything of everybody (W - 1 times the bytes, one meeting).
        polls: how often to look for the others before giving up; about a microsecond each.

    Raises:
        ValueError: values that do not fit.
    """
    from specfast.kernels.triton import symmetric_all_reduce as kernels

    if values.dtype not in DTYPES:
        raise ValueError(f"symmetric_mean_: values must be one of {', '.join(map(str, DTYPES))}; got {values.dtype}")
    if values.ndim != 1 or not values.is_contiguous():
        raise ValueError(
            f"symmetric_mean_: values must be contiguous [n]; got {list(values.shape)}, strides {values.stride()}"
        )
    if values.nbytes > half:
        raise ValueError(f"symmetric_mean_: values must be of at most {half} bytes; got {values.nbytes}")
    if not 0 < buffers.numel() <= MOST_RANKS:
        raise ValueError(f"symmetric_mean_: buffers must be of 1 to {MOST_RANKS} ranks; got {buffers.numel()}")
    kernels.symmetric_mean_(values, kernels.Peers(buffers, state, rank, half), two_shot, polls)

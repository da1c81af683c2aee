"""Launchers of delta_pack and delta_average_, in the eager backend's signatures."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from specfast.kernels import configs
from specfast.kernels.triton import launch
from specfast.kernels.triton.flat_buffer_kernels import delta_average_kernel, delta_pack_kernel

BLOCK = 256  # elements of float8 that share a scale
_CODES = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}


def _grid(count: int, values: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(count, BLOCK * values["BLOCK_B"]),)


def delta_pack(values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return packed [n] and scales; residual becomes what rounding lost."""
    count, float8 = values.numel(), wire == torch.float8_e4m3fn
    packed = torch.empty_like(values, dtype=wire)
    scales = values.new_empty(triton.cdiv(count, BLOCK) if float8 else 0)
    if count:
        constants = configs.config("delta_pack", values.dtype, launch.architecture(values.device))
        delta_pack_kernel[_grid(count, constants)](
            values, reference, residual, packed.view(_CODES[wire]), scales, count, FLOAT8=float8, **constants
        )
    return packed, scales


def delta_average_(values: Tensor, reference: Tensor, packed: Tensor, scales: Tensor) -> None:
    """Write reference + the mean of the deltas packed [g, n] to values."""
    members, count = packed.shape
    if count:
        constants = configs.config("delta_average", values.dtype, launch.architecture(values.device))
        unit = 16 if count % 16 == 0 else 1
        delta_average_kernel[_grid(count, constants)](
            values,
            reference,
            packed.view(_CODES[packed.dtype]),
            scales,
            count,
            count // unit,
            members,
            FLOAT8=packed.dtype == torch.float8_e4m3fn,
            UNIT=unit,
            **constants,
        )

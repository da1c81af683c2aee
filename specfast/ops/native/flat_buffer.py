"""The calls of the extension's delta_pack and delta_average, which CPU and CUDA kernels take alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 256  # elements of float8 that share a scale
_WIRES = {torch.bfloat16: "bfloat16", torch.float8_e4m3fn: "float8_e4m3fn"}


def call_delta_pack(
    function: Callable, values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype, **where: int
) -> tuple[Tensor, Tensor]:
    """Return packed [n] and scales; ``where`` is the threads or the stream to run on."""
    count = values.numel()
    packed = torch.empty_like(values, dtype=wire)
    scales = values.new_empty(0 if wire == torch.bfloat16 else -(-count // BLOCK))
    function(
        values=values.data_ptr(),
        reference=reference.data_ptr(),
        residual=residual.data_ptr(),
        count=count,
        wire=_WIRES[wire],
        packed=packed.data_ptr(),
        scales=scales.data_ptr(),
        **where,
    )
    return packed, scales


def call_delta_average(
    function: Callable, values: Tensor, reference: Tensor, packed: Tensor, scales: Tensor, **where: int
) -> None:
    """Write reference + the mean of the deltas to values."""
    function(
        values=values.data_ptr(),
        reference=reference.data_ptr(),
        packed=packed.data_ptr(),
        scales=scales.data_ptr(),
        count=values.numel(),
        members=packed.shape[0],
        wire=_WIRES[packed.dtype],
        **where,
    )

"""delta_pack and delta_average_ by the C++ kernels: one pass over memory each."""

from __future__ import annotations

import torch
from torch import Tensor

from specfast import _native
from specfast.ops.native.flat_buffer import call_delta_average, call_delta_pack


def delta_pack(values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return packed [n] and scales; residual becomes what rounding lost."""
    function, threads = _native.extension().delta_pack, torch.get_num_threads()
    return call_delta_pack(function, values, reference, residual, wire, threads=threads)


def delta_average_(values: Tensor, reference: Tensor, packed: Tensor, scales: Tensor) -> None:
    """Write reference + the mean of the deltas packed [g, n] to values."""
    function, threads = _native.extension().delta_average, torch.get_num_threads()
    call_delta_average(function, values, reference, packed, scales, threads=threads)

"""delta_pack and delta_average_: workers' flat buffers compressed to what differs from a common reference.

Both are one pass over memory. All backends, on all devices, give the same bits: scales are powers of two, sums are in
the order of the rows, and nothing else is multiplied. So all receivers of the same bytes compute the same.

They are no part of a model and have no gradient: tensors that want one are refused while gradients are recorded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specfast.ops.checks import check_shapes

BLOCK = 256  # elements of float8 that share a scale
WIRES = (torch.bfloat16, torch.float8_e4m3fn)


def delta_pack(values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round values - reference + residual to a narrow type, and keep in ``residual`` what rounding lost.

    Sent and residual add up to the sum exactly, so what one round loses, a later one sends.

    Args:
        values: float32 [n], this worker's numbers; contiguous, as all arguments.
        reference: float32 [n], the same bits on all workers.
        residual: float32 [n], updated in place: zeros at first.
        wire: ``torch.bfloat16`` or ``torch.float8_e4m3fn``.

    Returns:
        packed [n] in ``wire``, and scales: float32 [ceil(n / 256)], for each block of 256 elements the least power of
        two (and at least 2^-126) that brings its values within float8's 448; empty for bfloat16.

    A NaN stays one. An infinity stays one in bfloat16, and so does what rounds to it; in float8, which has none, it
    becomes NaN, and so does what would round to more than float32 holds (from 1.9375 * 2^127). None of these touches
    its neighbors, and its residual becomes 0, so that the element is right again once its value is. Source: error
    feedback as in Seide et al. 2014.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a gradient is wanted.
    """
    _check("delta_pack", {"values": values, "reference": reference, "residual": residual})
    if wire not in WIRES:
        raise ValueError(f"delta_pack: wire must be one of {', '.join(map(str, WIRES))}; got {wire}")
    return torch.ops.specfast.delta_pack(values, reference, residual, wire)


def delta_average_(values: Tensor, reference: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """Overwrite ``values`` with reference + the mean of the deltas that g workers packed, and return it.

    Args:
        values: float32 [n], overwritten; contiguous, as all arguments.
        reference: float32 [n], the one that the deltas were taken from; it may be ``values`` itself.
        packed: [g, n] in bfloat16 or float8_e4m3fn, added in the order of the rows with float32 accumulation.
        scales: float32 [g, ceil(n / 256)] as :func:`delta_pack` made them; without elements for bfloat16.

    What is not finite in a row is not finite in the result, in that element alone.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a gradient is wanted.
    """
    op = "delta_average_"
    _check(op, {"values": values, "reference": reference})
    count = values.numel()
    if packed.dtype not in WIRES:
        raise ValueError(f"{op}: packed must be one of {', '.join(map(str, WIRES))}; got {packed.dtype}")
    if packed.ndim != 2 or packed.shape[1] != count or not packed.shape[0]:
        raise ValueError(f"{op}: packed must be [g, {count}] with g of at least 1; got {list(packed.shape)}")
    blocks = -(-count // BLOCK)
    if packed.dtype == torch.bfloat16:
        if scales.numel():
            raise ValueError(f"{op}: scales must be empty for bfloat16; got {list(scales.shape)}")
    elif scales.dtype != torch.float32 or tuple(scales.shape) != (packed.shape[0], blocks):
        expected = f"float32 [{packed.shape[0]}, {blocks}]"
        raise ValueError(f"{op}: scales must be {expected}; got {scales.dtype} {list(scales.shape)}")
    for name, tensor in (("packed", packed), ("scales", scales)):
        _check_memory(op, name, tensor, values)
    torch.ops.specfast.delta_average_(values, reference, packed, scales)
    return values


def _check(op: str, tensors: dict[str, Tensor]) -> None:
    check_shapes(op, {name: (tensor, "n") for name, tensor in tensors.items()})
    values = tensors["values"]
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{op}: {name} must be torch.float32; got {tensor.dtype}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {name} gets no gradient; pass {name}.detach(), or call it under torch.no_grad()")
        _check_memory(op, name, tensor, values)


def _check_memory(op: str, name: str, tensor: Tensor, values: Tensor) -> None:
    if tensor.device != values.device:
        raise ValueError(f"{op}: {name} must be on {values.device} to match values; got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous; got strides {tensor.stride()}")

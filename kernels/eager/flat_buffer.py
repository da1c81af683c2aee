"""Compressed deltas in PyTorch, a slice of the buffer at a time: no temporary grows with it.

Multiplying by a power of two is exact, and no other product occurs: every backend gives the bits of the reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.kernels.reference.flat_buffer import BLOCK, TOO_LARGE

SLICE = BLOCK << 10  # elements: temporaries of 1 MiB


def _slices(count: int):
    return (slice(start, start + SLICE) for start in range(0, count, SLICE))


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, part.stop // BLOCK)


def _in_blocks(numbers: Tensor) -> Tensor:
    """[n] -> [ceil(n / BLOCK), BLOCK], zeros behind the last."""
    return F.pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)


def _scales(blocks: Tensor) -> Tensor:
    """The least power of two that brings every block within 448 = 1.75 * 2^8, and at least 2^-126."""
    largest = blocks.abs().amax(dim=1).view(torch.int32)
    exponent = (((largest + 0x1FFFFF) >> 23) - 8).clamp_(min=1)  # a mantissa above 1.75 carries into the exponent
    return (exponent << 23).view(torch.float32)


def delta_pack(values: Tensor, reference: Tensor, residual: Tensor, wire: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return packed [n] and scales; residual becomes what rounding lost."""
    count = values.numel()
    scaled = wire != torch.bfloat16
    packed = torch.empty_like(values, dtype=wire)
    scales = values.new_empty(-(-count // BLOCK) if scaled else 0)
    for part in _slices(count):
        total = torch.sub(values[part], reference[part]).add_(residual[part])
        sent = packed[part]
        if scaled:
            blocks = _in_blocks(total)
            absent = ~(blocks.abs() < TOO_LARGE)
            scale = _scales(blocks.masked_fill(absent, 0.0))
            scales[_blocks(part)] = scale
            # torch's own cast makes infinity NaN or 448, by version
            rounded = (blocks * scale.reciprocal()[:, None]).masked_fill_(absent, torch.nan).to(wire)
            sent.copy_(rounded.view(-1)[: len(total)])
            arrives = rounded.float().mul_(scale[:, None]).view(-1)[: len(total)]
        else:
            arrives = sent.copy_(total).float()
        residual[part] = total.sub_(arrives).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return packed, scales


def delta_average_(values: Tensor, reference: Tensor, packed: Tensor, scales: Tensor) -> None:
    """Write reference + the mean of the deltas packed [g, n] to values."""
    for part in _slices(values.numel()):
        mean = None
        for row, delta in enumerate(packed[:, part]):
            if scales.numel():
                delta = _in_blocks(delta.float()).mul_(scales[row, _blocks(part), None]).view(-1)[: len(delta)]
            mean = delta.float() if mean is None else mean.add_(delta)
        torch.add(reference[part], mean.div_(len(packed)), out=values[part])

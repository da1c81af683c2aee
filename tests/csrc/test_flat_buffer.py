"""The C++ passes over flat buffers against the reference, bit by bit: every instruction set, any number of threads."""

from __future__ import annotations

import pytest
import torch

from specfast import _native
from specfast.kernels import reference
from tests.ops.test_flat_buffer import WIRES, assert_same, numbers, packed_by, special

_C, _reason = _native.load()
pytestmark = pytest.mark.skipif(_C is None, reason=f"specfast._C is {_reason}")

ORDER = ("baseline", "avx2", "avx512")
CAPABILITIES = ORDER[: ORDER.index(_C.cpu_capability()) + 1] if _C else ()
COUNTS = [0, 1, 7, 255, 256, 300, 256 * 200 + 13]
GUARD = 32  # elements before and behind each output that must stay as they are


def name(dtype):
    return str(dtype).removeprefix("torch.")


class Guarded:
    """Memory for an output between poisoned elements."""

    def __init__(self, shape, dtype):
        count = torch.Size(shape).numel()
        self.memory = torch.full(((count + 2 * GUARD) * dtype.itemsize,), 0xA5, dtype=torch.uint8)
        inside = self.memory[GUARD * dtype.itemsize : (GUARD + count) * dtype.itemsize]
        self.tensor = inside.view(dtype).view(shape)

    def intact(self) -> bool:
        edge = GUARD * self.tensor.dtype.itemsize
        return bool((self.memory[:edge] == 0xA5).all() and (self.memory[len(self.memory) - edge :] == 0xA5).all())


def pack(values, base, residual, wire, **options):
    count = values.numel()
    blocks = -(-count // 256) if wire == torch.float8_e4m3fn else 0
    packed, scales, left = Guarded((count,), wire), Guarded((blocks,), torch.float32), Guarded((count,), torch.float32)
    left.tensor.copy_(residual)
    _C.delta_pack(
        values=values.data_ptr(),
        reference=base.data_ptr(),
        residual=left.tensor.data_ptr(),
        count=count,
        wire=name(wire),
        packed=packed.tensor.data_ptr(),
        scales=scales.tensor.data_ptr() if blocks else 0,
        **options,
    )
    assert packed.intact()
    assert scales.intact()
    assert left.intact()
    return packed.tensor, scales.tensor, left.tensor


def average(base, packed, scales, **options):
    values = Guarded(base.shape, torch.float32)
    arguments = {
        "values": values.tensor.data_ptr(),
        "reference": base.data_ptr(),
        "packed": packed.data_ptr(),
        "scales": scales.data_ptr() if scales.numel() else 0,
        "count": base.numel(),
        "members": packed.shape[0],
        "wire": name(packed.dtype),
    }
    _C.delta_average(**arguments | options)
    assert values.intact()
    return values.tensor


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("wire", WIRES, ids=name)
@pytest.mark.parametrize("count", COUNTS)
def test_equals_reference(count, wire, capability):
    given = numbers(count)
    for one, other in zip(pack(*given, wire, capability=capability), reference.delta_pack(*given, wire), strict=True):
        assert_same(one, other)
    for workers in (1, 3):
        base, packed, scales = packed_by(workers, count, wire)
        expected = reference.delta_average(base, packed, scales)
        assert_same(average(base, packed, scales, capability=capability), expected)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("wire", WIRES, ids=name)
def test_special_numbers_equal_reference(wire, capability):
    for one, other in zip(
        pack(*special(), wire, capability=capability), reference.delta_pack(*special(), wire), strict=True
    ):
        assert_same(one, other)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_float8_rounds_every_number_to_the_nearest_even(capability):
    """All 2^16 upper halves of float32 within a scale of 1, and what lies on, just over and just under them."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    values = torch.cat([upper, upper + 1, upper - 1]).to(torch.int32).view(torch.float32)
    values = values[values.abs() <= 448]
    values = values[: len(values) // 255 * 255].view(-1, 255)
    values = torch.cat([torch.full((len(values), 1), 448.0), values], dim=1).flatten()  # every block's scale is 1
    zero = torch.zeros_like(values)
    packed, scales, _ = pack(values, zero, -zero, torch.float8_e4m3fn, capability=capability)  # -0 - 0 + -0 is -0
    assert (scales == 1).all()
    assert_same(packed, values.to(torch.float8_e4m3fn))


@pytest.mark.parametrize("wire", WIRES, ids=name)
def test_threads_change_no_bit(wire):
    given = numbers(256 * 300 + 5)
    base, packed, scales = packed_by(2, 256 * 300 + 5, wire)
    expected = *pack(*given, wire, threads=1), average(base, packed, scales, threads=1)
    for threads in (2, 3, 64):
        actual = *pack(*given, wire, threads=threads), average(base, packed, scales, threads=threads)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wire": "float16"}, "delta_average: wire must be bfloat16 or float8_e4m3fn; got float16"),
        ({"count": -1}, "delta_average: count must not be negative; got -1"),
        ({"members": 0}, "delta_average: members must be positive; got 0"),
        ({"threads": -2}, "delta_average: threads must be positive; got -2"),
        ({"capability": "sse9"}, "capability: expected baseline, avx2 or avx512; got sse9"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        average(*packed_by(2, 10, torch.bfloat16), **changes)

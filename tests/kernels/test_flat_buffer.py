"""The Triton launchers of delta_pack and delta_average_ against the reference, bit by bit."""

from __future__ import annotations

import pytest
import torch

from specfast.kernels import configs, reference
from specfast.kernels import triton as kernels
from tests.kernels.conftest import DEVICE
from tests.ops.test_flat_buffer import WIRES, assert_same, numbers, packed_by, special

COUNTS = [0, 1, 255, 256, 300, 256 * 8, 256 * 8 + 1, 256 * 27 + 48]


@pytest.fixture(params=WIRES, ids=lambda wire: str(wire).removeprefix("torch."))
def wire(request) -> torch.dtype:
    return request.param


def pack(values, base, residual, wire):
    values, base, residual = (tensor.clone().to(DEVICE) for tensor in (values, base, residual))
    packed, scales = kernels.delta_pack(values, base, residual, wire)
    return packed.cpu(), scales.cpu(), residual.cpu()


def average(base, packed, scales):
    values = torch.full_like(base, torch.nan, device=DEVICE)
    kernels.delta_average_(values, base.to(DEVICE), packed.to(DEVICE), scales.to(DEVICE))
    return values.cpu()


@pytest.mark.parametrize("count", COUNTS)
def test_pack_equals_reference(count, wire):
    given = numbers(count)
    for one, other in zip(pack(*given, wire), reference.delta_pack(*given, wire), strict=True):
        assert_same(one, other)


def test_pack_of_special_numbers_equals_reference(wire):
    for one, other in zip(pack(*special(), wire), reference.delta_pack(*special(), wire), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", COUNTS)
def test_average_equals_reference(count, workers, wire):
    given = packed_by(workers, count, wire)
    assert_same(average(*given), reference.delta_average(*given))


def test_every_code_is_read_as_torch_reads_it(wire):
    codes = torch.arange(1 << (8 * wire.itemsize)).to(torch.uint8 if wire.itemsize == 1 else torch.int16)
    packed = torch.stack([codes, codes.flip(0)]).view(wire)
    scales = torch.full((2, len(codes) // 256 if wire.itemsize == 1 else 0), 2.0**-126)
    given = torch.zeros(len(codes)), packed, scales
    assert_same(average(*given), reference.delta_average(*given))


def test_every_number_is_rounded_as_torch_rounds_it(wire):
    """All upper halves of float32's bits, and what lies on, just over and just under them, at a scale of 1."""
    upper = torch.arange(1 << 16, dtype=torch.int64)[::5] << 16
    values = torch.cat([upper, upper + 1, upper - 1, upper + (1 << 15)]).to(torch.int32).view(torch.float32)
    values = values[(values.abs() <= 448) & (values != 0)]
    values = values[: len(values) // 255 * 255].view(-1, 255)
    values = torch.cat([torch.full((len(values), 1), 448.0), values], dim=1).flatten()
    packed, scales, _ = pack(values, torch.zeros_like(values), torch.zeros_like(values), wire)
    assert (scales == 1).all()
    assert_same(packed, values.to(wire))


def test_other_tiles_compute_the_same(wire):
    given, packed = numbers(2000), packed_by(3, 2000, wire)
    expected = *pack(*given, wire), average(*packed)
    with configs.override("delta_pack", BLOCK_B=2), configs.override("delta_average", BLOCK_B=4):
        for one, other in zip((*pack(*given, wire), average(*packed)), expected, strict=True):
            assert_same(one, other)


def test_nothing_is_read_back_to_the_host(wire, nothing_is_read_back):
    given = [torch.zeros(700, device=DEVICE) for _ in range(3)]
    packed, scales = kernels.delta_pack(*given, wire)
    kernels.delta_average_(given[0], given[1], packed[None], scales[None])


def test_unsupported_says_why():
    values, wide = torch.zeros(8), torch.zeros(8, dtype=torch.float64)
    for wire in WIRES:
        assert kernels.unsupported("delta_pack", values.to(DEVICE), values, values, wire) is None
        packed = torch.zeros(2, 8, dtype=wire)
        assert kernels.unsupported("delta_average_", values.to(DEVICE), values, packed, values) is None
    assert kernels.unsupported("delta_pack", wide.to(DEVICE), wide, wide, wire) == "float64 inputs"


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """More than 2^31 elements in all rows; the last ones are looked at."""
    count = 1 << 29
    packed = torch.zeros(5, count, dtype=torch.float8_e4m3fn, device=DEVICE)
    packed[-1, -1] = 3.0
    scales, base = torch.ones(5, count // 256, device=DEVICE), torch.zeros(count, device=DEVICE)
    kernels.delta_average_(base, base, packed, scales)
    assert float(base[-1]) == float(torch.tensor(3.0) / 5)

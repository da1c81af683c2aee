"""The CUDA kernels of flat buffers on the emulator, bit by bit against the reference; on a GPU where there is one."""

from __future__ import annotations

import ctypes

import pytest
import torch

from specfast import _native, ops
from specfast.kernels import reference
from tests.csrc.cuda.conftest import Refused
from tests.ops.test_flat_buffer import WIRES, assert_same, numbers, packed_by, special

COUNTS = [1, 7, 255, 256, 300, 256 * 8, 256 * 9 + 5, 256 * 17]
emulated = pytest.mark.xdist_group("cuda_emulator")  # one process builds it


@pytest.fixture(params=WIRES, ids=lambda wire: str(wire).removeprefix("torch."))
def wire(request) -> torch.dtype:
    return request.param


def name(dtype):
    return str(dtype).removeprefix("torch.")


def pack(emulator, values, base, residual, wire, **options):
    count = values.numel()
    outputs = {"packed": ((count,), wire), "residual": ((count,), torch.float32)}
    if wire == torch.float8_e4m3fn:
        outputs["scales"] = ((-(-count // 256),), torch.float32)
    tensors = {"values": values, "reference": base, "residual": residual}
    packed, left, *scales = emulator.run(
        "delta_pack", tensors, outputs, torch.float32, count=count, wire=name(wire), **options
    )
    return packed, *(scales or [torch.empty(0)]), left


def average(emulator, base, packed, scales, **options):
    tensors = {"reference": base, "packed": packed, "scales": scales if scales.numel() else None}
    given = {"count": base.numel(), "members": packed.shape[0], "wire": name(packed.dtype)} | options
    return emulator.run("delta_average", tensors, {"values": base.shape}, torch.float32, **given)[0]


@emulated
@pytest.mark.parametrize("count", COUNTS)
def test_equals_reference(emulator, count, wire):
    given = numbers(count)
    for one, other in zip(pack(emulator, *given, wire), reference.delta_pack(*given, wire), strict=True):
        assert_same(one, other)
    for workers in (1, 3, 6):
        sent = packed_by(workers, count, wire)
        assert_same(average(emulator, *sent), reference.delta_average(*sent))


@emulated
def test_special_numbers_equal_reference(emulator, wire):
    for one, other in zip(pack(emulator, *special(), wire), reference.delta_pack(*special(), wire), strict=True):
        assert_same(one, other)
    codes = torch.arange(1 << (8 * wire.itemsize)).to(torch.uint8 if wire.itemsize == 1 else torch.int16)
    packed = torch.stack([codes, codes.flip(0)]).view(wire)
    scales = torch.full((2, len(codes) // 256 if wire.itemsize == 1 else 0), 2.0**-126)
    given = torch.zeros(len(codes)), packed, scales
    assert_same(average(emulator, *given), reference.delta_average(*given))


@emulated
@pytest.mark.parametrize("shift", [1, 2, 4])
@pytest.mark.parametrize("shifted", ["values", "reference", "residual", "packed"])
def test_any_alignment(emulator, shifted, shift, wire):
    """The sanitizer stops a wide access at an address that does not allow it."""
    given = numbers(256 * 3)
    actual = pack(emulator, *given, wire, **{f"{shifted}_shift": shift})
    for one, other in zip(actual, reference.delta_pack(*given, wire), strict=True):
        assert_same(one, other)
    if shifted != "residual":
        sent = packed_by(2, 256 * 3, wire)
        actual = average(emulator, *sent, **{f"{shifted}_shift": shift})
        assert_same(actual, reference.delta_average(*sent))


@emulated
def test_order_of_threads_changes_no_bit(emulator, wire):
    given, sent = numbers(256 * 3 + 9), packed_by(3, 256 * 3 + 9, wire)
    first, *others = ((*pack(emulator, *given, wire, order=n), average(emulator, *sent, order=n)) for n in (0, 1, 7))
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert_same(one, two)


@emulated
def test_refuses(emulator):
    sent = packed_by(1, 4, torch.bfloat16)
    with pytest.raises(Refused, match="delta_average: members must be positive; got 0"):
        average(emulator, *sent, members=0)
    with pytest.raises(Refused, match="delta_average: count must not be negative; got -1"):
        average(emulator, *sent, count=-1)


class EmulatedExtension:
    """The CUDA functions of specfast._C on the emulator: addresses in, addresses out."""

    def __init__(self, emulator):
        self.emulator = emulator

    @staticmethod
    def _read(address, shape, dtype):
        size = torch.Size(shape).numel()
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(ctypes.string_at(address, size * dtype.itemsize)), dtype=dtype).view(shape)

    @staticmethod
    def _write(address, tensor):
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        ctypes.memmove(address, data, len(data))

    def cuda_delta_pack(self, *, values, reference, residual, count, wire, packed, scales, stream):
        given = [self._read(address, (count,), torch.float32) for address in (values, reference, residual)]
        results = pack(self.emulator, *given, getattr(torch, wire))
        for address, result in zip((packed, scales, residual), results, strict=True):
            self._write(address, result)

    def cuda_delta_average(self, *, values, reference, packed, scales, count, members, wire, stream):
        blocks = -(-count // 256) if wire == "float8_e4m3fn" else 0
        result = average(
            self.emulator,
            self._read(reference, (count,), torch.float32),
            self._read(packed, (members, count), getattr(torch, wire)),
            self._read(scales, (members, blocks), torch.float32),
        )
        self._write(values, result)


@emulated
def test_the_backend_module_passes_what_it_is_given(emulator, wire, monkeypatch):
    from specfast.ops.native import cuda

    monkeypatch.setattr(_native, "extension", lambda: EmulatedExtension(emulator))
    monkeypatch.setattr(cuda, "_stream", lambda _: 0)
    values, base, residual = numbers(700)
    expected = reference.delta_pack(values, base, residual, wire)
    packed, scales = cuda.delta_pack(values, base, residual, wire)
    for one, other in zip((packed, scales, residual), expected, strict=True):
        assert_same(one, other)
    base, packed, scales = packed_by(3, 700, wire)
    values = torch.empty(700)
    cuda.delta_average_(values, base, packed, scales)
    assert_same(values, reference.delta_average(base, packed, scales))
    assert cuda._unsupported_inputs("delta_pack", values, values, values, wire) is None
    assert cuda._unsupported_inputs("delta_average_", values, values, packed, scales) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "triton", "eager"])
@pytest.mark.parametrize("count", [300, 256 * 17, 10_000_007, 16_000_000])
def test_every_backend_on_the_device_equals_the_reference(count, backend, wire):
    given = numbers(count)
    sent = packed_by(4, count, wire)
    expected = *reference.delta_pack(*given, wire), reference.delta_average(*sent)
    on_device = [tensor.cuda() for tensor in given]
    with ops.use_backend(backend, strict=True):
        packed, scales = ops.delta_pack(*on_device, wire)
        values = ops.delta_average_(on_device[0], *(tensor.cuda() for tensor in sent))
    for one, other in zip((packed, scales, on_device[2], values), expected, strict=True):
        assert_same(one.cpu(), other)

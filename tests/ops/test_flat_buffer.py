"""delta_pack and delta_average_: bit by bit against the reference, and the reference against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from specfast import _native, ops
from specfast.kernels import reference

WIRES = [torch.bfloat16, torch.float8_e4m3fn]
COUNTS = [0, 1, 3, 255, 256, 257, 1000, 4096, 70001, 600_003]
BACKENDS = ["eager", "cpu"]


@pytest.fixture(params=WIRES, ids=lambda wire: str(wire).removeprefix("torch."))
def wire(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    if request.param == "cpu" and _native.load()[0] is None:
        pytest.skip(f"specfast._C is {_native.load()[1]}")
    with ops.use_backend(request.param, strict=True):
        yield request.param


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits, all NaN alike."""
    if tensor.numel() == 0:
        return tensor.float()
    as_integers = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]).int()
    return as_integers.masked_fill(tensor.float().isnan(), -1 << 31)


def assert_same(actual, expected, name="tensor"):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
    assert torch.equal(bits(actual), bits(expected)), name


def numbers(count: int, seed: int = 0, spread: float = 4.0) -> list[torch.Tensor]:
    """values, reference and residual; blocks of very different sizes, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(count // 256 + 1, generator=generator).mul(spread).exp().repeat_interleave(256)[:count]
    base = torch.randn(count, generator=generator)
    delta = torch.randn(count, generator=generator) * sizes * 1e-2
    delta[7::29] = 0.0
    delta[512:768] = 0.0  # a block without any
    residual = torch.randn(count, generator=generator) * sizes * 1e-4
    residual[512:768] = 0.0
    return [base + delta, base, residual]


def special(count: int = 700) -> list[torch.Tensor]:
    """Zeros of both signs, NaN, infinities and float32's limits among ordinary numbers; reference 0."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(1))
    for place, value in {
        3: torch.nan,
        5: torch.inf,
        6: -torch.inf,
        8: 0.0,
        9: -0.0,
        300: 3.3e38,  # about the largest that float8 carries; the next two round to more than float32 has
        301: 1.9375 * 2.0**127,
        302: -3.4028234e38,
        520: torch.nan,
    }.items():
        values[place] = value
    values[512:520] = torch.tensor([1e-45, -1e-45, 1e-40, 2.0**-126, 2.0**-133, 0.0, -0.0, 3e-41])
    values[521:] *= 1e-39  # a block of subnormal numbers
    return [values, torch.zeros(count), torch.zeros(count)]


def pack(values, base, residual, wire):
    """(packed, scales, new residual) of the operator."""
    residual = residual.clone()
    return *ops.delta_pack(values, base, residual, wire), residual


def stack(rows: list[torch.Tensor]) -> torch.Tensor:
    if rows[0].dtype != torch.float8_e4m3fn:
        return torch.stack(rows)
    return torch.stack([row.view(torch.uint8) for row in rows]).view(torch.float8_e4m3fn)


def packed_by(workers: int, count: int, wire) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A reference, and packed [g, n] and scales of so many workers."""
    base = numbers(count)[1]
    sent = [reference.delta_pack(base + numbers(count, seed)[0], base, base * 0, wire) for seed in range(workers)]
    return base, stack([packed for packed, *_ in sent]), torch.stack([scales for _, scales, _ in sent])


@pytest.mark.parametrize("count", COUNTS)
def test_pack_equals_reference(count, wire, backend):
    given = numbers(count)
    names = ("packed", "scales", "residual")
    for name, one, other in zip(names, pack(*given, wire), reference.delta_pack(*given, wire), strict=True):
        assert_same(one, other, name)


def test_pack_of_special_numbers_equals_reference(wire, backend):
    for one, other in zip(pack(*special(), wire), reference.delta_pack(*special(), wire), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("count", COUNTS)
def test_average_equals_reference(count, workers, wire, backend):
    base, packed, scales = packed_by(workers, count, wire)
    values = torch.full((count,), torch.nan)
    assert ops.delta_average_(values, base, packed, scales) is values
    assert_same(values, reference.delta_average(base, packed, scales))


def test_average_of_every_code_equals_reference(wire, backend):
    """All bit patterns of the wire type, every NaN and infinity too."""
    codes = torch.arange(1 << (8 * wire.itemsize), dtype=torch.int32)
    codes = codes.to(torch.uint8 if wire.itemsize == 1 else torch.int16)
    packed = torch.stack([codes, codes.flip(0)]).view(wire)
    blocks = -(-codes.numel() // 256)
    scales = (
        torch.tensor([[0.25], [2.0**-126]]).expand(2, blocks).contiguous() if wire.itemsize == 1 else torch.empty(0)
    )
    base = torch.zeros(codes.numel())
    for rows, row_scales in ((packed, scales), (packed[:1], scales[:1])):
        values = torch.empty_like(base)
        ops.delta_average_(values, base, rows, row_scales)
        assert_same(values, reference.delta_average(base, rows, row_scales))


@pytest.mark.parametrize("offset", [1, 3, 16])
def test_any_alignment(offset, wire, backend):
    given = numbers(3000)
    expected = reference.delta_pack(*given, wire)
    shifted = [torch.cat([torch.zeros(offset), tensor])[offset:] for tensor in given]
    packed, scales = ops.delta_pack(*shifted, wire)
    for one, other in zip((packed, scales, shifted[2]), expected, strict=True):
        assert_same(one, other)
    base, rows, row_scales = packed_by(2, 3000, wire)
    memory = torch.zeros(rows.numel() + offset, dtype=wire)
    memory[offset:] = rows.view(-1)
    values = torch.empty(3000 + offset)[offset:]
    ops.delta_average_(values, shifted[1], memory[offset:].view(2, -1), row_scales)
    assert_same(values, reference.delta_average(base, rows, row_scales))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads, wire, backend):
    given, before = numbers(600_003), torch.get_num_threads()
    base, packed, scales = packed_by(2, 600_003, wire)
    expected = pack(*given, wire), ops.delta_average_(torch.empty_like(base), base, packed, scales)
    try:
        torch.set_num_threads(threads)
        actual = pack(*given, wire), ops.delta_average_(torch.empty_like(base), base, packed, scales)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(actual[0], expected[0], strict=True):
        assert_same(one, other)
    assert_same(actual[1], expected[1])


def test_reference_is_the_definition(wire):
    """Element by element, with Python's own numbers."""
    values, base, residual = numbers(600)
    packed, scales, left = reference.delta_pack(values, base, residual, wire)
    total = (values - base) + residual
    for block in range(0, 600, 256) if scales.numel() else ():
        largest, scale = float(total[block : block + 256].abs().max()), float(scales[block // 256])
        assert math.frexp(scale)[0] == 0.5  # a power of two
        assert largest <= 448 * scale
        assert largest > 224 * scale or scale == 2.0**-126
    scale = scales.repeat_interleave(256)[:600] if scales.numel() else torch.ones(600)
    every = torch.arange(1 << 8 * wire.itemsize).to(torch.uint8 if wire.itemsize == 1 else torch.int16)
    grid = every.view(wire).double()
    grid = grid[grid.isfinite()].unique()
    for i in range(0, 600, 7):
        exact = float(total[i]) / float(scale[i])
        nearest = float((grid - exact).abs().min())
        assert abs(float(packed[i].double()) - exact) == nearest
        assert float(left[i]) == float(total[i]) - float(packed[i].double()) * float(scale[i])
    average = reference.delta_average(base, stack([packed, packed]), torch.stack([scales, scales]))
    assert torch.equal(average, base + packed.float() * scale)


def test_nothing_is_lost_over_many_rounds(wire, backend):
    """Without feedback small steps would vanish beside a large element; with it what arrives is what was made."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(512, generator=generator)
    truth, residual, arrived = base.double(), torch.zeros(512), base.clone()
    for _ in range(300):
        step = torch.randn(512, generator=generator) * 1e-4 + 2e-5
        step[0] = 3.0  # its block's scale is 1e5 times a step
        truth += step.double()
        # this worker's values are what arrived before, and its step
        values = arrived + step
        packed, scales = ops.delta_pack(values, arrived, residual, wire)
        arrived = ops.delta_average_(torch.empty(512), arrived, packed[None], scales[None])
    error = ((arrived.double() + residual.double()) - truth)[1:]
    assert float(error.abs().max()) < 300 * 2.0**-24 * 4  # a rounding of float32 a round
    dropped = (arrived.double() - truth)[256:]
    assert float(dropped.abs().max()) < 1e-4


def test_sent_and_residual_add_up_exactly(wire, backend):
    values, base, residual = numbers(70_001)
    packed, scales, left = pack(values, base, residual, wire)
    total = (values - base) + residual
    scale = scales.repeat_interleave(256)[: len(values)].double() if scales.numel() else 1.0
    assert torch.equal(packed.double() * scale + left.double(), total.double())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_alone_and_is_mended(value, wire, backend):
    values, base, residual = numbers(1000)
    clean, _, clean_left = pack(values, base, residual, wire)
    spoiled = values.clone()
    spoiled[[10, 999]] = value
    packed, scales, left = pack(spoiled, base, residual, wire)
    others = torch.ones(1000, dtype=torch.bool).index_fill_(0, torch.tensor([10, 999]), False)
    assert_same(packed[others], clean[others])
    assert_same(left[others], clean_left[others])
    assert not left[~others].any()
    arrives = packed[~others].float()
    assert arrives.isnan().all() if wire.itemsize == 1 or value != value else (arrives == value).all()
    result = ops.delta_average_(torch.empty(1000), base, stack([packed, clean]), torch.stack([scales, scales]))
    assert not result[~others].isfinite().any()
    assert result[others].isfinite().all()
    mended, *_ = pack(values, base, left, wire)
    assert mended.float().isfinite().all()


def test_all_receivers_compute_the_same(wire, backend):
    """What replicas hold afterwards does not depend on what they held before."""
    base, packed, scales = packed_by(4, 5000, wire)
    results = [ops.delta_average_(torch.randn(5000), base, packed, scales) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    own = base.clone()
    assert torch.equal(ops.delta_average_(own, own, packed, scales), results[0])  # in the reference's own memory


@pytest.mark.parametrize("count", [0, 1, 700])
def test_opcheck(count, wire, backend):
    given = numbers(count)
    torch.library.opcheck(torch.ops.specfast.delta_pack.default, (*given, wire))
    base, packed, scales = packed_by(2, count, wire)
    checks = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if wire == torch.bfloat16:
        checks.append("test_schema")  # which multiplies its inputs, and torch multiplies no float8
    given = (torch.zeros(count), base, packed, scales)
    torch.library.opcheck(torch.ops.specfast.delta_average_.default, given, test_utils=checks)


def test_compiles_as_one_graph(wire, backend):
    def round_trip(values, base, residual):
        packed, scales = ops.delta_pack(values, base, residual, wire)
        return ops.delta_average_(torch.empty_like(values), base, packed[None], scales[None])

    torch._dynamo.reset()
    compiled = torch.compile(round_trip, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (300, 1001):
        given = numbers(count)
        expected_residual = given[2].clone()
        expected = round_trip(given[0], given[1], expected_residual)
        assert torch.equal(compiled(*given), expected)
        assert torch.equal(given[2], expected_residual)


def test_the_native_kernel_is_what_runs_on_cpus():
    if _native.load()[0] is None:
        pytest.skip(f"specfast._C is {_native.load()[1]}")
    given = numbers(10)
    for wire in WIRES:
        assert ops.choose_backend("delta_pack", *given, wire)[0] == "cpu"
        base, packed, scales = packed_by(2, 10, wire)
        assert ops.choose_backend("delta_average_", base, base, packed, scales)[0] == "cpu"


def test_bytes_are_those_of_the_arguments_and_results(wire):
    given = numbers(1000)
    base, packed, scales = packed_by(3, 1000, wire)
    one, bits_of_scales = packed[0].nbytes, scales[0].nbytes
    moved = ops.flat_buffer_cost("delta_pack", wire=wire, elements=1000)
    assert moved.bytes == sum(tensor.nbytes for tensor in given) + given[2].nbytes + one + bits_of_scales
    moved = ops.flat_buffer_cost("delta_average_", wire=wire, elements=1000, members=3)
    assert moved.bytes == packed.nbytes + scales.nbytes + 2 * base.nbytes
    with pytest.raises(ValueError, match=r"op must be one of delta_pack, delta_average_; got 'delta'"):
        ops.flat_buffer_cost("delta", wire=wire, elements=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(4, 2)}, r"delta_pack: values must be \[n\]; got \[4, 2\]"),
        (
            {"reference": torch.zeros(9)},
            r"delta_pack: reference must be \[n\] with n=8 to match values \[8\]; got \[9\]",
        ),
        ({"residual": torch.zeros(8).double()}, "delta_pack: residual must be torch.float32; got torch.float64"),
        ({"values": torch.zeros(16)[::2]}, r"delta_pack: values must be contiguous; got strides \(2,\)"),
        (
            {"reference": torch.zeros(8, device="meta")},
            "delta_pack: reference must be on cpu to match values; got meta",
        ),
        ({"wire": torch.float16}, r"wire must be one of torch.bfloat16, torch.float8_e4m3fn; got torch.float16"),
        ({"values": torch.zeros(8, requires_grad=True)}, r"values gets no gradient; pass values.detach\(\)"),
    ],
)
def test_errors_of_pack_name_the_argument(change, message):
    given = dict(zip(("values", "reference", "residual"), torch.zeros(3, 8), strict=True)) | {"wire": torch.bfloat16}
    with pytest.raises(ValueError, match=message):
        ops.delta_pack(**given | change)


FLOAT8 = torch.zeros(2, 8, dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed": torch.zeros(2, 8)}, "packed must be one of .*; got torch.float32"),
        ({"packed": FLOAT8[:, :7]}, r"packed must be \[g, 8\] with g of at least 1; got \[2, 7\]"),
        ({"packed": FLOAT8[:0]}, r"packed must be \[g, 8\] with g of at least 1; got \[0, 8\]"),
        ({"packed": FLOAT8.bfloat16()}, r"scales must be empty for bfloat16; got \[2, 1\]"),
        ({"scales": torch.ones(2, 2)}, r"scales must be float32 \[2, 1\]; got torch.float32 \[2, 2\]"),
        ({"scales": torch.ones(2, 1).double()}, r"scales must be float32 \[2, 1\]; got torch.float64 \[2, 1\]"),
        ({"packed": torch.zeros(8, 2, dtype=torch.float8_e4m3fn).t()}, "packed must be contiguous"),
        ({"values": torch.zeros(8).half()}, "values must be torch.float32; got torch.float16"),
    ],
)
def test_errors_of_average_name_the_argument(change, message):
    given = {"values": torch.zeros(8), "reference": torch.zeros(8), "packed": FLOAT8, "scales": torch.ones(2, 1)}
    with pytest.raises(ValueError, match=f"delta_average_: {message}"):
        ops.delta_average_(**given | change)


def test_a_gradient_may_be_wanted_elsewhere(wire):
    """Under no_grad a parameter's own memory may be passed."""
    parameter = torch.nn.Parameter(torch.randn(20))
    with torch.no_grad():
        packed, scales = ops.delta_pack(parameter, torch.zeros(20), torch.zeros(20), wire)
        ops.delta_average_(parameter, torch.zeros(20), packed[None], scales[None])
    assert parameter.requires_grad

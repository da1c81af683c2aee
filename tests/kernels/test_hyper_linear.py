"""The Triton launchers of hyper_linear and hyper_linear_loss against the float64 reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specfast.kernels import configs, eager
from specfast.kernels import triton as kernels
from specfast.kernels.triton import hyper_linear as launchers
from specfast.kernels.triton.inner_products import inner_dhidden, inner_dmoments, inner_fwd
from specfast.testing import assert_close, assert_unbiased, relative_rms
from tests.kernels.conftest import DEVICE, DTYPES
from tests.kernels.linear_cases import (
    MEDIUM,
    NAMES,
    cu_bands_of,
    dprediction_of,
    inputs_of,
    linear_reference,
    loss_reference,
    run_linear,
    run_loss,
    target_of,
)
from tests.ops.conftest import TOLERANCE, Case

OPERATORS = {
    "hyper_linear": (run_linear, linear_reference, ("prediction",)),
    "hyper_linear_loss": (run_loss, loss_reference, ("spectral", "charbonnier", "count")),
}


@pytest.fixture(params=OPERATORS)
def op(request):
    return OPERATORS[request.param]


def test_error_is_at_most_twice_plain_torch(op, case, dtype, form):
    run, run_reference, outputs = op
    exact, plain = run_reference(case, dtype, torch.float64), run_reference(case, dtype, dtype)
    actual = run(case, dtype, form)
    for name, a, p, e in zip((*outputs, *NAMES), actual, plain, exact, strict=True):
        number = name in ("spectral", "charbonnier", "count")
        assert a.dtype == (torch.float32 if number else dtype), name
        assert a.is_contiguous(), name
        floor = TOLERANCE[dtype] / 2  # where plain torch happens to round to almost nothing
        assert_close(a, e, max(2 * relative_rms(p, e), floor), name)
        if e.numel() >= 100:  # of fewer the mean is one rounding
            assert_unbiased(a, e, TOLERANCE[dtype], name)


def test_saved_tensors_mean_what_eager_s_mean(case, form):
    inputs, cu_bands, target = inputs_of(case, torch.float32), cu_bands_of(case), target_of(case, torch.float32)
    doubles = [value.double() for value in inputs]
    of_loss = kernels.hyper_linear_loss_fwd(*inputs, *target, cu_bands, form)[3:]
    expected = eager.hyper_linear_loss_fwd(*doubles, target[0].double(), target[1], cu_bands, form)[3:]
    alone = kernels.hyper_linear_fwd(*inputs, cu_bands, form)[1:]
    for actual, e in zip((*of_loss, *alone), (*expected, *expected[1:]), strict=True):
        assert_close(actual, e, 2 * TOLERANCE[torch.float32])
        assert actual.is_contiguous()
    assert (form == "direct") == (not any(saved.ndim > 1 for saved in alone))


def test_backward_takes_what_eager_saved(form):
    """Forward and backward may run on different backends."""
    inputs, cu_bands = inputs_of(MEDIUM, torch.float32), cu_bands_of(MEDIUM)
    arguments = *inputs, *target_of(MEDIUM, torch.float32), cu_bands
    dspectral = torch.ones(2, device=DEVICE)
    *_, sums, moments, offset = eager.hyper_linear_loss_fwd(*arguments, form)
    actual = kernels.hyper_linear_loss_bwd(dspectral, dspectral, *arguments, sums, moments, offset, form)
    expected = eager.hyper_linear_loss_bwd(dspectral, dspectral, *arguments, sums, moments, offset, form)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_close(a, e, 5e-6, name)


def test_two_runs_are_bitwise_equal(op, dtype, form):
    for first, second in zip(op[0](MEDIUM, dtype, form), op[0](MEDIUM, dtype, form), strict=True):
        assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("held", [1e6, float("nan"), float("inf")])
def test_pixels_that_do_not_count_are_ignored_entirely(form, held):
    target, valid = target_of(MEDIUM, torch.float32)
    before = run_loss(MEDIUM, torch.float32, form, target=[target, valid])
    for b, (start, end) in enumerate(((0, 4), (4, 15))):
        target[start:end][:, ~valid[b]] = held
    after = run_loss(MEDIUM, torch.float32, form, target=[target, valid])
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_loss_takes_a_target_of_another_type(form):
    target, valid = target_of(MEDIUM, torch.float16)
    assert target.dtype != torch.float32
    half = run_loss(MEDIUM, torch.float32, form, target=[target, valid])
    same = run_loss(MEDIUM, torch.float32, form, target=[target.float(), valid])
    for a, b in zip(half, same, strict=True):
        if DEVICE == "cpu":
            assert torch.equal(a, b)
        else:  # another type is another compilation, which may sum in another order
            assert_close(a, b, 1e-6)


@pytest.mark.parametrize("kind", ["transposed", "every other", "expanded"])
def test_any_stride(op, kind, form):
    inputs = inputs_of(MEDIUM, torch.float32)
    if kind == "transposed":
        given = [value.transpose(0, -1).contiguous().transpose(0, -1) for value in inputs]
    elif kind == "every other":
        given = [torch.stack([value, torch.full_like(value, torch.nan)], dim=-1)[..., 0] for value in inputs]
    else:
        given = [value[:1].expand_as(value) for value in inputs]
        inputs = [value.contiguous() for value in given]
    assert not any(value.is_contiguous() for value in given)
    actual, expected = op[0](MEDIUM, torch.float32, form, given), op[0](MEDIUM, torch.float32, form, inputs)
    for a, e in zip(actual, expected, strict=True):
        assert a.is_contiguous()
        assert_close(a, e, 2e-6)  # torch's own GEMMs may sum in another order


def test_a_gradient_that_arrives_expanded_is_read_right(form):
    inputs, cu_bands = inputs_of(MEDIUM, torch.float32), cu_bands_of(MEDIUM)
    _, *saved = kernels.hyper_linear_fwd(*inputs, cu_bands, form)
    expanded = dprediction_of(MEDIUM, torch.float32)[:, :1].expand(-1, MEDIUM.tokens, -1)
    actual = kernels.hyper_linear_bwd(expanded, *inputs, cu_bands, *saved, form)
    expected = kernels.hyper_linear_bwd(expanded.contiguous(), *inputs, cu_bands, *saved, form)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_a_sample_never_sees_its_neighbors(op, form):
    """NaN in the second sample reaches nothing of the others but what all share."""
    case = Case((3, 6, 2), 5, pixels=20, rank=17, hidden=10, width=24)
    run, _, outputs = op
    before, inputs = run(case, torch.float32, form), inputs_of(case, torch.float32)
    inputs[0][1] = torch.nan
    for place in (1, 4, 5):
        inputs[place][3:9] = torch.nan
    after = run(case, torch.float32, form, inputs)
    for name, a, b in zip((*outputs, *NAMES), after, before, strict=True):
        if name in ("weight", "bias"):
            continue
        each_sample = name in ("spectral", "charbonnier", "count", "tokens")
        kept = [0, 2] if each_sample else [0, 1, 2, 9, 10]
        assert torch.equal(a[kept], b[kept]), name


@pytest.mark.parametrize(
    "tiles",
    [
        {"BLOCK_C": 16, "BLOCK_ROWS": 32, "BLOCK_PIXELS": 512},
        {"BLOCK_C": 64, "BLOCK_ROWS": 64, "BLOCK_PIXELS": 2048},
    ],
    ids=str,
)
def test_other_tiles_compute_the_same(op, tiles):
    run, run_reference, outputs = op
    inner = {name: tiles[name] for name in ("BLOCK_C", "BLOCK_ROWS")}
    expand = {"BLOCK_PIXELS": tiles["BLOCK_PIXELS"]}
    with (
        configs.override("inner_fwd", **inner),
        configs.override("inner_dmoments", **inner),
        configs.override("inner_dhidden", **inner),
        configs.override("expand_fwd", **expand),
        configs.override("expand_bwd", **expand),
        configs.override("expand_loss_fwd", **expand),
        configs.override("expand_loss_bwd", **expand),
        configs.override("pixel_coefficients", **expand),
    ):
        actual = run(MEDIUM, torch.float32, "reassociated")
    exact = run_reference(MEDIUM, torch.float32, torch.float64)
    for name, a, e in zip((*outputs, *NAMES), actual, exact, strict=True):
        assert_close(a, e, 2 * TOLERANCE[torch.float32], name)


def test_runs_of_tokens_compute_the_same(op, dtype, form, monkeypatch):
    """A budget too small for all tokens: the gradients add up over runs, in a fixed order."""
    run, run_reference, outputs = op
    exact, plain = run_reference(MEDIUM, dtype, torch.float64), run_reference(MEDIUM, dtype, dtype)
    monkeypatch.setattr(launchers, "_INNER_BYTES", 0)
    monkeypatch.setattr(launchers, "_TOKEN_MULTIPLE", 4)
    hidden = inputs_of(MEDIUM, dtype)[1]
    assert list(launchers.token_runs(10, hidden, MEDIUM.rank)) == [(0, 4), (4, 8), (8, 10)]
    assert list(launchers.token_runs(0, hidden, MEDIUM.rank)) == [(0, 0)]
    actual = run(MEDIUM, dtype, form)
    for name, a, p, e in zip((*outputs, *NAMES), actual, plain, exact, strict=True):
        assert a.dtype == (torch.float32 if name in outputs and len(outputs) > 1 else dtype), name
        assert_close(a, e, max(2 * relative_rms(p, e), TOLERANCE[dtype] / 2), name)
    assert all(torch.equal(a, b) for a, b in zip(actual, run(MEDIUM, dtype, form), strict=True))


def test_one_run_is_enough_for_the_base_model():
    """At B 64, C 202 in bfloat16; nothing here is allocated."""
    hidden = torch.empty(64 * 202, 64, dtype=torch.bfloat16, device="meta")
    assert list(launchers.token_runs(588, hidden, 64)) == [(0, 588)]
    runs = list(launchers.token_runs(588, torch.cat([hidden, hidden]), 64))
    assert runs[0][0] == 0
    assert runs[-1][1] == 588
    assert len(runs) > 1
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(runs))


def test_the_loss_stores_no_prediction(form):
    """No tensor as large as the target [S, M, P] is made; inner [S, M, R], which is, is smaller here."""
    case = Case((5, 9), 20, pixels=64, rank=16, hidden=8, width=8)
    inputs, target = inputs_of(case, torch.float32), target_of(case, torch.float32)
    made = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if any(name in str(function) for name in ("empty", "zeros", "ones", "mm.", "add.")):
                # bytes are the interpreter's own copies of all arguments
                made.extend([] if out.dtype == torch.uint8 else [out.numel()])
            return out

    with Recorder():
        run_loss(case, torch.float32, form, inputs, target)
    inner = sum(case.bands) * case.tokens * case.rank
    assert inner in made
    assert max(made) < target[0].numel()


def test_inner_products(dtype):
    """The three products, of some of the tokens."""
    case = Case((7, 0, 40), 12, rank=5, hidden=9)
    cu_bands, first, count = cu_bands_of(case), 3, 6

    def rand(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)

    moments, offset, hidden = rand(3, 12, 5, 9), rand(3, 12, 5), rand(47, 9)
    sample = [0] * 7 + [2] * 40
    part = slice(first, first + count)
    by_band = moments[sample, part].double()
    inner = inner_fwd(moments, offset, hidden, cu_bands, first, count)
    expected = torch.einsum("clrk,ck->clr", by_band, hidden.double()) + offset[sample, part].double()
    assert_close(inner, expected, TOLERANCE[dtype])
    dinner = rand(47, count, 5)
    dmoments, doffset = torch.zeros_like(moments), torch.zeros_like(offset)
    inner_dmoments(dinner, hidden, cu_bands, dmoments, doffset, first)
    products = torch.einsum("clr,ck->clrk", dinner.double(), hidden.double())
    for b, (start, end) in enumerate(((0, 7), (7, 7), (7, 47))):
        assert_close(dmoments[b, part], products[start:end].sum(0), TOLERANCE[dtype], f"dmoments of sample {b}")
        assert_close(doffset[b, part], dinner[start:end].double().sum(0), TOLERANCE[dtype], f"doffset of sample {b}")
    assert not dmoments[:, :first].any()
    assert not doffset[:, first + count :].any()
    dhidden = inner_dhidden(dinner, moments, hidden, cu_bands, first)
    assert dhidden.dtype == torch.float32
    assert_close(dhidden, torch.einsum("clr,clrk->ck", dinner.double(), by_band), TOLERANCE[torch.float32])


def test_nothing_is_read_back_to_the_host(op, form, nothing_is_read_back):
    assert len(op[0](MEDIUM, torch.float32, form)) >= 7


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_cuda_graph_captures_it(op, form):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs, target = inputs_of(MEDIUM, torch.float16), target_of(MEDIUM, torch.float16)
        more = (inputs,) if op[0] is run_linear else (inputs, target)
        cu_bands = cu_bands_of(MEDIUM)
        dspectral, dprediction = torch.ones(2, device=DEVICE), dprediction_of(MEDIUM, torch.float16)

        def step():
            if op[0] is run_linear:
                prediction, *saved = kernels.hyper_linear_fwd(*inputs, cu_bands, form)
                return prediction, *kernels.hyper_linear_bwd(dprediction, *inputs, cu_bands, *saved, form)
            arguments = *inputs, *target, cu_bands
            *three, sums, moments, offset = kernels.hyper_linear_loss_fwd(*arguments, form)
            saved = sums, moments, offset, form
            return *three, *kernels.hyper_linear_loss_bwd(dspectral, dspectral, *arguments, *saved)

        assert len(op[0](MEDIUM, torch.float16, form, *more)) >= 7  # compiles outside of the capture
        expected = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_unsupported_says_why():
    case = Case((2, 3), 4)
    arguments = *inputs_of(case, torch.float32), cu_bands_of(case), "direct"
    assert kernels.unsupported("hyper_linear_fwd", *arguments) is None
    doubles = [value.double() if value.is_floating_point() else value for value in arguments[:-1]]
    assert kernels.unsupported("hyper_linear_fwd", *doubles, "direct") == "float64 inputs"
    for wrong, reason in (
        ({"pixels": 257}, "patches of 257 pixels, over 256"),
        ({"rank": 129}, "a rank of 129, over 128"),
        ({"pixels": 129, "rank": 65}, "patches of 129 pixels at a rank of 65"),
        ({"hidden": 129}, "a hidden width of 129, over 128"),
    ):
        inputs = inputs_of(Case((2, 3), 4, **wrong), torch.float32)
        for name, before in (
            ("hyper_linear_fwd", 0),
            ("hyper_linear_bwd", 1),
            ("hyper_linear_loss_fwd", 0),
            ("hyper_linear_loss_bwd", 2),
        ):
            assert kernels.unsupported(name, *inputs[:1] * before, *inputs, cu_bands_of(case)) == reason
    if torch.bfloat16 not in DTYPES:
        halves = [value.bfloat16() for value in arguments[:6]]
        assert kernels.unsupported("hyper_linear_fwd", *halves, arguments[6]) is not None


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_offsets_beyond_32_bits(op):
    """Prediction, target and moments of more than 2^31 numbers; the last sample's part is that of the sample alone."""
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of free device memory")
    alone = Case((5,), 150000, pixels=64, rank=64, hidden=128, width=16)
    inputs, target = inputs_of(alone, torch.float16), target_of(alone, torch.float16)
    bands, count, zeros = 225, alone.tokens, torch.zeros
    tokens = torch.cat([torch.zeros_like(inputs[0]), inputs[0]])
    many = [tokens, *inputs[1:]]
    for place in (1, 4, 5):
        many[place] = zeros(bands, *inputs[place].shape[1:], dtype=torch.float16, device=DEVICE)
        many[place][-5:] = inputs[place]
    cu_bands = torch.tensor([0, bands - 5, bands], device=DEVICE, dtype=torch.int32)
    assert min(bands * count * 64, 2 * count * 64 * 128) > 2**31

    def both(inputs, cu_bands, first):
        if op[0] is run_linear:
            prediction, *saved = kernels.hyper_linear_fwd(*inputs, cu_bands, "reassociated")
            dprediction = torch.zeros_like(prediction)
            dprediction[-5:] = dprediction_of(alone, torch.float16)
            outputs = [prediction[-5:].clone()]
            del prediction
            gradients = kernels.hyper_linear_bwd(dprediction, *inputs, cu_bands, *saved, "reassociated")
        else:
            given = zeros(int(cu_bands[-1]), count, 64, dtype=torch.float16, device=DEVICE)
            given[-5:] = target[0]
            valid = zeros(cu_bands.numel() - 1, count, 64, dtype=torch.bool, device=DEVICE)
            valid[-1] = target[1][0]
            arguments = *inputs, given, valid, cu_bands
            *three, sums, moments, offset = kernels.hyper_linear_loss_fwd(*arguments, "reassociated")
            outputs = [out[first:] for out in three]
            gradients = kernels.hyper_linear_loss_bwd(*three[:2], *arguments, sums, moments, offset, "reassociated")
        return *outputs, gradients[0][first:], *(gradients[place][-5:] for place in (1, 4, 5))

    for actual, expected in zip(both(many, cu_bands, 1), both(inputs, cu_bands_of(alone), 0), strict=True):
        assert_close(actual, expected, TOLERANCE[torch.float16])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_rows_of_one_sample_beyond_32_bits():
    """Moments of one run of tokens with more than 2^31 numbers, of which only the last token's are not 0."""
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free device memory")
    tokens, rank, hidden_width = 300000, 64, 128
    moments = torch.zeros(1, tokens, rank, hidden_width, dtype=torch.float16, device=DEVICE)
    moments[:, -1] = torch.randn(rank, hidden_width, device=DEVICE)
    offset = torch.zeros(1, tokens, rank, dtype=torch.float16, device=DEVICE)
    hidden = torch.randn(3, hidden_width, device=DEVICE).half()
    cu_bands = torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    assert moments.numel() > 2**31
    inner = inner_fwd(moments, offset, hidden, cu_bands, 0, tokens)
    last = moments[0, -1].double()
    assert_close(inner[:, -1], hidden.double() @ last.mT, TOLERANCE[torch.float16])
    assert not inner[:, :-1].any()
    dhidden = inner_dhidden(inner, moments, hidden, cu_bands, 0)
    assert_close(dhidden, inner[:, -1].double() @ last, TOLERANCE[torch.float16])
    dmoments, doffset = moments.fill_(torch.nan), offset
    inner_dmoments(inner, hidden, cu_bands, dmoments, doffset, 0)
    assert_close(dmoments[0, -1], inner[:, -1].double().mT @ hidden.double(), TOLERANCE[torch.float16])
    assert not dmoments[:, :-1].any()

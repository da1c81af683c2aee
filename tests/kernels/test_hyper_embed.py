"""hyper_embed's Triton launchers against the float64 reference, with the error of plain torch as the measure."""

from __future__ import annotations

import pytest
import torch

from specfast.kernels import configs, eager, reference
from specfast.kernels import triton as kernels
from specfast.kernels.triton import launch
from specfast.kernels.triton.band_products import all_bands, band_contraction, band_matmul
from specfast.testing import assert_close, assert_unbiased, relative_rms
from tests.kernels.conftest import DEVICE, DTYPES
from tests.ops.conftest import TOLERANCE, Case

NAMES = ("patches", "factors_v", "hidden", "weight", "bias")
MEDIUM = Case((9, 20), 18, pixels=20, rank=17, hidden=10, width=24)


def inputs_of(case: Case, dtype: torch.dtype) -> tuple[list, torch.Tensor]:
    inputs = case.embed()
    # sums over bands, ranks and hidden units of a few hundred stay small in float16
    return [inputs[name].mul(0.3).to(DEVICE, dtype) for name in NAMES], case.cu_bands.to(DEVICE)


def outgoing(case: Case, dtype: torch.dtype) -> torch.Tensor:
    shape = len(case.bands), case.tokens, case.width
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(DEVICE, dtype)


def run(case, dtype, form, backend=kernels):
    """Return tokens, and the five gradients of outgoing tokens."""
    inputs, cu_bands = inputs_of(case, dtype)
    tokens, *saved = backend.hyper_embed_fwd(*inputs, cu_bands, form)
    gradients = backend.hyper_embed_bwd(outgoing(case, dtype), *inputs, cu_bands, *saved, form, True)
    return tokens, *gradients


def run_reference(case, dtype, compute: torch.dtype):
    """The same from autograd, in another precision but of the same numbers."""
    inputs, cu_bands = inputs_of(case, dtype)
    leaves = [value.to(compute).requires_grad_() for value in inputs]
    tokens = reference.hyper_embed(*leaves, cu_bands)
    if not tokens.requires_grad:  # no samples
        return tokens, *map(torch.zeros_like, leaves)
    return tokens.detach(), *torch.autograd.grad(tokens, leaves, outgoing(case, dtype).to(compute))


def test_error_is_at_most_twice_plain_torch(case, dtype, form):
    exact, plain = run_reference(case, dtype, torch.float64), run_reference(case, dtype, dtype)
    for name, actual, p, e in zip(("tokens", *NAMES), run(case, dtype, form), plain, exact, strict=True):
        # where plain torch happens to round to almost nothing; single numbers show single roundings
        floor = TOLERANCE[dtype] * (0.25 if e.numel() >= 100 else 2)
        assert actual.dtype == dtype, name
        assert actual.is_contiguous(), name
        assert_close(actual, e, max(2 * relative_rms(p, e), floor), name)
        if e.numel() >= 100:
            assert_unbiased(actual, e, TOLERANCE[dtype], name)


def test_saved_tensors_mean_what_eager_s_mean(case):
    inputs, cu_bands = inputs_of(case, torch.float32)
    expected = eager.hyper_embed_fwd(*(value.double() for value in inputs), cu_bands, "reassociated")
    for actual, e in zip(kernels.hyper_embed_fwd(*inputs, cu_bands, "reassociated"), expected, strict=True):
        assert_close(actual, e, TOLERANCE[torch.float32])
    assert all(not saved.numel() for saved in kernels.hyper_embed_fwd(*inputs, cu_bands, "direct")[1:])


def test_two_runs_are_bitwise_equal(dtype, form):
    for first, second in zip(run(MEDIUM, dtype, form), run(MEDIUM, dtype, form), strict=True):
        assert torch.equal(first, second)


def test_without_a_hidden_vector_the_bias_is_all(form):
    """k = 0: U is the bias, and moments have no element."""
    case = Case((9, 20), 18, pixels=20, rank=17, hidden=0, width=24)
    inputs, cu_bands = inputs_of(case, torch.float32)
    doubles = [value.double() for value in inputs]
    tokens, *saved = eager.hyper_embed_fwd(*doubles, cu_bands, form)
    dtokens = outgoing(case, torch.float64)
    expected = tokens, *eager.hyper_embed_bwd(dtokens, *doubles, cu_bands, *saved, form, True)
    for name, actual, e in zip(("tokens", *NAMES), run(case, torch.float32, form), expected, strict=True):
        assert actual.shape == e.shape, name
        assert_close(actual, e, TOLERANCE[torch.float32], name)


def test_dpatches_only_if_asked_for(form):
    inputs, cu_bands = inputs_of(MEDIUM, torch.float32)
    _, *saved = kernels.hyper_embed_fwd(*inputs, cu_bands, form)
    arguments = (outgoing(MEDIUM, torch.float32), *inputs, cu_bands, *saved, form)
    without, given = kernels.hyper_embed_bwd(*arguments, False), kernels.hyper_embed_bwd(*arguments, True)
    assert without[0].numel() == 0
    assert given[0].shape == inputs[0].shape
    assert all(torch.equal(a, b) for a, b in zip(without[1:], given[1:], strict=True))


@pytest.mark.parametrize("kind", ["first of more", "transposed", "every other", "expanded"])
def test_any_stride(kind, form):
    inputs, cu_bands = inputs_of(MEDIUM, torch.float32)
    patches = inputs[0]
    if kind == "first of more":  # as the model passes them; what lies behind is not to be read
        more = torch.cat([patches, torch.full_like(patches, torch.nan)], dim=1)
        given = [more[:, : patches.shape[1]], *inputs[1:]]
    elif kind == "transposed":
        given = [value.transpose(0, -1).contiguous().transpose(0, -1) for value in inputs]
    elif kind == "every other":
        given = [torch.stack([value, torch.full_like(value, torch.nan)], dim=-1)[..., 0] for value in inputs]
    else:
        inputs[0] = patches[:1].expand_as(patches).contiguous()
        given = [patches[:1].expand_as(patches), *inputs[1:]]
    assert not given[0].is_contiguous()
    dtokens = outgoing(MEDIUM, torch.float32)[:, :1].expand(-1, MEDIUM.tokens, -1)

    def both(values, dtokens):
        tokens, *saved = kernels.hyper_embed_fwd(*values, cu_bands, form)
        return tokens, *kernels.hyper_embed_bwd(dtokens, *values, cu_bands, *saved, form, True)

    for actual, expected in zip(both(given, dtokens), both(inputs, dtokens.contiguous()), strict=True):
        assert actual.is_contiguous()
        assert_close(actual, expected, 1e-6)  # torch's own GEMMs may sum in another order


def test_a_sample_never_sees_its_neighbors(form):
    """NaN in the second sample reaches nothing of the first, although their bands share tiles of the same size."""
    case = Case((9, 20, 7), 5, pixels=20, rank=17, hidden=10, width=24)
    before, (inputs, cu_bands) = run(case, torch.float32, form), inputs_of(case, torch.float32)
    for value in inputs[:3]:
        value[9:29] = torch.nan
    tokens, *saved = kernels.hyper_embed_fwd(*inputs, cu_bands, form)
    gradients = kernels.hyper_embed_bwd(outgoing(case, torch.float32), *inputs, cu_bands, *saved, form, True)
    assert tokens[1].isnan().all()
    assert torch.equal(tokens[[0, 2]], before[0][[0, 2]])
    for gradient, expected in zip(gradients[:3], before[1:4], strict=True):
        assert torch.equal(gradient[:9], expected[:9])
        assert torch.equal(gradient[29:], expected[29:])


@pytest.mark.parametrize(
    ("forward", "backward"),  # C, N, R, P; all fit the shared memory of an A100 in float32, by tests/kernels/harness.py
    [((32, 4, 32, 16), (32, 16, 16, 16)), ((16, 16, 16, 64), (16, 16, 16, 64)), ((64, 8, 16, 16), (8, 16, 16, 32))],
    ids=str,
)
def test_other_tiles_compute_the_same(forward, backward):
    exact = run_reference(MEDIUM, torch.float32, torch.float64)
    names = ("BLOCK_C", "BLOCK_N", "BLOCK_R", "BLOCK_P")
    forward, backward = (dict(zip(names, tiles, strict=True)) for tiles in (forward, backward))
    with (
        configs.override("hyper_embed_fwd", **forward),
        configs.override("hyper_embed_bwd", **backward),
        configs.override("hyper_embed_dpatches", **backward),
    ):
        for actual, expected in zip(run(MEDIUM, torch.float32, "reassociated"), exact, strict=True):
            assert_close(actual, expected, TOLERANCE[torch.float32])


def test_nothing_is_read_back_to_the_host(form, nothing_is_read_back):
    assert len(run(MEDIUM, torch.float32, form)) == 6


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_cuda_graph_captures_it(form):
    inputs, cu_bands = inputs_of(MEDIUM, torch.float16)
    dtokens = outgoing(MEDIUM, torch.float16)

    def step():
        tokens, *saved = kernels.hyper_embed_fwd(*inputs, cu_bands, form)
        return tokens, *kernels.hyper_embed_bwd(dtokens, *inputs, cu_bands, *saved, form, True)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("bands", [(4, 0, 3), (16, 17, 1), (33,), (0,), ()], ids=str)
def test_band_tiles_cover_every_band_once(bands):
    cu_bands = torch.tensor([0, *bands]).cumsum(0).to(DEVICE, torch.int32)
    tiles = launch.band_tiles(cu_bands, sum(bands), 16)
    samples = [b for b, count in enumerate(bands) for _ in range(count)]
    assert launch.sample_of_band(cu_bands, sum(bands)).tolist() == samples
    covered = []
    for sample, start, end in zip(*(part.tolist() for part in tiles), strict=True):
        assert 0 <= end - start <= 16
        assert all(samples[band] == sample for band in range(start, end))
        covered += range(start, end)
    assert sorted(covered) == list(range(sum(bands)))


def test_band_products(dtype):
    def rand(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)

    cu_bands = torch.tensor([0, 2, 2, 5], device=DEVICE, dtype=torch.int32)
    of, each = launch.sample_of_band(cu_bands, 5), all_bands(cu_bands, 5)
    left, shared = rand(5, 70, 33), rand(3, 33, 66)
    product = band_matmul(left, shared, each, of, tokens="M")
    assert_close(product, left.double() @ shared.double()[of.long()], TOLERANCE[dtype])
    swapped = band_matmul(shared.mT, left.mT, of, each, tokens="N")
    assert_close(swapped, shared.double()[of.long()].mT @ left.double().mT, TOLERANCE[dtype])
    right = rand(5, 33, 130)
    total = band_contraction(left, right, cu_bands)
    each_product = left.double() @ right.double()
    expected = torch.stack([each_product[:2].sum(0), torch.zeros_like(each_product[0]), each_product[2:].sum(0)])
    assert_close(total, expected, TOLERANCE[dtype])


def test_unsupported_says_why():
    inputs, cu_bands = inputs_of(Case((2, 3), 4), torch.float32)
    assert kernels.unsupported("hyper_embed_fwd", *inputs, cu_bands, "direct") is None
    doubles = [value.double() for value in inputs]
    assert kernels.unsupported("hyper_embed_fwd", *doubles, cu_bands, "direct") == "float64 inputs"
    wide, _ = inputs_of(Case((2, 3), 4, hidden=129), torch.float32)
    assert "hidden width of 129" in kernels.unsupported("hyper_embed_fwd", *wide, cu_bands, "direct")
    assert "hidden width of 129" in kernels.unsupported("hyper_embed_bwd", wide[0], *wide, cu_bands)
    meta = [value.to("meta") for value in inputs]
    assert kernels.unsupported("hyper_embed_fwd", *meta, cu_bands.to("meta"), "direct") == "tensors on meta"
    halves = [value.bfloat16() for value in inputs]
    reason = kernels.unsupported("hyper_embed_fwd", *halves, cu_bands, "direct")
    assert (reason is None) == (torch.bfloat16 in DTYPES)


def test_tf32_follows_torch():
    assert launch.precision(torch.float16) == launch.precision(torch.bfloat16) == "ieee"
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, expected in (("ieee", "ieee"), ("tf32", "tf32"), ("none", "ieee")):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert launch.precision(torch.float32) == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """Patches of more than 2^31 numbers; the last sample's part is that of the sample alone."""
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free device memory")
    bands, alone = (700, 5), Case((5,), 48000, pixels=64, rank=16, hidden=16, width=16)
    inputs, cu_alone = inputs_of(alone, torch.float16)
    cu_bands = torch.tensor([0, bands[0], sum(bands)], device=DEVICE, dtype=torch.int32)
    many = [torch.zeros(sum(bands), *value.shape[1:], dtype=value.dtype, device=DEVICE) for value in inputs[:3]]
    for value, last in zip(many, inputs, strict=False):
        value[-5:] = last
    assert many[0].numel() > 2**31
    out, *saved = kernels.hyper_embed_fwd(*many, *inputs[3:], cu_bands, "reassociated")
    expected, *saved_alone = kernels.hyper_embed_fwd(*inputs, cu_alone, "reassociated")
    assert_close(out[1:], expected, TOLERANCE[torch.float16])
    dtokens = outgoing(alone, torch.float16)
    both = torch.cat([torch.zeros_like(dtokens), dtokens])
    gradients = kernels.hyper_embed_bwd(both, *many, *inputs[3:], cu_bands, *saved, "reassociated", True)
    others = kernels.hyper_embed_bwd(dtokens, *inputs, cu_alone, *saved_alone, "reassociated", True)
    for name, actual, e in zip(NAMES[:3], gradients, others, strict=False):
        assert_close(actual[-5:], e, TOLERANCE[torch.float16], name)

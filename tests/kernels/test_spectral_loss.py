"""spectral_loss's Triton launchers against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from specfast.kernels import configs, eager, reference
from specfast.kernels import triton as kernels
from specfast.testing import assert_close, assert_unbiased, relative_rms
from tests.kernels.conftest import DEVICE
from tests.ops.conftest import TOLERANCE, Case

MEDIUM = Case((9, 20), 18, pixels=20)


def inputs_of(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    """prediction, target, valid and cu_bands; the target keeps float32, whatever the prediction's type."""
    target = case.target()
    prediction = target["target"] * 0.7 + case.target(seed=2)["target"] * 0.2
    inputs = [prediction.to(dtype), target["target"].float(), target["valid"], case.cu_bands]
    return [value.to(DEVICE) for value in inputs]


def outgoing(case: Case) -> list[torch.Tensor]:
    samples = len(case.bands)
    return [torch.linspace(low, 1.5, samples, device=DEVICE) for low in (0.5, 0.25)]


def run(case, inputs, backend=kernels):
    *three, sums = backend.spectral_loss_fwd(*inputs)
    return *three, backend.spectral_loss_bwd(*outgoing(case), *inputs, sums)


def run_reference(case, inputs, compute: torch.dtype):
    prediction, target, *others = inputs
    prediction = prediction.to(compute).requires_grad_()
    three = reference.spectral_loss(prediction, target.to(compute), *others)
    gradient = torch.zeros_like(prediction)
    if three[0].requires_grad:  # else there are no samples
        weights = [weight.to(three[0].dtype) for weight in outgoing(case)]
        (gradient,) = torch.autograd.grad(three[:2], prediction, weights)
    return *(value.detach() for value in three), gradient


def test_error_is_at_most_twice_plain_torch(case, dtype):
    inputs = inputs_of(case, dtype)
    exact, plain = run_reference(case, inputs, torch.float64), run_reference(case, inputs, dtype)
    names = ("spectral", "charbonnier", "count", "dprediction")
    for name, actual, p, e in zip(names, run(case, inputs), plain, exact, strict=True):
        gradient = name == "dprediction"
        assert actual.dtype == (dtype if gradient else torch.float32), name
        assert actual.is_contiguous(), name
        floor = TOLERANCE[dtype if gradient else torch.float32] / 2
        assert_close(actual, e, max(2 * relative_rms(p, e), floor), name)
        if e.numel() >= 100:
            assert_unbiased(actual, e, TOLERANCE[dtype], name)


def test_sums_mean_what_eager_s_mean(case):
    prediction, target, valid, cu_bands = inputs_of(case, torch.float32)
    expected = eager.spectral_loss_fwd(prediction.double(), target.double(), valid, cu_bands)[3]
    assert_close(kernels.spectral_loss_fwd(prediction, target, valid, cu_bands)[3], expected, TOLERANCE[torch.float32])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("held", [1e30, float("nan"), float("inf")])
def test_pixels_that_do_not_count_are_ignored_entirely(held):
    inputs = inputs_of(MEDIUM, torch.float32)
    before = run(MEDIUM, inputs)
    for b, (start, end) in enumerate(((0, 9), (9, 29))):
        for tensor in inputs[:2]:
            tensor[start:end][:, ~inputs[2][b]] = held
    after = run(MEDIUM, inputs)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_nan_in_a_pixel_that_counts_is_not_hidden():
    inputs = inputs_of(MEDIUM, torch.float32)
    inputs[2][0, 0, 0] = True
    inputs[0][3, 0, 0] = torch.nan
    spectral, charbonnier, count, gradient = run(MEDIUM, inputs)
    assert spectral.isnan().tolist() == charbonnier.isnan().tolist() == [True, False]
    assert count.isfinite().all()
    assert gradient[:9, 0, 0].isnan().all()
    gradient[:9, 0, 0] = 0
    assert gradient.isfinite().all()


def test_a_zero_prediction_is_finite():
    inputs = inputs_of(MEDIUM, torch.float32)
    inputs[0].zero_()
    spectral, _, count, gradient = run(MEDIUM, inputs)
    assert_close(spectral, count, 1e-6)  # cosine 0 for every valid pixel
    expected = run_reference(MEDIUM, inputs, torch.float64)[3]
    assert_close(gradient, expected, 1e-5)


def test_small_differences_do_not_cancel():
    inputs = inputs_of(MEDIUM, torch.float32)
    inputs[0].copy_(inputs[1] * (1 + 1e-5))
    exact = run_reference(MEDIUM, inputs, torch.float64)
    assert_close(run(MEDIUM, inputs)[1], exact[1], 1e-5)


def test_two_runs_are_bitwise_equal(dtype):
    inputs = inputs_of(MEDIUM, dtype)
    assert all(torch.equal(a, b) for a, b in zip(run(MEDIUM, inputs), run(MEDIUM, inputs), strict=True))


def test_any_stride():
    inputs = inputs_of(MEDIUM, torch.float32)
    *values, cu_bands = inputs
    strided = [value.transpose(0, -1).contiguous().transpose(0, -1) for value in values]
    assert not any(value.is_contiguous() for value in strided)
    both = run(MEDIUM, [*strided, cu_bands]), run(MEDIUM, inputs)
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_a_sample_never_sees_its_neighbors():
    case = Case((9, 20, 7), 5, pixels=20)
    inputs = inputs_of(case, torch.float32)
    before = run(case, inputs)
    inputs[0][9:29] = torch.nan
    after = run(case, inputs)
    for a, b in zip(after[:3], before[:3], strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert torch.equal(after[3][:9], before[3][:9])
    assert torch.equal(after[3][29:], before[3][29:])


@pytest.mark.parametrize("tiles", [{"BLOCK_C": 1, "BLOCK_PIXELS": 64}, {"BLOCK_C": 16, "BLOCK_PIXELS": 256}], ids=str)
def test_other_tiles_compute_the_same(tiles):
    inputs = inputs_of(MEDIUM, torch.float32)
    exact = run_reference(MEDIUM, inputs, torch.float64)
    with configs.override("spectral_loss_fwd", **tiles), configs.override("spectral_loss_bwd", **tiles):
        for actual, expected in zip(run(MEDIUM, inputs), exact, strict=True):
            assert_close(actual, expected, TOLERANCE[torch.float32])


def test_nothing_is_read_back_to_the_host(nothing_is_read_back):
    assert len(run(MEDIUM, inputs_of(MEDIUM, torch.float32))) == 4


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """Predictions of more than 2^31 numbers; the last sample's part is that of the sample alone."""
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free device memory")
    case = Case((5,), 48000, pixels=64)
    prediction, target, valid, cu_bands = inputs_of(case, torch.float16)
    many = [torch.zeros(705, 48000, 64, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    many[0][-5:], many[1][-5:] = prediction, target
    assert many[0].numel() > 2**31
    both_valid = torch.cat([valid, valid])
    both = torch.tensor([0, 700, 705], dtype=torch.int32, device=DEVICE)
    *three, sums = kernels.spectral_loss_fwd(*many, both_valid, both)
    *expected, sums_alone = kernels.spectral_loss_fwd(prediction, target.half(), valid, cu_bands)
    for actual, e in zip(three, expected, strict=True):
        assert_close(actual[1:], e, TOLERANCE[torch.float32])
    given = [torch.tensor([0.5, weight], device=DEVICE) for weight in (1.5, 0.25)]
    gradient = kernels.spectral_loss_bwd(*given, *many, both_valid, both, sums)
    alone = [value[1:] for value in given]
    expected = kernels.spectral_loss_bwd(*alone, prediction, target.half(), valid, cu_bands, sums_alone)
    assert_close(gradient[-5:], expected, TOLERANCE[torch.float16])

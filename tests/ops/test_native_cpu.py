"""The CPU backend through the public operators: against the float64 reference, and against the eager backend."""

from __future__ import annotations

import functools

import pytest
import torch

from specfast import _native, ops
from specfast.kernels import reference
from specfast.testing import assert_close, assert_unbiased, relative_rms
from tests.ops.conftest import TOLERANCE, Case
from tests.ops.test_memory import peak_of

pytestmark = pytest.mark.skipif(_native.load()[0] is None, reason=f"specfast._C is {_native.load()[1]}")

OPERATORS = ["hyper_linear", "hyper_linear_loss", "spectral_loss"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = [
    Case((5, 5), 7),
    Case((3, 9, 1), 4, pixels=64, rank=16),
    Case((63,), 1, pixels=25, rank=5, hidden=3, width=17),  # odd sizes
    Case((33, 2), 3, pixels=256, rank=7, hidden=9, width=5),
    Case((1,), 1, pixels=1, rank=1, hidden=1, width=1),
    Case((4, 0, 3), 2),  # a sample without bands
    Case((4, 2), 0),  # no tokens
    Case((0, 0), 3),  # no bands
    Case((100, 40), 2000, rank=16, hidden=8, width=8),  # several tiles of tokens, or (direct) of bands, and groups
]


@pytest.fixture(autouse=True)
def native():
    with ops.use_backend("cpu", strict=True):
        yield


def arguments(op: str, case: Case, dtype=torch.float64, target_dtype=None) -> tuple[dict, dict]:
    """(differentiable, constant) arguments; target is a slice of all patches and NaN where invalid."""
    inputs = case.linear()
    if op == "spectral_loss":
        inputs = {"prediction": case.target(seed=2)["target"]}
    inputs = {name: (value * 0.5).to(dtype) for name, value in inputs.items()}
    constants = {"cu_bands": case.cu_bands}
    if op != "hyper_linear":
        target, valid = case.target().values()
        invalid = ~valid.repeat_interleave(case.cu_bands.diff(), dim=0)
        patches = torch.cat([torch.zeros_like(target), target.masked_fill(invalid, torch.nan)], dim=1)
        constants |= {"target": patches.to(target_dtype or dtype)[:, case.tokens :], "valid": valid}
    return inputs, constants


def run(function, inputs: dict, constants: dict) -> dict[str, torch.Tensor]:
    """Outputs by number, and gradients by name of a weighted sum of them."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    outputs = function(**leaves, **constants)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [out for out in outputs if out.requires_grad]
    weights = [torch.linspace(0.5, 1.5, out.numel()).to(out.dtype).view_as(out) for out in differentiable]
    gradients = torch.autograd.grad(differentiable, list(leaves.values()), weights)
    results = {f"output {number}": out.detach() for number, out in enumerate(outputs)}
    return results | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def bound(op: str, form: str):
    function = getattr(ops, op)
    return function if op == "spectral_loss" else functools.partial(function, form=form)


def exact(op: str, inputs: dict, constants: dict) -> dict[str, torch.Tensor]:
    wide = {name: value.double() for name, value in inputs.items()}
    constants = constants | ({"target": constants["target"].double()} if "target" in constants else {})
    return run(getattr(reference, op), wide, constants)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("op", OPERATORS)
def test_matches_the_reference_and_eager(op, sizes, form, dtype):
    inputs, constants = arguments(op, sizes, DTYPES[dtype])
    expected = exact(op, inputs, constants)
    actual = run(bound(op, form), inputs, constants)
    with ops.use_backend("eager"):
        eager = run(bound(op, form), inputs, constants)
    for name, e in expected.items():
        assert actual[name].isfinite().all(), name
        assert (actual[name].dtype, actual[name].shape) == (eager[name].dtype, eager[name].shape), name
        allowed = max(2 * relative_rms(eager[name], e), TOLERANCE[DTYPES[dtype]])
        assert relative_rms(actual[name], e) <= allowed, name
        if e.numel() > 1000:
            assert_unbiased(actual[name], e, allowed, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("op", ["hyper_linear_loss", "spectral_loss"])
def test_target_of_another_type(op, dtype, target_dtype):
    inputs, constants = arguments(op, Case((9, 4), 5), DTYPES[dtype], DTYPES[target_dtype])
    actual, expected = run(getattr(ops, op), inputs, constants), exact(op, inputs, constants)
    for name, e in expected.items():
        assert_close(actual[name], e, 4 * TOLERANCE[DTYPES[dtype]], name)


@pytest.mark.parametrize("op", OPERATORS)
def test_any_stride(op, form):
    inputs, constants = arguments(op, Case((5, 8), 7), torch.float32)

    def strided(value):
        if not value.is_floating_point() or value.ndim < 2:
            return value
        return torch.stack([value, torch.full_like(value, torch.nan)], dim=-1).transpose(0, 1)[..., 0].transpose(0, 1)

    expected = run(bound(op, form), inputs, constants)
    spread = {name: strided(value) for name, value in constants.items()}
    leaves = {name: strided(value).requires_grad_() for name, value in inputs.items()}
    assert not any(value.is_contiguous() for value in leaves.values())
    outputs = bound(op, form)(**leaves, **spread)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for number, out in enumerate(outputs):
        assert_close(out, expected[f"output {number}"].double(), 2e-6)
    gradients = torch.autograd.grad(outputs[0].sum(), list(leaves.values()))  # comes in expanded, with stride 0
    plain_leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    plain = bound(op, form)(**plain_leaves, **constants)
    plain = plain[0] if isinstance(plain, tuple) else plain
    contiguous = torch.autograd.grad(plain, list(plain_leaves.values()), torch.ones_like(plain))
    for name, gradient, other in zip(leaves, gradients, contiguous, strict=True):
        assert_close(gradient, other.double(), 2e-6, f"d{name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPERATORS)
def test_two_runs_are_equal_bit_for_bit(op, form, dtype):
    inputs, constants = arguments(op, Case((60, 44), 39, pixels=64, rank=32, hidden=16, width=24), DTYPES[dtype])
    first, second = (run(bound(op, form), inputs, constants) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("held", [1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("op", ["hyper_linear_loss", "spectral_loss"])
def test_invalid_pixels_do_not_matter(op, held):
    inputs, constants = arguments(op, Case((6, 3), 5), torch.float32)
    before = run(getattr(ops, op), inputs, constants)
    invalid = ~constants["valid"].repeat_interleave(constants["cu_bands"].diff(), dim=0)
    after = run(getattr(ops, op), inputs, constants | {"target": constants["target"].masked_fill(invalid, held)})
    assert all(torch.equal(before[name], after[name]) for name in before)
    if op == "spectral_loss":
        assert not after["dprediction"][invalid].any()


@pytest.mark.parametrize("op", OPERATORS)
def test_backward_of_another_backend(op, form):
    """Saved tensors mean the same to both: forward on one, backward on the other, either way around."""
    inputs, constants = arguments(op, Case((50, 9), 7), torch.float32)
    expected = exact(op, inputs, constants)
    for forward, backward in (("cpu", "eager"), ("eager", "cpu")):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        with ops.use_backend(forward):
            outputs = bound(op, form)(**leaves, **constants)
        outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
        weights = [torch.linspace(0.5, 1.5, out.numel()).view_as(out) for out in outputs]
        with ops.use_backend(backward, strict=True):
            gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
        for name, gradient in zip(leaves, gradients, strict=True):
            assert_close(gradient, expected[f"d{name}"], 4e-6, f"d{name}")


def test_holds_no_prediction_and_few_generated_factors(form):
    case = Case((2000,), 100, pixels=16, rank=16, hidden=8, width=64)
    inputs, constants = arguments("hyper_linear_loss", case, torch.float32)
    prediction, factors = 4 * 2000 * 100 * 16, 4 * 2000 * 16 * 64  # bytes, if they were stored
    given = *inputs.values(), constants["target"], constants["valid"], constants["cu_bands"]
    _, forward = ops.choose_backend("hyper_linear_loss_fwd", *given, form)
    spectral, charbonnier, _, *saved = forward(*given, form)
    backward_given = torch.ones_like(spectral), torch.ones_like(charbonnier), *given, *saved, form
    _, backward = ops.choose_backend("hyper_linear_loss_bwd", *backward_given)
    for peak in (peak_of(forward, *given, form), peak_of(backward, *backward_given)):
        assert peak.largest <= 6 << 20 < 0.9 * min(prediction, factors)


def test_says_what_it_cannot_do():
    for dtype in (torch.float64, torch.float16):
        inputs, constants = arguments("spectral_loss", Case((2,), 2), dtype)
        with pytest.raises(RuntimeError, match=f"backend cpu cannot run it: {dtype} inputs"):
            ops.spectral_loss(**inputs, **constants)
    inputs, constants = arguments("spectral_loss", Case((2,), 2), torch.float32, torch.float64)
    with pytest.raises(RuntimeError, match=r"backend cpu cannot run it: torch.float64 inputs"):
        ops.spectral_loss(**inputs, **constants)

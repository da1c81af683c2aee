"""hyper_embed, hyper_linear, hyper_linear_loss and spectral_loss against their reference twins."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._dynamo.testing
from torch.utils.checkpoint import checkpoint

from specfast import ops
from specfast.kernels import reference
from specfast.testing import assert_close, assert_unbiased, relative_rms
from tests.ops.conftest import TOLERANCE, Case

OPERATORS = ["hyper_embed", "hyper_linear", "hyper_linear_loss", "spectral_loss"]


def arguments(op: str, case: Case) -> tuple[dict, dict]:
    """Return (differentiable, constant) float64 arguments."""
    if op == "hyper_embed":
        return case.embed(), {"cu_bands": case.cu_bands}
    if op == "hyper_linear":
        return case.linear(), {"cu_bands": case.cu_bands}
    if op == "hyper_linear_loss":
        return case.linear(), {**case.target(), "cu_bands": case.cu_bands}
    constant = case.target()
    return {"prediction": constant["target"].flip(0) * 0.7 + 0.1}, {**constant, "cu_bands": case.cu_bands}


def run(function, inputs: dict, constants: dict):
    """Return (outputs, gradients by name) of a weighted sum of the outputs."""
    inputs = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    outputs = function(**inputs, **constants)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(
        (out.double() * torch.linspace(0.5, 1.5, out.numel(), device=out.device).view_as(out)).sum()
        for out in outputs
        if out.requires_grad
    )
    gradients = torch.autograd.grad(total, list(inputs.values()))
    return [out.detach() for out in outputs], dict(zip(inputs, gradients, strict=True))


def cast(values: dict, dtype: torch.dtype, device: str) -> dict:
    return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in values.items()}


def bound(op: str, form: str | None = None):
    function = getattr(ops, op)
    return function if op == "spectral_loss" else functools.partial(function, form=form)


@pytest.mark.parametrize("op", OPERATORS)
def test_float64_equals_reference(op, case, form, device):
    inputs, constants = (cast(values, torch.float64, device) for values in arguments(op, case))
    expected, expected_gradients = run(getattr(reference, op), inputs, constants)
    actual, gradients = run(bound(op, form), inputs, constants)
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, 1e-12, f"output {number}")
    for name, expected_gradient in expected_gradients.items():
        assert_close(gradients[name], expected_gradient, 1e-11, f"d{name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("op", OPERATORS)
def test_error_is_at_most_twice_plain_torch(op, dtype, form, device):
    case = Case((48, 61), 40, pixels=64, rank=64, hidden=64, width=96)
    inputs, constants = arguments(op, case)
    inputs = {name: value * (0.1 if value.ndim == 3 else 0.5) for name, value in inputs.items()}
    inputs, constants = (cast(cast(values, dtype, device), torch.float64, device) for values in (inputs, constants))
    exact, exact_gradients = run(getattr(reference, op), inputs, constants)
    low = cast(inputs, dtype, device), cast(constants, dtype, device)
    plain, plain_gradients = run(getattr(reference, op), *low)
    actual, gradients = run(bound(op, form), *low)
    floor = TOLERANCE[dtype] / 4  # where plain torch happens to round to almost nothing
    for number, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        assert relative_rms(a, e) <= max(2 * relative_rms(p, e), floor), f"output {number}"
    for name, e in exact_gradients.items():
        assert relative_rms(gradients[name], e) <= max(2 * relative_rms(plain_gradients[name], e), floor), f"d{name}"
        assert_unbiased(gradients[name], e, TOLERANCE[dtype], f"d{name}")


@pytest.mark.parametrize("op", OPERATORS)
def test_reference_gradcheck(op):
    inputs, constants = arguments(op, Case((2, 3), 2, pixels=3, rank=2, hidden=2, width=3))
    names = list(inputs)

    def function(*values):
        outputs = getattr(reference, op)(**dict(zip(names, values, strict=True)), **constants)
        return outputs[:2] if isinstance(outputs, tuple) else outputs

    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs.values()])


@pytest.mark.parametrize("op", ["hyper_embed", "hyper_linear"])
def test_reference_forms_agree(op, case):
    inputs, constants = arguments(op, case)
    direct, dgradients = run(getattr(reference, op), inputs, constants)
    other, ogradients = run(getattr(reference, f"{op}_reassociated"), inputs, constants)
    assert_close(other[0], direct[0], 1e-12)
    for name in dgradients:
        assert_close(ogradients[name], dgradients[name], 1e-12, f"d{name}")


@pytest.mark.parametrize("op", OPERATORS)
def test_any_stride(op, form):
    inputs, constants = arguments(op, Case((5, 8), 7))
    expected, expected_gradients = run(bound(op, form), inputs, constants)

    def strided(value):
        if not value.is_floating_point() or value.ndim < 2:
            return value
        return torch.stack([value, torch.full_like(value, torch.nan)], dim=-1).transpose(0, 1)[..., 0].transpose(0, 1)

    inputs, constants = ({k: strided(v) for k, v in values.items()} for values in (inputs, constants))
    function = bound(op, form)
    assert any(not v.is_contiguous() for v in inputs.values())
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    outputs = function(**leaves, **constants)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for actual, e in zip(outputs, expected, strict=True):
        assert_close(actual, e, 1e-12)
    # a gradient that arrives expanded (stride 0) or transposed must be read right as well
    weighted = sum(
        (out * torch.linspace(0.5, 1.5, out.numel()).view_as(out)).sum() for out in outputs if out.requires_grad
    )
    gradients = dict(zip(leaves, torch.autograd.grad(weighted, list(leaves.values()), retain_graph=True), strict=True))
    expanded = torch.autograd.grad(outputs[0].sum(), list(leaves.values()))
    contiguous = {k: v.detach().contiguous().requires_grad_() for k, v in inputs.items()}
    again = function(**contiguous, **constants)
    again = again[0] if isinstance(again, tuple) else again
    plain = torch.autograd.grad((again * torch.ones_like(again)).sum(), list(contiguous.values()))
    for number, name in enumerate(expected_gradients):
        assert_close(gradients[name], expected_gradients[name], 1e-11, f"d{name}")
        assert_close(expanded[number], plain[number], 1e-11, f"d{name} of an expanded gradient")


@pytest.mark.parametrize("op", OPERATORS)
def test_opcheck(op, form):
    inputs, constants = (cast(values, torch.float32, "cpu") for values in arguments(op, Case((5, 2), 3)))
    every = inputs | constants
    extra = () if op == "spectral_loss" else (form,)
    forward = getattr(torch.ops.specfast, f"{op}_fwd").default
    torch.library.opcheck(forward, (*every.values(), *extra))
    outputs = forward(*every.values(), *extra)
    backward = getattr(torch.ops.specfast, f"{op}_bwd").default
    if op == "hyper_embed":
        tokens, *saved = outputs
        for needs_dpatches in (True, False):
            torch.library.opcheck(backward, (torch.randn_like(tokens), *every.values(), *saved, form, needs_dpatches))
    elif op == "hyper_linear":
        prediction, *saved = outputs
        torch.library.opcheck(backward, (torch.randn_like(prediction), *every.values(), *saved, form))
    else:
        spectral, charbonnier, _, *saved = outputs
        torch.library.opcheck(
            backward, (torch.randn_like(spectral), torch.randn_like(charbonnier), *every.values(), *saved, *extra)
        )


@pytest.mark.parametrize("op", OPERATORS)
def test_compiles_whole_and_without_recompiling_per_size(op):
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(getattr(ops, op), fullgraph=True, dynamic=True, backend=graphs)
    for case in (Case((5, 9), 7), Case((12, 3), 11), Case((31, 40), 5)):
        inputs, constants = (cast(values, torch.float32, "cpu") for values in arguments(op, case))
        expected, expected_gradients = run(getattr(ops, op), inputs, constants)
        actual, gradients = run(function, inputs, constants)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, 2e-6)
        for name in gradients:
            assert_close(gradients[name], expected_gradients[name], 2e-6, f"d{name}")
    assert graphs.frame_count == 1


@pytest.mark.parametrize("op", OPERATORS)
def test_autocast_and_checkpointing(op, form):
    inputs, constants = (cast(values, torch.float32, "cpu") for values in arguments(op, Case((50, 9), 7)))
    function = bound(op, form)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, gradients = run(function, inputs, constants)
    low = {name: value.bfloat16() for name, value in inputs.items()} if op != "spectral_loss" else inputs
    expected, _expected_gradients = run(function, low, constants)
    for a, e in zip(outputs, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    recomputed, recomputed_gradients = run(
        lambda **kw: checkpoint(lambda: function(**kw), use_reentrant=False), inputs, constants
    )
    plain, plain_gradients = run(function, inputs, constants)
    assert all(torch.equal(a, b) for a, b in zip(recomputed, plain, strict=True))
    assert all(torch.equal(recomputed_gradients[name], plain_gradients[name]) for name in plain_gradients)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_sample_does_not_depend_on_its_neighbors(op, form):
    case, alone = Case((5, 9, 4), 6), Case((9,), 6)
    inputs, constants = arguments(op, case)
    per_band = {"patches", "factors_v", "hidden", "factors_u", "pixel_bias", "prediction", "target"}

    def second(values):
        return {k: v[5:14] if k in per_band else v[1:2] if k in ("tokens", "valid") else v for k, v in values.items()}

    together = bound(op, form)(**inputs, **constants)
    single = bound(op, form)(**second(inputs), **(second(constants) | {"cu_bands": alone.cu_bands}))
    if op == "hyper_linear":
        together, single = (together[5:14],), (single,)
    else:
        together = [t[1:2] for t in (together if isinstance(together, tuple) else (together,))]
        single = single if isinstance(single, tuple) else (single,)
    for a, e in zip(together, single, strict=True):
        assert_close(a, e, 1e-12)


@pytest.mark.parametrize("op", OPERATORS)
def test_backward_under_another_autocast_state(op, form):
    inputs, constants = (cast(values, torch.float32, "cpu") for values in arguments(op, Case((50, 9), 7)))
    _, expected_gradients = run(bound(op, form), inputs, constants)
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    outputs = bound(op, form)(**leaves, **constants)
    outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
    weights = [torch.linspace(0.5, 1.5, out.numel()).view_as(out) for out in outputs]
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert_close(gradient, expected_gradients[name], 2e-6, f"d{name}")


@pytest.mark.parametrize("held", [1e6, float("nan"), float("inf")])
def test_loss_ignores_invalid_pixels_entirely(held):
    case = Case((6,), 3)
    inputs, constants = arguments("hyper_linear_loss", case)
    before = run(ops.hyper_linear_loss, inputs, constants)
    constants["target"][:, ~constants["valid"][0]] = held
    after = run(ops.hyper_linear_loss, inputs, constants)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])


def test_loss_of_a_zero_prediction_is_finite():
    case = Case((6,), 3)
    constants = case.target() | {"cu_bands": case.cu_bands}
    outputs, gradients = run(ops.spectral_loss, {"prediction": torch.zeros(6, 3, 16, dtype=torch.float64)}, constants)
    assert torch.allclose(outputs[0], outputs[2])  # cosine 0 for every valid pixel
    assert torch.isfinite(gradients["prediction"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"factors_v": (4, 8, 16)},
            r"factors_v must be \[S, R, P\] with S=5, P=16 to match patches \[5, 7, 16\]; got \[4, 8",
        ),
        (
            {"weight": (24, 9, 6)},
            r"weight must be \[E, R, k\] with R=8, k=6 to match factors_v .*, hidden .*; got \[24, 9, 6\]",
        ),
        ({"hidden": (5,)}, r"hidden must be \[S, k\].*; got \[5\]"),
    ],
)
def test_shape_errors_name_the_argument(change, message):
    inputs = Case((2, 3), 7).embed()
    inputs.update({name: torch.zeros(shape, dtype=torch.float64) for name, shape in change.items()})
    with pytest.raises(ValueError, match=message):
        ops.hyper_embed(**inputs, cu_bands=Case((2, 3), 7).cu_bands)


def test_other_argument_errors():
    case = Case((2, 3), 7)
    with pytest.raises(ValueError, match="cu_bands must rise from 0 to S=5"):
        ops.hyper_embed(**case.embed(), cu_bands=torch.tensor([0, 2, 6], dtype=torch.int32))
    for wrong in (torch.tensor([0, 2, 5]), [0, 2, 5], torch.tensor(3, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"cu_bands must be an int32 tensor \[B \+ 1\]"):
            ops.hyper_embed(**case.embed(), cu_bands=wrong)
    with pytest.raises(ValueError, match="form must be one of direct, reassociated"):
        ops.hyper_embed(**case.embed(), cu_bands=case.cu_bands, form="fast")
    with pytest.raises(ValueError, match=r"factors_v must be torch.float64 to match patches; got torch.float32"):
        ops.hyper_embed(**case.embed() | {"factors_v": case.embed()["factors_v"].float()}, cu_bands=case.cu_bands)
    target = case.target()
    with pytest.raises(ValueError, match="target is constant"):
        ops.hyper_linear_loss(
            **case.linear(), target=target["target"].requires_grad_(), valid=target["valid"], cu_bands=case.cu_bands
        )


@pytest.mark.parametrize("op", OPERATORS)
def test_arguments_elsewhere_are_named(op):
    """A kernel would take an address of one device for one of the other."""
    inputs, constants = arguments(op, Case((2, 3), 7))
    first, *others = [*inputs, *constants]
    for name in others:
        values = inputs | constants
        with pytest.raises(ValueError, match=rf"{op}: {name} must be on cpu to match {first}; got meta"):
            getattr(ops, op)(**values | {name: values[name].to("meta")})


def test_planner_follows_cost_and_can_be_overridden():
    published = {"samples": 1, "tokens": 196, "width": 768, "rank": 64, "hidden": 64}
    choices = [ops.choose_form("hyper_embed", None, bands=c, **published) for c in range(1, 300)]
    assert choices[0] == "direct"
    assert choices[-1] == "reassociated"
    assert sorted(choices) == choices  # one crossing only
    assert choices.index("reassociated") + 1 == 53
    with ops.use_form("direct"):
        assert ops.choose_form("hyper_embed", None, bands=299, **published) == "direct"
    assert ops.choose_form("hyper_embed", None, bands=299, **published) == "reassociated"

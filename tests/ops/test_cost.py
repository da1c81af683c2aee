"""Costs against what torch counts on the reference twins, and what explain says of them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from specfast import ops
from specfast.kernels import reference
from specfast.ops import explaining
from specfast.ops.native import cuda
from tests.ops.conftest import Case

CASE = Case((6, 11), 7, pixels=16, rank=8, hidden=6, width=24)
OPERATORS = ("patch_pool", "hyper_embed", "hyper_linear", "hyper_linear_loss", "spectral_loss")
SIZES = {"samples": 2, "bands": 17, "tokens": 7, "width": 24, "rank": 8, "hidden": 6}


def counted(function, *arguments) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("op", "inputs"), [("hyper_embed", CASE.embed()), ("hyper_linear", CASE.linear())], ids=["embed", "linear"]
)
def test_flop_are_what_torch_counts(op, inputs):
    arguments = (*inputs.values(), CASE.cu_bands)
    s, n, r, e = (SIZES[name] for name in ("bands", "tokens", "rank", "width"))
    # the bias column of the generator, which the twins add or sum without a matmul
    outside = {"direct": 2 * s * r * e, "reassociated": 2 * s * n * r}
    for form, twin in (("direct", op), ("reassociated", f"{op}_reassociated")):
        expected = counted(getattr(reference, twin), *arguments) + outside[form]
        assert ops.cost(op, "forward", form, pixels=16, **SIZES).flop == expected


def test_bytes_are_those_of_the_arguments_and_results():
    inputs = CASE.embed()
    out = ops.hyper_embed(**inputs, cu_bands=CASE.cu_bands)
    forward = ops.cost("hyper_embed", "forward", pixels=16, itemsize=8, **SIZES)
    assert forward.bytes == 8 * (sum(value.numel() for value in inputs.values()) + out.numel())
    inputs, constants = CASE.linear(), CASE.target()
    given = 8 * sum(value.numel() for value in (*inputs.values(), constants["target"])) + constants["valid"].numel()
    assert ops.cost("hyper_linear_loss", "forward", pixels=16, itemsize=8, **SIZES).bytes == given


def test_the_base_model_at_202_bands():
    """The published GFLOP a sample of the design: 18.1 direct with all tokens, 1.9 re-associated with those kept."""
    sizes = {"samples": 1, "bands": 202, "width": 768, "rank": 64, "hidden": 64}
    assert ops.cost("hyper_embed", "forward", "direct", tokens=784, **sizes).flop == pytest.approx(18.1e9, rel=0.01)
    assert ops.cost("hyper_embed", "forward", tokens=196, **sizes).flop == pytest.approx(1.9e9, rel=0.02)
    sizes["width"] = 512
    assert ops.cost("hyper_linear_loss", "forward", tokens=588, **sizes).flop == pytest.approx(4.5e9, rel=0.03)


def test_full_is_forward_and_backward():
    for op in ("patch_pool", "hyper_embed", "hyper_linear", "hyper_linear_loss", "spectral_loss"):
        forward, backward, full = (ops.cost(op, mode, patches=16, **SIZES) for mode in ("forward", "backward", "full"))
        assert (full.flop, full.bytes) == (forward.flop + backward.flop, forward.bytes + backward.bytes)
        assert full.flop > 0
        assert full.floor(1.0, 1e30) == full.flop
        assert full.floor(1e30, 1.0) == full.bytes


def test_explain_says_the_choice_and_its_price():
    sizes = {"samples": 2, "tokens": 196, "width": 768}
    with ops.use_backend("eager"):
        many = ops.explain("hyper_embed", bands=404, **sizes, flops=1e12, bandwidth=1e11)
    few = ops.explain("hyper_embed", bands=20, **sizes)
    assert (many.form, many.backend, few.form) == ("reassociated", "eager", "direct")
    assert many.seconds["forward"] == pytest.approx(many.costs["forward"].flop / 1e12)
    assert not few.seconds
    text = str(many)
    assert text.startswith("hyper_embed: backend eager, form reassociated (3.3 times less arithmetic than direct)")
    assert "ms (bound by arithmetic)" in text
    assert "asked for" in str(ops.explain("hyper_embed", bands=404, form="direct", **sizes))
    for dtype in (torch.float64, torch.bfloat16):
        for op in ("patch_pool", "hyper_linear", "hyper_linear_loss", "spectral_loss"):
            assert ops.explain(op, bands=404, patches=784, dtype=dtype, **sizes).backend in ops.BACKENDS


@pytest.mark.parametrize("op", OPERATORS)
def test_explain_asks_a_backend_with_all_arguments(op, form, monkeypatch):
    """Those of the registered operator; Triton's and CUDA's look at the late ones, too."""
    pytest.importorskip("triton")
    names = [argument.name for argument in getattr(torch.ops.specfast, f"{op}_fwd").default._schema.arguments]
    asked = {}

    def choose(name, *arguments):
        asked.update(zip(names, arguments, strict=True))
        return ops.choose_backend(name, *arguments)

    monkeypatch.setattr(explaining, "choose_backend", choose)
    with ops.use_backend("triton", strict=True):
        device = "cuda" if torch.cuda.is_available() else "cpu"  # there Triton's interpreter
        explanation = ops.explain(op, pixels=16, patches=9, form=form, device=device, **SIZES)
    assert explanation.backend == "triton"
    assert asked.get("form", form) == form
    with asked[names[0]].fake_mode:  # the shapes are those that the operator takes
        assert len(getattr(torch.ops.specfast, f"{op}_fwd")(*asked.values())) >= 3
    if op in ("patch_pool", "hyper_embed"):
        assert cuda._unsupported_inputs(f"{op}_fwd", *asked.values()) in (None, "torch.float32 inputs")


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match=r"op must be one of patch_pool, .*; got 'embed'"):
        ops.cost("embed", **SIZES)
    with pytest.raises(ValueError, match=r"op must be one of patch_pool, .*; got 'embed'"):
        ops.explain("embed", **SIZES)
    with pytest.raises(ValueError, match="mode must be one of forward, backward, full; got 'both'"):
        ops.cost("hyper_embed", "both", **SIZES)
    with pytest.raises(ValueError, match="form must be one of"):
        ops.cost("hyper_embed", form="other", **SIZES)
    with pytest.raises(ValueError, match="flops and bandwidth go together"):
        ops.explain("hyper_embed", flops=1e12, **SIZES)

"""Every form of every benchmark computes the same numbers, in every mode."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.cases import MODES, providers_of, work_of
from bench.measure import errors_of
from bench.modules import MODULES
from bench.operators import OPERATORS
from bench.shapes import Shape, Sizes

CPU = torch.device("cpu")
SHAPE = Shape(2, 9, 32, Sizes("test", patch=8, rank=16, condition=32, width=48, decoder_width=40))
CASES = [("operator", name) for name in OPERATORS] + [("module", name) for name in MODULES]
# Where the loss's gradient is summed over many numbers of both signs, 16-bit rounding shows more.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def make(unit: str, name: str, dtype: torch.dtype):
    return (OPERATORS if unit == "operator" else MODULES)[name](SHAPE, dtype, CPU)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("unit", "name"), CASES)
def test_all_forms_agree(unit, name, dtype):
    case = make(unit, name, dtype)
    providers = [p for p in providers_of(case, CPU) if not p.endswith("-compile")]
    assert {"reference", "specfast", "specfast-eager"} <= set(providers)
    for mode in MODES if case.inputs else ("forward",):
        work = work_of(case, unit, name, mode, SHAPE, dtype, providers)
        expected = work.expected()
        gradients = {key for key in expected if key.startswith("gradient")}
        assert bool(gradients) == (mode != "forward")
        assert (len(expected) > len(gradients)) == (mode != "backward")
        for provider, value in work.providers.items():
            result = value.setup()()
            if value.outputs is not None:
                error = max(errors_of(value.outputs(result), expected).values())
                assert error <= TOLERANCE[dtype], f"{provider}, {mode}: {error:.1e}"


@pytest.mark.parametrize(("unit", "name"), CASES)
def test_every_input_and_generator_gets_a_gradient(unit, name):
    case = make(unit, name, torch.float32)
    if not case.inputs:
        pytest.skip("no gradient in training")
    work = work_of(case, unit, name, "full", SHAPE, torch.float32, ["specfast"])
    provider = work.providers["specfast"]
    outputs = provider.outputs(provider.setup()())
    trained = [] if case.module is None else [key for key, p in case.module.named_parameters() if p.requires_grad]
    for leaf in (*case.inputs, *trained):
        assert outputs[f"gradient of {leaf}"].abs().sum() > 0, leaf


@pytest.mark.parametrize(("unit", "name"), CASES)
def test_cost_grows_with_bands_and_splits_in_modes(unit, name):
    case = make(unit, name, torch.float32)
    forward, backward, full = (case.cost(mode) for mode in MODES)
    assert full.flop > forward.flop > 0
    assert full.flop == forward.flop + backward.flop or name == "patch_pool"
    larger = (OPERATORS if unit == "operator" else MODULES)[name](
        dataclasses.replace(SHAPE, bands=18), torch.float32, CPU
    )
    assert larger.cost("full").bytes > full.bytes
    assert larger.cost("full").flop > full.flop


def test_a_forced_backend_is_the_one_that_runs(monkeypatch):
    from specfast import ops

    seen = []
    choose = ops.backends.choose_backend

    def spy(name, *arguments):
        chosen = choose(name, *arguments)
        seen.append((name, chosen[0]))
        return chosen

    monkeypatch.setattr(ops.backends, "choose_backend", spy)
    case = make("operator", "hyper_linear", torch.float32)
    work_of(case, "operator", "hyper_linear", "full", SHAPE, torch.float32, ["specfast-eager"]).providers[
        "specfast-eager"
    ].setup()()
    assert seen == [("hyper_linear_fwd", "eager"), ("hyper_linear_bwd", "eager")]

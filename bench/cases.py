"""A case: one operator or module at one shape, computed in several ways from the same inputs, in three modes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.measure import Provider, Work
from bench.memory import roomy
from bench.shapes import Shape
from specfast import ops

MODES = ("forward", "backward", "full")
Tensors = dict[str, Tensor]
# inputs, constants, module -> outputs
Form = Callable[[Tensors, Tensors, nn.Module | None], tuple[Tensor, ...]]


@dataclass
class Case:
    """What every provider starts from.

    Attributes:
        inputs: get gradients; so do the module's parameters.
        constants: the rest (floating ones in the dtype of the case).
        forms: how each provider computes it; ``specfast`` also serves its forced backends.
        exact: gives the expected numbers, in float64.
        cost: of one mode.
        unchecked: forms that compute another function (a lower bound).
        module: in float32; its forms run under autocast where the dtype is another.
    """

    inputs: Tensors
    constants: Tensors
    forms: dict[str, Form]
    exact: Form
    cost: Callable[[str], ops.Cost]
    unchecked: dict[str, tuple[Form, nn.Module]] = field(default_factory=dict)
    module: nn.Module | None = None

    def oracle(self, dtype: torch.dtype) -> Case:
        """The exact form alone, in another precision."""
        wide = [
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in group.items()}
            for group in (self.inputs, self.constants)
        ]
        module = None if self.module is None else copy.deepcopy(self.module).to(dtype)
        return Case(*wide, {"exact": self.exact}, self.exact, self.cost, module=module)


def providers_of(case: Case, device: torch.device) -> list[str]:
    """Every provider there is for a case on a device, baseline first."""
    ours = [f"specfast-{name}" for name in (("triton", "cuda", "eager") if device.type == "cuda" else ("eager",))]
    names = list(case.forms)
    return [names[0], f"{names[0]}-compile", *names[1:], *ours, *case.unchecked]


def work_of(
    case: Case, unit: str, kernel: str, mode: str, shape: Shape, dtype: torch.dtype, providers: list[str]
) -> Work:
    """The case as a work that can be measured."""
    cost = case.cost(mode)
    known: dict[str, Tensor] = {}

    def expected() -> Tensors:
        """In float64, or in float32 where a GPU has no room for that."""
        if not known:

            def exact(dtype: torch.dtype) -> tuple[Tensor, ...]:
                return setup(case.oracle(dtype), "exact", mode, dtype)()

            known.update(_named(case, mode, roomy(lambda: exact(torch.float64), lambda: exact(torch.float32))))
        return known

    def provider(name: str) -> Provider:
        if name in case.unchecked:
            form, module = case.unchecked[name]
            other = Case({}, case.constants, {name: form}, form, case.cost, module=module)
            return Provider(lambda: setup(other, name, mode, dtype), None)
        return Provider(
            lambda: setup(case, name, mode, dtype),
            lambda result: _named(case, mode, result),
            compiled=name.endswith("-compile"),
        )

    return Work(
        unit,
        kernel,
        mode,
        shape,
        dtype,
        {name: provider(name) for name in providers},
        expected=expected,
        flop=cost.flop,
        bytes=cost.bytes,
    )


def setup(case: Case, name: str, mode: str, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
    """Everything before the timed call, and that call."""
    form, backend = case.forms.get(name), None
    if name.endswith("-compile"):
        form = _compiled(case.forms[name.removesuffix("-compile")])
    elif form is None:
        form, backend = case.forms["specfast"], name.removeprefix("specfast-")
    inputs = {key: value.detach().requires_grad_(mode != "forward") for key, value in case.inputs.items()}
    parameters = [] if case.module is None else [p for p in case.module.parameters() if p.requires_grad]
    leaves = [*inputs.values(), *parameters]
    device = next(iter(case.constants.values())).device
    amp = case.module is not None and dtype not in (torch.float32, torch.float64)

    def forward() -> tuple[Tensor, ...]:
        chosen = ops.use_backend(backend, strict=True) if backend else contextlib.nullcontext()
        with torch.set_grad_enabled(mode != "forward"), torch.autocast(device.type, dtype, enabled=amp), chosen:
            return form(inputs, case.constants, case.module)

    def backward(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        chosen = ops.use_backend(backend, strict=True) if backend else contextlib.nullcontext()
        with chosen:
            used = [out for out in outputs if out.requires_grad]
            return torch.autograd.grad(used, leaves, [_cotangent(out) for out in used], allow_unused=True)

    if mode == "forward":
        return forward
    if mode == "backward":
        outputs = forward()
        for out in outputs:
            _cotangent(out)  # made here, so that making it is not timed
        return lambda: backward(outputs)
    return lambda: (*(outputs := forward()), *backward(outputs))


_forms: dict[Form, Form] = {}


def _compiled(form: Form) -> Form:
    """Compile a form once; the closure knows its shape."""
    if form not in _forms:
        _forms[form] = torch.compile(form)
    return _forms[form]


def forget_compiled() -> None:
    """Drop compiled forms, so that the next shape is compiled for its own sizes, as a first shape is."""
    if _forms:
        _forms.clear()
        torch.compiler.reset()


_made: dict[tuple, Tensor] = {}


def _cotangent(out: Tensor) -> Tensor:
    """A fixed random gradient of an output, the same in every precision; the last few are kept."""
    key = (tuple(out.shape), out.dtype, out.device)
    if key not in _made:
        if len(_made) > 6:
            _made.clear()
        generator = torch.Generator(out.device).manual_seed(11)
        values = torch.randn(out.shape, generator=generator, device=out.device)
        _made[key] = values.to(torch.bfloat16).to(out.dtype)
    return _made[key]


def _named(case: Case, mode: str, result: tuple[Tensor, ...]) -> Tensors:
    """Names for the outputs and gradients of one run; inputs without a gradient are left out."""
    gradients = [*case.inputs, *(name for name, p in _parameters(case.module) if p.requires_grad)]
    outputs = result if mode == "forward" else result[: len(result) - len(gradients)]
    found = {} if mode == "backward" else {f"output {number}": out for number, out in enumerate(outputs)}
    if mode != "forward":
        values = result[len(outputs) :]
        found |= {f"gradient of {name}": v for name, v in zip(gradients, values, strict=True) if v is not None}
    return found


def _parameters(module: nn.Module | None):
    return [] if module is None else module.named_parameters()

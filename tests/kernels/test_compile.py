"""Every Triton kernel with every checked-in configuration, compiled for GPUs that need not be here.

The limits are those of the A100, H100 and B200. What is compiled is what the launchers would launch, see harness.py.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import pytest

pytest.importorskip("triton")

from specfast.kernels import configs
from specfast.kernels.triton import launch
from tests.kernels.harness import compile_kernels

MODULES = [
    importlib.import_module(f"tests.kernels.{path.stem}") for path in sorted(Path(__file__).parent.glob("launches*.py"))
]
LAUNCHES = [f"{module.__name__}:{name}" for module in MODULES for name in module.LAUNCHES]
WITHOUT_DOT = set().union(*(module.WITHOUT_DOT for module in MODULES))  # kernels that multiply no matrices
# At other sizes than the base model's, ptxas may park a few addresses on the stack; more would be accumulators.
STACK = {"base": 0, "small": 16, "odd": 16, "large": 48, "deep": 16}


def variants():
    """architecture, dtype, size, tf32; quick are the base model's in bfloat16 and, on one architecture, some more."""
    for architecture in configs.ARCHITECTURES:
        for dtype, tf32 in (("bfloat16", False), ("float16", False), ("float32", False), ("float32", True)):
            for size in ("base", "small", "odd", "large", "deep"):
                quick = dtype == "bfloat16" and size == "base"
                quick |= architecture == "sm_90" and (dtype, size) in (("bfloat16", "small"), ("float32", "base"))
                # one process compiles all variants of an architecture that it is given
                marks = [pytest.mark.xdist_group(f"compile_{architecture}"), *([] if quick else [pytest.mark.slow])]
                name = f"{architecture}-{'tf32' if tf32 else dtype}-{size}"
                yield pytest.param((architecture, dtype, size, tf32), marks=marks, id=name)


@functools.cache
def compiled(architecture: str, dtype: str, size: str, tf32: bool) -> list[dict]:
    request = {"architecture": architecture, "dtype": dtype, "size": size, "tf32": tf32}
    return compile_kernels([{"launch": launch_name, **request} for launch_name in LAUNCHES])


@pytest.fixture(params=variants())
def variant(request):
    return request.param


def kernels(variant) -> list[dict]:
    found = [kernel for entry in compiled(*variant) for kernel in entry["kernels"]]
    assert found
    return found


def test_fits_without_spilling(variant):
    architecture, _, size, _ = variant
    wrong = [
        f"{kernel['kernel']}: {kernel['shared_bytes']} bytes shared, {kernel['stack']} stack, {kernel['local']} local"
        for kernel in kernels(variant)
        if kernel["shared_bytes"] > launch.SHARED_MEMORY[architecture]
        or kernel["stack"] > STACK[size]
        or kernel["local"]
        or not 0 < kernel["registers"] <= 255
    ]
    assert not wrong


def test_uses_tensor_cores(variant):
    architecture, dtype, size, tf32 = variant
    exact = dtype == "float32" and not tf32  # tensor cores would round its inputs
    meant = {kernel["kernel"]: kernel["mma"] for kernel in kernels(variant)}
    assert meant.keys() >= WITHOUT_DOT
    meant = {name: mma for name, mma in meant.items() if name not in WITHOUT_DOT}
    assert meant
    assert not [name for name, mma in meant.items() if bool(mma) == exact]
    if dtype == "bfloat16" and size == "base" and architecture != "sm_80":  # the generation's own instruction
        own = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}[architecture]
        assert any(own in mma for mma in meant.values())


def test_one_compilation_serves_all_batches(variant):
    """No number of samples, bands or tokens is compiled for."""
    for entry in compiled(*variant):
        rounds = {}
        for kernel in entry["kernels"]:
            rounds.setdefault(kernel["round"], set()).add((kernel["kernel"], kernel["specialization"]))
        assert len(rounds) > 1, entry["request"]
        assert all(specializations == rounds[0] for specializations in rounds.values()), entry["request"]


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(
            name, marks=[pytest.mark.xdist_group(f"compile_{name}"), *([] if name == "sm_90" else [pytest.mark.slow])]
        )
        for name in configs.ARCHITECTURES
    ],
)
def test_every_configuration_is_compiled(architecture):
    """The kernels that a launch asks for are those of the files; the variants above compile them for every type."""
    known = {f"{kernel} {bits}" for kernel, entry in configs.all_configs(architecture).items() for bits in entry}
    asked = {
        name
        for dtype in ("bfloat16", "float32")
        for entry in compiled(architecture, dtype, "base", False)
        for name in entry["configs"]
    }
    assert asked == known

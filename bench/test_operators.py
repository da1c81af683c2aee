"""Micro-benchmarks of a few milliseconds: `pytest bench --benchmark-only`. The record is `python -m bench`."""

from __future__ import annotations

import pytest
import torch

from bench.cases import Case, providers_of
from bench.cases import setup as prepared
from bench.modules import MODULES
from bench.operators import OPERATORS
from bench.shapes import TINY, Shape, name_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = Shape(2, 60, 64, TINY)
DTYPES = (torch.float32, torch.bfloat16)
PARTS = {f"operator-{name}": make for name, make in OPERATORS.items()} | {
    f"module-{name}": make for name, make in MODULES.items()
}


def _case(part: str, dtype: torch.dtype) -> Case:
    return PARTS[part](SHAPE, dtype, DEVICE)


@pytest.mark.parametrize("provider", ["reference", "specfast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("part", PARTS)
def test_full(benchmark, part, dtype, provider):
    """Forward and backward (patch_pool: forward)."""
    case = _case(part, dtype)
    assert provider in providers_of(case, DEVICE)
    run = prepared(case, provider, "full" if case.inputs else "forward", dtype)

    def finished():
        result = run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.group = f"{part}, {name_of(dtype)}, {SHAPE}"
    result = benchmark.pedantic(finished, rounds=5, warmup_rounds=2)
    assert all(bool(torch.isfinite(value).all()) for value in result if value is not None)

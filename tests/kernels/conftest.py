"""Where and in which types the Triton kernels are tested: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.ops.conftest import Case, poisoned_memory  # noqa: F401  (a fixture for all tests here)

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies bfloat16 matrices wrongly.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
CASES = [
    Case((5, 5), 7),
    Case((3, 9, 1), 4),  # ragged
    Case((63,), 1, pixels=25, rank=5, hidden=3, width=17),  # odd sizes
    Case((1,), 1, pixels=1, rank=1, hidden=1, width=1),
    Case((4, 0, 3), 2),  # a sample without bands
    Case((0, 0), 2),  # no bands
    Case((4, 2), 0),  # no tokens
    Case((), 3),  # no samples
    Case((3, 18), 5, pixels=144, rank=20, hidden=80, width=24),  # several slices of pixels, a wide hidden vector
    Case((20, 35), 17, pixels=64, rank=64, hidden=64, width=96),
]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str)
    if "form" in metafunc.fixturenames:
        metafunc.parametrize("form", ["reassociated", "direct"])
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def nothing_is_read_back(monkeypatch):
    """Make reading a tensor's values on the host an error: a CUDA graph could not capture it."""

    def refuse(*_):
        raise AssertionError("a value was read back to the host")

    for name in ("tolist", "item", "__int__", "__float__", "__bool__", "__index__", "nonzero", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)

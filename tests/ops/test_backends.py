"""Which backend an operator takes: by device, by wish, and what it says when it cannot."""

from __future__ import annotations

import warnings

import pytest
import torch

from specfast import _native, ops
from specfast.ops import backends
from tests.ops.conftest import Case

NATIVE = pytest.mark.skipif(_native.load()[0] is None, reason=f"specfast._C is {_native.load()[1]}")


def pool_arguments(dtype=torch.float32):
    return torch.rand(4, 16, 16, dtype=dtype), torch.zeros(2, 1, dtype=torch.int64), Case((1, 3), 1).cu_bands, 8


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv("SPECFAST_BACKEND", raising=False)
    backends._say_once.cache_clear()


@NATIVE
def test_the_device_and_the_dtype_decide():
    assert ops.choose_backend("patch_pool_fwd", *pool_arguments())[0] == "cpu"
    assert ops.choose_backend("patch_pool_fwd", *pool_arguments(torch.float64))[0] == "eager"


@NATIVE
def test_a_wish_is_met_and_nests(monkeypatch):
    monkeypatch.setenv("SPECFAST_BACKEND", "eager")
    arguments = pool_arguments()
    assert ops.choose_backend("patch_pool_fwd", *arguments)[0] == "eager"
    with ops.use_backend("cpu"):
        assert ops.choose_backend("patch_pool_fwd", *arguments)[0] == "cpu"
        with ops.use_backend(None):  # the device's own order, whatever the environment says
            assert ops.choose_backend("patch_pool_fwd", *arguments)[0] == "cpu"
        with ops.use_backend("eager"):
            assert ops.choose_backend("patch_pool_fwd", *arguments)[0] == "eager"
    assert ops.choose_backend("patch_pool_fwd", *arguments)[0] == "eager"


def test_a_wish_that_cannot_be_met_is_said_once():
    arguments = pool_arguments(torch.float64)
    with ops.use_backend("cpu"):
        with pytest.warns(RuntimeWarning, match=r"patch_pool_fwd: backend cpu cannot run it: .*; the next one does"):
            assert ops.choose_backend("patch_pool_fwd", *arguments)[0] == "eager"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ops.patch_pool(*arguments)
    with ops.use_backend("cpu", strict=True), pytest.raises(RuntimeError, match="patch_pool_fwd: backend cpu cannot"):
        ops.patch_pool(*arguments)


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="use_backend: backend must be one of cpu, triton, cuda, eager; got 'gpu'"):
        ops.use_backend("gpu").__enter__()
    monkeypatch.setenv("SPECFAST_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"SPECFAST_BACKEND: backend must be one of .*; got 'fast'"):
        ops.patch_pool(*pool_arguments())


def test_backward_follows_the_wish_of_its_own_time():
    """Saved tensors mean the same in every backend, so forward and backward may differ."""
    case = Case((3, 2), 4)
    inputs = {k: v.float().requires_grad_() for k, v in case.embed().items()}
    with ops.use_backend("eager"):
        tokens = ops.hyper_embed(**inputs, cu_bands=case.cu_bands)
    gradients = torch.autograd.grad(tokens.sum(), list(inputs.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)

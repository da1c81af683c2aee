"""Which backend an operator takes: by device, by wish, and what it says when it cannot."""

from __future__ import annotations

import functools
import types
import warnings

import pytest
import torch

from specfast import _native, ops
from specfast.ops import backends
from specfast.testing import assert_close
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


@NATIVE
def test_backward_follows_the_wish_of_its_own_time(monkeypatch):
    """Saved tensors mean the same in every backend, so forward and backward may differ."""
    ran = []
    for backend in ("cpu", "eager"):
        module = backends._load(backend)[0]
        for name in ("hyper_linear_loss_fwd", "hyper_linear_loss_bwd"):

            def record(*arguments, function, what):
                ran.append(what)
                return function(*arguments)

            spy = functools.partial(record, function=getattr(module, name), what=(backend, name))
            monkeypatch.setattr(module, name, spy)
    case = Case((3, 2), 4)
    inputs = {k: v.float().requires_grad_() for k, v in case.linear().items()}
    constants = {k: v.float() if v.is_floating_point() else v for k, v in case.target().items()}

    def gradients(forward, backward):
        with ops.use_backend(forward):
            spectral = ops.hyper_linear_loss(**inputs, **constants, cu_bands=case.cu_bands)[0]
        with ops.use_backend(backward):
            return torch.autograd.grad(spectral.sum(), list(inputs.values()))

    mixed, alone = gradients("eager", "cpu"), gradients("eager", "eager")
    eager = [("eager", "hyper_linear_loss_fwd"), ("eager", "hyper_linear_loss_bwd")]
    assert ran == [eager[0], ("cpu", "hyper_linear_loss_bwd"), *eager]
    for one, other in zip(mixed, alone, strict=True):
        assert_close(one, other, 1e-4)  # with two bands the cosine of neighbors cancels


def fake_backends(monkeypatch, **reasons):
    """Make every backend a module that cannot, for the given reason, or (None) can run an operator."""

    def load(backend):
        reason = reasons.get(backend)
        return types.SimpleNamespace(fake_fwd=lambda *_: backend, unsupported=lambda *_: reason), ""

    monkeypatch.setattr(backends, "_load", load)


def test_a_gpu_left_to_eager_is_said_once_with_the_reasons(monkeypatch):
    on = types.SimpleNamespace
    fake_backends(monkeypatch, cpu="too wide", triton="float64 inputs", cuda="no such kernel")
    expected = r"fake_fwd: slower PyTorch .* on the GPU, .* \(triton: float64 inputs; cuda: no such kernel\)"
    with pytest.warns(RuntimeWarning, match=expected):
        assert ops.choose_backend("fake_fwd", on(device=torch.device("cuda", 1)))[0] == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.choose_backend("fake_fwd", on(device=torch.device("cuda", 0)))
        backends._say_once.cache_clear()
        assert ops.choose_backend("fake_fwd", on(device=torch.device("cpu")))[0] == "eager"  # documented, not said
        with ops.use_backend("eager"):  # as wished
            assert ops.choose_backend("fake_fwd", on(device=torch.device("cuda")))[0] == "eager"
        fake_backends(monkeypatch, triton="float64 inputs")
        assert ops.choose_backend("fake_fwd", on(device=torch.device("cuda")))[0] == "cuda"


def test_an_operator_runs_on_the_device_of_its_tensors(monkeypatch):
    """Without a GPU: what is made current, and that it is current when the backend runs."""
    current = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(backends, "choose_backend", lambda *_: ("fake", lambda *_: list(current)))
    second = torch.device("cuda", 1)
    assert backends._run("fake_fwd", types.SimpleNamespace(device=second)) == [second]
    assert backends._run("fake_fwd", torch.zeros(1)) == current == []


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_current_device_does_not_matter(backend):
    if backends._load(backend)[0] is None:
        pytest.skip(backends._load(backend)[1])
    image, *rest = (a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in pool_arguments())
    expected = ops.patch_pool(image.cpu(), *(a.cpu() if isinstance(a, torch.Tensor) else a for a in rest))
    with torch.cuda.device(0), ops.use_backend(backend, strict=True):
        actual = ops.patch_pool(image, *rest)
        assert torch.cuda.current_device() == 0
    for one, other in zip(actual, expected, strict=True):
        assert one.device == image.device
        assert_close(one.cpu(), other, 2e-6)

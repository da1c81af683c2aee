"""Which backend computes an operator: chosen on the host at every call, by device, wish and what each can do.

=======  =========================================================  ==================================
backend  what it is                                                 where
=======  =========================================================  ==================================
cpu      C++ of specfast._C for patch_pool, hyper_linear, the       CPU, float32 and bfloat16
         losses and deltas, dense GEMMs through torch (hyper_embed
         is made of those, and is eager's)
triton   kernels/triton, dense GEMMs through torch                  CUDA; CPU in Triton's interpreter
cuda     CUDA C++ of specfast._C: patch_pool, hyper_embed, deltas   CUDA
eager    PyTorch with bounded memory                                everywhere, every floating dtype
=======  =========================================================  ==================================
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from specfast import _native
from specfast.ops.schemas import LIBRARY, NAMES

_MODULES = {
    "cpu": "specfast.ops.native.cpu",
    "triton": "specfast.kernels.triton",
    "cuda": "specfast.ops.native.cuda",
    "eager": "specfast.kernels.eager",
}
BACKENDS = tuple(_MODULES)
_ORDER = {"cpu": ("cpu", "eager"), "cuda": ("triton", "cuda", "eager")}
_logger = logging.getLogger(__name__)
_forced: tuple[str, bool] | None = None


@contextlib.contextmanager
def use_backend(name: str | None, *, strict: bool = False) -> Iterator[None]:
    """Prefer one backend for every operator called inside, in all threads; it overrides ``SPECFAST_BACKEND``.

    Args:
        name: one of ``ops.BACKENDS``, or None for the order of preference of the device.
        strict: raise RuntimeError where the backend cannot do an operator, instead of saying so once and going on to
            the next one.

    Raises:
        ValueError: the name is unknown.
    """
    if name is not None:
        _check_name("use_backend", name)
    global _forced
    before, _forced = _forced, (name, strict) if name else ("auto", False)
    try:
        yield
    finally:
        _forced = before


def choose_backend(name: str, *arguments) -> tuple[str, Callable]:
    """Return the backend that runs the registered operator ``name`` on these arguments, and its function.

    Raises:
        RuntimeError: a strict wish cannot be met.
        ValueError: ``SPECFAST_BACKEND`` names no backend.
    """
    device = arguments[0].device.type
    wish, strict = _wish()
    order = _ORDER.get(device, ("eager",))
    reasons: dict[str, str] = {}
    for backend in order if wish is None else (wish, *order):
        function, reason = _candidate(backend, name, arguments)
        if function is not None:
            if device == "cuda" and backend == "eager" != wish:
                why = "; ".join(f"{other}: {reason}" for other, reason in reasons.items())
                _say_once(f"{name}: slower PyTorch operators run it on the GPU, for no kernel here can ({why}).")
            return backend, function
        reasons[backend] = reason
        if backend == wish:
            message = f"{name}: backend {backend} cannot run it: {reason}"
            if strict:
                raise RuntimeError(message)
            _say_once(f"{message}; the next one does.")
        else:
            _logger.debug("%s: not through %s: %s", name, backend, reason)
    raise AssertionError("eager runs everything")


def preferred_backend(device: str) -> str:
    """Return the wished backend, or the first in the order of a device type."""
    return _wish()[0] or _ORDER.get(device, ("eager",))[0]


def _wish() -> tuple[str | None, bool]:
    name, strict = _forced or (os.environ.get("SPECFAST_BACKEND") or "auto", False)
    if name == "auto":
        return None, False
    _check_name("SPECFAST_BACKEND", name)
    return name, strict


def _check_name(source: str, name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: backend must be one of {', '.join(BACKENDS)}; got {name!r}")


def _candidate(backend: str, name: str, arguments: tuple) -> tuple[Callable | None, str]:
    module, reason = _load(backend)
    if module is None:
        return None, reason
    function = getattr(module, name, None)
    if function is None:
        return None, "it has no kernel for it"
    reason = module.unsupported(name, *arguments) if backend != "eager" else None
    return (function, "") if reason is None else (None, reason)


@functools.cache
def _load(backend: str) -> tuple[ModuleType | None, str]:
    """Import a backend's module once; None and the reason where it cannot be had."""
    if backend in ("cpu", "cuda"):
        extension = _native.extension()
        if extension is None:
            return None, "specfast._C is missing"
        if backend == "cuda" and not extension.cuda_built():
            return None, "specfast._C was built without CUDA (no nvcc when it was installed)"
    try:
        return importlib.import_module(_MODULES[backend]), ""
    except ImportError as error:
        reason = f"it cannot be imported ({error})"
        if backend == "triton" and torch.cuda.is_available():
            warnings.warn(f"The Triton kernels are not used: {reason}. Slower operators are.", stacklevel=2)
        return None, reason


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _run(name: str, *arguments):
    _, function = choose_backend(name, *arguments)
    device = arguments[0].device
    # kernels are launched on the current device, which need not be the tensors'
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    # inputs come in the precision they are to be computed in; a backward may run under another autocast state
    with on_device, torch.autocast(device.type, enabled=False):
        return function(*arguments)


for _name in NAMES:
    LIBRARY.impl(_name, functools.partial(_run, _name), "CompositeExplicitAutograd")

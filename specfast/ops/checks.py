"""Argument checks and autocast, the same for every operator and backend; everything here runs before any launch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def check_shapes(op: str, arguments: dict[str, tuple[Tensor, str]]) -> dict[str, int]:
    """Bind the symbols of shape strings such as ``"S K P"`` in order, and return them.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a tensor's shape contradicts its own rank or a symbol bound by an earlier argument; the message
            names the argument, what is expected, what it must match, and what was given.
    """
    sizes: dict[str, int] = {}
    bound_by: dict[str, str] = {}
    for name, (tensor, spec) in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        symbols = spec.split()
        if tensor.ndim != len(symbols) or any(
            sizes.get(symbol, size) != size for symbol, size in zip(symbols, tensor.shape, strict=True)
        ):
            known = [symbol for symbol in symbols if symbol in sizes]
            message = f"{op}: {name} must be [{', '.join(symbols)}]"
            if known:
                message += " with " + ", ".join(f"{symbol}={sizes[symbol]}" for symbol in known)
                sources = dict.fromkeys(bound_by[symbol] for symbol in known)
                message += " to match " + ", ".join(f"{n} {list(arguments[n][0].shape)}" for n in sources)
            raise ValueError(f"{message}; got {list(tensor.shape)}")
        for symbol, size in zip(symbols, tensor.shape, strict=True):
            sizes.setdefault(symbol, size)
            bound_by.setdefault(symbol, name)
    return sizes


def check_kinds(op: str, tensors: dict[str, Tensor], *, same_dtype: bool = True) -> None:
    """Raise ValueError unless the tensors are floating, on one device and (by default) of one dtype."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be floating point; got {tensor.dtype}")
        if same_dtype and tensor.dtype != first.dtype:
            raise ValueError(f"{op}: {name} must be {first.dtype} to match {first_name}; got {tensor.dtype}")
    check_devices(op, tensors)


def check_devices(op: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors are where the first one is: kernels take addresses as they come."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} must be on {first.device} to match {first_name}; got {tensor.device}")


def check_cu_bands(op: str, cu_bands: Tensor, samples: int | None, bands: int) -> None:
    """Raise ValueError unless cu_bands is int32 [samples + 1] rising from 0 to ``bands`` (None: any samples).

    The values are checked on CPUs only, where reading them waits for nothing.
    """
    given = f"{cu_bands.dtype} {list(cu_bands.shape)}" if isinstance(cu_bands, Tensor) else type(cu_bands).__name__
    if not isinstance(cu_bands, Tensor) or cu_bands.dtype != torch.int32 or cu_bands.ndim != 1 or not len(cu_bands):
        raise ValueError(f"{op}: cu_bands must be an int32 tensor [B + 1]; got {given}")
    if samples is not None and len(cu_bands) != samples + 1:
        raise ValueError(f"{op}: cu_bands must be [{samples + 1}] for {samples} samples; got {given}")
    if cu_bands.device.type == "cpu" and not torch.compiler.is_compiling():
        offsets = cu_bands.tolist()
        if offsets[0] != 0 or offsets[-1] != bands or any(a > b for a, b in itertools.pairwise(offsets)):
            raise ValueError(f"{op}: cu_bands must rise from 0 to S={bands}; got {offsets}")


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast floating tensors but float64 to the autocast dtype where autocast is on, as torch's own matmuls do."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        for tensor in tensors
    )

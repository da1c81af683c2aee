"""CPU backend: C++ kernels for float32 and bfloat16, deltas also in float8; large dense GEMMs go through torch."""

from __future__ import annotations

from specfast.ops.native.cpu.dtypes import DTYPES
from specfast.ops.native.cpu.flat_buffer import delta_average_, delta_pack
from specfast.ops.native.cpu.hyper_linear import (
    hyper_linear_bwd,
    hyper_linear_fwd,
    hyper_linear_loss_bwd,
    hyper_linear_loss_fwd,
)
from specfast.ops.native.cpu.patch_pool import patch_pool_fwd
from specfast.ops.native.cpu.spectral_loss import spectral_loss_bwd, spectral_loss_fwd

__all__ = [
    "delta_average_",
    "delta_pack",
    "hyper_linear_bwd",
    "hyper_linear_fwd",
    "hyper_linear_loss_bwd",
    "hyper_linear_loss_fwd",
    "patch_pool_fwd",
    "spectral_loss_bwd",
    "spectral_loss_fwd",
    "unsupported",
]


def unsupported(name: str, *arguments) -> str | None:
    """Why this backend cannot run the operator on these arguments, or None."""
    first = arguments[0]
    if first.device.type != "cpu":
        return f"tensors on {first.device.type}"
    if name.startswith("delta_"):
        return None  # float32 and the narrow type that the operator has checked
    # all arguments of an operator are of one type but for the target, which may be any
    for argument in arguments:
        if hasattr(argument, "is_floating_point") and argument.is_floating_point() and argument.dtype not in DTYPES:
            return f"{argument.dtype} inputs"
    return None

"""Triton kernels and their launchers, in the eager backend's signatures. ImportError where there is no Triton.

Imports without a GPU. With ``TRITON_INTERPRET=1`` in the environment beforehand, they run on CPU tensors, slowly.
"""

from specfast.kernels import configs
from specfast.kernels.triton import launch
from specfast.kernels.triton.flat_buffer import delta_average_, delta_pack
from specfast.kernels.triton.hyper_embed import HIDDEN_LIMIT, hyper_embed_bwd, hyper_embed_fwd
from specfast.kernels.triton.hyper_linear import (
    FACTOR_LIMIT,
    PIXEL_LIMIT,
    RANK_LIMIT,
    hyper_linear_bwd,
    hyper_linear_fwd,
)
from specfast.kernels.triton.hyper_linear_loss import hyper_linear_loss_bwd, hyper_linear_loss_fwd
from specfast.kernels.triton.patch_pool import PATCH_LIMIT, patch_pool_bwd, patch_pool_fwd
from specfast.kernels.triton.spectral_loss import spectral_loss_bwd, spectral_loss_fwd

__all__ = [
    "delta_average_",
    "delta_pack",
    "hyper_embed_bwd",
    "hyper_embed_fwd",
    "hyper_linear_bwd",
    "hyper_linear_fwd",
    "hyper_linear_loss_bwd",
    "hyper_linear_loss_fwd",
    "patch_pool_bwd",
    "patch_pool_fwd",
    "spectral_loss_bwd",
    "spectral_loss_fwd",
]

# where the generator's weight [.., .., k] and the linear operators' factors_u [S, P, R] stand
_WEIGHT = {
    "hyper_embed_fwd": 3,
    "hyper_embed_bwd": 4,
    "hyper_linear_fwd": 2,
    "hyper_linear_bwd": 3,
    "hyper_linear_loss_fwd": 2,
    "hyper_linear_loss_bwd": 4,
}
_PATCH_SIZE = {"patch_pool_fwd": 3, "patch_pool_bwd": 6}
_FACTORS_U = {name: place + 2 for name, place in _WEIGHT.items() if name.startswith("hyper_linear")}


def unsupported(name: str, *arguments) -> str | None:
    """Why the operator cannot run here on these arguments, in one clause; None if it can."""
    if name.startswith("delta_"):  # float32; the kernels see the narrow types as integers
        arguments = arguments[:1]
    reason = launch.unsupported(*arguments)
    if reason is None and name in _WEIGHT and arguments[_WEIGHT[name]].shape[2] > HIDDEN_LIMIT:
        return f"a hidden width of {arguments[_WEIGHT[name]].shape[2]}, over {HIDDEN_LIMIT}"
    if reason is None and name in _PATCH_SIZE and arguments[_PATCH_SIZE[name]] > PATCH_LIMIT:
        return f"patches of side {arguments[_PATCH_SIZE[name]]}, over {PATCH_LIMIT}"
    if reason is None and name in _FACTORS_U:
        _, pixels, rank = arguments[_FACTORS_U[name]].shape
        if pixels > PIXEL_LIMIT:
            return f"patches of {pixels} pixels, over {PIXEL_LIMIT}"
        if rank > RANK_LIMIT:
            return f"a rank of {rank}, over {RANK_LIMIT}"
        if configs.bucket(pixels) * configs.bucket(rank) > FACTOR_LIMIT:
            return f"patches of {pixels} pixels at a rank of {rank}"
    return reason

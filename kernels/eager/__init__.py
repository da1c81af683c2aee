"""Memory-bounded PyTorch backends of the operators: forward and hand-written backward, on any device and dtype.

A sample (and, in the loss, a tile of its bands) is in flight at a time, so nothing of size [B, N, C, E], no stored
prediction behind a loss and, in the re-associated form, no generated factor exists.
"""

from specfast.kernels.eager.flat_buffer import delta_average_, delta_pack
from specfast.kernels.eager.hyper_embed import hyper_embed_bwd, hyper_embed_fwd
from specfast.kernels.eager.hyper_linear import (
    hyper_linear_bwd,
    hyper_linear_fwd,
    hyper_linear_loss_bwd,
    hyper_linear_loss_fwd,
)
from specfast.kernels.eager.patch_pool import patch_pool_bwd, patch_pool_fwd
from specfast.kernels.eager.spectral_loss import spectral_loss_bwd, spectral_loss_fwd

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

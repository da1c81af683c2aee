"""Plain PyTorch twins of the operators: the specification that every backend is tested against.

They store whatever is convenient and run one sample after another; nothing here is meant to be fast. All gradients come
from autograd.
"""

from specfast.kernels.reference.flat_buffer import delta_average, delta_pack
from specfast.kernels.reference.hyper_embed import hyper_embed, hyper_embed_reassociated
from specfast.kernels.reference.hyper_linear import hyper_linear, hyper_linear_loss, hyper_linear_reassociated
from specfast.kernels.reference.patch_pool import patch_pool
from specfast.kernels.reference.spectral_loss import spectral_loss

__all__ = [
    "delta_average",
    "delta_pack",
    "hyper_embed",
    "hyper_embed_reassociated",
    "hyper_linear",
    "hyper_linear_loss",
    "hyper_linear_reassociated",
    "patch_pool",
    "spectral_loss",
]

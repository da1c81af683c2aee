"""The operators, and the only door to the kernels.

Each is checked, planned and differentiable; see the functions' own docstrings for shapes. Packed (ragged) layout: the
bands of all samples lie along one axis of length S, with offsets ``cu_bands`` int32 [B + 1].

They work under ``torch.compile(fullgraph=True)``, activation checkpointing, autocast (inputs are cast to the autocast
dtype, as torch's matmuls do) and, through the Triton backend, in CUDA graphs. Results do not vary between runs. They
are differentiable once; the transforms of ``torch.func`` (grad, vmap, jvp) are refused by torch's autograd Functions.
"""

from specfast.ops.backends import BACKENDS, choose_backend, use_backend
from specfast.ops.cost import Cost, cost
from specfast.ops.explaining import Explanation, explain
from specfast.ops.hyper_embed import hyper_embed
from specfast.ops.hyper_linear import hyper_linear, hyper_linear_loss
from specfast.ops.patch_pool import patch_pool
from specfast.ops.planner import choose_form, multiply_adds, use_form
from specfast.ops.spectral_loss import spectral_loss

__all__ = [
    "BACKENDS",
    "Cost",
    "Explanation",
    "choose_backend",
    "choose_form",
    "cost",
    "explain",
    "hyper_embed",
    "hyper_linear",
    "hyper_linear_loss",
    "multiply_adds",
    "patch_pool",
    "spectral_loss",
    "use_backend",
    "use_form",
]

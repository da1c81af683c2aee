"""The operators, and the only door to the kernels.

Each is checked and planned; see the functions' own docstrings for shapes. The model's are differentiable, their layout
packed (ragged): the bands of all samples lie along one axis of length S, with offsets ``cu_bands`` int32 [B + 1]. Those
of flat buffers (delta_pack, delta_average_) work in place and have no gradient.

They work under ``torch.compile(fullgraph=True)``, activation checkpointing, autocast (inputs are cast to the autocast
dtype, as torch's matmuls do) and, through the Triton backend, in CUDA graphs. Results do not vary between runs. They
are differentiable once; the transforms of ``torch.func`` (grad, vmap, jvp) are refused by torch's autograd Functions.
"""

from specfast.ops.backends import BACKENDS, choose_backend, use_backend
from specfast.ops.cost import Cost, cost, flat_buffer_cost
from specfast.ops.explaining import Explanation, explain
from specfast.ops.flat_buffer import delta_average_, delta_pack
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
    "delta_average_",
    "delta_pack",
    "explain",
    "flat_buffer_cost",
    "hyper_embed",
    "hyper_linear",
    "hyper_linear_loss",
    "multiply_adds",
    "patch_pool",
    "spectral_loss",
    "use_backend",
    "use_form",
]

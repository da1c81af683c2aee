"""Calls of hyper_embed's and patch_pool's Triton launchers for the compile tests: ``LAUNCHES[name](dtype, size)``.

Each yields after every batch, see harness.py; the batches differ in samples, bands and tokens, and in whether these are
1, even, or multiples of 16.
"""

from __future__ import annotations

import torch

from specfast.kernels import triton as kernels

SIZES = {  # P, R, k, E: the base model's; those of small models and of other patch sizes
    "base": {"pixels": 64, "rank": 64, "hidden": 64, "width": 96},
    "small": {"pixels": 16, "rank": 16, "hidden": 32, "width": 64},
    "large": {"pixels": 256, "rank": 64, "hidden": 128, "width": 96},
    "deep": {"pixels": 128, "rank": 128, "hidden": 128, "width": 96},  # as large a tile of U as "large", and the limit
    "odd": {"pixels": 25, "rank": 20, "hidden": 12, "width": 40},
}
BATCHES = [((33, 47), 40), ((5,), 7), ((1, 0, 16), 16)]  # bands of the samples, tokens of each


def _embed_inputs(dtype, size, bands, tokens):
    p, r, k, e = size["pixels"], size["rank"], size["hidden"], size["width"]
    s = sum(bands)
    shapes = [(s, tokens + 3, p), (s, r, p), (s, k), (e, r, k), (e, r)]
    patches, *others = (torch.zeros(shape, dtype=dtype) for shape in shapes)
    cu_bands = torch.tensor([0, *bands]).cumsum(0).to(torch.int32)
    return patches[:, :tokens], *others, cu_bands


def hyper_embed(dtype, size):
    for bands, tokens in BATCHES:
        inputs = _embed_inputs(dtype, SIZES[size], bands, tokens)
        for form in ("reassociated", "direct"):
            out, *saved = kernels.hyper_embed_fwd(*inputs, form)
            kernels.hyper_embed_bwd(torch.zeros_like(out), *inputs, *saved, form, True)
        yield


IMAGES = [((33, 47), (48, 64), 7), ((5,), (3, 17), 1), ((1, 0, 16), (16, 32), 16)]  # bands, patches of H and W, kept


def patch_pool(dtype, size):
    """Windows that are the patches, and others with an extent; with and without invalid pixels."""
    side = round(SIZES[size]["pixels"] ** 0.5)
    for bands, (rows, columns), kept in IMAGES:
        image = torch.zeros(sum(bands), rows * side, columns * side, dtype=dtype)
        index = torch.zeros(len(bands), kept, dtype=torch.int64)
        cu_bands = torch.tensor([0, *bands]).cumsum(0).to(torch.int32)
        valid = torch.ones(len(bands), *image.shape[1:], dtype=torch.bool)
        extent = torch.ones(len(bands), 2, dtype=torch.int64)
        for grid, masks in (
            ((rows, columns), (None, None)),
            ((rows, columns), (valid, None)),
            ((2 * rows, columns), (None, None)),
            ((2 * rows, columns), (valid, extent)),
        ):
            arguments = (image, index, cu_bands, side, grid, *masks)
            outputs = kernels.patch_pool_fwd(*arguments)
            kernels.patch_pool_bwd(*map(torch.zeros_like, outputs), *arguments)
        yield


LAUNCHES = {"hyper_embed": hyper_embed, "patch_pool": patch_pool}
# Kernels that multiply no matrices.
WITHOUT_DOT = {
    "patch_gather_kernel",
    "patch_links_kernel",
    "patch_pool_bwd_kernel",
    "patch_pool_fwd_kernel",
    "patch_windows_kernel",
}

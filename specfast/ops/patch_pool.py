"""patch_pool: one pass over the image that pools every band and gathers the chosen patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specfast.ops.checks import check_cu_bands, check_devices, check_shapes


def patch_pool(
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    *,
    grid: Sequence[int] | None = None,
    valid: Tensor | None = None,
    extent: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool every band over a grid of windows (average and maximum) and gather the patches ``index`` names.

    Args:
        image: [S, H, W], S the bands of all samples; H and W multiples of ``patch_size`` (p).
        index: int64 [B, K], patches in raster order of the H/p x W/p grid, in any order and number.
        cu_bands: int32 [B + 1] band offsets of the samples.
        patch_size: p; P = p * p.
        grid: (gh, gw) pooling grid; by default (H/p, W/p), so that windows are patches. Other grids pool adaptively, as
            ``torch.nn.functional.adaptive_avg_pool2d`` does.
        valid: bool [B, H, W]; pixels that are False enter no window and are 0 in patches. None: all valid.
        extent: int64 [B, 2], (height, width) of each sample before padding; pooling covers only that. None: H x W.

    Returns:
        patches [S, K, P] (row-major pixels), average [S, gh * gw], maximum [S, gh * gw], in the image's dtype; float32
        accumulation; a window without valid pixels gives 0.

    An ``index`` outside the grid raises on a CPU; on a GPU, where reading it would wait, its patch is NaN and gets no
    gradient (eager PyTorch stops with a device-side assertion).

    Differentiable once with respect to ``image``. Source: content feature extractor of Ji et al. 2026, section 3.2, and
    its patch unfolding.

    Raises:
        TypeError, ValueError: shapes, sizes, dtypes or devices that do not fit; the argument is named.
    """
    sizes = check_shapes("patch_pool", {"image": (image, "S H W"), "index": (index, "B K")})
    height, width = sizes["H"], sizes["W"]
    if not image.is_floating_point():
        raise ValueError(f"patch_pool: image must be floating point; got {image.dtype}")
    if not isinstance(patch_size, int):
        raise TypeError(f"patch_pool: patch_size must be an int; got {patch_size!r}")
    if patch_size < 1 or height % patch_size or width % patch_size or not height or not width:
        raise ValueError(f"patch_pool: patch_size must divide H={height} and W={width} of image; got {patch_size}")
    if index.dtype != torch.int64:
        raise ValueError(f"patch_pool: index must be int64; got {index.dtype}")
    check_cu_bands("patch_pool", cu_bands, sizes["B"], sizes["S"])
    check_devices("patch_pool", {"image": image, "index": index, "cu_bands": cu_bands})
    patches = (height // patch_size) * (width // patch_size)
    if index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling():
        low, high = torch.aminmax(index)
        if low < 0 or high >= patches:
            raise ValueError(f"patch_pool: index must lie in 0..{patches - 1}; got {int(low)}..{int(high)}")
    grid = (height // patch_size, width // patch_size) if grid is None else tuple(grid)
    if len(grid) != 2 or not all(isinstance(size, int | torch.SymInt) for size in grid) or min(grid) < 1:
        raise ValueError(f"patch_pool: grid must be two positive sizes; got {grid}")
    if valid is not None:
        check_shapes("patch_pool", {"image": (image, "S H W"), "index": (index, "B K"), "valid": (valid, "B H W")})
        if valid.dtype != torch.bool:
            raise ValueError(f"patch_pool: valid must be bool; got {valid.dtype}")
        check_devices("patch_pool", {"image": image, "valid": valid})
    if extent is not None:
        if not isinstance(extent, Tensor):
            raise TypeError(f"patch_pool: extent must be a tensor, got {type(extent).__name__}")
        if tuple(extent.shape) != (sizes["B"], 2) or extent.dtype != torch.int64:
            given = f"{extent.dtype} {list(extent.shape)}"
            raise ValueError(f"patch_pool: extent must be int64 [{sizes['B']}, 2]; got {given}")
        check_devices("patch_pool", {"image": image, "extent": extent})
    readable = extent is not None and extent.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not all(1 <= r <= height and 1 <= c <= width for r, c in extent.tolist()):
        raise ValueError(f"patch_pool: extent must lie in 1..{height} x 1..{width}; got {extent.tolist()}")
    arguments = (image, index, cu_bands, patch_size, grid, valid, extent)
    if torch.is_grad_enabled() and image.requires_grad:
        return PatchPoolFunction.apply(*arguments)
    return torch.ops.specfast.patch_pool_fwd(*arguments)


class PatchPoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, index, cu_bands, patch_size, grid, valid, extent):
        ctx.save_for_backward(image, index, cu_bands, valid, extent)
        ctx.patch_size, ctx.grid = patch_size, grid
        return torch.ops.specfast.patch_pool_fwd(image, index, cu_bands, patch_size, grid, valid, extent)

    @staticmethod
    @once_differentiable
    def backward(ctx, dpatches, daverage, dmaximum):
        image, index, cu_bands, valid, extent = ctx.saved_tensors
        dimage = torch.ops.specfast.patch_pool_bwd(
            dpatches, daverage, dmaximum, image, index, cu_bands, ctx.patch_size, ctx.grid, valid, extent
        )
        return dimage, None, None, None, None, None, None

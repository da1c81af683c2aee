"""patch_pool in PyTorch: the forward pass is the reference itself; backward recomputes the windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.kernels.reference.patch_pool import patch_pool as patch_pool_fwd

__all__ = ["patch_pool_bwd", "patch_pool_fwd"]


def patch_pool_bwd(
    dpatches: Tensor,
    daverage: Tensor,
    dmaximum: Tensor,
    image: Tensor,
    index: Tensor,
    cu_bands: Tensor,
    patch_size: int,
    grid: Sequence[int],
    valid: Tensor | None,
    extent: Tensor | None,
) -> Tensor:
    """Return dimage [S, H, W]; invalid pixels get 0, and a tie for the maximum goes to its first pixel."""
    height, width = image.shape[-2:]
    p = patch_size
    dimage = torch.zeros_like(image, memory_format=torch.contiguous_format)
    segments = list(itertools.pairwise(cu_bands.tolist()))
    extents = [(height, width)] * len(segments) if extent is None else extent.tolist()
    for b, ((start, end), (rows, columns)) in enumerate(zip(segments, extents, strict=True)):
        draster = image.new_zeros(end - start, (height // p) * (width // p), p * p)
        for positions in _without_repeats(index[b]):
            draster.index_add_(1, index[b, positions], dpatches[start:end, positions].to(image.dtype))
        dbands = dimage[start:end]
        dbands.copy_(draster.view(-1, height // p, width // p, p, p).permute(0, 1, 3, 2, 4).reshape(dbands.shape))
        mask = torch.ones_like(image[:1], dtype=torch.bool) if valid is None else valid[b, None]
        measured = mask[:, :rows, :columns]
        inside = torch.where(measured, image[start:end, :rows, :columns], -torch.inf)
        gradients = (gradient[start:end].view(-1, *grid) for gradient in (daverage, dmaximum))
        dbands[:, :rows, :columns] += _windows_bwd(*gradients, inside, measured)
        dbands.masked_fill_(~mask, 0.0)
    return dimage


def _without_repeats(index: Tensor) -> list[Tensor]:
    """Split the positions of [K] so that no part names a patch twice: what is added then has one order."""
    ordered, order = index.sort(stable=True)
    repeat = torch.arange(len(index), device=index.device) - torch.searchsorted(ordered, ordered)
    return [order[repeat == number] for number in range(int(repeat.max()) + 1)] if len(index) else []


def _windows_bwd(daverage: Tensor, dmaximum: Tensor, inside: Tensor, measured: Tensor) -> Tensor:
    """Gather the gradient of ``inside`` [C, H, W] from those of its windows [C, gh, gw].

    torch's own backward of adaptive pooling scatters, on GPUs in any order.
    """
    (rows, columns), (high, wide) = inside.shape[1:], daverage.shape[1:]
    (tops, above), (lefts, across) = _windows_of(rows, high, inside.device), _windows_of(columns, wide, inside.device)
    dtype = torch.promote_types(inside.dtype, torch.float32)
    share = F.adaptive_avg_pool2d(measured.to(dtype), (high, wide))
    pixels = _sizes(rows, high, inside.device)[:, None] * _sizes(columns, wide, inside.device)
    each = torch.where(share > 0, daverage / (share * pixels).clamp_min(1e-12), 0.0)
    _, largest = F.adaptive_max_pool2d(inside, (high, wide), return_indices=True)
    pixel = torch.arange(rows * columns, device=inside.device).view(rows, columns)
    dinside = torch.zeros_like(inside, dtype=dtype)
    for down, right in itertools.product(range(above), range(across)):
        i, j = tops + down, lefts + right
        holds = _holds(i, rows, high)[:, None] & _holds(j, columns, wide)
        window = (slice(None), i.clamp(max=high - 1)[:, None], j.clamp(max=wide - 1))
        gradient = each[window] + torch.where(largest[window] == pixel, dmaximum[window], 0.0)
        dinside += torch.where(holds, gradient, 0.0)
    return dinside


def _windows_of(pixels: int, count: int, device: torch.device) -> tuple[Tensor, int]:
    """The first of ``count`` windows that holds each pixel of a row, and how many hold one at most."""
    starts = [pixel * count // pixels for pixel in range(pixels)]
    most = max(((pixel + 1) * count - 1) // pixels + 1 - start for pixel, start in enumerate(starts))
    return torch.tensor(starts, device=device), most


def _holds(window: Tensor, pixels: int, count: int) -> Tensor:
    """Whether a window still holds the pixel at the same place of [pixels]."""
    pixel = torch.arange(pixels, device=window.device)
    return window <= ((pixel + 1) * count - 1) // pixels


def _sizes(pixels: int, count: int, device: torch.device) -> Tensor:
    """Pixels of each window: i of ``count`` spans floor(i pixels / count) to ceil((i + 1) pixels / count)."""
    window = torch.arange(count, device=device)
    return -(-(window + 1) * pixels // count) - window * pixels // count

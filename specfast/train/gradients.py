"""The gradient of one update: of all its samples as one batch, however they are spread.

SpecAware's loss is a mean over the removed valid pixels of a batch. A mean of the means of parts equals the mean over
the whole only where all parts hold equally many such pixels, which padding, nodata and crops of several sizes prevent.
So each part's gradient is weighted by its number of pixels, and the sum over parts and processes is divided by the
total: accumulation and data parallelism give the large batch's gradient up to rounding (and up to the 1e-6 that the
loss adds to a pixel count). What still differs is dropout, which each part draws for itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specfast.batch import SpectralBatch
from specfast.models.mae import SpecAwareMAE
from specfast.train.distributed import World


@dataclass(frozen=True)
class UpdateLoss:
    """Losses of one update over all samples that its gradient is of, and whether a process was asked to stop.

    Attributes:
        pixels: number of removed valid pixels that the losses are means over.
        stop: a process that shares the gradient was asked to stop.
    """

    loss: float
    loss_spectral: float
    loss_charbonnier: float
    grad_norm: float
    pixels: float
    stop: bool

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def removed_pixels(model: SpecAwareMAE, batch: SpectralBatch, mask: Tensor) -> Tensor:
    """Return the number of pixels the loss is a mean over: valid ones of removed patches. mask [B, N]; float64."""
    valid = model.valid_pixels(batch)
    if valid is None:
        return mask.sum(dtype=torch.float64) * model.config.patch_size**2
    return (mask * valid.sum(dim=-1)).sum(dtype=torch.float64)


def compute_gradient(
    forward: nn.Module,
    model: SpecAwareMAE,
    parts: Iterable[tuple[SpectralBatch, Tensor]],
    *,
    count: int,
    mask_ratio: float,
    world: World,
    bf16: bool = False,
    clip_norm: float = 0.0,
    stop: bool = False,
) -> UpdateLoss:
    """Leave in each ``parameter.grad`` the gradient of the mean loss over all parts of all of ``world``'s processes.

    Args:
        forward: ``model``, or its DistributedDataParallel wrapper, which averages gradients over ``world``.
        parts: yields at least ``count`` batches with their mask noise.
        mask_ratio: share of patches removed.
        bf16: run the forward passes under bf16 autocast.
        clip_norm: scale the gradient down to this norm if it is longer; 0 does not.
        stop: this process was asked to stop; returned to all if any was.
    """
    for parameter in model.parameters():
        parameter.grad = None
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    parts = iter(parts)
    for number in range(count):
        batch, noise = next(parts)
        last = number == count - 1
        with forward.no_sync() if forward is not model and not last else contextlib.nullcontext():
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                out = forward(batch, mask_ratio=mask_ratio, mask_noise=noise)
            pixels = removed_pixels(model, batch, out.mask)
            # near the pixels of all parts, so gradients keep their usual size; a power of two, so nothing is rounded
            reference = 2.0 ** round(math.log2(len(batch) * count * world.size * model.config.image_size**2))
            (out.loss * (pixels / reference).to(out.loss.dtype)).backward()
        losses = torch.stack([out.loss, out.loss_spectral, out.loss_charbonnier]).detach().double()
        sums[:3] += losses * pixels
        sums[3] += pixels
    sums[4] = float(stop)
    world.sum(sums)
    total = sums[3].clamp_min(1.0)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    # DistributedDataParallel has divided the sum over processes by their number
    scale = reference * world.size / total
    norm = torch.nn.utils.get_total_norm(gradients).double() * scale
    if clip_norm:
        scale = scale * (clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    *losses, norm, pixels, stops = torch.cat([sums[:3] / total, norm[None], sums[3:]]).tolist()
    return UpdateLoss(*losses, grad_norm=norm, pixels=pixels, stop=stops > 0)


def joint_loss(update: UpdateLoss, world: World, note: Sequence[float] = ()) -> tuple[UpdateLoss, list[list[float]]]:
    """Return the losses over all processes' samples, where each has a gradient of its own, and their notes.

    ``grad_norm`` is the mean of theirs; one small exchange, which all processes of ``world`` take part in.
    """
    own = [update.loss, update.loss_spectral, update.loss_charbonnier, update.grad_norm, update.pixels, update.stop]
    rows = world.table(torch.tensor([*own, *note], dtype=torch.float64, device=world.device)).cpu()
    losses, norms, pixels, stops = rows[:, :3], rows[:, 3], rows[:, 4:5], rows[:, 5]
    joint = UpdateLoss(
        *((losses * pixels).sum(dim=0) / pixels.sum().clamp_min(1.0)).tolist(),
        grad_norm=norms.mean().item(),
        pixels=pixels.sum().item(),
        stop=bool(stops.any()),
    )
    return joint, rows[:, 6:].tolist()

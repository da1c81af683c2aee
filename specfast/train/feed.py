"""What each forward pass is fed: a batch of the loader, and the noise that decides which patches are masked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from specfast.batch import SpectralBatch
from specfast.data.loader import SpectralLoader
from specfast.models.mae import SpecAwareMAE

_MASK = 2  # top word of the generator's counter; the loader draws samples and tile orders with others


def mask_noise(seed: int, first: int, samples: int, side: int) -> Tensor:
    """Return uniform noise [samples, side, side] in [0, 1), float32, for the samples numbered from ``first``.

    A pure function of the seed and each sample's number among all of the run, from a counter-based generator (Philox,
    Salmon et al. 2011): it depends neither on the device nor on how samples are spread over processes and passes.
    """
    words = [
        np.random.Philox(key=[seed, number], counter=[0, 0, 0, _MASK]).random_raw(side * side)
        for number in range(first, first + samples)
    ]
    noise = (np.stack(words) >> 40).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(noise).unflatten(1, (side, side))


def feed(loader: SpectralLoader, model: SpecAwareMAE, device: torch.device) -> Iterator[tuple[SpectralBatch, Tensor]]:
    """Yield batches from the loader's current step on with their mask noise [B, N], on ``device``, without end.

    The noise is drawn for the patches of a whole crop. A batch of smaller tiles, whose grid depends on what they are
    padded to, takes the upper left part, so that each sample is masked the same in whatever batch it is.
    """
    passes, side = loader.step, loader.crop // loader.patch_size
    batches = iter(loader)
    try:
        for batch in batches:
            rows, columns = model.patch_grid(batch)
            first = (passes * loader.world_size + loader.rank) * loader.batch_size
            noise = mask_noise(loader.seed, first, len(batch), side)[:, :rows, :columns].flatten(1)
            if device.type == "cuda":
                batch, noise = batch.pin_memory(), noise.pin_memory()
            yield batch.to(device, non_blocking=True), noise.to(device, non_blocking=True)
            passes += 1
    finally:
        batches.close()

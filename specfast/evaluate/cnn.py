"""A small 3-D convolutional network that is trained from scratch on the labels: a baseline that may use neighbors."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

COMPONENTS = 16
SIDE = 9  # pixels
SCALE = 0.2  # brings components of standardized spectra to about unit size
STEPS = 300
BATCH = 64
LEARNING_RATE = 2e-3


def patches(components: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Gather the square around each pixel; beyond the scene it is mirrored, invalid pixels hold 0.

    Args:
        components: [H, W, K], NaN at invalid pixels.

    Returns:
        float32 [H, W, K * side * side], NaN at invalid pixels.
    """
    valid = np.isfinite(components).all(axis=2)
    half = side // 2
    filled = np.where(valid[..., None], components * SCALE, 0).astype(np.float32)
    padded = np.pad(filled, ((half, half), (half, half), (0, 0)), mode="symmetric")
    views = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))
    out = views.reshape(*valid.shape, -1)
    out[~valid] = np.nan
    return out


class PatchCNN:
    """A classifier of flattened patches with scikit-learn's ``fit`` and ``predict``; fixed schedule, seeded."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> PatchCNN:
        """Train on inputs [T, K * side * side]."""
        self.classes_, target = np.unique(labels, return_inverse=True)
        x, y = self._cubes(inputs), torch.as_tensor(target)
        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(self.seed)
            self._network = _network(len(self.classes_))
            optimizer = torch.optim.AdamW(self._network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
            self._network.train()
            for _ in range(STEPS):
                chosen = torch.randint(len(x), (BATCH,))
                batch = x[chosen]
                for axis in (3, 4):
                    if torch.rand(()) < 0.5:
                        batch = batch.flip(axis)
                loss = F.cross_entropy(self._network(batch), y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self._network.eval()
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the class of each row."""
        with torch.inference_mode():
            best = [
                self._network(self._cubes(part)).argmax(dim=1)
                for part in np.array_split(inputs, 1 + len(inputs) // 2048)
            ]
        return self.classes_[torch.cat(best).numpy()]

    @staticmethod
    def _cubes(inputs: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).view(len(inputs), 1, -1, SIDE, SIDE)


@contextmanager
def _one_thread():
    """Keep torch to one thread: the convolutions are small, and the result does not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _network(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(1, 8, (5, 3, 3)),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 16, (3, 3, 3)),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.Flatten(1, 2),
        nn.LazyConv2d(64, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.LazyLinear(classes),
    )

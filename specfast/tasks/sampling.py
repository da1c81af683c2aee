"""Global stochastic stratified sampling: every step draws equally many labelled pixels of each class.

Source: Zheng, Zhong, Ma, Zhang, "FPGA: fast patch-free global learning framework for fully end-to-end hyperspectral
image classification", IEEE TGRS 58 (2020) 5612-5626, section III-A.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


class StratifiedSampler:
    """Mini-batches of labelled pixels: the draw of a step is a pure function of (seed, step).

    The pixels of every class are shuffled and cut into parts of ``per_class``; a class that is through before the
    others starts anew with another shuffle. When the largest class is through, an epoch ends.

    Args:
        classes: int [T], the class of every training pixel.
        per_class: pixels of each class in a step.
        seed: of the shuffles.

    Raises:
        ValueError: there are no pixels, or ``per_class`` is below 1.
    """

    def __init__(self, classes: np.ndarray, per_class: int, seed: int):
        classes = np.asarray(classes)
        if classes.ndim != 1 or not len(classes):
            raise ValueError(f"classes: expected at least one training pixel, got shape {list(classes.shape)}")
        if per_class < 1:
            raise ValueError(f"per_class: expected at least 1, got {per_class}")
        self.members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
        self.per_class, self.seed = per_class, seed
        self.draws = per_class * len(self.members)  # pixels of a step
        self.steps_per_epoch = -(-max(map(len, self.members)) // per_class)
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)

    def draw(self, step: int) -> np.ndarray:
        """Return positions [classes * per_class] in the list of training pixels."""
        epoch, part = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[:, part * self.per_class : (part + 1) * self.per_class].ravel()

    def few(self) -> np.ndarray:
        """Return positions of ``per_class`` pixels of each class, each once; all of a class that has fewer."""
        rng = np.random.default_rng([self.seed, 0])
        return np.sort(np.concatenate([rng.permutation(members)[: self.per_class] for members in self.members]))

    def _make_epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        length = self.steps_per_epoch * self.per_class
        rows = []
        for members in self.members:
            shuffles = [rng.permutation(members) for _ in range(-(-length // len(members)))]
            rows.append(np.concatenate(shuffles)[:length])
        return np.stack(rows)

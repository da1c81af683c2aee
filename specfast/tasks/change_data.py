"""A pair of dates with labels: which pixels are known, how they are divided, and views of them to train on.

Labels are integers: 0 unlabelled, 1 unchanged, 2 changed. Legend: H x W pixels of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from specfast.batch import SpectralSample
from specfast.evaluate.features import read_window
from specfast.evaluate.splits import Split, by_tile, check_labels, random_pixels
from specfast.tasks.change_options import CHANGE_SPLITS
from specfast.tasks.views import View, orient_sample, scene_size

UNCHANGED, CHANGED = 1, 2


@dataclass(frozen=True)
class ScenePair:
    """Two dates of one place, pixel on pixel; make it with :meth:`of`.

    Attributes:
        before, after: samples with images [C, H, W] and [D, H, W]; sensors may differ.
        valid: bool [H, W], where both dates hold a measurement.
    """

    before: SpectralSample
    after: SpectralSample
    valid: Tensor

    @classmethod
    def of(cls, before, after) -> ScenePair:
        """Make a pair of two SpectralSamples, or of SpectralImages, which are read whole.

        Raises:
            ValueError: the sizes differ, or no pixel is valid in both.
        """
        sizes = [scene_size(date) for date in (before, after)]
        if sizes[0] != sizes[1]:
            (height, width), other = sizes
            raise ValueError(
                f"after: expected {height} x {width} pixels as in before, got {other[0]} x {other[1]}; both dates must "
                "lie on one grid"
            )
        dates = [read_window(date, (0, 0, *sizes[0])) for date in (before, after)]
        valid = dates[0].valid & dates[1].valid
        if not bool(valid.any()):
            raise ValueError("before, after: no pixel is valid in both")
        return cls(*dates, valid)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return tuple(self.valid.shape)

    def read(self, view: View, orientation: int = 0) -> tuple[SpectralSample, SpectralSample]:
        """Return a view of both dates, turned and mirrored alike."""
        return tuple(orient_sample(read_window(date, view.box), orientation) for date in (self.before, self.after))


def change_labels(change_map: np.ndarray, changed: int = 1, unchanged: int = 0) -> np.ndarray:
    """Translate a map of changes to labels, int64 [H, W]: 0 unlabelled, 1 unchanged, 2 changed.

    Args:
        change_map: [H, W], whole numbers.
        changed, unchanged: what stands for these in the map; any other number is unlabelled.

    Raises:
        ValueError: both are the same number, or one of them is nowhere in the map.
    """
    change_map = np.asarray(change_map)
    if changed == unchanged:
        raise ValueError(f"changed, unchanged: expected two different numbers, got {changed} for both")
    labels = np.zeros(change_map.shape, dtype=np.int64)
    for value, label, name in ((unchanged, UNCHANGED, "unchanged"), (changed, CHANGED, "changed")):
        where = change_map == value
        if not where.any():
            held = ", ".join(f"{v:g}" for v in np.unique(change_map)[:8])
            raise ValueError(f"{name}: no pixel of the map is {value}; it holds {held}")
        labels[where] = label
    return labels


def usable_labels(labels: np.ndarray, pair: ScenePair, notes: list[str] | None = None) -> np.ndarray:
    """Check labels against a pair and take them away where a date holds no measurement; ``notes`` gets what was lost.

    Raises:
        ValueError: the size differs, labels are not 0, 1 and 2, or no pixel of one of the classes is left.
    """
    labels = check_labels(labels, ndim=2)
    if labels.shape != pair.size:
        raise ValueError(f"labels: expected {list(pair.size)} to match the scenes, got {list(labels.shape)}")
    if labels.max() > CHANGED:
        raise ValueError(f"labels: expected 0 (unlabelled), 1 (unchanged) and 2 (changed), got {labels.max()}")
    kept = np.where(pair.valid.numpy(), labels, 0)
    lost = int((labels > 0).sum() - (kept > 0).sum())
    if lost and notes is not None:
        notes.append(f"{lost} labelled pixels hold no measurement in one of the dates and are left out")
    for label, name in ((UNCHANGED, "unchanged"), (CHANGED, "changed")):
        if not (kept == label).any():
            raise ValueError(f"labels: no valid pixel is {name}")
    return kept


def divide(labels: np.ndarray, split: str, labels_per_class: int, seed: int) -> Split:
    """Divide labelled pixels by ``"random"`` or ``"block"``; see :func:`random_pixels` and :func:`block_disjoint`."""
    if split not in CHANGE_SPLITS:
        raise ValueError(f"split: expected one of {', '.join(CHANGE_SPLITS)}; got {split!r}")
    return (random_pixels if split == "random" else block_disjoint)(labels, labels_per_class, seed)


def block_disjoint(
    labels: np.ndarray, labels_per_class: int, seed: int, *, side: int | None = None, buffer: int = 4
) -> Split:
    """Draw training pixels from half of the scene's blocks and test on the others.

    Fields do not serve here: all that did not change is one field. Pixels within half a buffer of a block's edge are
    in neither set, so train and test pixels lie more than ``buffer`` apart.

    Args:
        labels: [H, W].
        labels_per_class: training pixels of each class.
        seed: of the draw.
        side: of a block in pixels; default a sixth of the scene's shorter side, from 8 to 32.
        buffer: pixels, even, less than ``side``.

    Raises:
        ValueError: an option is out of range, or no class lies in two blocks.
    """
    labels = check_labels(labels, ndim=2)
    side = min(32, max(8, min(labels.shape) // 6)) if side is None else side
    if buffer < 0 or buffer % 2 or side <= buffer:
        raise ValueError(f"side, buffer: expected an even buffer of 0 or more, below side; got {side} and {buffer}")
    inside = [buffer // 2 <= np.arange(length) % side for length in labels.shape]
    inside = [part & (np.arange(len(part)) % side < side - buffer // 2) for part in inside]
    rows, columns = (np.arange(length) // side for length in labels.shape)
    blocks = rows[:, None] * (columns[-1] + 1) + columns
    kept = np.where(inside[0][:, None] & inside[1], labels, 0)
    return replace(by_tile(kept, blocks, labels_per_class, seed), name="block-disjoint")

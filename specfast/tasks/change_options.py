"""Options of change detection; they need no torch, so that the command line can show them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from specfast.tasks.options import FitOptions

CHANGE_HEADS = ("linear", "mlp", "conv")  # of SpecAwareChangeDetector
CHANGE_SPLITS = ("random", "block")
CHANGE_BASELINES = ("cva", "mad", "ir-mad", "pca_svm")


@dataclass(frozen=True)
class ChangeOptions:
    """How a change detector is made and trained.

    The defaults were compared on other divisions than those reported, but of the same scene: the test pixels of seeds 0
    to 4 are not unseen.

    Attributes:
        head: a key of ``SpecAwareChangeDetector.HEADS``.
        head_options: options of the heads (see :class:`SpecAwareChangeDetector`). Enlarging the scenes (``upsample=2``)
            changed little, since the pixels' spectra are there.
        pixels_per_class: changed and unchanged pixels drawn in a step, as many of both however rare changes are (Zheng
            et al. 2020).
        prior: share of the scene's pixels that have changed, for which probabilities are made after training. None: it
            is estimated from the trained detector's own answers over the scene, without labels (Saerens et al. 2002);
            0.5: they stay as the balanced draw made them.
        augment: turn and flip both dates alike at random. They are not exchanged: the detector is symmetric.
        uncertainty_weight: of the uncertainty's loss.
        view: side in pixels of the tiles that larger scenes are cut into.
        fit: learning rates, steps, what of the encoder is trained.
    """

    head: str = "conv"
    head_options: Mapping[str, object] = field(default_factory=dict)
    pixels_per_class: int = 64
    prior: float | None = None
    augment: bool = True
    uncertainty_weight: float = 1.0
    view: int = 256
    fit: FitOptions = field(default_factory=lambda: FitOptions(steps=200))

    def __post_init__(self):
        if self.prior is not None and not 0 < self.prior < 1:
            raise ValueError(f"prior: expected a share between 0 and 1, or None to estimate it; got {self.prior}")
        if self.view < 1:
            raise ValueError(f"view: expected at least 1 pixel, got {self.view}")
        if not 0 <= self.uncertainty_weight < math.inf:
            raise ValueError(f"uncertainty_weight: expected a number of at least 0, got {self.uncertainty_weight}")

"""Options of training and of the tasks; they need no torch, so that the command line can show them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Of the light heads that look at pixels: an enlarged scene, whitened tokens, spectra of the pixel and around it. What
# lies around a pixel and what tokens tell apart know a field again; in other fields they mislead.
_NEAR = {"upsample": 2, "components": 100, "spectral_sides": [3, 15]}
_FAR = {"upsample": 2, "components": 20, "spectral_sides": [1, 3], "spectral_shape": True}
PIXEL_HEAD_OPTIONS = {
    reach: {"linear": shared, "mlp": shared, "conv": {**shared, "hidden": 64}}
    for reach, shared in (("near", _NEAR), ("far", _FAR))
}
REACHES = tuple(PIXEL_HEAD_OPTIONS)
REACH_OF_SPLIT = {"random": "near", "field": "far", "tile": "far"}
SEGMENTATION_HEADS = ("upernet", "linear", "mlp", "conv")  # of SpecAwareSegmenter
ORIENTATIONS = 8  # of a scene: four quarter turns, each with and without a flip


@dataclass(frozen=True)
class FitOptions:
    """How a task model is trained; all fields are our choice, none is published.

    Attributes:
        steps: updates; 0 leaves a linear segmentation head as it starts, and is an error for others. None: as many as
            the task says.
        lr: peak learning rate of the head (AdamW; linear warm-up, then a half cosine to 0).
        encoder_lr: that of the encoder's last block, where the encoder is trained.
        layer_decay: factor on the learning rate from each encoder block to the one before it.
        tuned_blocks: the last so many blocks of the encoder are trained; 0 freezes the encoder, -1 trains all of it.
        weight_decay: of weight matrices.
        warmup: share of the steps in which the learning rate rises.
        clip_norm: gradients longer than this are scaled down to it; 0 does not.
        precision: ``"auto"`` (bf16 where the device computes it natively), ``"bf16"`` or ``"float32"``.
        log_every, checkpoint_every: steps between rows of the log, and between checkpoints (with a folder).
    """

    steps: int | None = 300
    lr: float = 2e-3
    encoder_lr: float = 1e-4
    layer_decay: float = 1.0
    tuned_blocks: int = 0
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip_norm: float = 1.0
    precision: str = "auto"
    log_every: int = 10
    checkpoint_every: int = 100

    def __post_init__(self):
        for name, smallest in (("steps", 0), ("log_every", 1), ("checkpoint_every", 1), ("tuned_blocks", -1)):
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise ValueError(f"{name}: expected at least {smallest}, got {getattr(self, name)}")
        for name in ("lr", "encoder_lr", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected above 0, at most 1; got {self.layer_decay}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup: expected a share from 0 to 1, got {self.warmup}")
        if self.precision not in ("auto", "bf16", "float32"):
            raise ValueError(f"precision: expected auto, bf16 or float32; got {self.precision!r}")


@dataclass(frozen=True)
class SegmentationOptions:
    """How a segmenter is made and trained.

    The defaults were chosen on Indian Pines and EnMAP Potsdam, on divisions of other seeds than 0 to 4: they are of the
    same scenes, and scores of those were in sight, so their test pixels are not unseen.

    Attributes:
        head: a key of ``SpecAwareSegmenter.HEADS``.
        reach: where the map is to hold: ``"near"``, in the fields that have labels; ``"far"``, in other fields and
            scenes. None takes near, and in a table what each division of the labels asks for.
        head_options: options of the head (see :class:`SpecAwareSegmenter`), on top of those that
            :data:`PIXEL_HEAD_OPTIONS` has for the reach; ``"upernet"`` has none.
        spectral_skip: the pixels' own spectra join the features (light heads); the model then serves one sensor.
        pixels_per_class: labelled pixels of each class drawn in a step.
        augment: turn and flip the scenes at random.
        orientations: 1, or 8 to average predictions over all turns and flips.
        view: side in pixels of the tiles that larger scenes are cut into.
        fit: learning rates, steps, what of the encoder is trained. Without a number of steps, a linear head that is to
            reach far, beside a frozen encoder, stays as its discriminants are (gradient steps with few labels made it
            worse), and all others take 100.
    """

    head: str = "linear"
    reach: str | None = None
    head_options: Mapping[str, object] = field(default_factory=dict)
    spectral_skip: bool = True
    pixels_per_class: int = 10
    augment: bool = True
    orientations: int = 8
    view: int = 256
    fit: FitOptions = field(default_factory=lambda: FitOptions(steps=None))

    def __post_init__(self):
        if self.orientations not in (1, ORIENTATIONS):
            raise ValueError(f"orientations: expected 1 or {ORIENTATIONS}, got {self.orientations}")
        if self.reach not in (None, *REACHES):
            raise ValueError(f"reach: expected {' or '.join(REACHES)}, or None; got {self.reach!r}")
        if self.reach and self.head == "upernet":
            raise ValueError(f"reach: the head upernet looks as far as it does; expected None, got {self.reach!r}")

    @property
    def settings(self) -> dict[str, object]:
        """The head's options, defaults filled in."""
        return {**PIXEL_HEAD_OPTIONS[self.reach or "near"].get(self.head, {}), **self.head_options}

    @property
    def training(self) -> FitOptions:
        """``fit`` with a number of steps."""
        if self.fit.steps is not None:
            return self.fit
        stays = self.head == "linear" and self.reach == "far" and self.fit.tuned_blocks == 0
        return replace(self.fit, steps=0 if stays else 100)

    def for_split(self, split: str) -> SegmentationOptions:
        """Return the options with the reach that a way of dividing the labels asks for, unless one is set."""
        return self if self.reach or self.head == "upernet" else replace(self, reach=REACH_OF_SPLIT.get(split))


@dataclass(frozen=True)
class ClassificationOptions:
    """How a scene classifier is made and trained.

    Attributes:
        head: ``"linear"`` or ``"mlp"``.
        head_options: options of the head (see :class:`SpecAwareClassifier`).
        spectral_skip: the scenes' mean spectra join the features; the model then serves one sensor.
        scenes_per_class: labelled scenes of each class drawn in a step.
        fit: learning rates, steps, what of the encoder is trained.
    """

    head: str = "linear"
    head_options: Mapping[str, object] = field(default_factory=dict)
    spectral_skip: bool = True
    scenes_per_class: int = 8
    fit: FitOptions = field(default_factory=FitOptions)

    @property
    def settings(self) -> dict[str, object]:
        """The head's options."""
        return dict(self.head_options)


@dataclass(frozen=True)
class RegressionOptions:
    """How a regressor is made and trained.

    Attributes:
        head: ``"linear"``, ``"mlp"`` or ``"conv"`` for pixels, ``"scene"`` for whole scenes.
        head_options: options of the head (see :class:`SpecAwareRegressor`), such as ``constraint="abundance"``, on top
            of what :data:`PIXEL_HEAD_OPTIONS` has for near pixels.
        spectral_skip: the pixels' own spectra (the scenes' mean spectra) join the features.
        targets_per_step: pixels (scenes) with targets drawn in a step.
        augment: turn and flip the scenes at random (pixels only).
        orientations: 1, or 8 to average predictions over all turns and flips (pixels only).
        view: side in pixels of the tiles that larger scenes are cut into (pixels only).
        fit: learning rates, steps, what of the encoder is trained.
    """

    head: str = "mlp"
    head_options: Mapping[str, object] = field(default_factory=dict)
    spectral_skip: bool = True
    targets_per_step: int = 512
    augment: bool = True
    orientations: int = 1
    view: int = 256
    fit: FitOptions = field(default_factory=FitOptions)

    @property
    def settings(self) -> dict[str, object]:
        """The head's options, defaults filled in."""
        return {**PIXEL_HEAD_OPTIONS["near"].get(self.head, {}), **self.head_options}

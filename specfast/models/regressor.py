"""SpecAwareRegressor: numbers with a unit, for every pixel or for a scene."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from specfast.batch import SpectralBatch
from specfast.models.classifier import SCENE_OPTIONS, apply_scene_head, scene_head
from specfast.models.downstream import DownstreamConfig, DownstreamModel, Encoded, mean_spectrum
from specfast.models.segmenter import LIGHT_OPTIONS, pixel_head

CONSTRAINTS = ("none", "abundance")


class SpecAwareRegressor(DownstreamModel):
    """Encoder and a head: ``regressor(batch)`` -> the K targets ``config.outputs`` in their own units.

    The heads ``"linear"``, ``"mlp"`` and ``"conv"`` give [B, K, H, W]; ``"scene"`` (one hidden layer on pooled tokens)
    gives [B, K]. The head predicts standardized targets; their mean and spread are buffers that :meth:`fit_targets`
    sets. With the option ``constraint="abundance"`` the outputs of a pixel are shares: not negative, and 1 in sum.
    """

    HEADS: ClassVar = {
        **{head: {**options, "constraint": "none"} for head, options in LIGHT_OPTIONS.items()},
        "scene": {**SCENE_OPTIONS["mlp"], "constraint": "none"},
    }

    def __init__(self, config: DownstreamConfig):
        super().__init__(config)
        config = self.config  # with all options
        if config.options["constraint"] not in CONSTRAINTS:
            raise ValueError(
                f"constraint: expected one of {', '.join(CONSTRAINTS)}; got {config.options['constraint']!r}"
            )
        if config.options["constraint"] == "abundance" and len(config.outputs) < 2:  # it would be 1 everywhere
            raise ValueError("constraint: abundance needs at least two targets that sum to 1; got one")
        self.head = scene_head(config, "mlp") if config.head == "scene" else pixel_head(config)
        self.register_buffer("target_mean", torch.zeros(len(config.outputs)))
        self.register_buffer("target_scale", torch.ones(len(config.outputs)))

    def fit_targets(self, targets: Tensor) -> None:
        """Take mean and spread of training targets [T, K]; NaN values are left out.

        Raises:
            ValueError: a target has no value at all.
        """
        targets = torch.as_tensor(targets).double().reshape(-1, len(self.target_mean))
        known = torch.isfinite(targets)
        if empty := [name for name, some in zip(self.config.outputs, known.any(dim=0), strict=True) if not bool(some)]:
            raise ValueError(f"targets: no value is given for {', '.join(empty)}")
        count = known.sum(dim=0)
        mean = torch.where(known, targets, 0.0).sum(dim=0) / count
        scale = (torch.where(known, targets - mean, 0.0).square().sum(dim=0) / count).sqrt()
        self.target_mean.copy_(mean)
        self.target_scale.copy_(torch.where(scale > 0, scale, 1.0))

    def forward(self, batch: SpectralBatch) -> Tensor:
        """Return [B, K, H, W], or [B, K] with the head ``"scene"``, in the targets' units.

        Raises:
            ValueError: the model uses the pixels' own spectra, and the batch is of another sensor.
        """
        return self.decode(self.encode(batch), batch)

    def decode_inputs(self, inputs: Tensor) -> Tensor:
        """Return targets [B, K, H, W] from what a pixel head's ``inputs`` returned."""
        return self._in_units(self.head.from_inputs(inputs))

    def decode(self, encoded: Encoded, batch: SpectralBatch) -> Tensor:
        """Return the targets from what :meth:`encode` made of the batch, at once or earlier."""
        spectrum = self.spectrum(batch)
        if self.config.head == "scene":
            return self.decode_pooled(encoded, mean_spectrum(spectrum, batch))
        size = tuple(batch.image.shape[-2:])
        return self._in_units(self.head(encoded.levels, encoded.present, spectrum, self.spacing, size))

    def decode_pooled(self, encoded: Encoded, spectrum: Tensor | None) -> Tensor:
        """Return [B, K] with the head ``"scene"``; ``spectrum``: mean standardized spectra [B, C], or None."""
        return self._in_units(apply_scene_head(self.head, encoded, spectrum))

    def _in_units(self, raw: Tensor) -> Tensor:
        if self.config.options["constraint"] == "abundance":
            return raw.softmax(dim=1)
        shape = (1, -1) + (1,) * (raw.ndim - 2)
        return raw * self.target_scale.view(shape) + self.target_mean.view(shape)

"""SpecAwareClassifier: a class for every scene."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from specfast.batch import SpectralBatch
from specfast.models.downstream import DownstreamConfig, DownstreamModel, Encoded, mean_spectrum
from specfast.models.heads import SceneHead

#: options of the heads that give one answer a sample, see :class:`specfast.models.heads.SceneHead`
SCENE_OPTIONS = {
    "linear": {"upsample": 1, "spectral_skip": 0, "pool": "both"},
    "mlp": {"upsample": 1, "spectral_skip": 0, "pool": "both", "hidden": 128, "dropout": 0.1},
}


def scene_head(config: DownstreamConfig, kind: str) -> SceneHead:
    """Build the head that a configuration describes."""
    options = {name: value for name, value in config.options.items() if name in ("pool", "hidden", "dropout")}
    bands = config.options["spectral_skip"]
    return SceneHead(config.encoder.embed_dim, len(config.outputs), kind, bands=bands, **options)


class SpecAwareClassifier(DownstreamModel):
    """Encoder and a head: ``classifier(batch)`` -> logits [B, K] of the K classes ``config.outputs``."""

    HEADS: ClassVar = SCENE_OPTIONS
    DEFAULT_HEAD = "linear"

    def __init__(self, config: DownstreamConfig):
        super().__init__(config)
        config = self.config  # with all options
        self.head = scene_head(config, config.head)

    def forward(self, batch: SpectralBatch) -> Tensor:
        """Return logits [B, K].

        Raises:
            ValueError: the model uses the samples' own spectra, and the batch is of another sensor.
        """
        return self.decode(self.encode(batch), batch)

    def decode(self, encoded: Encoded, batch: SpectralBatch) -> Tensor:
        """Return logits [B, K] from what :meth:`encode` made of the batch, at once or earlier."""
        return self.decode_pooled(encoded, mean_spectrum(self.spectrum(batch), batch))

    def decode_pooled(self, encoded: Encoded, spectrum: Tensor | None) -> Tensor:
        """Return logits [B, K]; ``spectrum``: mean standardized spectra [B, C], or None in a model without them."""
        return apply_scene_head(self.head, encoded, spectrum)


def apply_scene_head(head: SceneHead, encoded: Encoded, spectrum: Tensor | None) -> Tensor:
    """Return [B, K] from the last level's tokens, the cls token and the mean spectrum."""
    tokens = encoded.levels[-1].flatten(2).mT
    return head(encoded.cls, tokens, None if encoded.present is None else encoded.present.flatten(1), spectrum)

"""SpecAwareSegmenter: a class for every pixel."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from specfast.batch import SpectralBatch
from specfast.models.downstream import DownstreamConfig, DownstreamModel, Encoded
from specfast.models.enlarging import to_pixels
from specfast.models.heads import PIXEL_HEADS, PixelHead
from specfast.models.spectral_skip import spectral_channels
from specfast.models.upernet import PyramidNeck, UPerDecoder

_SHARED = {
    "upsample": 1,
    "spectral_skip": 0,
    "spectral_sides": [1],
    "spectral_shape": False,
    "components": 0,
    "tokens": True,
}
#: options of the light heads, see :class:`specfast.models.heads.PixelHead`
LIGHT_OPTIONS = {
    "linear": _SHARED,
    "mlp": {**_SHARED, "hidden": 128, "dropout": 0.1},
    "conv": {**_SHARED, "hidden": 128, "depth": 3, "dropout": 0.1},
}


def pixel_head(config: DownstreamConfig) -> PixelHead:
    """Build the light head that a configuration names."""
    options = {
        name: value
        for name, value in config.options.items()
        if name in ("components", "tokens", "hidden", "depth", "dropout")
    }
    bands = spectral_channels(*(config.options[f"spectral_{name}"] for name in ("skip", "sides", "shape")))
    return PixelHead(config.encoder.embed_dim, len(config.outputs), config.head, bands=bands, **options)


class SpecAwareSegmenter(DownstreamModel):
    """Encoder and a head: ``segmenter(batch)`` -> logits [B, K, H, W] of the K classes ``config.outputs``.

    Class k is the value k + 1 of a label map; 0 is unlabelled. Heads: ``"upernet"``, the published example's with its
    parameter names (Ji et al. 2026; Xiao et al. 2018), and the light ``"linear"``, ``"mlp"`` and ``"conv"``.
    """

    HEADS: ClassVar = {
        "upernet": {"upsample": 1, "pyramid_channels": 256, "segmentation_channels": 64},
        **LIGHT_OPTIONS,
    }

    def __init__(self, config: DownstreamConfig):
        super().__init__(config)
        config = self.config  # with all options
        if config.head in PIXEL_HEADS:
            self.head = pixel_head(config)
            return
        channels, last = config.options["pyramid_channels"], config.options["segmentation_channels"]
        if channels < 4 or last < 1:
            raise ValueError(
                f"pyramid_channels, segmentation_channels: expected at least 4 and 1; got {channels} and {last}"
            )
        self.neck = PyramidNeck(config.encoder.embed_dim, channels)
        self.decoder = UPerDecoder(channels, last, scale=max(1, config.encoder.patch_size // 4))
        self.segmentation_head = nn.Sequential(nn.Conv2d(last, len(config.outputs), 1))

    def forward(self, batch: SpectralBatch) -> Tensor:
        """Return logits [B, K, H, W] at the size of the batch's images.

        Raises:
            ValueError: the model uses the pixels' own spectra, and the batch is of another sensor.
        """
        return self.decode(self.encode(batch), batch)

    def decode_inputs(self, inputs: Tensor) -> Tensor:
        """Return logits [B, K, H, W] from what a light head's ``inputs`` returned."""
        return self.head.from_inputs(inputs)

    def decode(self, encoded: Encoded, batch: SpectralBatch) -> Tensor:
        """Return logits [B, K, H, W] from what :meth:`encode` made of the batch, at once or earlier."""
        size = tuple(batch.image.shape[-2:])
        if self.config.head in PIXEL_HEADS:
            return self.head(encoded.levels, encoded.present, self.spectrum(batch), self.spacing, size)
        logits = self.segmentation_head(self.decoder(self.neck(encoded.levels)))
        spacing = encoded.levels[0].shape[-1] * self.spacing / logits.shape[-1]
        return to_pixels(logits, None, spacing, size)

"""SpecAwareChangeDetector: what changed between two dates, and how far to trust it.

Legend: B pairs, E encoder width, G points of the spectral grid, H x W pixels.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.batch import SpectralBatch
from specfast.models.downstream import DownstreamConfig, DownstreamModel
from specfast.models.encoder import SpecAwareBackbone
from specfast.models.heads import PixelHead
from specfast.models.spectral_difference import SpectralDifference

OUTPUTS = ("change",)

_OPTIONS = {"upsample": 1, "spectral_points": 64, "window": 0}
_HIDDEN = {"hidden": 64, "dropout": 0.1}


@dataclass
class Compared:
    """Two dates as the heads see them; the same if they are swapped.

    Attributes:
        levels: four maps [B, 2 E, h, w] over patches: |a - b| and a + b of the normalized features.
        present: bool [B, h, w], False for patches without a valid pixel in one of the dates; None if all have one.
        spectra: [B, 2 G + 2, H, W], or None in a detector without ``spectral_points``.
        size: (H, W).
    """

    levels: list[Tensor]
    present: Tensor | None
    spectra: Tensor | None
    size: tuple[int, int]


@dataclass
class ChangeOutput:
    """What the detector says of a batch of pairs.

    Attributes:
        logits: [B, 1, H, W]; their sigmoid is the probability p of a change.
        uncertainty_logits: [B, 1, H, W].
    """

    logits: Tensor
    uncertainty_logits: Tensor

    @property
    def uncertainty(self) -> Tensor:
        """Expected |y - p| of every pixel, 0 to 1 [B, 1, H, W], y being 1 where the pixel has changed."""
        return self.uncertainty_logits.sigmoid()


class SpecAwareChangeDetector(DownstreamModel):
    """A siamese encoder and a difference head: ``detector(before, after)`` -> :class:`ChangeOutput`.

    Both dates go through the encoder as one batch, each with its own sensor and bands. The head sees them only through
    functions in which they change places freely: |a - b| and a + b of the normalized features of each level, and the
    :class:`SpectralDifference` of the pixels. So the dates may be swapped by construction; training need not learn it,
    and exchanging the dates as augmentation would do nothing.

    A second head predicts |y - p|, the error of the probability (the online uncertainty estimation of AR-CDNet, Li et
    al. 2023, arXiv 2305.19513). It learns how far the error departs from 2 p (1 - p), its mean if p were right: the few
    labels there often are, learned by heart, teach no more. It takes the features as they are and does not change them.

    Options of the heads ``"linear"``, ``"mlp"`` and ``"conv"``: ``upsample``, ``spectral_points`` (G, 0 to leave the
    spectra out), ``window`` (the side in pixels of what was trained on, 0 if unknown), ``hidden``, ``depth``,
    ``dropout``. Call ``detector.spectra.fit(pairs)`` before training.
    """

    HEADS: ClassVar[dict[str, dict[str, Any]]] = {
        "linear": _OPTIONS,
        "mlp": {**_OPTIONS, **_HIDDEN},
        "conv": {**_OPTIONS, **_HIDDEN, "depth": 2},
    }
    DEFAULT_HEAD = "conv"

    def __init__(self, config: DownstreamConfig):
        super().__init__(config)
        config = self.config  # with every option filled in
        if len(config.outputs) != 1:
            raise ValueError(f"outputs: expected one name, as a pixel has changed or not; got {config.outputs}")
        points = config.options["spectral_points"]
        self.spectra = SpectralDifference(points) if points else None
        bands = self.spectra.channels if points else 0
        width = 2 * config.encoder.embed_dim
        sizes = {name: value for name, value in config.options.items() if name in ("hidden", "depth", "dropout")}
        self.head = PixelHead(width, 1, config.head, bands=bands, **sizes)
        sizes.pop("depth", None)
        self.uncertainty_head = PixelHead(width, 1, "mlp", bands=bands, **{**_HIDDEN, **sizes})
        for parameter in self.uncertainty_head.output.parameters():
            torch.nn.init.zeros_(parameter)
        self.register_buffer("shift", torch.zeros(()))  # of the logits, to the share of changes in a scene

    @classmethod
    def from_encoder(
        cls,
        source: SpecAwareBackbone | str | os.PathLike,
        outputs: tuple[str, ...] = OUTPUTS,
        head: str | None = None,
        **options,
    ) -> SpecAwareChangeDetector:
        """Build a detector with fresh heads and another model's encoder; see :meth:`DownstreamModel.from_encoder`."""
        return super().from_encoder(source, outputs, head, **options)

    def forward(self, before: SpectralBatch, after: SpectralBatch) -> ChangeOutput:
        """Compare two dates of the same places.

        Args:
            before, after: batches of B samples with images of the same height and width; sensors and bands may differ.

        Raises:
            ValueError: the numbers of samples or the sizes differ.
        """
        return self.decide(self.compare(before, after))

    def compare(self, before: SpectralBatch, after: SpectralBatch) -> Compared:
        """Return what the heads take of two dates; arguments and errors as of :meth:`forward`."""
        both = both_dates(before, after)
        encoded = self.encode(both)
        levels = []
        for level in encoded.levels:
            first, second = F.layer_norm(level.movedim(1, -1), level.shape[1:2]).movedim(-1, 1).chunk(2)
            levels.append(torch.cat([(first - second).abs(), first + second], dim=1))
        present = encoded.present
        if present is not None:  # a patch counts where both dates hold something
            present = torch.logical_and(*present.chunk(2))
        spectra = None if self.spectra is None else self.spectra(both)
        return Compared(levels, present, spectra, tuple(both.image.shape[-2:]))

    def decide(self, compared: Compared) -> ChangeOutput:
        """Return logits from what :meth:`compare` made of two dates, at once or earlier."""
        rest = compared.present, compared.spectra, self.spacing, compared.size
        detached = [level.detach() for level in compared.levels]
        logits = self.head(compared.levels, *rest) + self.shift
        expected = expected_error_logit(logits.detach().float())
        return ChangeOutput(logits, expected + self.uncertainty_head(detached, *rest))


def expected_error_logit(logits: Tensor) -> Tensor:
    """Return the logit of 2 p (1 - p), the mean of |y - p| where y is 1 with probability p, from the logits of p."""
    log_error = math.log(2) + F.logsigmoid(logits) + F.logsigmoid(-logits)
    return log_error - torch.log1p(-log_error.exp())


def both_dates(before: SpectralBatch, after: SpectralBatch) -> SpectralBatch:
    """Return one batch of 2 B samples, first those of ``before``.

    Raises:
        ValueError: the numbers of samples or the sizes of the images differ.
    """
    sizes = [(len(batch), *batch.image.shape[-2:]) for batch in (before, after)]
    if sizes[0] != sizes[1]:
        (b, h, w), (b2, h2, w2) = sizes
        raise ValueError(
            f"after: expected {b} samples of {h} x {w} pixels, as many and as large as before; got {b2} of {h2} x {w2}"
        )
    counts = before.band_counts + after.band_counts
    packed = {
        name: torch.cat([getattr(before, name), getattr(after, name)])
        for name in ("image", "wavelength", "fwhm", "gsd", "attributes")
    }
    height, width = before.image.shape[-2:]
    full = before.image.new_ones(len(before), height, width, dtype=torch.bool)
    extent = torch.tensor([[height, width]], device=before.image.device).expand(len(before), 2)
    return SpectralBatch(
        **packed,
        cu_bands=torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=before.image.device),
        band_counts=counts,
        max_bands=max(counts),
        sensor=before.sensor + after.sensor,
        level=before.level + after.level,
        valid=_together(before.valid, after.valid, full),
        extent=_together(before.extent, after.extent, extent),
    )


def _together(first: Tensor | None, second: Tensor | None, default: Tensor) -> Tensor | None:
    if first is None and second is None:
        return None
    return torch.cat([default if part is None else part for part in (first, second)])

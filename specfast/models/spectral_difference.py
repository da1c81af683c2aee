"""How the spectra of two dates differ, in numbers that stay the same when the dates change places.

Legend: B pairs, G points of the spectral grid, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.batch import SpectralBatch, SpectralSample
from specfast.models.spectral_grid import STANDARD_LIMIT, SpectralGrid

ANGLE_SCALE = 10.0  # brings the chord between the directions of two spectra (0.1 is a clear change) to about unit size
FLOOR = 1e-6  # of the mean variance of the differences: points that no band covers have none


class SpectralDifference(nn.Module):
    """Features of two dates' spectra on a common grid: [B, 2 G + 2, H, W].

    These are |W (a - b)|, its length and (a + b) / 2 of standardized spectra a and b, and the angle between spectra. W
    whitens the differences of the pair it was fitted to, so that little is made of what differs everywhere: light,
    season, calibration, noise (as in MAD). It rests on the second moment of a - b, which is that of b - a.

    Args:
        points: G.
    """

    def __init__(self, points: int):
        super().__init__()
        self.grid = SpectralGrid(points)
        self.register_buffer("whitening", torch.eye(points))

    @property
    def channels(self) -> int:
        """2 G + 2."""
        return 2 * len(self.whitening) + 2

    def fit(self, pairs: Iterable[tuple[SpectralSample, SpectralSample]]) -> None:
        """Learn the spread of spectra and of their differences from pairs of dates, each of one size.

        Raises:
            ValueError: no pixel is valid in both dates of a pair.
        """
        pairs = list(pairs)
        self.grid.fit([date for pair in pairs for date in pair])
        moment, count = torch.zeros(self.whitening.shape, dtype=torch.float64), 0
        for pair in pairs:
            both = SpectralBatch.from_samples(list(pair), patch_size=1).to(self.whitening.device)
            values, known = self.grid(both)
            valid = _valid_in_both(both)[0].cpu()
            difference = self._difference(values, known)[0].movedim(0, -1).cpu()[valid].double()
            moment += difference.T @ difference
            count += len(difference)
        if not count:
            raise ValueError("pairs: no pixel is valid in both dates")
        variance, axes = torch.linalg.eigh(moment / count)
        floor = FLOOR * float(variance.mean()) or 1.0
        self.whitening.copy_(axes / (variance.clamp_min(0) + floor).sqrt() @ axes.T)

    def forward(self, both: SpectralBatch) -> Tensor:
        """Return the features of 2 B samples, first those of one date; 0 where one of the dates holds nothing."""
        with torch.autocast(both.image.device.type, enabled=False):  # bf16 would round small changes away
            values, known = self.grid(both)
            white = torch.einsum("gk,bkhw->bghw", self.whitening, self._difference(values, known))
            white = white.clamp(-STANDARD_LIMIT, STANDARD_LIMIT)
            length = white.square().mean(dim=1, keepdim=True).sqrt()
            common = _known_in_both(known)
            mean = sum(self.grid.standardized(values).chunk(2)) * (0.5 * common)
            directions = [F.normalize(date * common, dim=1) for date in values.chunk(2)]
            chord = ANGLE_SCALE * (directions[0] - directions[1]).norm(dim=1, keepdim=True)
            features = torch.cat([white.abs(), mean, length, chord], dim=1)
            return features * _valid_in_both(both)[:, None]

    def _difference(self, values: Tensor, known: Tensor) -> Tensor:
        """a - b of standardized spectra [B, G, H, W], 0 at points that one of the dates does not know."""
        first, second = self.grid.standardized(values).chunk(2)
        return (first - second) * _known_in_both(known)


def _known_in_both(known: Tensor) -> Tensor:
    """Bool [2 B, G] of samples to bool [B, G, 1, 1] of pairs."""
    return torch.logical_and(*known.chunk(2))[..., None, None]


def _valid_in_both(both: SpectralBatch) -> Tensor:
    """Bool [B, H, W]."""
    if both.valid is None:
        return both.image.new_ones(len(both) // 2, *both.image.shape[1:], dtype=torch.bool)
    return torch.logical_and(*both.valid.chunk(2))

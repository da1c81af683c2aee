"""Spectra of any sensor on one wavelength grid, so that those of two dates can be compared.

Legend: B samples, C bands of a sample, G points of the grid, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from specfast.batch import WAVELENGTH_RANGE, SpectralBatch, SpectralSample
from specfast.models.spectral_skip import SMALLEST_SHARE

REACH = 0.75  # how many widths a point may lie from the nearest band's center
SIGMAS_PER_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))
STANDARD_LIMIT = 8.0  # standard deviations; glint and artifacts beyond say no more


class SpectralGrid(nn.Module):
    """Spectra of a batch at G wavelengths, each the mean of the bands around it.

    Mean and spread of every point are buffers, the same for all samples: they are saved with a model, and :meth:`fit`
    sets them.

    Args:
        points: G, evenly from 350 to 2550 nm.
    """

    def __init__(self, points: int):
        super().__init__()
        if points < 2:
            raise ValueError(f"spectral_points: expected at least 2, got {points}")
        self.register_buffer("wavelength", torch.linspace(*WAVELENGTH_RANGE, points), persistent=False)
        self.register_buffer("mean", torch.zeros(points))
        self.register_buffer("scale", torch.ones(points))

    def fit(self, samples: Iterable[SpectralSample]) -> None:
        """Take mean and spread of every point over all valid pixels of samples of any sensors.

        Raises:
            ValueError: there is no valid pixel.
        """
        points = len(self.mean)
        count, first, second = torch.zeros(points).double(), torch.zeros(points).double(), torch.zeros(points).double()
        for sample in samples:
            batch = SpectralBatch.from_samples([sample], patch_size=1)
            weights, covered = (part.cpu() for part in self._weights(batch.wavelength, batch.fwhm))
            valid = torch.ones(batch.image.shape[1:], dtype=torch.bool) if batch.valid is None else batch.valid[0]
            values = (weights.double() @ batch.image[:, valid].double()) * covered[:, None]
            count += covered * values.shape[1]
            first, second = first + values.sum(dim=1), second + values.square().sum(dim=1)
        if not bool((count > 0).any()):
            raise ValueError("samples: expected at least one valid pixel, got none")
        mean = first / count.clamp_min(1)
        scale = (second / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
        floor = SMALLEST_SHARE * float(scale.max()) or 1.0
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(count > 0, scale.clamp_min(floor), 1.0))

    def forward(self, batch: SpectralBatch) -> tuple[Tensor, Tensor]:
        """Return values [B, G, H, W] in the units of the batch, and bool [B, G]: whether a band is near the point.

        Values are 0 at points that no band is near, and at invalid pixels.
        """
        values, known = [], []
        spectra = zip(
            batch.image.split(list(batch.band_counts)),
            batch.wavelength.split(list(batch.band_counts)),
            batch.fwhm.split(list(batch.band_counts)),
            strict=True,
        )
        for image, wavelength, fwhm in spectra:
            weights, covered = self._weights(wavelength, fwhm)
            values.append(torch.einsum("gc,chw->ghw", weights, image.to(weights.dtype)))
            known.append(covered)
        return torch.stack(values), torch.stack(known)

    def standardized(self, values: Tensor) -> Tensor:
        """Return values [B, G, H, W] as standard deviations from the mean, limited to 8."""
        standard = (values - self.mean[:, None, None]) / self.scale[:, None, None]
        return standard.clamp(-STANDARD_LIMIT, STANDARD_LIMIT)

    def _weights(self, wavelength: Tensor, fwhm: Tensor) -> tuple[Tensor, Tensor]:
        """Shares [G, C] of a sample's bands (nm) in every point, and bool [G]: whether the point is covered."""
        grid = self.wavelength.to(wavelength.device)
        width = fwhm.clamp_min(float(grid[1] - grid[0]))
        distance = (grid[:, None] - wavelength).abs()
        weights = torch.exp(-0.5 * (distance / (width * SIGMAS_PER_FWHM)).square())
        covered = (distance <= REACH * width).any(dim=1)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-30)
        return weights * covered[:, None], covered

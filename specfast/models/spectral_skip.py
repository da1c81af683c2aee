"""The pixel's own spectrum beside its tokens, for models of one fixed sensor.

A token sees a patch; what makes one pixel differ from its neighbors is lost in it. For a fixed set of bands the
standardized spectrum can join the features as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.batch import SpectralBatch, SpectralSample

WAVELENGTH_TOLERANCE = 0.5  # nm
SMALLEST_SHARE = 1e-6  # of the largest spread: a band that is constant is not blown up


class SpectralSkip(nn.Module):
    """Standardized spectra of a batch: SpectralBatch -> [B, channels, H, W], 0 at invalid pixels.

    The bands, means and spreads are buffers: they are saved with the model, and :meth:`fit` sets them.

    Args:
        bands: C, of every sample.
        sides: of the squares that spectra are averaged over, in pixels, odd; 1 is the pixel itself. Invalid pixels and
            those beyond the image are left out of the averages.
        shape: after the spectra of each side come their shapes, standardized on their own: the same spectra scaled to
            the length 1, as the spectral angle (Kruse et al. 1993) sees them, in which slope and shade play no part.

    Attributes:
        channels: C * len(sides), and twice as many with ``shape``.
    """

    def __init__(self, bands: int, sides: Sequence[int] = (1,), *, shape: bool = False):
        super().__init__()
        if not sides or any(side < 1 or side % 2 == 0 for side in sides):
            raise ValueError(f"spectral_sides: expected odd numbers of pixels, at least one; got {list(sides)}")
        self.sides = tuple(sides)
        self.shape = shape
        self.channels = spectral_channels(bands, sides, shape)
        self.register_buffer("wavelength", torch.zeros(bands))
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("scale", torch.ones(bands))
        if shape:
            self.register_buffer("shape_mean", torch.zeros(bands))
            self.register_buffer("shape_scale", torch.ones(bands))

    def fit(self, samples: Iterable[SpectralSample]) -> None:
        """Take wavelengths (nm), and each band's mean and spread over all valid pixels, from samples.

        Raises:
            ValueError: there is no valid pixel, or a sample has other bands than the first.
        """
        spectra, shapes = _Moments(), _Moments()
        for number, sample in enumerate(samples):
            wavelength = torch.as_tensor(sample.wavelength, dtype=torch.float32)
            if number == 0 and len(wavelength) == len(self.wavelength):
                self.wavelength.copy_(wavelength)
            self._check(wavelength, f"samples[{number}]")
            image = torch.as_tensor(sample.image).double().flatten(1)
            valid = torch.isfinite(image).all(dim=0)
            if sample.valid is not None:
                valid &= torch.as_tensor(sample.valid).flatten().bool()
            spectra.add(image[:, valid])
            if self.shape:
                shapes.add(_unit_length(image[:, valid], dim=0))
        if not spectra.count:
            raise ValueError("samples: expected at least one valid pixel, got none")
        spectra.copy_to(self.mean, self.scale)
        if self.shape:
            shapes.copy_to(self.shape_mean, self.shape_scale)

    def forward(self, batch: SpectralBatch) -> Tensor:
        bands = len(self.wavelength)
        if not bool(self.wavelength.any()):
            raise ValueError("spectral_skip: nothing is known of the sensor yet; call model.skip.fit(samples) first")
        if any(count != bands for count in batch.band_counts):
            raise ValueError(
                f"batch: expected {bands} bands in every sample, those the model was trained on (it uses the pixels' "
                f"own spectra); got {sorted(set(batch.band_counts))}"
            )
        for number, wavelength in enumerate(batch.wavelength.view(-1, bands)):
            self._check(wavelength, f"batch: sample {number}")
        image = batch.image.unflatten(0, (-1, bands)).to(self.mean.dtype)
        valid = torch.ones_like(image[:, :1]) if batch.valid is None else batch.valid[:, None].to(image.dtype)
        standard = (image - self.mean[:, None, None]) / self.scale[:, None, None]
        parts = []
        for side in self.sides:
            parts.append(_averaged(standard, valid, side))
            if self.shape:  # of the spectra as they are: those standardized and back are rounded, and zeros no longer 0
                shape = _unit_length(_averaged(image, valid, side), dim=1)
                parts.append(valid * (shape - self.shape_mean[:, None, None]) / self.shape_scale[:, None, None])
        return torch.cat(parts, dim=1)

    def _check(self, wavelength: Tensor, name: str) -> None:
        own = self.wavelength
        if len(wavelength) != len(own):
            raise ValueError(f"{name}: expected {len(own)} bands, got {len(wavelength)}")
        away = (wavelength.to(own.device) - own).abs()
        if float(away.max()) > WAVELENGTH_TOLERANCE:
            band = int(away.argmax())
            raise ValueError(
                f"{name}: band {band} lies at {float(wavelength[band]):.1f} nm; expected {float(own[band]):.1f} nm, as "
                "in training (the model uses the pixels' own spectra, so it serves the sensor it was trained on)"
            )


def spectral_channels(bands: int, sides: Sequence[int], shape: bool) -> int:
    """Return how many channels a :class:`SpectralSkip` has."""
    return bands * len(sides) * (2 if shape else 1)


class _Moments:
    """Mean and spread of the rows of [C, pixels] that come one block after the other."""

    def __init__(self):
        self.count, self.first, self.second = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        self.count += values.shape[1]
        self.first, self.second = self.first + values.sum(dim=1), self.second + values.square().sum(dim=1)

    def copy_to(self, mean: Tensor, scale: Tensor) -> None:
        average = self.first / self.count
        spread = (self.second / self.count - average.square()).clamp_min(0).sqrt()
        mean.copy_(average)
        scale.copy_(spread.clamp_min(SMALLEST_SHARE * float(spread.max()) or 1.0))


def _unit_length(spectra: Tensor, dim: int) -> Tensor:
    """Scale spectra to the length 1; spectra of zeros stay zeros."""
    return F.normalize(spectra, dim=dim, eps=1e-12)


def _averaged(image: Tensor, valid: Tensor, side: int) -> Tensor:
    """Average [B, C, H, W] over the valid [B, 1, H, W] pixels of squares; 0 at invalid pixels."""
    masked = image * valid
    if side == 1:
        return masked
    mean = F.avg_pool2d(masked, side, stride=1, padding=side // 2)
    return valid * mean / F.avg_pool2d(valid, side, stride=1, padding=side // 2).clamp_min(1e-6)

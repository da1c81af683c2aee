"""TorchGeo's samples as SpectralBatch: a transform, a dataset around a dataset, and what collates.

    table = bands_of_dataset(dataset, "enmap", "L2")
    loader = DataLoader(SpectralDataset(dataset, SpectralTransform(table, scale=10000)), collate_fn=collate)

TorchGeo's samples are dictionaries with ``"image"`` [C, H, W] and no word about bands; any dictionaries of that kind
will do, and TorchGeo itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from specfast.batch import SpectralBatch, SpectralSample
from specfast.data.bands import BandTable, band_table
from specfast.data.inspection import scale_hint

IMAGE, SPECTRAL = "image", "spectral"


def bands_of_dataset(dataset: Any, sensor: str, level: str, *, gsd: float | None = None) -> BandTable:
    """Read which bands a TorchGeo dataset yields off its ``bands`` and, if it has them, ``wavelengths``.

    Args:
        dataset: its ``bands`` are names, with ``wavelengths`` a dictionary from name to micrometers (as ``EnMAP`` has),
            or numbers counted from 1 of the sensor's product (as ``HySpecNet11k`` has).
        sensor: see :func:`specfast.data.band_table`.
        level: ``"L1"`` or ``"L2"``.
        gsd: ground sampling distance in m; by default the sensor's.

    Raises:
        ValueError: the dataset tells neither, or names a band without a wavelength.
    """
    bands = list(getattr(dataset, "bands", None) or ())
    wavelengths = getattr(dataset, "wavelengths", None)
    if bands and isinstance(wavelengths, Mapping):
        if unknown := [band for band in bands if band not in wavelengths]:
            raise ValueError(f"dataset.wavelengths: has none for {', '.join(map(str, unknown[:5]))}")
        nanometers = [1000.0 * wavelengths[band] for band in bands]
        return band_table(sensor, level, gsd=gsd, wavelength=nanometers)
    if bands and all(isinstance(band, (int, np.integer)) for band in bands):
        return band_table(sensor, level, gsd=gsd, bands=[int(band) - 1 for band in bands])
    raise ValueError(
        "dataset: expected bands with wavelengths (micrometers), or as numbers counted from 1; "
        f"{type(dataset).__name__} has neither. Make the table with specfast.data.band_table"
    )


class SpectralTransform:
    """A transform for TorchGeo: puts a :class:`specfast.SpectralSample` under ``"spectral"``, in place of ``"image"``.

    Args:
        table: the bands of the images, in their order.
        scale, offset: physical = stored / scale + offset, as 10000 for EnMAP's reflectance; None, the default, means
            that images are in physical units, and the first is looked at whether it can be.
        nodata: stored number that means "no measurement" in any band; NaN always does.
    """

    def __init__(
        self, table: BandTable, *, scale: float | None = None, offset: float = 0.0, nodata: float | None = None
    ):
        if scale is not None and not scale > 0:
            raise ValueError(f"scale: expected a positive number; got {scale}")
        self.table, self.scale, self.offset, self.nodata = table, scale, offset, nodata
        self._looked = scale is not None

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Transform one sample.

        Raises:
            ValueError: no image, another number of bands, or values that cannot be in physical units.
        """
        if IMAGE not in sample:
            raise ValueError(f"sample: expected the key {IMAGE!r}; got {', '.join(map(str, sample))}")
        stored = sample[IMAGE]
        image = stored.float()
        if self.nodata is not None:
            image = torch.where(stored == self.nodata, torch.nan, image)
        if not self._looked:
            self._look(image, not stored.is_floating_point())
        image = image / (self.scale or 1.0) + self.offset
        rest = {key: value for key, value in sample.items() if key != IMAGE}
        return {SPECTRAL: self.table.sample(image), **rest}

    def _look(self, image: Tensor, integer: bool) -> None:
        pixels = image.flatten(1).cpu().numpy()
        if hints := scale_hint(pixels, np.ones(len(pixels), dtype=bool), self.table.level, integer):
            raise ValueError(f"image: {hints[0]}, or scale=1 if the values are right")
        self._looked = True


class SpectralDataset(Dataset):
    """A dataset whose samples went through a transform, indexed as it was (by numbers or geographic queries)."""

    def __init__(self, dataset: Dataset, transform: SpectralTransform):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return self.transform(self.dataset[index])


def collate(samples: Iterable[dict[str, Any]], patch_size: int = 8, mask_fill: int = 0) -> dict[str, Any]:
    """Collate samples of :class:`SpectralTransform`, also of several sensors and sizes, for a DataLoader.

    Images are padded at the bottom and right with invalid pixels to whole patches of the largest, and so are tensors
    that have their image's height and width, such as masks, with ``mask_fill``.

    Returns:
        ``"spectral"``: SpectralBatch; under the other keys tensors are stacked, and everything else is a list.

    Raises:
        ValueError: a sample lacks a key that others have, or a tensor's shape differs between samples.
    """
    samples = list(samples)
    keys = set(samples[0]) | {SPECTRAL}
    for number, sample in enumerate(samples):
        if set(sample) != keys or not isinstance(sample[SPECTRAL], SpectralSample):
            raise ValueError(
                f"samples[{number}]: expected the keys {', '.join(sorted(keys))}, as SpectralTransform makes them; got "
                f"{', '.join(sorted(sample))}"
            )
    spectra = [sample[SPECTRAL] for sample in samples]
    batch = SpectralBatch.from_samples(spectra, patch_size)
    collated: dict[str, Any] = {SPECTRAL: batch}
    for key in sorted(keys - {SPECTRAL}):
        values = [sample[key] for sample in samples]
        if all(isinstance(value, Tensor) for value in values):
            values = [
                _padded(value, spectrum.image.shape[-2:], batch.image.shape[-2:], mask_fill)
                for value, spectrum in zip(values, spectra, strict=True)
            ]
            if len({value.shape for value in values}) > 1:
                shapes = ", ".join(str(list(value.shape)) for value in values)
                raise ValueError(f"{key}: expected tensors of one shape, or of their image's size; got {shapes}")
            values = torch.stack(values)
        collated[key] = values
    return collated


def _padded(value: Tensor, own: torch.Size, common: torch.Size, fill: int) -> Tensor:
    """Pad what has the size of its own image at the bottom and right to the common one."""
    if value.ndim < 2 or value.shape[-2:] != own:
        return value
    return F.pad(value, (0, common[1] - own[1], 0, common[0] - own[0]), value=fill)

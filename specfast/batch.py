"""SpectralBatch: samples of any sensors, band counts and levels, packed along one band axis.

This is the one thing that readers make and models take. Legend: B samples, C bands of a sample, S sum of all bands,
H x W pixels.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from specfast.attributes import attribute_vectors, canonical_level, canonical_sensor

WAVELENGTH_RANGE = (350.0, 2550.0)  # nm; what the model's wavelength encoding covers


@dataclass
class SpectralSample:
    """One image with what the model must know about it.

    Args:
        image: [C, H, W], radiance (L1, uW / (cm^2 nm sr)) or reflectance (L2, 0 to 1).
        wavelength: [C] band centers in nm, in the order of the image's bands (any order).
        fwhm: [C] full widths at half maximum in nm.
        gsd: ground sampling distance in m.
        sensor: a sensor's key or name.
        level: ``"L1"`` / ``"radiance"`` or ``"L2"`` / ``"reflectance"``.
        valid: [H, W] bool, False where a pixel holds no measurement; None if all do.
    """

    image: torch.Tensor
    wavelength: torch.Tensor
    fwhm: torch.Tensor
    gsd: float
    sensor: str
    level: str
    valid: torch.Tensor | None = None


def check_bands(
    wavelength: torch.Tensor, fwhm: torch.Tensor, band_counts: Sequence[int] | None = None, *, name: str = ""
) -> None:
    """Raise ValueError, naming the first offending band (counted from 0), unless both tables [S] can be embedded.

    With the band counts of several samples, the sample is named as well; ``name`` is put in front.
    """
    low, high = WAVELENGTH_RANGE
    for what, values, good, expected in (
        ("wavelength", wavelength, (wavelength >= low) & (wavelength <= high), f"{low:.0f} to {high:.0f} nm"),
        ("fwhm", fwhm, torch.isfinite(fwhm) & (fwhm > 0), "a positive number of nm"),
    ):
        if not bool(good.all()):
            band = int((~good).flatten().nonzero()[0])
            value = float(values.flatten()[band])
            where = f"band {band}"
            if band_counts is not None and len(band_counts) > 1:
                ends = list(itertools.accumulate(band_counts))
                sample = bisect.bisect_right(ends, band)
                where = f"sample {sample}, band {band - ends[sample] + band_counts[sample]}"
            hint = " (micrometers? multiply by 1000)" if what == "wavelength" and 0 < value < 20 else ""
            raise ValueError(f"{name}{what}: {where} is {value:g}; expected {expected}{hint}")


def band_without_data(seen: torch.Tensor) -> int | None:
    """Return the first band in which no pixel is seen, bool [C, pixels], if other bands see some; else None.

    Such a band would make every pixel of the sample invalid without a word.
    """
    some = seen.any(dim=1)
    return int((~some).nonzero()[0]) if bool(some.any()) and not bool(some.all()) else None


def _as_float(value, name: str, ndim: int) -> torch.Tensor:
    tensor = torch.as_tensor(value)
    if tensor.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {list(tensor.shape)}")
    return tensor if tensor.is_floating_point() else tensor.float()


@dataclass
class SpectralBatch:
    """A packed batch; make it with :meth:`from_arrays` or :meth:`from_samples`.

    Attributes:
        image: [S, H, W]; invalid pixels hold 0.
        wavelength, fwhm: [S] nm, float32.
        cu_bands: int32 [B + 1]; sample b owns bands ``cu_bands[b]:cu_bands[b + 1]``.
        band_counts: the same as host integers, one a sample; max_bands: the largest of them.
        gsd: [B] m, float32.
        attributes: [B, 2, 384] sentence vectors of sensor and level.
        sensor, level: names, one a sample.
        valid: [B, H, W] bool, or None when every pixel of every sample is valid.
        extent: int64 [B, 2], (height, width) of each sample before padding, or None when all fill the image.
    """

    image: torch.Tensor
    wavelength: torch.Tensor
    fwhm: torch.Tensor
    cu_bands: torch.Tensor
    band_counts: tuple[int, ...]
    max_bands: int
    gsd: torch.Tensor
    attributes: torch.Tensor
    sensor: tuple[str, ...]
    level: tuple[str, ...]
    valid: torch.Tensor | None = None
    extent: torch.Tensor | None = None

    @classmethod
    def from_arrays(
        cls,
        image: torch.Tensor,
        wavelength: torch.Tensor,
        fwhm: torch.Tensor,
        gsd: torch.Tensor | float,
        sensor: str | Sequence[str],
        level: str | Sequence[str],
        valid: torch.Tensor | None = None,
    ) -> SpectralBatch:
        """Make a batch of samples with equal band counts.

        Args:
            image: [B, C, H, W].
            wavelength: [B, C] or [C] nm.
            fwhm: [B, C] or [C] nm.
            gsd: [B] or one number, m.
            sensor: one name, or B names.
            level: one name, or B names.
            valid: [B, H, W] bool, or None. Pixels with a NaN or infinite band are invalid in any case.

        Raises:
            ValueError: an argument has the wrong shape, a wavelength lies outside 350-2550 nm, an FWHM is not positive,
                a GSD is not positive, a level is unknown, or a band holds no finite value while others do.
        """
        image = _as_float(image, "image", 4)
        samples, bands = image.shape[:2]
        if samples == 0 or bands == 0:
            raise ValueError(f"image: expected at least one sample and one band, got shape {list(image.shape)}")

        def per_band(value, name):
            value = torch.as_tensor(value, dtype=torch.float32, device=image.device)
            if value.shape not in ((bands,), (samples, bands)):
                raise ValueError(
                    f"{name}: expected shape [{samples}, {bands}] or [{bands}] to match image {list(image.shape)}; "
                    f"got {list(value.shape)}"
                )
            return value.expand(samples, bands)

        def names(value, name):
            value = [value] * samples if isinstance(value, str) else list(value)
            if len(value) != samples:
                raise ValueError(f"{name}: expected one name or {samples} names, got {len(value)}")
            return value

        gsd = torch.as_tensor(gsd, dtype=torch.float32).expand(samples) if not _has_dim(gsd) else torch.as_tensor(gsd)
        if gsd.shape != (samples,):
            raise ValueError(f"gsd: expected one number or [{samples}], got shape {list(gsd.shape)}")
        if valid is not None:
            valid = torch.as_tensor(valid)
        if valid is not None and tuple(valid.shape) != (samples, *image.shape[2:]):
            raise ValueError(
                f"valid: expected [{samples}, {image.shape[2]}, {image.shape[3]}] to match image {list(image.shape)}; "
                f"got {list(valid.shape)}"
            )
        finite = torch.isfinite(image)
        for sample, seen in enumerate(finite.flatten(2)):
            if not bool(seen.all()) and (band := band_without_data(seen)) is not None:
                raise ValueError(
                    f"image: band {band} of sample {sample} holds no finite value, so no pixel would be valid; "
                    "leave that band out"
                )
        finite = finite.all(dim=1)
        valid = finite if valid is None else finite & valid.to(device=image.device, dtype=torch.bool)
        if bool(valid.all()):
            valid = None
        else:
            image = torch.where(valid[:, None], image, 0.0)
        return cls.from_packed(
            image.flatten(0, 1),
            per_band(wavelength, "wavelength").flatten(),
            per_band(fwhm, "fwhm").flatten(),
            (bands,) * samples,
            gsd,
            names(sensor, "sensor"),
            names(level, "level"),
            valid,
            None,
        )

    @classmethod
    def from_samples(cls, samples: Sequence[SpectralSample], patch_size: int = 8) -> SpectralBatch:
        """Make a batch of samples that may differ in bands, sensor, level, GSD and size.

        Smaller images are padded at the bottom and right with invalid pixels, to the largest height and width, each
        rounded up to a multiple of ``patch_size``.

        Raises:
            ValueError: as :meth:`from_arrays`, with the sample's number; or there are no samples.
        """
        if not samples:
            raise ValueError("samples: expected at least one sample, got none")
        if patch_size < 1:
            raise ValueError(f"patch_size: expected a positive number of pixels, got {patch_size}")
        parts = []
        for number, s in enumerate(samples):
            try:
                parts.append(
                    cls.from_arrays(
                        torch.as_tensor(s.image)[None],
                        torch.as_tensor(s.wavelength)[None],
                        torch.as_tensor(s.fwhm)[None],
                        float(s.gsd),
                        s.sensor,
                        s.level,
                        None if s.valid is None else torch.as_tensor(s.valid)[None],
                    )
                )
            except ValueError as error:
                raise ValueError(f"samples[{number}]: {error}") from None
        extent = [tuple(part.image.shape[1:]) for part in parts]
        height, width = (-(-max(sizes) // patch_size) * patch_size for sizes in zip(*extent, strict=True))
        padded = any(size != (height, width) for size in extent)

        def pad(image):
            return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) if padded else image

        valid = None
        if padded or any(part.valid is not None for part in parts):
            masks = (
                p.image.new_ones(1, *p.image.shape[1:], dtype=torch.bool) if p.valid is None else p.valid for p in parts
            )
            valid = torch.cat([pad(mask) for mask in masks])
        return cls.from_packed(
            torch.cat([pad(part.image) for part in parts]),
            torch.cat([part.wavelength for part in parts]),
            torch.cat([part.fwhm for part in parts]),
            tuple(part.band_counts[0] for part in parts),
            torch.cat([part.gsd for part in parts]),
            [part.sensor[0] for part in parts],
            [part.level[0] for part in parts],
            valid,
            torch.tensor(extent) if padded else None,
        )

    @classmethod
    def from_packed(
        cls,
        image: torch.Tensor,
        wavelength: torch.Tensor,
        fwhm: torch.Tensor,
        band_counts: tuple[int, ...],
        gsd: torch.Tensor,
        sensor: Sequence[str],
        level: Sequence[str],
        valid: torch.Tensor | None,
        extent: torch.Tensor | None,
    ) -> SpectralBatch:
        """Make a batch of what is packed already; for loaders that read straight into the packed image.

        The arguments are the attributes of the class; invalid pixels of ``image`` must hold 0.

        Raises:
            ValueError: a wavelength, FWHM or GSD is out of range, or a level is unknown.
        """
        band_counts = tuple(int(count) for count in band_counts)
        samples, bands = len(band_counts), sum(band_counts)
        if not samples or min(band_counts) < 1:
            raise ValueError(f"band_counts: expected at least one band in each sample, got {band_counts}")
        for name, value, shape in (
            ("image", image, (bands, *image.shape[1:])),
            ("wavelength", wavelength, (bands,)),
            ("fwhm", fwhm, (bands,)),
            ("gsd", gsd, (samples,)),
            ("valid", valid, (samples, *image.shape[1:])),
            ("extent", extent, (samples, 2)),
        ):
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"{name}: expected shape {list(shape)} for band_counts {band_counts}; got {list(value.shape)}"
                )
        for name, value in (("sensor", sensor), ("level", level)):
            if len(value) != samples:
                raise ValueError(f"{name}: expected {samples} names, got {len(value)}")
        check_bands(wavelength, fwhm, band_counts)
        gsd = gsd.to(device=image.device, dtype=torch.float32)
        if not bool((torch.isfinite(gsd) & (gsd > 0)).all()):
            raise ValueError(f"gsd: expected positive numbers of m, got {gsd.tolist()}")
        return cls(
            image=image,
            wavelength=wavelength,
            fwhm=fwhm,
            cu_bands=torch.tensor([0, *itertools.accumulate(band_counts)], dtype=torch.int32, device=image.device),
            band_counts=band_counts,
            max_bands=max(band_counts),
            gsd=gsd,
            attributes=attribute_vectors(sensor, level).to(image.device),
            sensor=tuple(canonical_sensor(name) for name in sensor),
            level=tuple(canonical_level(name) for name in level),
            valid=valid,
            extent=None if extent is None else extent.to(image.device),
        )

    def __len__(self) -> int:
        return self.gsd.shape[0]

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> SpectralBatch:
        """Return the batch on ``device``; ``dtype`` applies to the image only (metadata stays float32)."""
        moved = self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved if dtype is None else dataclasses.replace(moved, image=moved.image.to(dtype))

    def pin_memory(self) -> SpectralBatch:
        """Return the batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map_tensors(torch.Tensor.pin_memory)

    def _map_tensors(self, function) -> SpectralBatch:
        changes = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **changes)


def _has_dim(value) -> bool:
    return torch.as_tensor(value).ndim > 0

"""Cutting a scene into tiles: where they lie, which are kept, and how their values become float16.

A tile is judged as Hyper-400K's were (Ji et al. 2026, prepare_codes/split_image.py): a value is invalid if it is
negative, not finite, or in a pixel where any band exceeds the sensor's maximum; a tile is left out if more than 20 % of
its values are invalid. What is masked in training is another question. Hyper-400K sets every invalid value to zero and
learns from the zeros. Here a pixel is masked, so it enters no pooling, target or loss, when it holds no measurement:
some kept band is not finite or nodata, exceeds the maximum, or lies below :data:`FILL_BELOW`. A small negative value
is kept as it is: over dark targets it is noise, and cutting it off would bias the spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_VALUE = {
    ("avc", "L1"): 30.0,
    ("avng", "L1"): 100.0,
    ("av3", "L1"): 100.0,
    ("avc", "L2"): 2.5,
    ("avng", "L2"): 2.5,
    ("av3", "L2"): 2.5,
}
"""Largest plausible value by published sensor name and level, as Hyper-400K was prepared; none for other sensors."""

FILL_BELOW = -1.0
"""Noise in radiance (uW / (cm^2 nm sr)) or reflectance stays above; lower values are undeclared fill values."""

LARGEST_VALUE = 2.0**24
"""No measurement is larger; such a value is an undeclared fill value and refused, not scaled down to fit float16."""

CAUSES = ("no data", "negative", "above maximum")


@dataclass(frozen=True)
class TilingOptions:
    """How scenes are cut; the same for all scenes of a store.

    Attributes:
        tile: side of a tile in pixels (Hyper-400K: 256).
        stride: pixels from one tile to the next; the tile's side means no overlap.
        max_invalid: largest share of invalid values in a tile that is kept (Hyper-400K: 0.2).
        max_value: values above are invalid; None means the published limit of the sensor and level, if there is one.
    """

    tile: int = 256
    stride: int = 256
    max_invalid: float = 0.2
    max_value: float | None = None

    def __post_init__(self):
        for name in ("tile", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1 pixel, got {getattr(self, name)}")
        if self.stride > self.tile:
            raise ValueError(f"stride: {self.stride} is larger than the tile ({self.tile}), which would leave gaps")
        if not 0 <= self.max_invalid <= 1:
            raise ValueError(f"max_invalid: expected a share from 0 to 1, got {self.max_invalid}")
        if self.max_value is not None and not self.max_value > 0:
            raise ValueError(f"max_value: expected a positive number, got {self.max_value}")


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles start along one axis: every ``stride``, and a last one shifted back to end at the edge.

    One tile, as long as the axis, if that is shorter than ``tile``.
    """
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile + 1, stride))
    if starts[-1] + tile < length:
        starts.append(length - tile)
    return starts


@dataclass(frozen=True)
class Verdict:
    """What :func:`examine` found in a tile of C bands.

    Attributes:
        valid: bool [H, W], the pixels that training may use.
        invalid_share: share of invalid values, as published; masked_share: share of pixels that are not ``valid``.
        causes: number of invalid values by cause, in the order of :data:`CAUSES`.
        no_data: [C] pixels without a finite value, a band.
        peak: largest magnitude among the valid pixels.
    """

    valid: np.ndarray
    invalid_share: float
    masked_share: float
    causes: tuple[int, int, int]
    no_data: np.ndarray
    peak: float

    def rejected(self, limit: float) -> str:
        """Return the cause that weighs most if more than ``limit`` of the tile is invalid or masked, else ""."""
        if max(self.invalid_share, self.masked_share) <= limit:
            return ""
        return CAUSES[int(np.argmax(self.causes))]


def examine(image: np.ndarray, maximum: float | None = None) -> Verdict:
    """Judge a tile, float32 [C, H, W] with NaN where there is no data."""
    bands, height, width = image.shape
    above = np.zeros((height, width), dtype=bool)
    masked = np.zeros((height, width), dtype=bool)
    empty = np.zeros((height, width), dtype=np.int32)
    negative = np.zeros((height, width), dtype=np.int32)
    peak = np.zeros((height, width), dtype=np.float32)
    no_data = np.zeros(bands, dtype=np.int64)
    for number, plane in enumerate(image):  # one band at a time: temporaries of a plane, not of a tile
        hole = ~np.isfinite(plane)
        no_data[number] = hole.sum()
        empty += hole
        negative += (plane < 0) & ~hole
        masked |= hole | (plane < FILL_BELOW)
        np.fmax(peak, np.abs(plane), out=peak)
        if maximum is not None:
            above |= (plane > maximum) & ~hole
    valid = ~(masked | above)
    counts = (int(empty[~above].sum()), int(negative[~above].sum()), int(above.sum()) * bands)
    return Verdict(
        valid=valid,
        invalid_share=sum(counts) / image.size,
        masked_share=int((~valid).sum()) / valid.size,
        causes=counts,
        no_data=no_data,
        peak=float(peak[valid].max(initial=0.0)),
    )


def float16_exponent(peak: float) -> int:
    """Return e so that values up to ``peak``, times 2**e, suit float16.

    0 for peaks of 1/16 to 32768, where nothing overflows and values down to a thousandth of the peak keep the full 11
    bits. A power of two changes no bit of the fraction.
    """
    if peak == 0:
        return 0
    _, exponent = np.frexp(np.float32(peak))  # 2**(exponent - 1) <= peak < 2**exponent
    if exponent > 15:
        return 15 - int(exponent)
    if exponent < -3:
        return min(-3 - int(exponent), 100)
    return 0


def to_float16(image: np.ndarray, valid: np.ndarray, exponent: int) -> np.ndarray:
    """Return float16 [C, H, W]: ``image * 2**exponent``, with 0 in the pixels that are not valid."""
    half = np.empty(image.shape, dtype=np.float16)
    for target, plane in zip(half, image, strict=True):
        plane = np.where(valid, plane, np.float32(0))
        target[...] = np.ldexp(plane, exponent) if exponent else plane
    return half

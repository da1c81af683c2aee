"""Dense features: one vector a pixel from an encoder that gives one token a patch.

A token describes p x p pixels, so taking the nearest token gives all of them one vector and shifts borders by up to
half a patch. Two ways around that, both with every token placed at the center of the pixels it saw:

- ``upsample``: enlarge the cube, so that a token covers ``p / factor`` pixels.
- ``shift``: encode the cube on patch grids shifted by ``stride`` pixels.

The tokens' grid is then interpolated bilinearly to the centers of the pixels.

Legend: C bands, H x W pixels, h x w pixels of a window, p patch size, E width of a token, F features of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.batch import SpectralBatch, SpectralSample

if TYPE_CHECKING:
    from specfast.data import SpectralImage

METHODS = ("upsample", "shift")
RANK_TOLERANCE = 1e-12  # of the largest variance; float32 features hold nothing below


def dense_features(
    encoder: nn.Module,
    image: SpectralImage | SpectralSample,
    *,
    method: str = "upsample",
    levels: Sequence[int] = (0, 1, 2, 3),
    factor: int = 4,
    stride: int = 2,
    window: int | None = None,
    overlap: float = 0.25,
    batch_size: int = 8,
    out: np.ndarray | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return frozen features of every pixel.

    The scene is read and encoded window by window; where windows overlap their features are blended with weights that
    fall off toward a window's edges. Memory beside the result is that of ``batch_size`` windows.

    Args:
        encoder: a SpecAwareEncoder, or a module with its call, ``config.patch_size`` and ``config.image_size``. It is
            used in eval mode on the device of its parameters.
        image: a SpectralImage, read window by window, or a SpectralSample [C, H, W].
        method: ``"upsample"`` or ``"shift"``.
        levels: which of the encoder's level maps to stack, counted from 0 (earliest) or from -1 (the last, which is
            ``tokens``).
        factor: ``"upsample"``: how much the cube is enlarged; the GSD is divided by it. ``factor=p`` gives a token a
            pixel.
        stride: ``"shift"``: pixels between patch grids, a divisor of p; ``(p / stride)^2`` grids are encoded.
        window: side of a window in pixels of the scene. Default: what fills the model's image size.
        overlap: share of a window that its neighbor covers too, 0 to below 1.
        batch_size: windows (``"upsample"``) or shifted windows encoded together.
        out: float32 [H, W, F] to write to (a memory map for scenes whose features do not fit in memory).
        progress: show a bar.

    Returns:
        float32 [H, W, F], F = E times the number of levels; NaN where a pixel is invalid.

    Raises:
        ValueError: an option is out of range, or ``out`` has another shape.
    """
    p = int(encoder.config.patch_size)
    _check_options(p, method, levels, factor, stride, overlap, batch_size)
    height, width = image.shape[-2:] if hasattr(image, "shape") else image.image.shape[-2:]
    side = window or max(p, encoder.config.image_size) // (factor if method == "upsample" else 1)
    side = max(1, side)
    boxes = list(windows(height, width, side, overlap))
    shifts = 1 if method == "upsample" else (p // stride) ** 2
    group = max(1, batch_size // shifts)
    weight = None
    profile = ramp(min(side, height), overlap)[:, None] * ramp(min(side, width), overlap)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode(), _bar(len(boxes), progress) as bar:
            for start in range(0, len(boxes), group):
                part = boxes[start : start + group]
                samples = [read_window(image, box) for box in part]
                present = [number for number, sample in enumerate(samples) if bool(sample.valid.any())]
                if present:
                    encode = _encode_upsampled if method == "upsample" else _encode_shifted
                    step = factor if method == "upsample" else stride
                    maps = encode(encoder, [samples[number] for number in present], p, step, levels, batch_size)
                    if weight is None:
                        out = _allocate(out, (height, width, maps.shape[1]))
                        weight = np.zeros((height, width), dtype=np.float32)
                    for number, features in zip(present, maps, strict=True):
                        row, column, h, w = part[number]
                        rows, columns = slice(row, row + h), slice(column, column + w)
                        share = profile * samples[number].valid.numpy()
                        out[rows, columns] += features.permute(1, 2, 0).numpy() * share[..., None]
                        weight[rows, columns] += share
                bar.update(len(part))
    finally:
        encoder.train(was_training)
    if weight is None:
        raise ValueError("image: no pixel is valid, so there is nothing to encode")
    for line, total in zip(out, weight, strict=True):
        line /= np.where(total > 0, total, np.nan)[:, None]
    return out


def whiten(features: np.ndarray, components: int) -> np.ndarray:
    """Turn features to their leading principal components, each with unit variance over all valid pixels.

    A pre-trained encoder puts most of its variance into a few directions (overall brightness), and a linear classifier
    with a penalty sees little else. The labels play no part.

    Args:
        features: [N, F], NaN rows where a pixel is invalid.
        components: how many to keep; fewer where the features have fewer.

    Returns:
        float32 [N, min(components, F, rank)], NaN rows as given.
    """
    if components < 1:
        raise ValueError(f"components: expected at least 1, got {components}")
    valid = np.isfinite(features).all(axis=1)
    if not valid.any():
        raise ValueError("features: no pixel is valid")
    known = features[valid].astype(np.float64)
    spread = known.std(axis=0)
    known = (known - known.mean(axis=0)) / np.where(spread > 0, spread, 1)
    variance, axes = np.linalg.eigh(known.T @ known / len(known))
    variance, axes = variance[::-1][:components], axes[:, ::-1][:, :components]
    kept = variance > variance[0] * RANK_TOLERANCE
    out = np.full((len(features), int(kept.sum())), np.nan, dtype=np.float32)
    out[valid] = known @ (axes[:, kept] / np.sqrt(variance[kept]))
    return out


def _check_options(p, method, levels, factor, stride, overlap, batch_size) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
    if not levels or not all(-4 <= level < 4 for level in levels):
        raise ValueError(f"levels: expected numbers from -4 to 3, at least one; got {list(levels)}")
    if factor < 1:
        raise ValueError(f"factor: expected at least 1, got {factor}")
    if stride < 1 or p % stride:
        raise ValueError(f"stride: expected a divisor of the patch size {p}, got {stride}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: expected 0 to below 1, got {overlap}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")


def windows(height: int, width: int, side: int, overlap: float) -> Iterator[tuple[int, int, int, int]]:
    """Yield (row, column, height, width) of equally large windows that cover the scene, the last ones at its edge."""

    def starts(length):
        if length <= side:
            return [0]
        count = 1 + int(np.ceil((length - side) / max(1, side * (1 - overlap))))
        return np.linspace(0, length - side, count).round().astype(int).tolist()

    for row in starts(height):
        for column in starts(width):
            yield row, column, min(side, height), min(side, width)


def ramp(length: int, overlap: float) -> np.ndarray:
    """Weights of a window's rows or columns: rising over the overlap from both ends."""
    place = np.arange(length, dtype=np.float32)
    rise = max(1.0, length * overlap)
    return np.minimum(np.minimum(place + 1, length - place), rise) / rise


def read_window(image: SpectralImage | SpectralSample, box: tuple[int, int, int, int]) -> SpectralSample:
    """Cut a window (row, column, height, width) out of a scene; invalid pixels hold 0 and ``valid`` is filled."""
    if isinstance(image, SpectralSample):
        row, column, height, width = box
        rows, columns = slice(row, row + height), slice(column, column + width)
        cut = torch.as_tensor(image.image)[:, rows, columns].float()
        valid = None if image.valid is None else torch.as_tensor(image.valid)[rows, columns]
        sample = replace(image, image=cut, valid=valid)
    else:
        sample = image.sample(window=box)
    pixels = torch.as_tensor(sample.image).float()
    valid = torch.isfinite(pixels).all(dim=0)
    if sample.valid is not None:
        valid = valid & torch.as_tensor(sample.valid).bool()
    return replace(sample, image=torch.where(valid, pixels, 0.0), valid=valid)


def _encode_upsampled(encoder, samples: list[SpectralSample], p, factor, levels, batch_size) -> Tensor:
    """Features of equally large windows, from enlarged cubes: [windows, F, h, w]."""
    valid = torch.stack([sample.valid for sample in samples])
    image = torch.stack([sample.image for sample in samples])
    height, width = image.shape[-2:]
    if factor > 1:
        share = _enlarge(valid[:, None].float(), factor)
        image = torch.where(share > 0, _enlarge(image, factor) / share.clamp_min(1e-6), 0.0)
        valid = valid.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    image, valid = _pad(image, valid, 0, -image.shape[-2] % p, -image.shape[-1] % p)
    tokens = _encode(encoder, samples, image, valid, factor, levels)
    return _at_pixels(tokens, _present(valid, p), p / (2 * factor) - 0.5, p / factor, height, width)


def _encode_shifted(encoder, samples: list[SpectralSample], p, stride, levels, batch_size) -> Tensor:
    """Features of equally large windows, from shifted patch grids: [windows, F, h, w]."""
    valid = torch.stack([sample.valid for sample in samples])
    image = torch.stack([sample.image for sample in samples])
    height, width = image.shape[-2:]
    rows, columns = (-(-(length + stride) // p) for length in (height, width))
    before = p // 2
    reach = p - stride - before  # how far the last grid is shifted, less what is added in front
    image, valid = _pad(image, valid, before, rows * p + reach - height, columns * p + reach - width)
    each = p // stride
    windows = len(samples)
    places = [(i, j) for i in range(each) for j in range(each)]
    tokens, present = None, image.new_zeros(windows, 1, rows * each, columns * each)
    at_once = max(1, batch_size // windows)
    for start in range(0, len(places), at_once):
        part = places[start : start + at_once]
        cut = [(slice(i * stride, i * stride + rows * p), slice(j * stride, j * stride + columns * p)) for i, j in part]
        shifted = torch.cat([image[:, :, r, c] for r, c in cut])
        shifted_valid = torch.cat([valid[:, r, c] for r, c in cut])
        encoded = _encode(encoder, samples * len(part), shifted, shifted_valid, 1, levels)
        there = _present(shifted_valid, p)
        if tokens is None:
            tokens = encoded.new_zeros(windows, encoded.shape[1], rows * each, columns * each)
        for number, (i, j) in enumerate(part):
            own = slice(number * windows, (number + 1) * windows)
            tokens[:, :, i::each, j::each] = encoded[own]
            present[:, :, i::each, j::each] = there[own]
    return _at_pixels(tokens, present, (p - 1) / 2 - before, stride, height, width)


def _enlarge(image: Tensor, factor: int) -> Tensor:
    return F.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)


def _pad(image: Tensor, valid: Tensor, before: int, below: int, right: int) -> tuple[Tensor, Tensor]:
    """Repeat the edge pixels outward: at the top and left by ``before``, at the bottom and right as given."""
    edges = (before, right, before, below)
    padded = F.pad(valid[:, None].float(), edges, mode="replicate")[:, 0] > 0
    return F.pad(image, edges, mode="replicate"), padded


def _present(valid: Tensor, p: int) -> Tensor:
    """1 where a patch holds a valid pixel: [windows, 1, H/p, W/p]."""
    return F.max_pool2d(valid[:, None].float(), p)


def _encode(encoder, samples: Sequence[SpectralSample], image: Tensor, valid: Tensor, factor: int, levels) -> Tensor:
    """Encode windows of one scene: chosen levels stacked, [windows, F, H/p, W/p], on the CPU."""
    first = samples[0]
    batch = SpectralBatch.from_arrays(
        image,
        torch.as_tensor(first.wavelength),
        torch.as_tensor(first.fwhm),
        float(first.gsd) / factor,
        first.sensor,
        first.level,
        valid,
    )
    parameter = next(encoder.parameters(), None)
    features = encoder(batch if parameter is None else batch.to(parameter.device))
    return torch.cat([features.levels[level] for level in levels], dim=1).float().cpu()


def _at_pixels(tokens: Tensor, present: Tensor, origin: float, spacing: float, height: int, width: int) -> Tensor:
    """Interpolate tokens to pixel centers, leaving out those of empty patches.

    Args:
        tokens: [windows, F, rows, columns], their centers at ``origin + spacing * index`` pixels.
        present: [windows, 1, rows, columns], 0 where a patch is empty.

    Returns:
        [windows, F, height, width]; 0 where no token is near.
    """

    def line(length, count):
        index = (torch.arange(length, dtype=torch.float64) - origin) / spacing
        return (2 * index / max(count - 1, 1) - 1).clamp(-1, 1) if count > 1 else torch.zeros(length).double()

    y, x = torch.meshgrid(line(height, tokens.shape[2]), line(width, tokens.shape[3]), indexing="ij")
    grid = torch.stack([x, y], dim=-1).to(tokens.dtype).expand(len(tokens), -1, -1, -1)
    if bool((present > 0).all()):
        return F.grid_sample(tokens, grid, align_corners=True, padding_mode="border")
    share = F.grid_sample(present, grid, align_corners=True, padding_mode="border")
    mixed = F.grid_sample(tokens * present, grid, align_corners=True, padding_mode="border")
    return torch.where(share > 1e-6, mixed / share.clamp_min(1e-6), 0.0)


def _allocate(out: np.ndarray | None, shape: tuple[int, int, int]) -> np.ndarray:
    if out is None:
        return np.zeros(shape, dtype=np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out: expected float32 {list(shape)}, got {out.dtype} {list(out.shape)}")
    out[...] = 0
    return out


def _bar(total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="dense features", unit="window", disable=not progress)

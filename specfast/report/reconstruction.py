"""What a pre-trained model fills in: an image with patches removed, and two simple ways to fill them for comparison.

Legend: C bands, H x W pixels, N patches of p x p pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from specfast.batch import SpectralBatch, SpectralSample
from specfast.report.composites import RGB_WAVELENGTHS, display_bands, hide_patches, rgb_composite, shared_limits


@dataclass
class Filled:
    """An image, cut to whole windows, with removed patches filled in.

    Attributes:
        original: float32 [C, H, W].
        removed: bool [H/p, W/p].
        ways: name -> float32 [C, H, W]; kept patches hold the original.
    """

    original: np.ndarray
    removed: np.ndarray
    ways: dict[str, np.ndarray]

    @property
    def pixels(self) -> np.ndarray:
        """Removed pixels, bool [H, W]."""
        p = self.original.shape[1] // self.removed.shape[0]
        return self.removed.repeat(p, axis=0).repeat(p, axis=1)

    def relative_error(self, way: str) -> float:
        """Root of summed squared error over root of summed squares of the original, over removed pixels."""
        difference = (self.ways[way] - self.original)[:, self.pixels]
        return float(np.sqrt(np.square(difference).sum() / (np.square(self.original[:, self.pixels]).sum() + 1e-12)))

    def spectral_angle(self, way: str) -> float:
        """Mean angle in degrees between filled and original spectra of removed pixels."""
        a, b = self.ways[way][:, self.pixels], self.original[:, self.pixels]
        cosine = (a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0) + 1e-12)
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())

    def band_error(self, way: str) -> np.ndarray:
        """Root mean square error of each band over removed pixels, [C]."""
        return np.sqrt(np.square((self.ways[way] - self.original)[:, self.pixels]).mean(axis=1))


MODEL, MEAN, NEAREST = "SpecAware", "mean of the kept pixels", "nearest kept pixel"


@torch.inference_mode()
def fill(model, sample: SpectralSample, *, mask_ratio: float, seed: int) -> Filled:
    """Remove patches of an image, window by window of the model's training size, and fill them in.

    The same seed removes the same patches of every image of the same size, whatever its bands.

    Args:
        model: SpecAwareMAE.
        sample: at least one patch large; what is left beyond whole windows is cut. Windows of an image smaller than
            the model's training crops are as large as it.
        mask_ratio: share of the patches removed, as in pre-training.
        seed: of the masks.

    Raises:
        ValueError: the image is smaller than a patch.
    """
    p = model.config.patch_size
    size = min(model.config.image_size, *sample.image.shape[1:]) // p * p
    if size == 0:
        raise ValueError(f"sample: expected at least {p} x {p} pixels, one patch; got {list(sample.image.shape[1:])}")
    height, width = (length // size * size for length in sample.image.shape[1:])
    cube = sample.image[:, :height, :width].float()
    grid = size // p
    generator = torch.Generator().manual_seed(seed)
    filled, removed = torch.empty_like(cube), np.empty((height // p, width // p), dtype=bool)
    was_training = model.training
    model.eval()
    for row in range(0, height, size):
        for column in range(0, width, size):
            place = (slice(None), slice(row, row + size), slice(column, column + size))
            batch = SpectralBatch.from_arrays(
                cube[place][None],
                sample.wavelength,
                sample.fwhm,
                float(sample.gsd),
                sample.sensor,
                sample.level,
                None if sample.valid is None else sample.valid[place[1:]][None],
            )
            noise = torch.rand(1, grid * grid, generator=generator)
            output = model(batch, mask_ratio=mask_ratio, mask_noise=noise, return_prediction=True)
            patches = output.prediction[0].view(grid, grid, p, p, -1)
            filled[place] = patches.permute(4, 0, 2, 1, 3).reshape(-1, size, size)
            part = output.mask[0].view(grid, grid).bool().numpy()
            removed[row // p : row // p + grid, column // p : column // p + grid] = part
    model.train(was_training)
    result = Filled(cube.numpy(), removed, {})
    known = ~result.pixels
    result.ways[MODEL] = np.where(known, result.original, filled.numpy())
    result.ways[MEAN] = _by_window(result.original, known, size, _mean)
    result.ways[NEAREST] = _by_window(result.original, known, size, _nearest)
    return result


def pictures(filled: Filled, wavelength) -> list[tuple[str, np.ndarray]]:
    """Return (title, [H, W, 3]): input, masked input and reconstruction, all with the input's stretch.

    Natural color where the bands have it, see :func:`specfast.report.composites.display_bands`.
    """
    bands, _ = display_bands(wavelength)
    limits = shared_limits(filled.original, bands)
    p = filled.original.shape[1] // filled.removed.shape[0]

    def composite(cube):
        return rgb_composite(cube[list(bands)], RGB_WAVELENGTHS, limits=limits)

    whole = composite(filled.original)
    return [
        ("input", whole),
        (f"{filled.removed.mean():.0%} removed", hide_patches(whole, filled.removed, p)),
        ("reconstruction", composite(filled.ways[MODEL])),
    ]


def _by_window(cube: np.ndarray, known: np.ndarray, size: int, way) -> np.ndarray:
    """Fill each window from its own kept pixels: what the model knows too."""
    out = cube.copy()
    for row in range(0, cube.shape[1], size):
        for column in range(0, cube.shape[2], size):
            place = (slice(row, row + size), slice(column, column + size))
            out[:, *place] = way(cube[:, *place], known[place])
    return out


def _mean(cube: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, cube, cube[:, known].mean(axis=1)[:, None, None])


def _nearest(cube: np.ndarray, known: np.ndarray) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return cube[:, rows, columns]

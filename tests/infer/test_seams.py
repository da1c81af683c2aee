"""No visible seams with a real encoder: across the borders of windows features change as they do elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.data import SpectralImage
from specfast.infer import EmbedPredictor, map_scene
from specfast.infer.windows import Windows
from tests.infer.conftest import FWHM, WAVELENGTH


def smooth_scene(side: int) -> SpectralImage:
    """A landscape of gentle hills and fields, so that a jump would show."""
    y, x = np.mgrid[:side, :side] / side
    fields = (np.floor(6 * x) + np.floor(5 * y)) % 3
    hills = np.sin(7 * x + 3 * y) + np.cos(9 * y - 4 * x)
    slope = np.linspace(0.5, 1.5, len(WAVELENGTH))[:, None, None]
    cube = 0.3 + 0.05 * hills * slope + 0.08 * fields * slope[::-1]
    noise = np.random.default_rng(0).normal(scale=0.004, size=cube.shape)
    return SpectralImage.from_array(
        (cube + noise).astype(np.float32), wavelength=WAVELENGTH, fwhm=FWHM, gsd=30.0, sensor="others", level="L2"
    )


def jump(features: np.ndarray, starts, axis: int, patch: int) -> float:
    """Mean change across the borders of windows, over that across the other borders of patches of so many cells."""
    change = np.linalg.norm(np.diff(features, axis=axis + 1), axis=0).mean(axis=1 - axis)[patch - 1 :: patch]
    at_border = np.zeros(len(change), dtype=bool)
    at_border[[start // patch - 1 for start in starts if 0 < start // patch <= len(change)]] = True
    return change[at_border].mean() / change[~at_border].mean()


@pytest.mark.parametrize("pixels", [False, True], ids=["patches", "pixels"])
def test_features_do_not_jump_where_windows_begin_or_end(encoder, tmp_path, pixels):
    image = smooth_scene(128)
    predictor = EmbedPredictor(encoder, pixels=pixels)
    ratio = {}
    for overlap in (predictor.overlap, 0.0):
        map_scene(image, predictor, tmp_path / "map.npy", window=32, overlap=overlap)
        features = np.load(tmp_path / "map.npy")
        cells = Windows(128, 128, 32, overlap, predictor.align).in_cells(predictor.stride)
        ratio[overlap] = max(
            jump(features, borders, axis, cells.align)
            for axis, starts in ((0, cells.rows), (1, cells.columns))
            for borders in (starts, [start + cells.side for start in starts])
        )
    assert ratio[0.0] > 1.15  # the measure sees seams where windows are only put side by side
    assert ratio[predictor.overlap] < 1.05

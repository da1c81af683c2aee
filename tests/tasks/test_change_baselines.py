"""Change detectors without a model: invariances they promise, and what they find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast import SpectralSample
from specfast.evaluate.detection import auc
from specfast.tasks.change_baselines import aligned_cubes, change_vector_analysis, mad, stacked_components


def scene_pair(height=40, width=36, bands=6, seed=0):
    """A smooth scene of three materials seen twice, with noise, gain and offset; a square has changed."""
    rng = np.random.default_rng(seed)
    spectra = rng.uniform(0.1, 1, size=(3, bands))
    shares = rng.dirichlet(np.ones(3), (height, width))
    changed = np.zeros((height, width), dtype=bool)
    changed[10:18, 5:15] = True
    later = np.where(changed[..., None], shares[..., [1, 2, 0]], shares)
    noise = rng.normal(size=(2, height, width, bands)) * 0.01
    gain, offset = rng.uniform(0.5, 2, size=(2, bands))
    return shares @ spectra + noise[0], (later @ spectra + noise[1]) * gain + offset, changed


def sample_of(cube, wavelength) -> SpectralSample:
    image = torch.from_numpy(np.ascontiguousarray(cube.transpose(2, 0, 1))).float()
    return SpectralSample(
        image, torch.as_tensor(wavelength), torch.full((len(wavelength),), 20.0), 4.0, "av3", "L2", None
    )


def test_cva_is_the_distance_of_standardized_spectra():
    before, after, changed = scene_pair()
    score = change_vector_analysis(before, after)
    first, second = ((c - c.mean(axis=(0, 1))) / c.std(axis=(0, 1)) for c in (before, after))
    np.testing.assert_allclose(score, np.linalg.norm(first - second, axis=2), rtol=1e-5)
    assert auc(changed, score) > 0.9
    np.testing.assert_allclose(change_vector_analysis(before * 3 + 1, after), score, rtol=1e-4)


@pytest.mark.parametrize("iterations", [1, 30])
def test_mad_does_not_change_under_linear_maps_of_a_date(iterations):
    before, after, changed = scene_pair()
    rng = np.random.default_rng(4)
    score = mad(before, after, iterations)
    mapped = mad(before @ rng.normal(size=(6, 6)) + 5, after, iterations)
    np.testing.assert_allclose(mapped, score, rtol=2e-3)
    np.testing.assert_allclose(mad(after, before, iterations), score, rtol=1e-3)
    assert auc(changed, score) > 0.95


def test_mad_without_change_is_chi_square_distributed():
    """Unchanged dates with independent noise: the squared score has as many degrees of freedom as there are bands."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(150, 150, 5))
    before, after = (truth + 0.2 * rng.normal(size=truth.shape) for _ in range(2))
    squared = mad(before, after, 1).astype(np.float64) ** 2
    assert squared.mean() == pytest.approx(5, rel=0.02)
    assert squared.var() == pytest.approx(10, rel=0.1)


def test_reweighting_gains_where_much_has_changed():
    """With two fifths changed, the changes themselves bend plain MAD; IR-MAD gives them no weight."""
    before, after, changed = scene_pair(60, 60)
    rng = np.random.default_rng(3)
    changed = rng.random((60, 60)) < 0.4
    after = np.where(changed[..., None], rng.permutation(after.reshape(-1, 6)).reshape(after.shape), after)
    assert auc(changed, mad(before, after, 30)) > auc(changed, mad(before, after, 1)) + 0.005


def test_dates_with_other_numbers_of_bands():
    before, after, changed = scene_pair()
    assert auc(changed, mad(before, after[..., :4], 1)) > 0.9
    with pytest.raises(ValueError, match=r"more than 12 valid pixels \(the bands of both dates\), got 12"):
        mad(before[:3, :4], after[:3, :4])


def test_invalid_pixels_are_nan_and_have_no_say():
    before, after, _ = scene_pair()
    holes = np.zeros((40, 36), dtype=bool)
    holes[:5] = True
    broken = [np.where(holes[..., None], np.nan, cube) for cube in (before, after)]
    for method in (change_vector_analysis, lambda a, b: mad(a, b, 1)):
        score = method(broken[0], after)
        assert np.array_equal(np.isnan(score), holes)
        np.testing.assert_allclose(score[5:], method(before[5:], after[5:]), rtol=1e-5)
    assert np.array_equal(np.isnan(stacked_components(*broken)).all(axis=2), holes)
    with pytest.raises(ValueError, match="no pixel is valid in both"):
        change_vector_analysis(np.full_like(before, np.nan), after)


def test_constant_and_duplicate_bands_do_no_harm():
    before, after, changed = scene_pair()
    spoiled = [np.concatenate([c, c[..., :1], np.full((40, 36, 1), 3.0)], axis=2) for c in (before, after)]
    for method in (change_vector_analysis, lambda a, b: mad(a, b, 1)):
        assert np.isfinite(method(*spoiled)).all()
        assert auc(changed, method(*spoiled)) > 0.9


def test_aligned_cubes_of_one_sensor_are_the_cubes():
    before, after, _ = scene_pair()
    wavelength = np.linspace(500, 900, 6)
    first, second = sample_of(before, wavelength), sample_of(after, wavelength + 0.3)
    first.valid = torch.ones(40, 36, dtype=torch.bool)
    first.valid[0] = False
    cubes = aligned_cubes(first, second)
    for cube, given in zip(cubes, (before, after), strict=True):
        assert np.isnan(cube[0]).all()
        np.testing.assert_allclose(cube[1:], given[1:], rtol=1e-6)


def test_aligned_cubes_of_two_sensors_share_the_coarser_ones_bands():
    fine = np.linspace(400, 1000, 121)
    coarse = np.array([450.0, 700.0, 1500.0])  # the last one is beyond the finer sensor's range
    scene = np.random.default_rng(0).uniform(0.5, 1, size=(6, 5, 1))
    before, after = sample_of(scene * fine / 1000, fine), sample_of(scene * coarse / 1000, coarse)
    first, second = aligned_cubes(before, after)
    assert first.shape == second.shape == (6, 5, 2)
    np.testing.assert_allclose(first, second, rtol=1e-3)
    swapped = aligned_cubes(after, before)
    np.testing.assert_array_equal(swapped[1], first)
    with pytest.raises(ValueError, match="no band in common"):
        aligned_cubes(before, sample_of(scene * np.ones(2), np.array([2000.0, 2200.0])))
    with pytest.raises(ValueError, match="after: expected 6 x 5 pixels as in before, got 5 x 5"):
        aligned_cubes(before, sample_of(scene[:5] * fine, fine))

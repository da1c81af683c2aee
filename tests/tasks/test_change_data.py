"""Labels of changes, pairs of dates, and divisions in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast import SpectralSample
from specfast.data import SpectralImage
from specfast.tasks.change_data import ScenePair, block_disjoint, change_labels, divide, usable_labels
from specfast.tasks.views import View


def sample(height=20, width=24, bands=3, **changes) -> SpectralSample:
    image = torch.rand(bands, height, width, generator=torch.Generator().manual_seed(bands))
    values = {"gsd": 4.0, "sensor": "av3", "level": "L2", **changes}
    return SpectralSample(image, torch.linspace(500, 900, bands), torch.full((bands,), 10.0), **values)


def test_labels_of_either_convention():
    usual = np.array([[0, 1, 255], [0, 0, 1]])
    assert change_labels(usual).tolist() == [[1, 2, 0], [1, 1, 2]]
    other = np.array([[0, 1, 2], [2, 2, 1]])
    assert change_labels(other, changed=1, unchanged=2).tolist() == [[0, 2, 1], [1, 1, 2]]
    with pytest.raises(ValueError, match="changed: no pixel of the map is 7; it holds 0, 1, 255"):
        change_labels(usual, changed=7)
    with pytest.raises(ValueError, match="expected two different numbers, got 1 for both"):
        change_labels(usual, changed=1, unchanged=1)


def test_pair_of_samples_and_images():
    before, after = sample(), sample(bands=5, valid=torch.ones(20, 24, dtype=torch.bool))
    before.image[1, 2, 3] = torch.nan
    after.valid[7, 8] = False
    pair = ScenePair.of(before, after)
    assert pair.size == (20, 24)
    assert pair.valid.sum() == 20 * 24 - 2
    assert torch.isfinite(pair.before.image).all()
    image = SpectralImage.from_array(
        before.image.numpy(), wavelength=[500, 700, 900], fwhm=[10] * 3, gsd=4, sensor="av3", level="L2"
    )
    assert torch.equal(ScenePair.of(image, after).before.image, pair.before.image)
    with pytest.raises(ValueError, match=r"after: expected 20 x 24 pixels as in before, got 24 x 20"):
        ScenePair.of(before, sample(24, 20))
    with pytest.raises(ValueError, match="no pixel is valid in both"):
        ScenePair.of(before, sample(valid=torch.zeros(20, 24, dtype=torch.bool)))


@pytest.mark.parametrize("orientation", range(8))
def test_both_dates_are_turned_alike(orientation):
    pair = ScenePair.of(sample(), sample())
    first, second = pair.read(View(0, (2, 3, 6, 10)), orientation)
    assert torch.equal(first.image, second.image)
    assert sorted(first.image.shape[1:]) == [6, 10]
    assert first.image.sum() == pytest.approx(float(pair.before.image[:, 2:8, 3:13].sum()), rel=1e-5)


def test_labels_without_a_measurement_are_left_out():
    pair = ScenePair.of(sample(), sample(valid=torch.arange(480).view(20, 24) >= 24))
    labels = np.ones((20, 24), dtype=int)
    labels[:, 10:] = 2
    notes = []
    kept = usable_labels(labels, pair, notes)
    assert not kept[0].any()
    assert (kept[1:] == labels[1:]).all()
    assert notes == ["24 labelled pixels hold no measurement in one of the dates and are left out"]
    for wrong, message in (
        (labels.T, r"labels: expected \[20, 24\] to match the scenes, got \[24, 20\]"),
        (labels + 1, "got 3"),
        (np.where(labels == 2, 0, 1), "no valid pixel is changed"),
    ):
        with pytest.raises(ValueError, match=message):
            usable_labels(wrong, pair, [])


@pytest.mark.parametrize("seed", range(5))
def test_blocks_keep_their_distance(seed):
    """No training pixel, of whatever class, has a test pixel within the buffer."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((70, 90)) < 0.2, 2, 1)
    labels[rng.random((70, 90)) < 0.1] = 0
    split = block_disjoint(labels, 40, seed, side=16, buffer=4)
    assert split.name == "block-disjoint"
    train, test = (np.stack(np.unravel_index(pixels, labels.shape)) for pixels in (split.train, split.test))
    apart = np.abs(train[:, :, None] - test[:, None]).max(axis=0)
    assert apart.min() > 4
    assert np.bincount(labels.ravel()[split.train]).tolist() == [0, 40, 40]
    assert not (labels.ravel()[split.test] == 0).any()
    again = block_disjoint(labels, 40, seed, side=16, buffer=4)
    assert np.array_equal(split.train, again.train)
    other = block_disjoint(labels, 40, seed + 100, side=16, buffer=4)
    assert not np.array_equal(split.train, other.train)


def test_divisions_by_name():
    labels = np.ones((64, 64), dtype=int)
    labels[::5, ::3] = 2
    assert divide(labels, "random", 10, 0).name == "random pixels"
    assert divide(labels, "block", 10, 0).name == "block-disjoint"
    with pytest.raises(ValueError, match="split: expected one of random, block; got 'field'"):
        divide(labels, "field", 10, 0)
    for options in ({"side": 4, "buffer": 4}, {"buffer": 3}, {"buffer": -2}):
        with pytest.raises(ValueError, match="side, buffer: expected an even buffer"):
            block_disjoint(labels, 10, 0, **options)

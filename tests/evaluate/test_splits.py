"""Splits: train and test never share a pixel, fields stay whole, the buffer holds, and the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from specfast.evaluate import splits


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """Class 1: three fields; class 2: one field, taller than wide; class 3: two touching at a corner; class 4: tiny."""
    labels = np.zeros((40, 50), dtype=np.uint8)
    labels[1:11, 1:13] = labels[1:11, 20:30] = labels[15:20, 1:15] = 1
    labels[15:39, 20:28] = 2
    labels[22:28, 1:7] = labels[28:38, 7:13] = 3
    labels[30:32, 40:47] = 4
    return labels


@pytest.fixture(scope="module")
def ground_truth(shared) -> np.ndarray:
    return np.load(shared / "data" / "indian_pines" / "Indian_pines_gt.npy")


def assert_sound(split: splits.Split, labels: np.ndarray, count: int) -> None:
    flat = labels.ravel()
    assert not np.intersect1d(split.train, split.test).size
    for part in (split.train, split.test):
        assert (np.diff(part) > 0).all()
        assert set(flat[part]) | set(split.untested) == set(flat[flat > 0])
    for c in np.unique(flat[split.train]):
        assert (flat[split.train] == c).sum() == split.shortfall.get(int(c), count)


@pytest.mark.parametrize("count", [10, 50])
@pytest.mark.parametrize("make", [splits.random_pixels, splits.field_disjoint])
@pytest.mark.parametrize("scene", ["fields", "ground_truth"])
def test_disjoint_every_class_and_count(make, scene, count, request):
    labels = request.getfixturevalue(scene)
    for seed in range(3):
        split = make(labels, count, seed)
        assert_sound(split, labels, count)
        assert not split.untested


@pytest.mark.parametrize("make", [splits.random_pixels, splits.field_disjoint])
def test_seed_decides(make, fields):
    first, again, other = (make(fields, 10, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.train, again.train)
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.train, other.train)


def test_random_takes_half_of_small_classes(fields):
    split = splits.random_pixels(fields, 10, 0)
    assert split.shortfall == {4: 7}
    assert len(split.train) + len(split.test) == (fields > 0).sum()


def test_field_too_small_for_the_buffer_is_named(fields):
    labels = fields.copy()
    labels[30:32, 43:47] = 0  # 2 x 3 pixels are left of class 4
    split = splits.field_disjoint(labels, 10, 0)
    assert split.untested == (4,)
    assert 4 not in labels.ravel()[np.concatenate([split.train, split.test])]
    assert splits.field_disjoint(labels, 10, 0, buffer=0).untested == ()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("connectivity", [4, 8])
def test_fields_stay_whole(ground_truth, connectivity, seed):
    split = splits.field_disjoint(ground_truth, 50, seed, connectivity=connectivity)
    side = np.zeros(ground_truth.size, dtype=int)
    side[split.train], side[split.test] = 1, 2
    side = side.reshape(ground_truth.shape)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    for c in range(1, 17):
        regions, count = ndimage.label(ground_truth == c, structure)
        mixed = [r for r in range(1, count + 1) if {1, 2} <= set(side[regions == r])]
        assert len(mixed) == (1 if count == 1 else 0)


@pytest.mark.parametrize("buffer", [0, 2, 5])
def test_buffer_holds_between_pixels_of_a_class(ground_truth, buffer):
    for seed in range(3):
        split = splits.field_disjoint(ground_truth, 50, seed, buffer=buffer)
        for c in range(1, 17):
            train, test = (
                np.argwhere((ground_truth == c) & np.isin(np.arange(145 * 145).reshape(145, 145), part))
                for part in (split.train, split.test)
            )
            if len(train) and len(test):
                gap = np.abs(train[:, None] - test[None]).max(axis=2).min() - 1
                assert gap >= buffer


def test_single_field_is_cut_across_its_longer_side(fields):
    split = splits.field_disjoint(fields, 10, 0)
    rows = [np.unravel_index(part[fields.ravel()[part] == 2], fields.shape)[0] for part in (split.train, split.test)]
    assert rows[0].max() < rows[1].min() or rows[1].max() < rows[0].min()


def test_connectivity_joins_fields_at_corners(fields):
    test = [splits.field_disjoint(fields, 10, 1, connectivity=n, buffer=0).test for n in (4, 8)]
    of_three = [np.sort(fields.ravel()[part] == 3).sum() for part in test]
    assert of_three[0] in (36, 100)  # one of two fields
    assert of_three[1] == 68 or 36 < of_three[1] < 100  # a part of the one field


def test_more_labels_come_from_the_same_fields(fields):
    few, many = (splits.field_disjoint(fields, count, 5) for count in (5, 20))
    assert np.array_equal(few.test, many.test)
    assert np.isin(few.train, many.train).all()


def test_fields_end_with_their_scene(fields):
    split = splits.field_disjoint([fields, fields], 10, 0)
    both = np.concatenate([fields.ravel(), fields.ravel()])
    assert set(both[split.train]) == {1, 2, 3, 4}
    of_two = [set(part[both[part] == 2] // fields.size) for part in (split.train, split.test)]
    assert of_two[0] != of_two[1]  # one scene's field is trained on, the other's is tested
    assert all(len(scenes) == 1 for scenes in of_two)


def test_by_tile_keeps_tiles_whole_and_prefers_common_classes():
    rng = np.random.default_rng(0)
    tiles = np.repeat(np.arange(8), 100)
    labels = np.where(tiles < 6, rng.integers(0, 4, 800), 0)
    labels[tiles == 6] = labels[tiles == 7] = 5
    for seed in range(5):
        split = splits.by_tile(labels, tiles, 20, seed)
        assert not np.intersect1d(tiles[split.train], tiles[split.test]).size
        assert_sound(split, labels, 20)
        assert not split.untested
    assert np.array_equal(split.test, splits.by_tile(labels, tiles, 20, 4).test)


def test_by_tile_names_a_class_of_one_tile():
    tiles = np.repeat(np.arange(4), 50)
    labels = np.tile([1, 2], 100)
    labels[tiles == 3] = 3
    assert splits.by_tile(labels, tiles, 10, 0).untested == (3,)


def test_published_maps_of_indian_pines(shared, ground_truth):
    import scipy.io

    rasterio = pytest.importorskip("rasterio")
    folder = shared / "data" / "indian_pines"
    train, test = (rasterio.open(folder / f"Indian{part}123_temp123.tif").read(1) for part in ("TR", "TE"))
    order = splits.INDIAN_PINES_TR_TE_ORDER
    labels, split = splits.published_maps(train, test, order, order)
    assert (len(split.train), len(split.test)) == (695, 9671)
    agreeing = (labels == ground_truth)[(labels > 0) & (ground_truth > 0)].mean()
    assert agreeing > 0.99  # in another order of the classes next to nothing would agree

    disjoint = scipy.io.loadmat(folder / "indianpines_disjoint_dset.mat")["indianpines_disjoint_dset"]
    labels, split = splits.published_maps(disjoint, ground_truth, splits.INDIAN_PINES_DISJOINT_ORDER)
    assert len(split.train) == 5689
    assert len(np.intersect1d(split.train, split.test)) == 0
    assert (labels == ground_truth)[(disjoint > 0) & (ground_truth > 0)].mean() > 0.97


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 4), int), "no pixel has a class"),
        (np.full((4, 4), -1), "positive classes, got -1"),
        (np.full((4, 4), 0.5), "fractions or NaN"),
        (np.full((4, 4), "a"), "expected integers"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        splits.random_pixels(labels, 1, 0)


def test_bad_arguments(fields):
    with pytest.raises(ValueError, match="labels_per_class"):
        splits.random_pixels(fields, 0, 0)
    with pytest.raises(ValueError, match="connectivity"):
        splits.field_disjoint(fields, 1, 0, connectivity=6)
    with pytest.raises(ValueError, match="2 dimensions"):
        splits.field_disjoint(fields.ravel(), 1, 0)
    with pytest.raises(ValueError, match="at least two tiles"):
        splits.by_tile(fields, np.zeros_like(fields), 1, 0)
    with pytest.raises(ValueError, match="names 2 classes, but the map holds class 4"):
        splits.published_maps(fields, fields, order=(1, 2))
    with pytest.raises(ValueError, match="none is left"):
        splits.published_maps(fields, fields)

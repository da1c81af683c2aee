"""Blending: weights that add up, values that stay what they are, rows that come out once and in order."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.infer.blending import RowBlender, profile
from specfast.infer.windows import Windows


def blended(windows: Windows, predict, first: int = 0, valid=None) -> tuple[np.ndarray, np.ndarray]:
    """Blend ``predict(row, column, box) -> [K, h, w]`` over all windows; rows come band by band."""
    valid = np.ones((windows.height, windows.width), dtype=bool) if valid is None else valid
    blender, parts, at = None, [], first
    for band in range(windows.first_band_over(first), len(windows.rows)):
        for column in windows.columns:
            row, _, height, width = box = windows.box(windows.rows[band], column)
            values = predict(box)
            blender = blender or RowBlender(len(values), windows, first)
            mask = valid[row : row + height, column : column + width]
            blender.add(row, column, values if mask.any() else None, mask)
        until = windows.finished(band)
        if until > at:
            parts.append(blender.take(until))
            at = until
    values, masks = zip(*parts, strict=True)
    return np.concatenate(values, axis=1), np.concatenate(masks)


def test_profile_rises_to_the_middle_and_is_nowhere_zero():
    weights = profile(10)
    assert np.array_equal(weights, weights[::-1])
    assert (np.diff(weights[:5]) > 0).all()
    assert weights.min() > 0
    assert weights[0] < 0.05 * weights[5]


def test_margins_weigh_nothing():
    weights = profile(10, 2, 3)
    assert (weights[[0, 1, 7, 8, 9]] == 0).all()
    assert (weights[2:7] > 0).all()


@pytest.mark.parametrize(
    "windows",
    [
        Windows(37, 53, 16, 0.25),
        Windows(37, 53, 16, 0.8),
        Windows(5, 40, 16, 0.5),
        Windows(40, 5, 16, 0.0),
        Windows(64, 64, 32, 0.5, 8, margin=8),
        Windows(61, 3, 8, 0.5, margin=2),
    ],
    ids=str,
)
def test_what_all_windows_agree_on_comes_out_bit_for_bit(windows):
    truth = np.random.default_rng(0).normal(size=(3, windows.height, windows.width)).astype(np.float32)
    out, valid = blended(windows, lambda box: truth[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]].copy())
    assert np.array_equal(out, truth)
    assert valid.all()


def test_a_map_is_the_weighted_mean_of_its_windows():
    windows = Windows(20, 23, 8, 0.5)
    noise = {}

    def predict(box):
        noise[box] = np.random.default_rng(len(noise)).normal(size=(2, *box[2:])).astype(np.float32)
        return noise[box].copy()

    out, _ = blended(windows, predict)
    total, weight = np.zeros((2, 20, 23)), np.zeros((20, 23))
    for (row, column, h, w), values in noise.items():
        share = np.outer(profile(8), profile(8)).astype(np.float64)[:h, :w]
        total[:, row : row + h, column : column + w] += share * values
        weight[row : row + h, column : column + w] += share
    np.testing.assert_allclose(out, total / weight, rtol=2e-5, atol=2e-6)


def test_windows_that_disagree_blend_without_a_jump():
    """A window of ones beside one of zeros: the step at a border is that of the weights, not of the windows."""
    windows = Windows(32, 96, 32, 0.5)
    out, _ = blended(windows, lambda box: np.full((1, *box[2:]), box[1] // 16 % 2, dtype=np.float32))
    assert out.min() < 0.1 < 0.9 < out.max()
    assert np.abs(np.diff(out[0], axis=1)).max() < 0.2  # 1 without blending


def test_margins_are_taken_from_the_window_that_sees_them_better():
    windows = Windows(8, 24, 12, 0.5, margin=2)

    def predict(box):
        values = np.ones((1, *box[2:]), dtype=np.float32)
        if box[1] > 0:
            values[..., :2] = np.nan  # a model may give anything there
        if box[1] + box[3] < 24:
            values[..., -2:] = np.nan
        return values

    assert (blended(windows, predict)[0] == 1).all()


@pytest.mark.parametrize("first", [1, 7, 12, 16, 19])
def test_going_on_at_a_row_gives_the_same_rows(first):
    windows = Windows(20, 10, 8, 0.75)

    def predict(box):
        return np.random.default_rng(box[0] * 100 + box[1]).normal(size=(1, *box[2:])).astype(np.float32)

    whole, _ = blended(windows, predict)
    rest, _ = blended(windows, predict, first)
    assert np.array_equal(rest, whole[:, first:])


def test_windows_without_data_leave_their_neighbors_alone():
    windows = Windows(8, 24, 8, 0.5)
    valid = np.ones((8, 24), dtype=bool)
    valid[:, :12] = False
    out, mask = blended(windows, lambda box: np.full((1, *box[2:]), 3.0, dtype=np.float32), valid=valid)
    assert np.array_equal(mask, valid)
    assert (out[0][valid] == 3).all()

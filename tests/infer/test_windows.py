"""Windows cover every pixel of any scene, lie on the patch grid and never leave it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specfast.infer.windows import Windows

quick = settings(deadline=None, derandomize=True, database=None, max_examples=60)


@st.composite
def layouts(draw):
    align = draw(st.sampled_from([1, 2, 4, 8]))
    side = align * draw(st.integers(1, 12))
    return Windows(
        draw(st.integers(1, 200)),
        draw(st.integers(1, 200)),
        side,
        draw(st.sampled_from([0.0, 0.25, 0.5, 0.9])),
        align,
        even=draw(st.booleans()),
    )


@quick
@given(layouts())
def test_every_pixel_is_covered_and_no_window_leaves_the_scene(windows):
    seen = np.zeros((windows.height, windows.width), dtype=int)
    for row in windows.rows:
        for column in windows.columns:
            r, c, h, w = windows.box(row, column)
            assert r % windows.align == c % windows.align == 0
            assert h > 0
            assert w > 0
            assert r + h <= windows.height
            assert c + w <= windows.width
            seen[r : r + h, c : c + w] += 1
    assert seen.min() >= 1


@quick
@given(layouts())
def test_neighbors_overlap_as_asked(windows):
    for starts in (windows.rows, windows.columns):
        assert list(starts) == sorted(set(starts))
        assert all(b - a <= windows.step for a, b in itertools.pairwise(starts))


@quick
@given(layouts())
def test_rows_are_finished_when_no_later_band_covers_them(windows):
    for number, start in enumerate(windows.rows):
        until = windows.finished(number)
        later = windows.rows[number + 1 :]
        assert all(row >= until for row in later)
        assert start < until <= min(start + windows.side, windows.height)
    assert windows.finished(len(windows.rows) - 1) == windows.height


@quick
@given(layouts(), st.data())
def test_first_band_over_a_row(windows, data):
    row = data.draw(st.integers(0, windows.height - 1))
    first = windows.first_band_over(row)
    assert windows.rows[first] <= row < windows.rows[first] + windows.side
    assert all(start + windows.side <= row for start in windows.rows[:first])


@quick
@given(layouts())
def test_windows_that_are_cut_and_need_no_overlap_see_every_pixel_once(windows):
    cut = replace(windows, overlap=0.0, even=False)
    boxes = [cut.box(row, column) for row in cut.rows for column in cut.columns]
    assert sum(height * width for _, _, height, width in boxes) == windows.height * windows.width
    overlapping = replace(windows, overlap=0.5)
    assert replace(overlapping, even=False).rows == replace(overlapping, even=True).rows


def test_a_grid_of_patches_has_the_windows_of_the_pixels():
    windows = Windows(50, 33, side=16, overlap=0.25, align=4)
    cells = windows.in_cells(4)
    assert (cells.height, cells.width, cells.side) == (13, 9, 4)
    assert [row * 4 for row in cells.rows] == list(windows.rows)
    assert [column * 4 for column in cells.columns] == list(windows.columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 0}, "side: expected at least 1 pixel, got 0"),
        ({"side": 10, "align": 4}, "window: expected a multiple of the patch size 4, got 10 pixels"),
        ({"side": 8, "overlap": 1.0}, "overlap: expected a share from 0 to below 1, got 1.0"),
        ({"side": 8, "margin": -1}, "margin: expected 0 or a multiple of 1 pixels, got -1"),
        ({"side": 8, "overlap": 0.25, "margin": 2}, "margin: 2 pixels on both sides would leave gaps"),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        Windows(20, 20, **options)

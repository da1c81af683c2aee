"""The picture of the simulator says what it is given."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from specfast.report.scaling import scaling
from specfast.report.style import to_png

ROWS = [
    {"world": world, "strategy": name, "seconds": seconds * world, "disagreement": apart}
    for name, seconds, apart in (("ring", 0.01, 0.0), ("DS-Sync", 0.002, 0.5))
    for world in (16, 4, 64)
]


def test_a_line_a_strategy_in_order_of_world():
    fig = scaling(ROWS, "two racks")
    time, apart = fig.axes
    assert [line.get_label() for line in time.lines] == ["ring", "DS-Sync"]
    assert list(time.lines[0].get_xdata()) == [4, 16, 64]
    assert list(time.lines[0].get_ydata()) == [40.0, 160.0, 640.0]  # milliseconds
    drawn = [line for line in apart.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in drawn] == [[0.5, 0.5, 0.5]]  # all-reduce has none
    assert drawn[0].get_color() == time.lines[1].get_color()
    assert fig.get_suptitle() == "two racks"
    assert to_png(fig).startswith(b"\x89PNG")


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="rows: expected at least one result, got none"):
        scaling([])

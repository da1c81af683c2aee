"""The learning rate at every step."""

from __future__ import annotations

import itertools
import math

import pytest

from specfast.train.schedule import learning_rate


def rates(steps, warmup_steps, final=0.0):
    return [learning_rate(s, steps=steps, warmup_steps=warmup_steps, peak=2.0, final=final) for s in range(steps)]


def test_warm_up_is_linear_and_ends_at_the_peak():
    assert rates(20, 4)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_cosine_starts_at_the_peak_and_ends_at_the_final_rate():
    values = rates(24, 4, final=0.2)
    assert values[4] == 2.0
    assert values[14] == pytest.approx(1.1)  # halfway
    assert values[9] == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(24, steps=24, warmup_steps=4, peak=2.0, final=0.2) == pytest.approx(0.2)
    assert all(a > b > 0.2 for a, b in itertools.pairwise(values[4:]))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 0)])
def test_no_update_is_without_a_rate(steps, warmup):
    assert all(0 < rate <= 2.0 for rate in rates(steps, warmup))

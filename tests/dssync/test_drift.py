"""Drift of step times is seen when it is there to stay, and never in noise."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.dssync.drift import Drift, agreed, drift

NOISES = {
    "jitter": lambda draw, n: np.exp(0.3 * draw.standard_normal(n)),
    "stalls": lambda draw, n: 1.0 + 20 * (draw.random(n) < 0.05),
    "heavy tails": lambda draw, n: 1 + 0.2 * draw.pareto(1.2, n),
    "slow waves": lambda draw, n: 1 + 0.1 * np.sin(np.arange(n) / 37 + draw.random()) + 0.05 * draw.standard_normal(n),
    "none": lambda draw, n: np.ones(n),
}


def ever(history, **options) -> bool:
    """Whether any look along the way would have re-planned."""
    return any((seen := drift(history[:end], **options)) and seen.drifted for end in range(0, len(history) + 1, 16))


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_no_drift(noise):
    for seed in range(20):
        assert not ever(NOISES[noise](np.random.default_rng(seed), 1500)), f"seed {seed}"


@pytest.mark.parametrize("factor", [1.6, 4.0, 0.5])
@pytest.mark.parametrize("noise", NOISES)
def test_lasting_change_is_seen_within_three_windows(noise, factor):
    for seed in range(10):
        history = NOISES[noise](np.random.default_rng(seed), 700)
        history[400:] *= factor
        assert not ever(history[:400])
        seen = drift(history[: 400 + 3 * 64])
        assert seen.drifted, f"seed {seed}"
        assert seen.ratio == pytest.approx(factor, rel=0.3)


@pytest.mark.parametrize("length", [1, 20, 60])
def test_a_burst_is_no_drift(length):
    history = np.ones(800)
    history[400 : 400 + length] = 10.0
    assert not ever(history)


def test_small_changes_are_left_alone():
    history = np.ones(800)
    history[400:] = 1.25
    assert not ever(history)


def test_slow_first_steps_are_no_reference():
    history = np.ones(800)
    history[:64] = 30.0
    assert not ever(history)


def test_rounds_that_differ_by_design_are_averaged_first():
    """Each fourth round crosses between racks; only that one becomes slower."""
    history = np.tile([1.0, 1.0, 1.0, 4.0], 400)
    assert not ever(history, period=4)
    assert not ever(history)
    history[803::4] = 9.0
    assert not ever(history)  # the median step has not changed
    assert ever(history, period=4)


def test_a_change_and_its_return_are_no_drift():
    history = np.ones(800)
    history[400:464], history[464:528] = 2.0, 0.5
    assert not ever(history)


def test_short_histories_say_nothing():
    assert drift([]) is None
    assert drift([1.0] * 255) is None
    assert drift([1.0] * 256) == Drift(1.0, 1.0, False)
    assert drift([1.0] * 256, period=32) is None
    for options in ({"period": 0}, {"window": 2}, {"ratio": 1.0}):
        with pytest.raises(ValueError, match="drift: expected"):
            drift([1.0], **options)


def test_most_ranks_must_agree():
    assert agreed([True, True, False])
    assert not agreed([True, False])
    assert not agreed([True, False, False])
    assert not agreed([])

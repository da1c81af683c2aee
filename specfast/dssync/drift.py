"""Have step times changed for good? The first half of the hysteresis before a re-plan; pure functions of the history.

What is compared are medians over windows of steps, so no single step, however slow, counts. A change must be large
(``ratio``), far outside the spread of the steps (``sigmas`` standard errors) and there in two windows running. A burst
shorter than a window, jitter, or a rare stall never passes all three. After a re-plan the caller starts a new history,
which needs four windows before it can say anything: plans are never changed faster than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW, RATIO, SIGMAS = 64, 1.3, 4.0
_MEDIAN_ERROR = 1.4826 * 1.2533  # standard error of a median, times sqrt(n), in median absolute deviations


@dataclass(frozen=True)
class Drift:
    """What a history says.

    Attributes:
        reference: median step time after the warm-up; recent: of the last window.
        drifted: whether the change is large, certain and lasting.
    """

    reference: float
    recent: float
    drifted: bool

    @property
    def ratio(self) -> float:
        """How many times longer a step takes now."""
        return self.recent / self.reference


def drift(
    history: Sequence[float],
    *,
    period: int = 1,
    window: int = WINDOW,
    ratio: float = RATIO,
    sigmas: float = SIGMAS,
) -> Drift | None:
    """Compare the last two windows of a history with its second one; the first is warm-up.

    Args:
        history: seconds of every step since the plan was made, oldest first.
        period: rounds of the schedule. Steps are averaged over whole periods first, since rounds differ by design;
            a window then holds at least 16 periods.
        window: steps.
        ratio: how many times longer (or shorter) a step must have become.
        sigmas: by how many standard errors the medians must differ.

    Returns:
        None while there are fewer than four windows.
    """
    if period < 1 or window < 4 or ratio <= 1:
        raise ValueError(f"drift: expected period >= 1, window >= 4, ratio > 1; got {period}, {window}, {ratio}")
    whole = len(history) // period * period
    means = np.asarray(history[:whole], dtype=float).reshape(-1, period).mean(axis=1)
    many = span(period, window)
    if len(means) < 4 * many:
        return None
    reference, before, last = means[many : 2 * many], means[-2 * many : -many], means[-many:]
    changes = [_change(reference, window, ratio, sigmas) for window in (before, last)]
    drifted = changes[0] == changes[1] != 0
    return Drift(float(np.median(reference)), float(np.median(last)), drifted)


def span(period: int, window: int = WINDOW) -> int:
    """Return how many periods make a window."""
    return max(-(-window // period), min(window, 16))


def _change(reference: np.ndarray, recent: np.ndarray, ratio: float, sigmas: float) -> int:
    """1 if steps have become longer, -1 if shorter, 0 if that is not certain."""
    before, now = float(np.median(reference)), float(np.median(recent))
    error = _MEDIAN_ERROR * math.hypot(_spread(reference), _spread(recent)) / math.sqrt(len(recent))
    if max(before, now) <= ratio * min(before, now) or abs(now - before) <= sigmas * error:
        return 0
    return 1 if now > before else -1


def _spread(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def agreed(drifted: Sequence[bool]) -> bool:
    """Whether more than half of the ranks saw a drift: the same answer wherever the same list was gathered."""
    return 2 * sum(drifted) > len(drifted)

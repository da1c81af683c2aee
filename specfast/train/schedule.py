"""The learning rate, a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup_steps: int, peak: float, final: float = 0.0) -> float:
    """Return the learning rate of update ``step`` (0 to steps - 1): linear warm-up, then a half cosine.

    The first update takes ``peak / warmup_steps`` and the last of the warm-up takes ``peak``; ``final`` is where the
    cosine would stand at ``steps``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(1.0, progress)))

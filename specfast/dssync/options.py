"""The options of DSSync that all ranks must share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specfast.dssync.averaging import ON_NONFINITE
from specfast.dssync.trajectory import Trajectory
from specfast.dssync.wire import WIRES

REFERENCE_EVERY = 100  # rounds after which a compressed run renews its reference, unless told otherwise


@dataclass(frozen=True)
class Options:
    """See :class:`~specfast.dssync.DSSync`, whose arguments these are.

    Raises:
        ValueError: a value is not among those expected.
    """

    average: Sequence[str]
    momentum: bool
    global_every: int | None
    overlap: bool
    wire: str
    trajectory: Trajectory | None
    on_nonfinite: str
    elastic: bool
    symmetric: bool
    timeout: float

    def __post_init__(self):
        if self.wire not in ("float32", *WIRES):
            raise ValueError(f"wire: expected float32, {' or '.join(WIRES)}; got {self.wire!r}")
        if self.on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"on_nonfinite: expected {', '.join(ON_NONFINITE)}; got {self.on_nonfinite!r}")
        if self.global_every is not None and self.global_every < 0:
            raise ValueError(f"global_every: expected 0 or more; got {self.global_every}")
        if not self.timeout > 0:
            raise ValueError(f"timeout: expected seconds above 0; got {self.timeout}")

    @property
    def period(self) -> int:
        """Every so manieth round is a mean over all workers; 0: none is."""
        if self.global_every is None:
            return 0 if self.wire == "float32" else REFERENCE_EVERY
        return self.global_every

    def numbers(self) -> dict[str, Any]:
        """Return, as plain values, the options that decide on the numbers a run computes."""
        return {
            "average": sorted([self.average] if isinstance(self.average, str) else self.average),
            "momentum": self.momentum,
            "global_every": self.period,
            "overlap": self.overlap,
            "wire": self.wire,
            "trajectory": self.trajectory and [self.trajectory.start, self.trajectory.every],
        }

    def facts(self) -> dict[str, Any]:
        """Return all options as plain values."""
        return self.numbers() | {
            "on_nonfinite": self.on_nonfinite,
            "elastic": self.elastic,
            "symmetric": self.symmetric,
            "timeout": self.timeout,
        }

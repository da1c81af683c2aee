"""A new schedule when the network has changed for good: watch step times, agree, measure, plan, and stay if in doubt.

Hysteresis has four parts. Medians over windows of steps must have moved by 30%, clearly out of the noise, in two
windows running (``drift``); more than half of the ranks must see it; the schedule found for the network as it is then
must save a tenth of a step against the present one on that same network (``planner.replan``); and the history begins
anew after each measurement, found or not, so that at least four windows lie between two of them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from specfast.dssync import planner
from specfast.dssync.drift import WINDOW, agreed, drift, span
from specfast.dssync.measure import device_of, measure_topology
from specfast.dssync.schedule import Schedule
from specfast.dssync.topology import Topology

if TYPE_CHECKING:
    from specfast.dssync.communicator import DSSync

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Replanner:
    """Watches the steps of a run and returns a new schedule when there is one worth changing to.

    All ranks make one and call it after every step; all get the same answer::

        replanner = Replanner(sync, nbytes=sync_bytes)
        ...
        sync.step()
        if (schedule := replanner()) is not None:
            sync.reschedule(schedule)

    It costs an all-gather of one number every ``window`` steps, and a measurement of the network when most ranks see a
    drift. Where no schedule can be planned for the network as measured, the first rank logs why, and the one in use
    stays.

    Args:
        schedule: in use; or who uses it. A communicator tells its present workers and their schedule at each step, so
            that an elastic run goes on after a loss, with a history that begins anew; those who come back make a
            replanner of their own.
        nbytes: see :func:`specfast.dssync.planner.plan`.
        process_group: the workers; all processes, where None. A communicator knows its own.
        window: steps whose median counts as one observation.
        measure: returns the topology of a process group, the same on all ranks.
        **options: of :func:`specfast.dssync.planner.plan`, as ``group_size`` or ``compute``.

    Attributes:
        schedule: in use, or found last.
    """

    def __init__(
        self,
        schedule: Schedule | DSSync,
        nbytes: float,
        *,
        process_group: dist.ProcessGroup | None = None,
        window: int = WINDOW,
        measure: Callable[..., Topology] = measure_topology,
        **options,
    ):
        self._sync = None if isinstance(schedule, Schedule) else schedule
        self.schedule = self._sync.schedule if self._sync else schedule
        self.nbytes, self.window = nbytes, window
        self._group, self._measure, self._options = process_group, measure, options
        self._history: list[float] = []
        self._steps = 0
        self._last: float | None = None

    def __call__(self, seconds: float | None = None) -> Schedule | None:
        """Note a step; return a schedule to change to, or None.

        Args:
            seconds: what the step took on this rank; None: the time since the last call.
        """
        if self._sync and self._sync.schedule is not self.schedule:
            self._begin_anew()
        now = time.perf_counter()
        if seconds is None and self._last is not None:
            seconds = now - self._last
        self._last = now
        if seconds is not None:
            self._history.append(seconds)
        self._steps += 1
        # by rounds where they are known: all workers have the same, also those that came back
        steps = self._sync.round if self._sync else self._steps
        if steps % self.window or not self._with_all(self._drifted):
            return None
        topology = self._with_all(self._measure)
        self._begin_anew()
        return None if topology is None else self._found(topology)

    def _begin_anew(self) -> None:
        self._history.clear()
        self._last = None  # what was done meanwhile is no step
        if self._sync:
            self.schedule = self._sync.schedule

    def _with_all(self, exchange: Callable[[dist.ProcessGroup | None], T]) -> T | None:
        return self._sync.with_all(exchange) if self._sync else exchange(self._group)

    def _drifted(self, group: dist.ProcessGroup | None) -> bool:
        period = len(self.schedule.rounds)
        kept = 2 * period * span(period, self.window)
        if len(self._history) > 2 * kept:
            # what lies between the reference and the last two windows is not looked at again
            del self._history[kept : kept + (len(self._history) - 2 * kept) // period * period]
        seen = drift(self._history, period=period, window=self.window)
        device = device_of(group)
        own = torch.tensor([float("nan") if seen is None or not seen.drifted else seen.ratio], dtype=torch.float64)
        everybody = [torch.empty_like(own, device=device) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everybody, own.to(device), group=group)
        return agreed([not math.isnan(ratio.item()) for ratio in everybody])

    def _found(self, topology: Topology) -> Schedule | None:
        found = self._with_all(lambda group: self._planned(topology, group))
        # a plan for workers of whom one was lost just now is of no use
        if found is None or (self._sync and found.world != self._sync.world):
            return None
        self.schedule = found
        return found

    def _planned(self, topology: Topology, group: dist.ProcessGroup | None) -> Schedule | None:
        """Plan on the first rank and tell the others, so that no rounding can part them."""
        found: list[dict | None] = [None]
        if dist.get_rank(group) == 0:
            try:
                new = planner.replan(self.schedule, topology, self.nbytes, **self._options)
                found = [new and new.schedule.to_json()]
            except Exception:  # whatever it is, the others wait to be told
                _logger.warning("Replanner: nothing planned for the network as measured; all stay", exc_info=True)
        dist.broadcast_object_list(found, group=group, group_src=0, device=device_of(group))
        return None if found[0] is None else Schedule.from_json(found[0])

"""A new schedule when the network has changed for good: watch step times, agree, measure, plan, and stay if in doubt.

Hysteresis has four parts. Medians over windows of steps must have moved by 30%, clearly out of the noise, in two
windows running (``drift``); more than half of the ranks must see it; the schedule found for the network as it is then
must save a tenth of a step against the present one on that same network (``planner.replan``); and the history begins
anew after each measurement, found or not, so that at least four windows lie between two of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from specfast.dssync import planner
from specfast.dssync.drift import WINDOW, agreed, drift, span
from specfast.dssync.measure import measure_topology
from specfast.dssync.schedule import Schedule
from specfast.dssync.topology import Topology


class Replanner:
    """Watches the steps of a run and returns a new schedule when there is one worth changing to.

    All ranks make one and call it after every step; all get the same answer::

        replanner = Replanner(sync.schedule, nbytes=sync_bytes)
        ...
        sync.step()
        if (schedule := replanner()) is not None:
            sync.reschedule(schedule)

    It costs an all-gather of one number every ``window`` steps, and a measurement of the network when most ranks see a
    drift.

    Args:
        schedule: in use.
        nbytes: see :func:`specfast.dssync.planner.plan`.
        process_group: the workers; all processes, where None.
        window: steps whose median counts as one observation.
        measure: returns the topology, the same on all ranks.
        **options: of :func:`specfast.dssync.planner.plan`, as ``group_size`` or ``compute``.
    """

    def __init__(
        self,
        schedule: Schedule,
        nbytes: float,
        *,
        process_group: dist.ProcessGroup | None = None,
        window: int = WINDOW,
        measure: Callable[..., Topology] = measure_topology,
        **options,
    ):
        self.schedule, self.nbytes, self.window = schedule, nbytes, window
        self._group, self._measure, self._options = process_group, measure, options
        self._history: list[float] = []
        self._steps = 0
        self._last: float | None = None

    def __call__(self, seconds: float | None = None) -> Schedule | None:
        """Note a step; return a schedule to change to, or None.

        Args:
            seconds: what the step took on this rank; None: the time since the last call.
        """
        now = time.perf_counter()
        if seconds is None and self._last is not None:
            seconds = now - self._last
        self._last = now
        if seconds is not None:
            self._history.append(seconds)
        self._steps += 1
        if self._steps % self.window or not self._drifted():
            return None
        topology = self._measure(self._group)
        self._history.clear()
        self._last = None  # what was measured meanwhile is no step
        return self._found(topology)

    def _drifted(self) -> bool:
        period = len(self.schedule.rounds)
        kept = 2 * period * span(period, self.window)
        if len(self._history) > 2 * kept:
            # what lies between the reference and the last two windows is not looked at again
            del self._history[kept : kept + (len(self._history) - 2 * kept) // period * period]
        seen = drift(self._history, period=period, window=self.window)
        own = torch.tensor([float("nan") if seen is None or not seen.drifted else seen.ratio], dtype=torch.float64)
        device = torch.device("cuda", torch.cuda.current_device()) if self._nccl() else torch.device("cpu")
        everybody = [torch.empty_like(own, device=device) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(everybody, own.to(device), group=self._group)
        return agreed([not math.isnan(ratio.item()) for ratio in everybody])

    def _nccl(self) -> bool:
        return dist.get_backend(self._group) == "nccl"

    def _found(self, topology: Topology) -> Schedule | None:
        """Plan on the first rank and tell the others, so that no rounding can part them."""
        found: list[dict | None] = [None]
        if dist.get_rank(self._group) == 0:
            new = planner.replan(self.schedule, topology, self.nbytes, **self._options)
            found = [new and new.schedule.to_json()]
        device = torch.device("cuda", torch.cuda.current_device()) if self._nccl() else None
        dist.broadcast_object_list(found, group=self._group, group_src=0, device=device)
        if found[0] is None:
            return None
        self.schedule = Schedule.from_json(found[0])
        return self.schedule

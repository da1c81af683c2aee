"""DS-Sync: workers average parameters in small groups that are shuffled every step (Wang et al., arXiv 2007.03298).

Knows nothing of models: it works on any ``torch.nn.Module`` and optimizer, on torch.distributed.
"""

from __future__ import annotations

import importlib

# fetched on demand: schedules, plans and simulations need no torch.distributed
_PUBLIC = {
    "DSSync": "specfast.dssync.communicator",
    "DSSyncOptimizer": "specfast.dssync.optimizer",
    "ExcludedError": "specfast.dssync.faults",
    "MismatchError": "specfast.dssync.agreement",
    "NonFiniteError": "specfast.dssync.averaging",
    "Replanner": "specfast.dssync.replanning",
    "Schedule": "specfast.dssync.schedule",
    "ScheduleError": "specfast.dssync.schedule",
    "StoreError": "specfast.dssync.faults",
    "SyncError": "specfast.dssync.faults",
    "Topology": "specfast.dssync.topology",
    "Trajectory": "specfast.dssync.trajectory",
    "make_schedule": "specfast.dssync.schedule",
    "measure_topology": "specfast.dssync.measure",
    "plan": "specfast.dssync.planner",
    "recompute_batch_norm": "specfast.dssync.trajectory",
    "with_absent": "specfast.dssync.schedule",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'specfast.dssync' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

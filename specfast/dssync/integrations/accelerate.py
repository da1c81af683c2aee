"""DS-Sync with Hugging Face Accelerate.

    model, optimizer, sync = prepare(accelerator, model, optimizer, group_size=4)
    loader, scheduler = accelerator.prepare(loader, scheduler)
    ...
    accelerator.backward(loss)
    optimizer.step()

``accelerator.save_state`` and ``save_model`` write the main process's model: call ``sync.consensus_()`` before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from specfast.dssync.communicator import DSSync
from specfast.dssync.integrations.ddp import use_local_gradients
from specfast.dssync.optimizer import DSSyncOptimizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, **options
) -> tuple[nn.Module, AcceleratedOptimizer, DSSync]:
    """Prepare a model and its optimizer as ``accelerator.prepare`` does, with DS-Sync in place of averaged gradients.

    Args:
        accelerator: of one process, or of several that DDP connects.
        model: as yet unprepared.
        optimizer: over its parameters, unprepared; gradient accumulation and scaling work as ever.
        options: of :class:`~specfast.dssync.DSSync`.

    Returns:
        the prepared model, the prepared optimizer, whose ``step()`` also averages, and the communicator.

    Raises:
        TypeError: the accelerator does not use DDP for its processes.
    """
    if hasattr(optimizer, "accelerator_state"):
        raise TypeError("optimizer: expected one that accelerator.prepare has not seen; got a prepared one")
    model = accelerator.prepare_model(model)  # to its device first: DSSync lays the parameters out where they stay
    if isinstance(model, DistributedDataParallel):
        use_local_gradients(model)
    elif accelerator.num_processes > 1:
        raise TypeError(
            f"accelerator: expected one that uses DDP; got {accelerator.distributed_type}. With FSDP2 use "
            "specfast.dssync.integrations.fsdp.ShardSync"
        )
    sync = DSSync(accelerator.unwrap_model(model), optimizer, **options)
    return model, accelerator.prepare_optimizer(DSSyncOptimizer(optimizer, sync)), sync

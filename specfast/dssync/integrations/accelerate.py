"""DS-Sync with Hugging Face Accelerate.

    model, optimizer, sync = prepare(accelerator, model, optimizer, group_size=4)
    loader, scheduler = accelerator.prepare(loader, scheduler)
    ...
    accelerator.backward(loss)
    optimizer.step()

``accelerator.save_state`` and ``save_model`` write the main process's model and optimizer: call ``sync.consensus_()``
before. After ``load_state`` all go on from that mean, with the main process's moments.

DS-Sync lays parameters side by side in one buffer. Accelerate, as it writes safetensors, keeps one tensor of those that
share a buffer and drops the others, so the model's ``state_dict()`` gives copies: for as long as it is written, memory
on the device for another model.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
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
    bare = accelerator.unwrap_model(model)
    sync = DSSync(bare, optimizer, **options)
    bare.register_state_dict_post_hook(CopySlices(bare))
    return model, accelerator.prepare_optimizer(DSSyncOptimizer(optimizer, sync)), sync


class CopySlices:
    """A hook by which a model's ``state_dict()`` gives tensors with memory of their own, not slices of a larger one.

    Tied parameters stay tied: their copy is one as well. What is asked for with ``keep_vars`` stays as it is. A copy of
    the model (for an average that is updated in place by way of ``state_dict()``) has this hook as well, but idle.
    """

    def __init__(self, model: nn.Module):
        self._model: weakref.ref | None = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
        if self._model is None or module is not self._model():
            return
        copies: dict[tuple, Tensor] = {}
        for name, value in state.items():
            if not (name.startswith(prefix) and isinstance(value, Tensor)) or isinstance(value, nn.Parameter):
                continue
            if value.layout == torch.strided and value.untyped_storage().nbytes() > value.nbytes:
                memory = (value.data_ptr(), value.dtype, value.shape, value.stride())
                if memory not in copies:
                    copies[memory] = value.clone()
                state[name] = copies[memory]

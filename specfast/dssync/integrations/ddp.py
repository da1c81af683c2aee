"""DS-Sync within a script that uses DistributedDataParallel.

Under DS-Sync gradients stay local and parameters are averaged, so DDP's own communication has to go. What of it remains
after :func:`use_local_gradients`: the constructor's check and broadcast of the parameters, and one broadcast of bucket
indices after the first backward pass. Neither is done again. The round advances in ``sync.step()``: once a step,
however many buckets, backward passes and ``no_sync()`` passes there are before it.

    ddp = DistributedDataParallel(model)
    use_local_gradients(ddp)
    sync = DSSync(model, optimizer, group_size=4)
    ...
    ddp(batch).backward()
    sync.step()

New code needs no DDP at all: the bare module does the same without copying gradients through buckets.
"""

# No `from __future__ import annotations`: DDP compares a hook's annotations with types, not with their names.

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def use_local_gradients(
    model: DistributedDataParallel, *, domain: dist.ProcessGroup | None = None
) -> DistributedDataParallel:
    """Stop a DDP model from averaging gradients and broadcasting buffers over all workers; return it.

    Call it before the first backward pass; a hook of its own the model must not have. ``ddp.no_sync()`` works as ever.

    Args:
        model: the wrapped model.
        domain: average the gradients within this group, workers that a fast network connects; by default each worker
            keeps its own. The parameters are then to be averaged across domains: give DSSync the process group of the
            workers that have this one's place in their domains, as the ``"replicate"`` dimension of a DeviceMesh of
            domains.

    Raises:
        TypeError: the model is not wrapped.
        ValueError: the model does work over all workers that cannot be switched off: ``find_unused_parameters`` (an
            all-reduce of a bitmap in each backward pass; :func:`local_ddp` keeps it within the domain, and
            ``static_graph=True`` needs none), or SyncBatchNorm over more than the domain.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"model: expected a DistributedDataParallel; got a {type(model).__name__}")
    if model.find_unused_parameters and not model.static_graph:
        raise ValueError(
            "model: find_unused_parameters=True makes DDP all-reduce a bitmap over all workers in each backward pass; "
            "wrap the module by specfast.dssync.integrations.ddp.local_ddp(module, find_unused_parameters=True), which "
            "keeps that within the domain, or use static_graph=True"
        )
    _check_batch_norm(model, domain)
    model.broadcast_buffers = False
    if domain is None or dist.get_world_size(domain) == 1:
        model.register_comm_hook(None, _keep)
    else:
        model.register_comm_hook(domain, _average)
    return model


def local_ddp(module: nn.Module, *, domain: dist.ProcessGroup | None = None, **options) -> DistributedDataParallel:
    """Wrap a module in a DDP that communicates within ``domain`` only, or not at all.

    For scripts that need ``find_unused_parameters``: which parameters are unused is then agreed upon within the domain;
    alone, a parameter that this worker did not use keeps a gradient of None, as without DDP.

    Args:
        module: the model.
        domain: see :func:`use_local_gradients`.
        options: of DistributedDataParallel, but not ``process_group`` and ``device_mesh``.

    Raises:
        ValueError: an option chooses a group, or the model holds a SyncBatchNorm over more than the domain.
    """
    for name in ("process_group", "device_mesh"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: local_ddp communicates within domain; give that instead")
    _check_batch_norm(module, domain)
    if domain is None:
        # a group of one, which no other worker takes part in making
        domain = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    # within a domain buffers are those of its first worker, as in DDP; alone there is nobody to get them from
    with warnings.catch_warnings():
        if dist.get_world_size(domain) == 1:
            # torch 2.13 renames the option and warns of the old name, which is the one that older versions know
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            options["broadcast_buffers"] = False
        return DistributedDataParallel(module, process_group=domain, **options)


def _check_batch_norm(module: nn.Module, domain: dist.ProcessGroup | None) -> None:
    allowed = set(dist.get_process_group_ranks(domain)) if domain is not None else {dist.get_rank()}
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm):
            ranks = dist.get_process_group_ranks(part.process_group or dist.group.WORLD)
            if not set(ranks) <= allowed:
                raise ValueError(
                    f"model: {name} is a SyncBatchNorm over workers {ranks}, who would all wait for each other in each "
                    "forward pass; give convert_sync_batchnorm the domain as process_group, or use BatchNorm: DSSync "
                    "averages its statistics"
                )


def _keep(state, bucket) -> torch.futures.Future[torch.Tensor]:
    """Leave a bucket's gradients as they are."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def _average(domain, bucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket's gradients within the domain while the backward pass goes on."""
    gradients = bucket.buffer().div_(dist.get_world_size(domain))
    work = dist.all_reduce(gradients, group=domain, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])

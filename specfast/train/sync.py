"""What keeps the processes of a run at one model: a mean of gradients, of parameters in groups, or of both.

Each way says to the loop whom it shares an update's gradient with (``peers``), does the step, saves and loads what it
needs to go on, and ends with the same parameters everywhere.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from specfast import dssync
from specfast.train.config import PretrainConfig
from specfast.train.distributed import World


class GradientMean:
    """One gradient of all processes' samples in each update, hence the same parameters everywhere.

    Attributes:
        forward: what to call for the model.
        peers: the processes that share a gradient in the next update.
        everywhere: all processes always do: each knows of each update what the others know, and has their parameters.
    """

    everywhere = True

    def __init__(self, world: World, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.peers, self.optimizer = world, optimizer
        self.forward = world.wrap(model)

    def step(self) -> None:
        """Update the parameters from their gradients."""
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any] | None:
        """Return what must be known to go on, beside model and optimizer."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on; the model's and the optimizer's state are loaded already."""

    def consensus(self) -> None:
        """Have the same parameters everywhere."""

    def close(self) -> None:
        """Give back what was taken from torch.distributed."""


class GroupMeans(GradientMean):
    """DS-Sync: a local update, then a mean of the parameters in a small group that changes with each update.

    With domains, the processes of a domain share each gradient, and groups are formed across domains.
    """

    everywhere = False

    def __init__(self, config: PretrainConfig, world: World, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.peers, across = world.alone(), world
        if config.sync_domain > 1:
            if world.size % config.sync_domain or world.size == config.sync_domain:
                raise ValueError(
                    f"sync_domain: expected a divisor of the {world.size} processes, and less than them; "
                    f"got {config.sync_domain}"
                )
            self.peers, across = world.domains(config.sync_domain)
        if config.sync_group is not None and config.sync_group > across.size:
            counted = "processes" if across is world else f"domains of {config.sync_domain} processes"
            raise ValueError(f"sync_group: expected at most the {across.size} {counted}; got {config.sync_group}")
        topology = None
        if config.sync_topology is not None:
            topology = _topology(config.sync_topology, world, across)
        schedule = config.sync_schedule
        if schedule == "plan":
            size = sum(parameter.nbytes for parameter in model.parameters())
            plan = dssync.plan(topology, size, group_size=config.sync_group)
            if plan.use_ddp and world.is_main:
                warnings.warn(f"sync_schedule: {plan.reason}", stacklevel=2)
            schedule = plan.schedule
        self.sync = dssync.DSSync(
            model,
            optimizer,
            group_size=config.sync_group,
            schedule=schedule,
            topology=topology,
            seed=config.seed,
            momentum=config.sync_momentum,
            global_every=config.sync_global_every,
            overlap=config.sync_overlap,
            wire=config.sync_wire,
            process_group=across.group,
        )
        self.forward = self.peers.wrap(model)

    def step(self) -> None:
        self.sync.step()

    def state_dict(self) -> dict[str, Any]:
        return self.sync.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sync.load_state_dict(state)

    def consensus(self) -> None:
        self.sync.consensus_()

    def close(self) -> None:
        self.sync.close()


class PeriodicMeans(GradientMean):
    """torch's PostLocalSGD: as DDP in the warm-up, then local updates and at times a global mean of the parameters."""

    everywhere = False

    def __init__(self, config: PretrainConfig, world: World, model: nn.Module, optimizer: torch.optim.Optimizer):
        # here, since torch takes more than a second to import them
        from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
        from torch.distributed.optim import PostLocalSGDOptimizer

        self.world, self.model = world, model
        self.forward = world.wrap(model)
        self.forward.broadcast_buffers = False
        self.hook = PostLocalSGDState(None, None, config.warmup_steps, post_local_gradient_allreduce=False)
        self.forward.register_comm_hook(self.hook, post_localSGD_hook)
        self.averager = PeriodicModelAverager(config.sync_global_every, warmup_steps=config.warmup_steps)
        self.optimizer = PostLocalSGDOptimizer(optimizer, self.averager)

    @property
    def peers(self) -> World:
        return self.world if self.averager.step < self.averager.warmup_steps else self.world.alone()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.averager.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averager.step = self.hook.iter = state["step"]

    def consensus(self) -> None:
        from torch.distributed.algorithms.model_averaging.utils import average_parameters

        average_parameters(iter(self.model.parameters()), self.averager.process_group)


def _topology(path: str, world: World, across: World) -> dssync.Topology:
    """Read the network of all processes, and return the part of it that these groups are formed in."""
    topology = dssync.Topology.load(path)
    if topology.world != world.size:
        raise ValueError(
            f"sync_topology: expected a network of the {world.size} processes; {path} has {topology.world}"
        )
    return topology if across is world else topology.subset(dist.get_process_group_ranks(across.group))


def make_sync(config: PretrainConfig, world: World, model: nn.Module, optimizer: torch.optim.Optimizer) -> GradientMean:
    """Return what ``config.sync`` names; a single process has nobody to agree with.

    Raises:
        ValueError: an option does not fit the number of processes, or another option.
    """
    if world.size == 1 or config.sync == "ddp":
        return GradientMean(world, model, optimizer)
    made = GroupMeans if config.sync == "dssync" else PeriodicMeans
    return made(config, world, model, optimizer)

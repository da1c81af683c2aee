"""The ways to train together that are compared, behind one interface: a whole step, or its exchange alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import HierarchicalModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from bench.network.clusters import Cluster
from bench.network.messages import Trainee, parameter_bytes
from bench.network.schedules import schedule_of
from specfast.dssync import DSSync, Schedule

PERIOD = 4  # steps between two means over all workers, for the methods that take a period
POWER_SGD_RANK = 2
POWER_SGD_START = 4  # DDP settles its buckets in the first step, and PowerSGD wants to start after that

Make = Callable[[], torch.optim.Optimizer]


class Provider:
    """One way to train: alone, without any exchange.

    Attributes:
        cycle: steps after which its pattern of exchanges repeats.
        warm_up: steps before that pattern has begun.
    """

    cycle = 1
    warm_up = 0

    def __init__(self, module: Trainee, optimizer: torch.optim.Optimizer, cluster: Cluster):
        self.module, self.optimizer, self.cluster = module, optimizer, cluster
        self.forward: nn.Module = module

    def prepare(self, scale: float = 1.0) -> None:
        """Do what comes before the exchange."""
        self.optimizer.zero_grad()
        self.pending = self.forward(scale=scale)

    def exchange(self) -> None:
        """Exchange what a step exchanges, without computing."""
        self.pending.backward()

    def step(self, *batch) -> float:
        """Train on a batch; return this worker's loss."""
        self.optimizer.zero_grad()
        loss = self.forward(*batch)
        loss.backward()
        self.update()
        return loss.item()

    def update(self) -> None:
        self.optimizer.step()

    def expected(self, values: Tensor, number: int) -> Tensor:
        """What exchange ``number`` of a cycle makes of one number a worker: a check of the mathematics."""
        return values

    def observed(self) -> Tensor:
        """The first number of every tensor that was exchanged."""
        return torch.stack([parameter.grad.flatten()[0] for parameter in self.module.parameters()])

    def set_values(self, value: float) -> None:
        """Make every number that will be exchanged ``value``."""
        self.prepare(scale=value)

    def close(self) -> None:
        """Give back what processes share."""


class AllReduce(Provider):
    """DistributedDataParallel, with or without a communication hook: gradients are averaged over all workers."""

    warm_up = POWER_SGD_START + 2

    def __init__(self, module, optimizer, cluster, hook: str | None = None):
        super().__init__(module, optimizer, cluster)
        # PowerSGD's hook goes on from callbacks, in the order in which buckets happen to come back: on Gloo two buckets
        # of different workers could meet, so it gets all gradients in one
        cap = 1 + parameter_bytes(module) // 2**20 if hook == "powersgd" else None
        self.forward = DistributedDataParallel(module, gradient_as_bucket_view=True, bucket_cap_mb=cap)
        if hook == "bf16":
            self.forward.register_comm_hook(None, _bf16)
        elif hook == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=POWER_SGD_RANK, start_powerSGD_iter=POWER_SGD_START
            )
            self.forward.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def expected(self, values: Tensor, number: int) -> Tensor:
        return values.mean().expand_as(values)


def _bf16(group, bucket):
    """torch's hook under another name: DDP refuses it by its name where there is no CUDA, though Gloo can add bf16."""
    return default_hooks.bf16_compress_hook(group, bucket)


class _Averaging(Provider):
    """Base of those that average parameters after a local step."""

    def prepare(self, scale: float = 1.0) -> None:
        self.optimizer.zero_grad()

    def observed(self) -> Tensor:
        return torch.stack([parameter.detach().flatten()[0] for parameter in self.module.parameters()])

    def set_values(self, value: float) -> None:
        self.prepare()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(value)


class PerTensor(_Averaging):
    """A blocking all-reduce a tensor in the group of the round: what published code of DS-Sync does."""

    def __init__(self, module, optimizer, cluster, schedule: Schedule):
        super().__init__(module, optimizer, cluster)
        self.schedule, self.round, self.cycle = schedule, 0, len(schedule.rounds)
        self.groups = {ranks: dist.new_group(ranks) for ranks in schedule.groups()}

    def exchange(self) -> None:
        ranks = self.schedule.group_of(dist.get_rank(), self.round)
        self.round += 1
        if len(ranks) == 1:
            return
        for parameter in self.module.parameters():
            dist.all_reduce(parameter.data, group=self.groups[ranks])
            parameter.data /= len(ranks)

    def update(self) -> None:
        self.optimizer.step()
        self.exchange()

    def expected(self, values: Tensor, number: int) -> Tensor:
        return _group_means(self.schedule, values, number)


class PostLocal(AllReduce):
    """torch's PostLocalSGD: gradients are averaged within a rack each step, parameters everywhere each PERIOD steps."""

    cycle = PERIOD

    def __init__(self, module, optimizer, cluster):
        Provider.__init__(self, module, optimizer, cluster)
        self.forward = DistributedDataParallel(module, gradient_as_bucket_view=True)
        subgroup, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in cluster.halves()])
        state = post_localSGD_hook.PostLocalSGDState(None, subgroup, start_localSGD_iter=0)
        self.forward.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
        self.averager = PeriodicModelAverager(period=PERIOD)
        self.optimizer = PostLocalSGDOptimizer(optimizer, self.averager)

    def exchange(self) -> None:
        self.pending.backward()
        self.averager.average_parameters(self.module.parameters())

    def expected(self, values: Tensor, number: int) -> Tensor:
        means = torch.empty_like(values)
        for ranks in self.cluster.halves():
            means[list(ranks)] = values[list(ranks)].mean()
        return means


class Hierarchical(_Averaging):
    """torch's HierarchicalModelAverager: parameters within a rack each step, everywhere each PERIOD steps."""

    cycle = PERIOD

    def __init__(self, module, optimizer, cluster):
        super().__init__(module, optimizer, cluster)
        levels = OrderedDict([(1, len(cluster.halves()[0])), (PERIOD, cluster.workers)])
        self.averager = HierarchicalModelAverager(levels)

    def prepare(self, scale: float = 1.0) -> None:
        for parameter in self.module.parameters():  # it passes over what has no gradient
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def exchange(self) -> None:
        self.averager.average_parameters(self.module.parameters())

    def update(self) -> None:
        self.optimizer.step()
        self.exchange()

    def expected(self, values: Tensor, number: int) -> Tensor:
        means = values.mean().expand_as(values).clone()
        if number % PERIOD:
            for ranks in self.cluster.halves():
                means[list(ranks)] = values[list(ranks)].mean()
        return means


class Grouped(_Averaging):
    """DSSync with a schedule."""

    def __init__(self, module, optimizer, cluster, schedule: Schedule, **options):
        super().__init__(module, optimizer, cluster)
        self.schedule, self.cycle = schedule, len(schedule.rounds)
        self.sync = DSSync(module, optimizer, schedule=schedule, **options)

    def exchange(self) -> None:
        self.sync.step()  # without gradients the optimizer does nothing

    def update(self) -> None:
        self.sync.step()

    def expected(self, values: Tensor, number: int) -> Tensor:
        return _group_means(self.schedule, values, number)

    def close(self) -> None:
        self.sync.close()


def _group_means(schedule: Schedule, values: Tensor, number: int) -> Tensor:
    means = values.clone()
    for ranks in schedule.partition(number):
        means[list(ranks)] = values[list(ranks)].mean()
    return means


PROVIDERS = (
    "ddp",
    "ddp-bf16",
    "ddp-powersgd",
    "per-tensor",
    "postlocal",
    "hierarchical",
    "dssync-two-phase",
    "dssync-grid",
    "dssync-emissary",
    "dssync-every4",
    "dssync-planned",
    "dssync-planned-bf16",
    "dssync-static",
    "alone",
)


def schedule_kind(name: str) -> str | None:
    """The kind of schedule that a provider uses; None if it uses none."""
    if name == "per-tensor":
        return "two-phase"
    return name.removeprefix("dssync-").removesuffix("-bf16") if name.startswith("dssync-") else None


def make_provider(name: str, module: Trainee, optimizer: torch.optim.Optimizer, cluster: Cluster) -> Provider:
    """Return one of ``PROVIDERS``; every worker makes the same ones in the same order."""
    if name not in PROVIDERS:
        raise ValueError(f"provider: expected one of {', '.join(PROVIDERS)}; got {name!r}")
    common = (module, optimizer, cluster)
    if kind := schedule_kind(name):
        schedule = schedule_of(kind, cluster, parameter_bytes(module))
        if name == "per-tensor":
            return PerTensor(*common, schedule)
        return Grouped(*common, schedule, wire="bfloat16" if name.endswith("-bf16") else "float32")
    if name == "alone":
        return Provider(*common)
    if name == "postlocal":
        return PostLocal(*common)
    if name == "hierarchical":
        return Hierarchical(*common)
    return AllReduce(*common, hook=name.removeprefix("ddp").removeprefix("-") or None)

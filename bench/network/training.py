"""The loss of the workers' mean model against time, by provider and seed: equal steps on equal data."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bench.network.clusters import make_cluster
from bench.network.messages import parameter_bytes
from bench.network.namespaces import traffic
from bench.network.providers import make_provider
from bench.network.tasks import load_task

FINAL_RATE = 0.02  # the learning rate falls to this share of its start along a cosine


def run(
    *,
    cluster: str,
    workers: int,
    nic_mbit: float,
    task: str,
    data: str,
    providers: list[str],
    seed: int,
    steps: int,
    points: int,
    switch: str,
    report: Callable[[dict], None],
) -> None:
    """Train with each provider from the same start on the same samples; rank 0 reports a row for each."""
    network, work = make_cluster(cluster, workers, nic_mbit), load_task(task, data)
    for name in providers:
        torch.manual_seed(seed)
        model = work.model()
        optimizer = work.optimizer(model)
        provider = make_provider(name, model, optimizer, network)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        generator = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
        curve = [(0, 0.0, _mean_loss(work, model))]
        clock, sent = 0.0, 0
        for point in range(1, points + 1):
            count = steps * point // points - curve[-1][0]
            before = _traffic(switch)
            dist.barrier()
            start = time.perf_counter()
            for _ in range(count):
                provider.step(*work.batch(generator))
                schedule.step()
            clock += _largest(time.perf_counter() - start)
            sent += _traffic(switch) - before
            curve.append((curve[-1][0] + count, clock, _mean_loss(work, model)))
        spread = _relative_spread(model)
        provider.close()
        if dist.get_rank() == 0:
            report(
                {
                    "kernel": "training",
                    "provider": name,
                    "message_bytes": parameter_bytes(model),
                    "seed": seed,
                    "steps": steps,
                    "final_loss": round(curve[-1][2], 6),
                    "p50_ms": round(1e3 * clock / steps, 3),
                    "wire_bytes": round(sent / steps),
                    "disagreement": float(f"{spread:.3g}"),
                    "curve": [[step, round(seconds, 3), round(loss, 6)] for step, seconds, loss in curve],
                }
            )


def _traffic(switch: str) -> int:
    return traffic(switch).workers if dist.get_rank() == 0 else 0


def _largest(seconds: float) -> float:
    value = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()


def _mean_parameters(model: nn.Module) -> Tensor:
    """The mean of all workers' parameters, without changing theirs."""
    with torch.no_grad():
        mean = parameters_to_vector(model.parameters()).clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def _mean_loss(work, model: nn.Module) -> float:
    """The loss of the mean model, on rank 0; off the clock."""
    mean = _mean_parameters(model)
    if dist.get_rank():
        return math.nan
    judged = copy.deepcopy(model)
    with torch.no_grad():
        vector_to_parameters(mean, judged.parameters())
    return work.evaluate(judged)


def _relative_spread(model: nn.Module) -> float:
    """The root mean square distance of the workers from their mean, over its norm."""
    mean = _mean_parameters(model)
    with torch.no_grad():
        square = (parameters_to_vector(model.parameters()) - mean).square().sum()
    dist.all_reduce(square)
    return float((square / dist.get_world_size()).sqrt() / mean.norm())

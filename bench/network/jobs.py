"""What is measured: which clusters, sizes, providers and tasks, in full and quickly."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from bench.network.clusters import CLUSTERS, Cluster, make_cluster
from bench.network.messages import Transformer, parameter_bytes
from bench.network.providers import PROVIDERS, schedule_kind
from bench.network.schedules import fits, schedule_of

LARGE = ("ddp", "ddp-bf16", "per-tensor", "dssync-grid", "dssync-emissary", "dssync-every4", "dssync-planned")
TRAINED = {
    "spectra": (
        "ddp",
        "ddp-powersgd",
        "postlocal",
        "dssync-two-phase",
        "dssync-emissary",
        "dssync-planned",
        "dssync-static",
    ),
    # PowerSGD's hook takes no parameter without axes, such as SpecAware's scaler
    "specaware": ("ddp", "dssync-emissary", "dssync-planned", "dssync-static"),
}
SEEDS = 5


@dataclass(frozen=True)
class Job:
    """One start of all workers on one emulated network.

    Attributes:
        shape: size of world and message, or world, task and seed: names the rows.
        options: arguments of ``timing.run`` or ``training.run``.
    """

    kind: str
    cluster: Cluster
    nic_mbit: float
    shape: str
    providers: tuple[str, ...]
    options: dict = field(compare=False)

    def only(self, names: Collection[str]) -> Job:
        """The same job for some of its providers."""
        return replace(self, providers=tuple(name for name in self.providers if name in names))

    @property
    def arguments(self) -> dict:
        """What the workers are told."""
        place = {"cluster": self.cluster.name, "workers": self.cluster.workers, "nic_mbit": self.nic_mbit}
        return {"job": self.kind, **place, "providers": list(self.providers), **self.options}


def twins(job: Job) -> dict[str, str]:
    """Providers of a timing job whose schedule is, round by round, that of another one, which is measured for both."""
    with torch.device("meta"):
        size = parameter_bytes(Transformer(job.options["message"]))
    found, first = {}, {}
    for name in reversed(job.providers):
        if name.startswith("dssync-") and not name.endswith("-bf16"):
            other = first.setdefault(schedule_of(schedule_kind(name), job.cluster, size).digest(), name)
            if other != name:
                found[name] = other
    return found


def suits(provider: str, cluster: Cluster) -> bool:
    """Whether the provider's schedule is meant for such a cluster."""
    kind = schedule_kind(provider)
    return kind is None or fits(kind, cluster)


def timing_jobs(clusters: tuple[str, ...], *, quick: bool = False) -> list[Job]:
    """Every cluster with 4 MB on 4 workers; with 40 MB, and with 8 workers, fewer providers.

    Links are slow enough for two processor cores to feed all of them.
    """
    sizes = [("4MB", 4, 200.0, PROVIDERS, 12), ("40MB", 4, 800.0, LARGE, 6), ("4MB", 8, 100.0, LARGE, 6)]
    if quick:
        sizes = [("1MB", 4, 200.0, LARGE, 4)]
    jobs = []
    for message, workers, nic, providers, steps in sizes:
        for name in clusters:
            cluster = make_cluster(name, workers, nic)
            kept = tuple(name for name in providers if name != "dssync-static" and suits(name, cluster))
            options = {"message": message, "steps": steps, "whole_steps": True}
            shape = f"N{workers}-{message}"
            jobs.append(Job("timing", cluster, nic, shape, kept, options))
    return jobs


def training_jobs(
    clusters: tuple[str, ...], tasks: tuple[str, ...], seeds: tuple[int, ...], data: str, *, quick: bool = False
) -> list[Job]:
    """Each task with each seed: all providers do the same number of steps from the same start."""
    jobs = []
    for task in tasks:
        steps = {"spectra": 300, "specaware": 200}[task]
        for name in clusters:
            for seed in seeds:
                options = {"task": task, "seed": seed, "data": data, "steps": 60 if quick else steps, "points": 15}
                shape = f"N4-{task}-seed{seed}"
                cluster = make_cluster(name, 4)
                kept = tuple(name for name in TRAINED[task] if suits(name, cluster))
                jobs.append(Job("training", cluster, 200.0, shape, kept, options))
    return jobs


def default_clusters(kind: str, *, quick: bool) -> tuple[str, ...]:
    if kind == "training" or quick:
        return ("racks-4to1",)
    return CLUSTERS

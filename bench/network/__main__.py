"""python -m bench.network: measure on emulated networks (root, Linux), into bench/results/network-*.json.

timing: the exchange of a step without compute, the whole step, the bytes on the wires. training: loss against time on
real tasks, several seeds. Rows are on disk after each cluster; --resume goes on after those of this commit. Then
`python -m bench.network.report` prints tables and bars, and `python -m bench.network.plot` draws.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

import torch

from bench.machine import commit, versions
from bench.network.clusters import CLUSTERS
from bench.network.jobs import SEEDS, Job, default_clusters, timing_jobs, training_jobs, twins
from bench.network.launch import run_workers
from bench.network.namespaces import EmulatedNetwork, probe
from bench.network.providers import PROVIDERS, schedule_kind
from bench.network.schedules import schedule_of, topology_of
from bench.network.tasks import TASKS, save_scene
from bench.results import FOLDER, ResultFile
from specfast.dssync.cost import allreduce_time, schedule_time

LIMIT_S = 900
KINDS = ("timing", "training")
TOLERANCES = {False: 1e-6, True: 8e-3}  # of float32, and of what is sent in bf16


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    # cleaning up happens on the way out, and SIGTERM must take it
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as scratch:
        ran = 0
        for kind in args.kinds:
            results = ResultFile((args.out or _folder(args.quick)) / f"network-{kind}.json")
            print(f"\n{results.path}\n{HEADER}", flush=True)
            for job in _jobs(kind, args, Path(scratch)):
                ran += _run(job, results, resume=args.resume)
    return 0 if ran else 1


def _jobs(kind: str, args: argparse.Namespace, scratch: Path) -> list[Job]:
    clusters = tuple(args.clusters or default_clusters(kind, quick=args.quick))
    if kind == "timing":
        jobs = timing_jobs(clusters, quick=args.quick)
    else:
        seeds = tuple(args.seeds if args.seeds is not None else range(1 if args.quick else SEEDS))
        tasks = tuple(args.tasks or (["spectra"] if args.quick else TASKS))
        jobs = training_jobs(clusters, tasks, seeds, str(save_scene(scratch / "scene.npz")), quick=args.quick)
    jobs = [job for job in jobs if not args.shapes or any(job.shape.startswith(shape) for shape in args.shapes)]
    if args.providers:
        jobs = [job.only(args.providers) for job in jobs]
    return [job for job in jobs if job.providers]


def _run(job: Job, results: ResultFile, *, resume: bool) -> bool:
    """Measure a job's rows and say so; whether this machine could."""
    names = {"unit": "network", "mode": job.cluster.name, "shape": job.shape}
    if refusal := probe().refusal(job.cluster):
        print(f"{job.cluster.name:12} {job.shape:16} skipped: {refusal}", flush=True)
        return False
    kernel = "exchange" if job.kind == "timing" else "training"
    if resume and all(results.has(commit(), provider=name, kernel=kernel, **names) for name in job.providers):
        return True
    where = {
        **versions(torch.device("cpu")),
        "threads": 1,
        "cores": os.cpu_count(),
        "kernel_version": platform.release(),
    }
    links = {"workers": job.cluster.workers, "nic_mbit": job.nic_mbit, "uplink_mbit": job.cluster.uplink_mbit}

    same = twins(job) if job.kind == "timing" else {}

    def keep(row: dict) -> None:
        for name in (row["provider"], *(name for name, other in same.items() if other == row["provider"])):
            add({**row, "provider": name})

    def add(row: dict) -> None:
        row = {**names, "dtype": "float32", **row, **links}
        if row["kernel"] == "exchange" and (predicted := _predicted_ms(job, row)) is not None:
            row["predicted_ms"] = round(predicted, 3)
        row = _checked(row) | where
        results.add([row])
        print(line(row), flush=True)

    with EmulatedNetwork(job.cluster) as network:
        run_workers(network, job.only(set(job.providers) - set(same)).arguments, keep, limit_s=LIMIT_S)
    return True


def _checked(row: dict) -> dict:
    """The row; without its times if the exchange gave wrong numbers."""
    tolerance = TOLERANCES[row["provider"].endswith("bf16")]
    if row.get("relative_error", 0.0) <= tolerance:
        return row
    kept = {name: value for name, value in row.items() if not name.endswith("_ms")}
    return {**kept, "failed": f"relative error {row['relative_error']:g} where {tolerance:g} is allowed"}


def _predicted_ms(job: Job, row: dict) -> float | None:
    """What the cost model says of the methods it knows."""
    topology, name, size = topology_of(job.cluster), row["provider"], row["message_bytes"]
    if topology is None or name.endswith("-bf16"):
        return None
    if name == "ddp":
        return 1e3 * allreduce_time(topology, size)
    if kind := schedule_kind(name):
        return 1e3 * schedule_time(schedule_of(kind, job.cluster, size), topology, size)
    return None


def _folder(quick: bool) -> Path:
    return Path("runs", "bench") if quick else FOLDER


HEADER = f"{'cluster':12} {'shape':20} {'kind':9} {'provider':22} {'p50 ms':>9} {'model':>8} {'MB a step':>9}  notes"


def line(row: dict) -> str:
    """One row as text."""
    predicted = f"{row['predicted_ms']:.0f}" if "predicted_ms" in row else ""
    sent = f"{row['wire_bytes'] / 1e6:.2f}" if "wire_bytes" in row else ""
    time = f"{row['p50_ms']:.2f}" if "p50_ms" in row else ""
    notes = f"loss {row['final_loss']:.4f}" if "final_loss" in row else row.get("failed", "")
    return (
        f"{row['mode']:12} {row['shape']:20} {row['kernel']:9} {row['provider']:22} {time:>9} "
        f"{predicted:>8} {sent:>9}  {notes}"
    )


def _kind(name: str) -> str:
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(KINDS)}; got {name!r}")
    return name


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.network", description=__doc__)
    parser.add_argument("kinds", nargs="*", type=_kind, default=KINDS, help=f"of {', '.join(KINDS)}; default: both")
    parser.add_argument("--quick", action="store_true", help="small sizes, few runs, into runs/bench: tries the tool")
    parser.add_argument("--clusters", nargs="+", choices=CLUSTERS)
    parser.add_argument("--shapes", nargs="+", help="rows whose shape starts so: N4-4MB, N8, N4-spectra, ...")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="of kind training")
    parser.add_argument("--seeds", nargs="+", type=int, help="of kind training")
    parser.add_argument("--out", type=Path, help="folder of the result files (bench/results)")
    parser.add_argument("--resume", action="store_true", help="skip what was measured at this commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())

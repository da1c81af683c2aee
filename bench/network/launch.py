"""One process a worker in the namespaces of an emulated network, and what their first one reports."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.network.namespaces import WORKER_DEVICE, EmulatedNetwork

ROOT = Path(__file__).resolve().parents[2]
PORT = 29500  # of the store; namespaces have ports of their own


class WorkerError(RuntimeError):
    """A worker failed, or they did not end in time; the message holds what it wrote to stderr."""


def run_workers(network: EmulatedNetwork, job: dict, report: Callable[[dict], None], *, limit_s: float = 280) -> None:
    """Run ``job`` on every worker of a network; call ``report`` with each row that rank 0 sends.

    Raises:
        WorkerError: a worker ended with an error, or all of them took longer than ``limit_s``.
    """
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in network.workers]
        workers = []
        stack.callback(_end, workers)
        for rank, log in enumerate(logs):
            workers.append(_start(network, rank, job, log))
        for line in _lines(workers, deadline):
            report(json.loads(line))
        failed = [rank for rank, worker in enumerate(workers) if worker.poll()]
        if failed:
            # the first that fell takes the others down: theirs are the errors of lost connections
            raise WorkerError(
                "\n".join(f"rank {rank} of {network.cluster.name}: {_tail(logs[rank])}" for rank in failed)
            )
        if any(worker.poll() is None for worker in workers):
            late = [rank for rank, worker in enumerate(workers) if worker.poll() is None]
            raise WorkerError(f"{network.cluster.name}: ranks {late} had not ended after {limit_s:.0f} s")


def end_with_the_launcher() -> None:
    """Called in a worker: end this process as soon as the launcher's end of the pipe is closed, however that ended."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _start(network: EmulatedNetwork, rank: int, job: dict, log) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": WORKER_DEVICE,
        "MASTER_ADDR": network.address(0),
        "MASTER_PORT": str(PORT),
        "RANK": str(rank),
        "WORLD_SIZE": str(len(network.workers)),
    }
    return subprocess.Popen(
        network.command(rank, sys.executable, "-m", "bench.network.worker", network.switch, json.dumps(job)),
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,  # never written to, see end_with_the_launcher
        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        stderr=log,
    )


def _lines(workers: list[subprocess.Popen], deadline: float):
    """The lines of rank 0, until all have ended, one has failed, or the time is over."""
    pipe = workers[0].stdout
    os.set_blocking(pipe.fileno(), False)
    buffer, closed = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if closed:
                time.sleep(0.02)
            elif selector.select(timeout=0.2):
                chunk = os.read(pipe.fileno(), 1 << 16)
                if closed := not chunk:
                    selector.unregister(pipe)
                *complete, buffer = (buffer + chunk).split(b"\n")
                yield from complete
            states = [worker.poll() for worker in workers]
            if any(states) or (closed and None not in states):
                break
    if any(worker.poll() for worker in workers):
        time.sleep(0.5)  # those that lost their peer say so, too


def _end(workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            if pipe:
                pipe.close()


def _tail(log, size: int = 3000) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - size))
    return log.read().decode(errors="replace").strip()

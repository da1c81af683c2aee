"""A function in several processes that form a Gloo world; never hangs, and shows what a process raised."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A server that has torch loaded forks the processes: each starts in milliseconds. It runs no thread and no collective.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "specfast.dssync", "specfast.train"])
_LAST_WORDS_S = 5.0  # for the others, once one process has failed


class ProcessError(AssertionError):
    """A process raised, died or did not end; the message holds its traceback."""


def run(world: int, target: Callable, *args: Any, tmp_path: Path, timeout_s: float = 120.0) -> list:
    """Return what ``target(rank, *args)`` returned in each process of a Gloo world, by rank.

    Args:
        world: number of processes; ``torch.distributed`` is initialized in each, with one thread for torch.
        target: a function at the top of a module; it, its arguments and its results must be picklable.
        tmp_path: a folder for the rendezvous and the results. Every call takes one of its own inside.
        timeout_s: after so long the processes are killed.

    Raises:
        ProcessError: a process raised, was killed or did not end.
    """
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the server reads it once, when it starts
    # through a file: multiprocessing would share each tensor's memory, by a file descriptor of its own
    (folder / "call").write_bytes(pickle.dumps((target, args)))
    processes = [_CONTEXT.Process(target=_run, args=(rank, world, folder), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        _join(processes, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()
    errors = sorted(folder.glob("error_*"), key=lambda path: path.stat().st_mtime_ns)
    silent = [rank for rank in range(world) if not any((folder / f"{kind}_{rank}").is_file() for kind in _OUTCOMES)]
    if errors or silent:
        texts = [f"rank {path.name.removeprefix('error_')}:\n{path.read_text()}" for path in errors]
        texts += [f"rank {rank}: exit code {processes[rank].exitcode}, no result" for rank in silent]
        raise ProcessError("\n".join(texts))
    return [pickle.loads((folder / f"result_{rank}").read_bytes()) for rank in range(world)]


_OUTCOMES = ("result", "error")


def _join(processes: list, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    running = list(processes)
    while running and time.monotonic() < deadline:
        wait([process.sentinel for process in running], timeout=deadline - time.monotonic())
        if any(process.exitcode for process in running):
            deadline = min(deadline, time.monotonic() + _LAST_WORDS_S)
        running = [process for process in running if process.is_alive()]


def _run(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=120),
        )
        target, args = pickle.loads((folder / "call").read_bytes())
        result = target(rank, *args)
        _write(folder / f"result_{rank}", pickle.dumps(result))
        dist.barrier()  # nobody closes a connection that another still reads from
        dist.destroy_process_group()
    except BaseException:
        _write(folder / f"error_{rank}", traceback.format_exc().encode())
        raise SystemExit(1) from None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.rename(path)

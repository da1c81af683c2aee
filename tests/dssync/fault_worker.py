"""One worker of a run in which some are killed or stopped: trains a vector by DSSync, and writes down what happened.

Its log has a line for each optimizer step and each mean that was completed, written at once, so that a test can compute
in plain torch what every worker should hold, whenever one died.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

SIZE = 50_000
ADMIT_EVERY = 5
RATE = 0.1


@dataclass(frozen=True)
class Fault:
    """What happens to a rank: a signal it sends itself at a step, while it computes or some time into its round."""

    rank: int
    step: int
    signal: int
    in_round: bool
    delay_s: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """A run: the workers' options, and what befalls them."""

    world: int
    steps: int
    faults: tuple[Fault, ...]
    elastic: bool
    timeout_s: float
    group_size: int = 2
    wire: str = "float32"
    overlap: bool = False
    momentum: bool = False
    pause_s: float = 0.0
    back: bool = False  # those that were killed are started again, and the others let them in
    agent: bool = True  # the store is kept by another process than rank 0, as torchrun does


def start(rank: int) -> Tensor:
    """Return the parameters every worker starts with."""
    return torch.linspace(-1.0, 1.0, SIZE)


def target(rank: int, step: int) -> Tensor:
    """Return what a rank's loss pulls its parameters to in a step."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1000 * rank + step))


def local_step(parameters: Tensor, rank: int, step: int) -> Tensor:
    """Return the parameters after a rank's own optimizer step."""
    return parameters - RATE * (parameters - target(rank, step))


def main(rank: int, port: int, scenario: Scenario, folder: str, again: bool = False) -> None:
    """Train; leave ``log_<rank>`` and ``end_<rank>.pt`` (parameters, error, loss) in the folder.

    Args:
        again: this rank was killed and is started again, from nothing.
    """
    from specfast.dssync import DSSync, SyncError
    from specfast.dssync.joining import init_process_group as join_again

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(scenario.world))
    if scenario.agent:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if again:
        join_again("gloo", timeout=timedelta(seconds=120))
    else:
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    log = _Log(Path(folder) / f"log_{rank}")
    model = nn.Module()
    model.x = nn.Parameter(start(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9 * scenario.momentum)
    faults = {fault.step: fault for fault in scenario.faults if fault.rank == rank and not again}
    step, loss, error = 0, torch.zeros(()), None

    def after_local_step(*_):
        log.write("local", step=step)
        fault = faults.get(step)
        if fault is not None and fault.in_round:
            threading.Thread(target=_strike, args=(fault,), daemon=True).start()

    optimizer.register_step_post_hook(after_local_step)
    sync = DSSync(
        model,
        optimizer,
        group_size=scenario.group_size,
        elastic=scenario.elastic,
        timeout=scenario.timeout_s,
        wire=scenario.wire,
        overlap=scenario.overlap,
        momentum=scenario.momentum,
        rejoin=again,
    )
    first = sync.round
    if again:
        log.write("back", step=first)
    try:
        for step in range(first, scenario.steps):
            time.sleep(scenario.pause_s)
            if scenario.back and step % ADMIT_EVERY == 0 and not (again and step == first) and (new := sync.admit_()):
                before = [member for member in sync._workers.ranks if member not in new]
                log.write("admit", step=step, group=before, new=new, generation=sync._workers.generation)
            fault = faults.get(step)
            if fault is not None and not fault.in_round:
                _strike(fault)
            loss = 0.5 * (model.x - target(rank, step)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            generation, number, group = sync._workers.generation, sync.round, sync.group
            sync.step()
            # a step in which the world changed is not averaged, nor are those of a rank that the others wait for
            if sync._workers.generation == generation and number >= sync._workers.first_round:
                log.write("mean", step=step, group=group, generation=generation)
        sync.consensus_()
        log.write("consensus", group=sync._workers.ranks, generation=sync._workers.generation)
    except SyncError as raised:
        error = raised
    end = {"parameters": model.x.detach().clone(), "error": error, "loss": float(loss.detach())}
    torch.save(end, f"{folder}/end_{rank}.tmp")
    os.replace(f"{folder}/end_{rank}.tmp", f"{folder}/end_{rank}.pt")
    # no farewell to the others: some of them are dead
    os._exit(0)


def _strike(fault: Fault) -> None:
    time.sleep(fault.delay_s)
    os.kill(os.getpid(), fault.signal)


class _Log:
    def __init__(self, path: Path):
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the process

    def write(self, event: str, **fields) -> None:
        self._file.write(json.dumps({"event": event, **fields}).encode() + b"\n")


KILL, STOP = signal.SIGKILL, signal.SIGSTOP

"""Workers that are killed or stopped in the middle of a run: who is named, what the others hold, how they go on."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from specfast.dssync import SyncError, make_schedule
from specfast.dssync.faults import ExcludedError, StoreError
from specfast.dssync.liveness import close_group
from tests.dssync import fault_worker, processes
from tests.dssync.fault_worker import KILL, STOP, Fault, Scenario

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "specfast.dssync"])
HANGS_S = 150.0


class Outcome:
    """What the workers of a run left behind."""

    def __init__(self, folder: Path, scenario: Scenario):
        self.scenario = scenario
        self.logs = {
            rank: [json.loads(line) for line in (folder / f"log_{rank}").read_text().splitlines()]
            for rank in range(scenario.world)
        }
        self.ends = {
            rank: torch.load(folder / f"end_{rank}.pt", weights_only=False)
            for rank in range(scenario.world)
            if (folder / f"end_{rank}.pt").is_file()
        }

    def expected(self) -> dict[int, Tensor]:
        """Compute what every worker holds at the end of its log, from the steps and means it has written down."""
        values = {rank: fault_worker.start(rank) for rank in self.logs}
        means: dict[int, dict[int, list[int]]] = defaultdict(dict)  # step -> rank -> group
        admitted: dict[int, dict] = {}  # step -> who let whom in, before that step
        done: dict[int, set[int]] = defaultdict(set)  # step -> who did it
        for rank, log in self.logs.items():
            for line in log:
                if line["event"] == "local":
                    done[line["step"]].add(rank)
                elif line["event"] == "mean":
                    means[line["step"]][rank] = line["group"]
                elif line["event"] == "admit":
                    assert admitted.setdefault(line["step"], line) == line
        for step in range(self.scenario.steps):
            if step in admitted:
                mean = torch.stack([values[member] for member in admitted[step]["group"]]).mean(dim=0)
                values.update(dict.fromkeys([*admitted[step]["group"], *admitted[step]["new"]], mean))
            for rank in done[step]:
                values[rank] = fault_worker.local_step(values[rank], rank, step)
            before = dict(values)
            for rank, group in means[step].items():
                assert done[step].issuperset(group), (step, group, done[step])
                values[rank] = torch.stack([before[member] for member in group]).mean(dim=0)
        before = dict(values)
        for rank, log in self.logs.items():
            if log and log[-1]["event"] == "consensus":
                values[rank] = torch.stack([before[member] for member in log[-1]["group"]]).mean(dim=0)
        return values

    def check_values(self, *, tolerance: float = 2e-6) -> None:
        """Compare what every worker that ended holds with what it should hold."""
        expected = self.expected()
        for rank, end in self.ends.items():
            error = (end["parameters"] - expected[rank]).square().mean().sqrt() / expected[rank].square().mean().sqrt()
            assert error < tolerance, f"{self.scenario}: rank {rank} is off by {error:.2e}"


def run(scenario: Scenario, folder: Path) -> Outcome:
    """Run the workers to their end; those that stopped themselves are continued once the others have gone on."""
    print(scenario)  # pytest shows it when the test fails
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    port = server.port
    if not scenario.agent:
        del server  # rank 0 takes the port
    workers = [_start(rank, port, scenario, folder) for rank in range(scenario.world)]
    killed = {fault.rank for fault in scenario.faults if fault.signal == KILL} if scenario.back else set()
    stopped = {fault.rank for fault in scenario.faults if fault.signal == STOP}
    others = [rank for rank in range(scenario.world) if rank not in stopped]
    deadline = time.monotonic() + HANGS_S
    try:
        while any(worker.is_alive() for worker in workers):
            assert time.monotonic() < deadline, f"{scenario}: ranks {[w.is_alive() for w in workers]} did not end"
            if stopped and all(_is_past(folder, rank, workers[rank]) for rank in others):
                for rank in stopped:
                    os.kill(workers[rank].pid, signal.SIGCONT)
                stopped = set()
            for rank in [rank for rank in killed if not workers[rank].is_alive()]:
                killed.remove(rank)
                workers[rank] = _start(rank, port, scenario, folder, again=True)
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return Outcome(folder, scenario)


def _start(rank: int, port: int, scenario: Scenario, folder: Path, again: bool = False):
    worker = _CONTEXT.Process(target=fault_worker.main, args=(rank, port, scenario, str(folder), again), daemon=True)
    worker.start()
    return worker


def _is_past(folder: Path, rank: int, worker) -> bool:
    """Whether a worker has ended or gone on in a new world."""
    log = folder / f"log_{rank}"
    return not worker.is_alive() or (log.is_file() and '"generation": 1' in log.read_text())


def draw(seed: int, *, elastic: bool, signals=(KILL, STOP), steps: int = 12, timeout_s: float = 24.0) -> Scenario:
    """Draw a run and one rank's end from a seed."""
    pick = random.Random(seed)
    world = pick.choice((4, 5, 6, 8))
    fault = Fault(
        rank=pick.randrange(world),
        step=pick.randrange(1, steps - 4),
        signal=pick.choice(signals),
        in_round=pick.random() < 0.7,
        delay_s=pick.random() * 0.01,
    )
    if fault.signal == STOP:
        timeout_s = 9.0
    return Scenario(world, steps, (fault,), elastic, timeout_s, group_size=pick.choice((2, 3)), pause_s=0.1 * elastic)


def check_one_error_each(outcome: Outcome) -> None:
    """All survivors raised one error, with the lost rank and where they were, and hold their own step's values."""
    scenario = outcome.scenario
    lost = scenario.faults[0]
    schedule = make_schedule("grid", scenario.world, scenario.group_size)
    survivors = set(range(scenario.world)) - {lost.rank}
    assert survivors <= outcome.ends.keys()
    for rank in survivors:
        error, log = outcome.ends[rank]["error"], outcome.logs[rank]
        assert type(error) is SyncError, (scenario, rank, error)
        assert error.missing == (lost.rank,), (scenario, rank, error)
        last = log[-1]
        assert last == {"event": "local", "step": error.step}, (scenario, rank, last)
        assert error.round == error.step
        assert error.group == schedule.group_of(rank, error.round)
        assert f"rank {lost.rank}" in str(error)
        # information about the loss spreads by a group a round
        assert lost.step <= error.step <= lost.step + len(schedule.rounds) + 1
    outcome.check_values()


def check_they_went_on(outcome: Outcome) -> None:
    """The survivors ended with equal values, and with what the steps and means they did give."""
    scenario = outcome.scenario
    lost = {fault.rank for fault in scenario.faults}
    survivors = sorted(set(range(scenario.world)) - lost)
    for rank in survivors:
        end = outcome.ends[rank]
        assert end["error"] is None, (scenario, rank, end["error"])
        assert torch.isfinite(torch.tensor(end["loss"]))
        assert outcome.logs[rank][-1]["group"] == survivors, (scenario, outcome.logs[rank][-1])
        assert torch.equal(end["parameters"], outcome.ends[survivors[0]]["parameters"]), (scenario, rank)
        locals_ = [line["step"] for line in outcome.logs[rank] if line["event"] == "local"]
        assert locals_ == list(range(scenario.steps)), "a survivor's steps are all done, once"
    for fault in scenario.faults:
        if fault.signal == STOP:
            error = outcome.ends[fault.rank]["error"]
            assert isinstance(error, ExcludedError), (scenario, error)
            assert f"rank {fault.rank} came too late" in str(error)
    if not (scenario.overlap or scenario.momentum or scenario.wire != "float32"):
        outcome.check_values()


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_survivors_of_a_killed_worker(seed, tmp_path):
    check_one_error_each(run(draw(seed, elastic=False, signals=(KILL,)), tmp_path))


def test_survivors_of_a_stopped_worker(tmp_path):
    outcome = run(draw(2, elastic=False, signals=(STOP,)), tmp_path)
    check_one_error_each(outcome)
    lost = outcome.scenario.faults[0].rank
    assert isinstance(outcome.ends[lost]["error"], SyncError)  # it was continued when the others had given up


@pytest.mark.parametrize(("seed", "kind"), [(3, KILL), (4, STOP)])
def test_survivors_go_on(seed, kind, tmp_path):
    check_they_went_on(run(draw(seed, elastic=True, signals=(kind,)), tmp_path))


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_lost_worker_comes_back(lost, tmp_path):
    """It is killed, started again and let in: then it holds what the others do, and no other's steps are lost."""
    fault = Fault(lost, 3, KILL, in_round=True, delay_s=0.001)
    outcome = run(Scenario(4, 25, (fault,), elastic=True, timeout_s=24.0, pause_s=0.1, back=True), tmp_path)
    steps = [line["step"] for line in outcome.logs[lost] if line["event"] == "back"]
    assert len(steps) == 1
    others = [rank for rank in range(4) if rank != lost]
    for rank in range(4):
        assert outcome.ends[rank]["error"] is None, (rank, outcome.ends[rank]["error"])
        assert outcome.logs[rank][-1]["group"] == [0, 1, 2, 3]
        assert torch.equal(outcome.ends[rank]["parameters"], outcome.ends[0]["parameters"])
    for rank in others:
        lines = [line for line in outcome.logs[rank] if line["event"] == "admit"]
        assert [(line["step"], line["group"], line["new"]) for line in lines] == [(steps[0], others, [lost])]
        assert sum(line["event"] == "local" for line in outcome.logs[rank]) == 25
    outcome.check_values()


def test_the_end_of_the_store_is_told(tmp_path):
    """Without torchrun rank 0 keeps the store: when it dies, nobody can agree on anything, and all say so."""
    scenario = Scenario(4, 8, (Fault(0, 2, KILL, in_round=True),), elastic=True, timeout_s=24.0, agent=False)
    outcome = run(scenario, tmp_path)
    for rank in (1, 2, 3):
        error = outcome.ends[rank]["error"]
        assert isinstance(error, StoreError), (rank, error)
        assert error.missing == (0,)
        assert "kept in rank 0's process" in str(error)
    outcome.check_values()


def _leave_or_wait(rank: int) -> str:
    group = dist.new_group(timeout=timedelta(seconds=600))
    dist.all_reduce(torch.ones(1), group=group)
    if rank == 2:
        close_group(group)
        return ""
    with pytest.raises(RuntimeError) as error:
        dist.all_reduce(torch.ones(100_000), group=group, async_op=True).wait()
    close_group(group)  # for those who wait for this one
    return str(error.value)


def test_members_learn_at_once_that_one_has_left(tmp_path):
    """Without a death and long before the timeout, also those who wait for another one."""
    errors = processes.run(4, _leave_or_wait, tmp_path=tmp_path)
    assert errors[2] == ""
    for rank in (0, 1, 3):
        assert "Connection closed by peer" in errors[rank] or "Connection reset by peer" in errors[rank], errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KILL, STOP])
@pytest.mark.parametrize(
    "options", [{"overlap": True}, {"momentum": True}, {"wire": "bfloat16"}, {"wire": "float8"}], ids=str
)
def test_other_ways_to_average_survive_as_well(options, kind, tmp_path):
    scenario = replace(draw(5, elastic=True, signals=(kind,)), world=5, group_size=3, **options)
    check_they_went_on(run(replace(scenario, faults=(replace(scenario.faults[0], rank=3),)), tmp_path))


def _under_torchrun(scenario: Scenario, folder: Path, ends: set[int], *options: str) -> Outcome:
    """Run each worker under an agent of its own, until those of some ranks have ended."""
    script = folder / "worker.py"
    shown = repr(scenario).replace("<Signals.SIGKILL: 9>", "9")
    script.write_text(
        "import os\n"
        "from tests.dssync.fault_worker import *\n"
        "again = os.environ['TORCHELASTIC_RESTART_COUNT'] != '0'\n"
        f"main(int(os.environ['RANK']), int(os.environ['MASTER_PORT']), {shown}, {str(folder)!r}, again)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "3", "--nproc-per-node", "1", *options]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    agents = [
        subprocess.Popen([*command, "--node-rank", str(node), str(script)], env=environment, start_new_session=True)
        for node in range(3)
    ]
    try:
        deadline = time.monotonic() + HANGS_S
        while not all((folder / f"end_{rank}.pt").is_file() for rank in ends):
            assert time.monotonic() < deadline, "the workers did not end"
            time.sleep(0.1)
    finally:
        for agent in agents:  # those of the survivors wait five minutes for the lost one's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
    return Outcome(folder, scenario)


@pytest.mark.slow
def test_under_torchrun_one_agent_a_worker(tmp_path):
    """An agent ends all of its workers when one dies; workers of other agents go on."""
    scenario = Scenario(3, 10, (Fault(1, 3, KILL, in_round=True),), True, 24.0, pause_s=0.1, agent=False)
    check_they_went_on(_under_torchrun(scenario, tmp_path, {0, 2}))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_torchrun_starts_a_lost_worker_again(lost, tmp_path):
    """With restarts left, also the one whose agent keeps the store."""
    fault = Fault(lost, 3, KILL, in_round=True, delay_s=0.001)
    scenario = Scenario(3, 150, (fault,), True, 24.0, pause_s=0.1, back=True, agent=False)
    outcome = _under_torchrun(scenario, tmp_path, {0, 1, 2}, "--max-restarts", "1")
    assert [line["event"] for line in outcome.logs[lost]].count("back") == 1
    for rank in range(3):
        assert outcome.ends[rank]["error"] is None, (rank, outcome.ends[rank]["error"])
        assert outcome.logs[rank][-1]["group"] == [0, 1, 2]
        assert torch.equal(outcome.ends[rank]["parameters"], outcome.ends[0]["parameters"])
    outcome.check_values()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 116))
def test_any_end_at_any_time(seed, tmp_path):
    check_one_error_each(run(draw(seed, elastic=False), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 216))
def test_any_end_at_any_time_is_survived(seed, tmp_path):
    check_they_went_on(run(draw(seed, elastic=True), tmp_path))

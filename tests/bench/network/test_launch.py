"""Workers report through their first one; one that fails, or does not end, takes all with it and is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.network.clusters import make_cluster
from bench.network.launch import ROOT, WorkerError, run_workers
from bench.network.namespaces import EmulatedNetwork
from bench.network.providers import make_provider
from tests.bench.network.conftest import require


@pytest.fixture
def cluster(network, monkeypatch):
    """A network whose workers run some lines of Python in place of the benchmark."""
    require(make_cluster("unshaped"))
    entered = network(make_cluster("unshaped"))
    command = EmulatedNetwork.command

    def start(script: str, report=lambda row: None, limit_s: float = 60) -> None:
        monkeypatch.setattr(
            EmulatedNetwork, "command", lambda self, rank, *rest: command(self, rank, sys.executable, "-c", script)
        )
        run_workers(entered, {}, report, limit_s=limit_s)

    return start


def test_rows_of_the_first_worker_arrive_in_order(cluster):
    rows = []
    cluster(
        """
import json, os
for number in range(300):
    print(json.dumps({"rank": os.environ["RANK"], "number": number, "text": "x" * 1000}), flush=True)
""",
        rows.append,
    )
    assert [row["number"] for row in rows] == list(range(300))
    assert {row["rank"] for row in rows} == {"0"}


def test_one_that_fails_is_named_with_its_error_and_takes_the_others_down(cluster, tmp_path):
    script = f"""
import os, pathlib, time
rank = os.environ["RANK"]
pathlib.Path({str(tmp_path)!r}, rank).write_text(str(os.getpid()))
if rank == "2":
    while len(os.listdir({str(tmp_path)!r})) < 4:
        time.sleep(0.01)
    raise ValueError("no such provider")
time.sleep(1000)
"""
    with pytest.raises(WorkerError, match=r"rank 2 of unshaped: [\s\S]*ValueError: no such provider"):
        cluster(script)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_those_that_do_not_end_are_named(cluster):
    with pytest.raises(WorkerError, match=r"unshaped: ranks \[1, 3\] had not ended after 2 s"):
        cluster('import os, time; time.sleep(1000 * (int(os.environ["RANK"]) % 2))', limit_s=2)


def test_a_worker_ends_with_the_launcher():
    script = "import time; from bench.network.launch import end_with_the_launcher as e; e(); print(); time.sleep(1000)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes) as worker:
        worker.stdout.readline()
        assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait() == 1


def test_unknown_providers_are_refused():
    with pytest.raises(ValueError, match=r"provider: expected one of ddp, .*; got 'nobody'"):
        make_provider("nobody", None, None, make_cluster("flat"))

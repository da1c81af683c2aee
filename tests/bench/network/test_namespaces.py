"""Emulated links have the rates that were asked for, the machine's own network is left alone, and all is cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from bench.machine import ROOT
from bench.network.clusters import make_cluster
from bench.network.namespaces import PREFIX, EmulatedNetwork, NetworkError, Support, remove_stale, traffic
from tests.bench.network.conftest import require

_RECEIVE = """
import socket, time
server = socket.create_server(("0.0.0.0", 5000))
print("ready", flush=True)
connection, _ = server.accept()
start, received = time.perf_counter(), 0
while chunk := connection.recv(1 << 18):
    received += len(chunk)
print(received * 8e-6 / (time.perf_counter() - start))
"""
_SEND = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5000))
connection.sendall(bytes(int(sys.argv[2])))
connection.close()
"""


def mbit(network: EmulatedNetwork, source: int, target: int, size: int = 2_000_000) -> float:
    """The rate at which one worker sends to another over TCP."""
    command = network.command(target, sys.executable, "-c", _RECEIVE)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout.readline() == "ready\n"
        sender = network.command(source, sys.executable, "-c", _SEND, network.address(target), str(size))
        subprocess.run(sender, check=True)
        return float(receiver.stdout.read())


def ours(process: int) -> list[str]:
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if name.startswith(f"{PREFIX}-{process}-")]


def machine() -> str:
    """The links, addresses and routes of the machine itself."""
    parts = (["ip", "-o", "link"], ["ip", "-o", "address"], ["ip", "route"])
    return "\n".join(subprocess.run(part, capture_output=True, text=True, check=True).stdout for part in parts)


def test_racks_share_their_uplink(network):
    racks = network(make_cluster("racks-4to1", 4, nic_mbit=60))
    before = traffic(racks.switch)
    # 4% are headers; the first 128 kB pass at once
    assert mbit(racks, 0, 1) == pytest.approx(60, rel=0.15)
    assert traffic(racks.switch).uplinks - before.uplinks < 10_000
    assert mbit(racks, 1, 2) == pytest.approx(30, rel=0.15)
    assert mbit(racks, 3, 0) == pytest.approx(30, rel=0.15)
    used = traffic(racks.switch) - before
    assert used.uplinks == pytest.approx(4_000_000, rel=0.1)
    assert used.workers == pytest.approx(6_000_000, rel=0.1)


def test_a_slow_link_is_slow_both_ways_and_the_others_are_not(network):
    cluster = network(make_cluster("slow-nic", 4, nic_mbit=120))
    assert mbit(cluster, 3, 0) == pytest.approx(30, rel=0.15)
    assert mbit(cluster, 0, 3) == pytest.approx(30, rel=0.15)
    assert mbit(cluster, 1, 2, 6_000_000) == pytest.approx(120, rel=0.15)


def test_the_machines_own_network_is_not_touched(network):
    require(make_cluster("unshaped"))
    before = machine()
    entered = network(make_cluster("racks-8to1", 8))
    assert machine() == before
    assert len(ours(os.getpid())) == 9
    entered.__exit__(None, None, None)
    assert machine() == before
    assert ours(os.getpid()) == []


def test_an_exception_leaves_nothing_behind():
    cluster = make_cluster("flat")
    require(cluster)
    sleepers = []

    def fail() -> None:
        with EmulatedNetwork(cluster) as network:
            sleepers.append(subprocess.Popen(network.command(2, "sleep", "1000")))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ours(os.getpid()) == []
    assert sleepers[0].wait() == -signal.SIGKILL


def test_a_failed_set_up_leaves_nothing_behind(monkeypatch):
    cluster = make_cluster("flat")
    require(cluster)
    monkeypatch.setattr(EmulatedNetwork, "_limit", lambda *a, **k: (_ for _ in ()).throw(NetworkError("no filter")))
    with pytest.raises(NetworkError, match="no filter"), EmulatedNetwork(cluster):
        pass
    assert ours(os.getpid()) == []


_HOLD = """
import subprocess, sys, time
from bench.network.clusters import make_cluster
from bench.network.namespaces import EmulatedNetwork
network = EmulatedNetwork(make_cluster("unshaped"))
network.__enter__()
subprocess.Popen(network.command(1, "sleep", "1000"))
print("ready", flush=True)
time.sleep(1000)
"""


def test_what_a_killed_run_left_behind_goes_with_the_next_start(network):
    mine = network(make_cluster("unshaped"))
    with subprocess.Popen([sys.executable, "-c", _HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        assert len(ours(other.pid)) == 5
        assert not set(remove_stale()) & set(ours(other.pid))  # it lives
        other.kill()
    left = ours(other.pid)
    assert len(left) == 5
    assert set(left) <= set(remove_stale())
    assert ours(other.pid) == []
    assert set(ours(os.getpid())) == {mine.switch, *mine.workers}


def test_sigterm_ends_the_command_and_its_network(tmp_path):
    require(make_cluster("racks-4to1"))
    command = [
        sys.executable,
        "-m",
        "bench.network",
        "timing",
        "--quick",
        "--out",
        "/nonexistent",
        "--providers",
        "ddp",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(ours(process.pid)) < 5:
            time.sleep(0.05)
        time.sleep(0.5)  # into the start of the workers
        process.terminate()
        error = process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGTERM, error
    assert ours(process.pid) == []


def test_refusals_name_what_is_missing():
    flat, racks, delay = (make_cluster(name) for name in ("unshaped", "racks-4to1", "delay"))
    rootless = Support(None, False, {"namespaces": "needs root"})
    assert rootless.refusal(flat) == "needs root"
    unshaped = Support(None, False, {"tbf": "unknown", "htb": "unknown, too", "netem": "gone"})
    assert unshaped.refusal(flat) == ""
    assert unshaped.refusal(racks) == "no rate limit: tbf: unknown; htb: unknown, too"
    assert Support("tbf", False, {"netem": "gone"}).refusal(delay) == "no delay: netem: gone"
    assert Support("htb", True, {"tbf": "unknown"}).refusal(delay) == ""

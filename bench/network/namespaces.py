"""A cluster's network on one Linux machine: a namespace a worker, one for the switches, veth pairs between them.

Nothing of the machine's own network is touched: links are made inside the namespaces, and are gone with them. They are
removed on the way out; what a killed run has left behind is removed by the next one, which knows from the names
(process id and start time of their maker) that nobody needs them any more.

Each end of a link has a token-bucket filter on what it sends, so that a rate holds in both directions.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.network.clusters import Cluster

PREFIX = "specfast-net"
WORKER_DEVICE = "eth0"
_numbers = itertools.count()


class NetworkError(RuntimeError):
    """A command of the network's set-up failed, or the machine lacks what it needs."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


@dataclass(frozen=True)
class Support:
    """What this machine can emulate; ``missing`` holds the reason for each part that it cannot."""

    shaper: str | None
    delay: bool
    missing: dict[str, str] = field(default_factory=dict)

    def refusal(self, cluster: Cluster) -> str:
        """Why this cluster cannot be emulated here; empty if it can."""
        if "namespaces" in self.missing:
            return self.missing["namespaces"]
        if cluster.shaped and self.shaper is None:
            return f"no rate limit: tbf: {self.missing['tbf']}; htb: {self.missing['htb']}"
        if cluster.delay_ms and not self.delay:
            return f"no delay: netem: {self.missing['netem']}"
        return ""


@functools.cache
def probe() -> Support:
    """Try namespaces, veth and bridge, then each queueing discipline, in namespaces of their own."""
    if os.geteuid() != 0:
        return Support(None, False, {"namespaces": "needs root, to make network namespaces"})
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return Support(None, False, {"namespaces": f"needs the program {program!r} (package iproute2)"})
    missing = {}
    with _namespaces("a", "b") as (a, b):
        try:
            _run("ip", "netns", "add", a)
            _run("ip", "netns", "add", b)
            _run("ip", "-n", a, "link", "add", "bridge0", "type", "bridge")
            _run("ip", "-n", a, "link", "add", "x", "type", "veth", "peer", "name", "y", "netns", b)
        except NetworkError as error:
            return Support(None, False, {"namespaces": str(error)})
        for kind, options in (("tbf", _tbf(100.0)), ("htb", ("htb",)), ("netem", ("netem", "delay", "1ms"))):
            try:
                _run("tc", "-n", a, "qdisc", "add", "dev", "x", "root", *options)
                _run("tc", "-n", a, "qdisc", "del", "dev", "x", "root")
            except NetworkError as error:
                missing[kind] = str(error)
    shaper = next((kind for kind in ("tbf", "htb") if kind not in missing), None)
    return Support(shaper, "netem" not in missing, missing)


def _start_time(process: int) -> str | None:
    """When the process started, in clock ticks since boot; None if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


@contextlib.contextmanager
def _namespaces(*suffixes: str) -> Iterator[list[str]]:
    """Names that no other process uses; the namespaces of these names are removed at the end."""
    process = os.getpid()
    stem = f"{PREFIX}-{process}-{_start_time(process)}-{next(_numbers)}"
    names = [f"{stem}-{suffix}" for suffix in suffixes]
    try:
        yield names
    finally:
        for name in names:
            _remove(name)


def _existing() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.startswith(f"{PREFIX}-")]


def _remove(name: str) -> None:
    """Remove a namespace and the processes in it, if it is there."""
    if not Path("/var/run/netns", name).exists():
        return
    for process in _run("ip", "netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    for _ in range(100):  # a process that was killed holds its namespace until it is gone
        if not _run("ip", "netns", "pids", name).split():
            break
        time.sleep(0.02)
    _run("ip", "netns", "del", name)


def remove_stale() -> list[str]:
    """Remove the namespaces whose maker is gone; return their names."""
    stale = []
    for name in _existing():
        process, start = name.removeprefix(f"{PREFIX}-").split("-")[:2]
        if _start_time(int(process)) != start:
            _remove(name)
            stale.append(name)
    return stale


# bytes a filter may let through at once: above what a timer tick takes at these rates
BURST = 128 * 1024
QUEUE_S = 0.1


def _tbf(mbit: float) -> tuple[str, ...]:
    # the queue is as long as a tenth of a second, as in an ordinary switch, and holds a few bursts at least
    limit = max(int(mbit * 1e6 / 8 * QUEUE_S), 4 * BURST)
    return ("tbf", "rate", f"{mbit:g}mbit", "burst", str(BURST), "limit", str(limit))


class EmulatedNetwork:
    """The network of a cluster, while the ``with`` block lasts.

    Raises:
        NetworkError: this machine cannot emulate it (``probe().refusal(cluster)`` says so beforehand).
    """

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.support = probe()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> EmulatedNetwork:
        if refusal := self.support.refusal(self.cluster):
            raise NetworkError(f"{self.cluster.name} cannot be emulated here: {refusal}")
        remove_stale()
        with self._exit:
            suffixes = ["switch", *(f"w{rank}" for rank in range(self.cluster.workers))]
            self.switch, *self.workers = self._exit.enter_context(_namespaces(*suffixes))
            self._build()
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._exit.close()

    def address(self, rank: int) -> str:
        return f"10.77.{rank // 250}.{rank % 250 + 1}"

    def command(self, rank: int, *arguments: str) -> list[str]:
        """The command that runs in a worker's namespace."""
        return ["ip", "netns", "exec", self.workers[rank], *arguments]

    def _build(self) -> None:
        """One bridge a rack; where there are several racks, each has a link to one more bridge."""
        cluster, switch = self.cluster, self.switch
        for name in (switch, *self.workers):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        racks = [f"rack{number}" for number in range(len(cluster.racks))]
        for bridge in racks + ["spine"] * (len(racks) > 1):
            _run("ip", "-n", switch, "link", "add", bridge, "type", "bridge")
            _run("ip", "-n", switch, "link", "set", bridge, "up")
        for rank, worker in enumerate(self.workers):
            port = f"nic{rank}"
            _run(
                "ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", WORKER_DEVICE, "netns", worker
            )
            # no IPv6 address: Gloo would take either family
            _run("ip", "-n", worker, "link", "set", WORKER_DEVICE, "addrgenmode", "none")
            _run("ip", "-n", worker, "address", "add", f"{self.address(rank)}/16", "dev", WORKER_DEVICE)
            _run("ip", "-n", worker, "link", "set", WORKER_DEVICE, "up")
            _run("ip", "-n", switch, "link", "set", port, "master", racks[cluster.rack_of(rank)], "up")
            rate = cluster.nic_mbit[rank]
            self._limit(worker, WORKER_DEVICE, rate, delay_ms=cluster.delay_ms)
            self._limit(switch, port, rate)
        for number, rack in enumerate(racks if len(racks) > 1 else []):
            up, down = f"up{number}", f"down{number}"
            _run("ip", "-n", switch, "link", "add", up, "type", "veth", "peer", "name", down)
            for end, bridge in ((up, rack), (down, "spine")):
                _run("ip", "-n", switch, "link", "set", end, "master", bridge, "up")
                self._limit(switch, end, cluster.uplink_mbit)

    def _limit(self, namespace: str, device: str, mbit: float | None, delay_ms: float = 0.0) -> None:
        """Limit what ``device`` sends, and let it arrive later."""
        add = ("tc", "-n", namespace, "qdisc", "add", "dev", device)
        parent = ("root",)
        if mbit is not None and self.support.shaper == "tbf":
            _run(*add, "root", "handle", "1:", *_tbf(mbit))
            parent = ("parent", "1:1")
        elif mbit is not None:
            _run(*add, "root", "handle", "1:", "htb", "default", "1")
            rate = ("rate", f"{mbit:g}mbit", "burst", str(BURST), "cburst", str(BURST))
            klass = ("dev", device, "parent", "1:", "classid", "1:1")
            _run("tc", "-n", namespace, "class", "add", *klass, "htb", *rate)
            parent = ("parent", "1:1")
        if delay_ms:
            _run(*add, *parent, "netem", "delay", f"{delay_ms:g}ms", "limit", "20000")


@dataclass(frozen=True)
class Traffic:
    """Bytes since the links were made: sent by all workers, and over the links that leave a rack."""

    workers: int
    uplinks: int

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(self.workers - before.workers, self.uplinks - before.uplinks)


def traffic(switch: str) -> Traffic:
    """Read the interface counters at the switch: frames with their headers, acknowledgements included."""
    workers = uplinks = 0
    for link in json.loads(_run("ip", "-n", switch, "-s", "-j", "link", "show")):
        if link["ifname"].startswith("nic"):
            workers += link["stats64"]["rx"]["bytes"]
        elif link["ifname"].startswith("up"):
            uplinks += link["stats64"]["tx"]["bytes"]
    return Traffic(workers, uplinks)

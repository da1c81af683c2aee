"""The store through which workers find each other, a thread that answers there for each, and leaving a group.

A collective that fails says that something is wrong, not who is at fault: a peer that closed its connection may have
died, or may have left because of another; one that is late may hang, or compute. So each worker keeps a thread that
answers when it is called through the store. A process that is dead or stopped does not answer; one that computes does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# Between two looks into the store. Its own wait with a timeout logs a warning for each time it waits in vain.
_LOOK_S = 0.05
# Never sent, so that a receive with this tag can only time out.
_CLOSING_TAG = 0x0D55


def default_store(process_group: dist.ProcessGroup | None = None) -> dist.Store:
    """Return the store that a process group was made with, under a prefix that keeps our keys apart from torch's."""
    group = dist.group.WORLD if process_group is None else process_group
    return dist.PrefixStore("specfast.dssync", group.get_group_store())


def own_connection(store: dist.Store) -> dist.Store:
    """Return the same store by a connection of its own, where it has connections.

    Torch makes groups through the connection of the process group, and holds it while it waits for a key: whoever asks
    by the same one waits as long, and a process whose sentinel cannot answer looks dead to the others.
    """
    # other stores have no connection to hold, and not every torch can clone
    if isinstance(base_store(store), dist.TCPStore) and hasattr(store, "clone"):
        return store.clone()
    return store


def base_store(store: dist.Store) -> dist.Store:
    """Return the store under all prefixes."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store


def kept_by_rank_0(store: dist.Store) -> bool:
    """Whether the store lives in rank 0's process: so it is unless torchrun started the processes."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return isinstance(base_store(store), dist.TCPStore) and not agent


class Sentinel:
    """A thread that looks into the store now and then, and answers for this process if it was called.

    It costs one tiny message in each interval. (Waiting in the store's server would cost none, but torch logs a stack
    trace in every process that still waits when the server's process ends, as it does at the end of each run.)

    Args:
        rank: of this process.
        interval_s: between two looks; an answer takes so long.

    Attributes:
        step: where this process is; told with the answer.
    """

    def __init__(self, store: dist.Store, *, rank: int, interval_s: float):
        self.step = 0
        self._store, self._rank, self._interval_s = store, rank, interval_s
        self._closed = threading.Event()
        answered = store.add(f"sentinel/calls/{rank}", 0)  # by an earlier process of this rank, or too late
        store.set(f"sentinel/here/{rank}", "")
        name = f"specfast-dssync-sentinel-{rank}"
        threading.Thread(target=self._serve, args=(answered,), name=name, daemon=True).start()

    def _serve(self, answered: int) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: nobody can call
            while not self._closed.wait(self._interval_s):
                while self._store.check([f"sentinel/call/{self._rank}/{answered + 1}"]):
                    answered += 1
                    self._store.set(f"sentinel/answer/{self._rank}/{answered}", str(self.step))

    def close(self) -> None:
        """End the thread."""
        self._closed.set()


def call(store: dist.Store, rank: int) -> str | None:
    """Ask a rank for a sign of life; return the key under which it will be, None if nobody answers for that rank."""
    if not store.check([f"sentinel/here/{rank}"]):
        return None
    number = store.add(f"sentinel/calls/{rank}", 1)
    store.set(f"sentinel/call/{rank}/{number}", "")
    return f"sentinel/answer/{rank}/{number}"


def appears(store: dist.Store, key: str, deadline: float) -> bool:
    """Return whether a key is in the store before the deadline (of time.monotonic)."""
    while not store.check([key]):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def pause() -> None:
    """Wait before the next look into the store."""
    time.sleep(_LOOK_S)


def within(limit_s: float, function: Callable[[], T]) -> T:
    """Return what a function that talks to the store returns, or raise what it raises, within a time.

    In a thread of its own, because a store whose host is stopped takes questions and answers none, whatever timeout
    the store was given.

    Raises:
        TimeoutError: there was no answer in time.
    """
    outcome: dict[str, Any] = {}

    def run():
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="specfast-dssync-store", daemon=True)
    thread.start()
    thread.join(limit_s)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer in {limit_s:g} s")
    return outcome["value"]


def close_group(group: dist.ProcessGroup) -> None:
    """Break a group's connections, so that members waiting in it learn at once that this rank has left it."""
    with contextlib.suppress(RuntimeError):
        group.abort()
    # Gloo's abort does nothing. A receive that times out closes all connections of its group; one from a peer whose
    # connection is broken already fails at once, so all peers are tried. Groups without Gloo refuse a CPU tensor.
    nothing = torch.empty(1, dtype=torch.uint8)
    for peer in range(group.size()):
        if peer != group.rank():
            with contextlib.suppress(RuntimeError):
                group.recv([nothing], peer, _CLOSING_TAG).wait(timedelta(milliseconds=1))

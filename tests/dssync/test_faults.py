"""Meetings in the store: who is named, what is agreed. Threads with connections of their own stand for the ranks."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from specfast.dssync.faults import (
    Agreement,
    ExcludedError,
    StoreError,
    SyncError,
    agree_on_survivors,
    explain,
    recover,
)
from specfast.dssync.liveness import Sentinel, base_store, kept_by_rank_0, own_connection

GRACE_S = 1.5
PATIENCE_S = 60.0


def connect(port: int) -> dist.Store:
    return dist.PrefixStore("test", dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60)))


@pytest.fixture
def server():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))


@pytest.fixture
def sentinels(server):
    made = []

    def make(*ranks: int, step: int = 0) -> None:
        for rank in ranks:
            made.append(Sentinel(connect(server.port), rank=rank, interval_s=0.05))
            made[-1].step = step

    yield make
    for sentinel in made:
        sentinel.close()


def died(server: dist.TCPStore, rank: int) -> None:
    """Leave the store as a rank leaves it that was killed: its sentinel was there, and answers no more."""
    connect(server.port).set(f"sentinel/here/{rank}", "")


def together(server: dist.TCPStore, calls: dict[int, Callable[[dist.Store], object]]) -> dict[int, object]:
    """Return what each rank's function returned or raised, all running at the same time."""
    results: dict[int, object] = {}

    def run(rank):
        try:
            results[rank] = calls[rank](connect(server.port))
        except SyncError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results.keys() == calls.keys(), "a rank did not come back"
    return results


def failure(rank: int, group: tuple[int, ...], *, step: int = 7, waited: bool = False, after_s: float = 0.0, **options):
    """A rank's part in a meeting after a failed round."""

    def call(store):
        time.sleep(after_s)
        return explain(
            store,
            **{"generation": 0, "ranks": (0, 1, 2, 3), "round": step % 2, "linger": False, **options},
            rank=rank,
            step=step,
            group=group,
            cause=RuntimeError("Connection closed by peer\nmore"),
            waited=waited,
            grace_s=GRACE_S,
        )

    return call


def arrival(rank: int, *, ranks=(0, 1, 2, 3), after_s: float = 0.0, step: int = 5, grace_s=GRACE_S, **options):
    """A rank's part in agreeing on the survivors."""

    def call(store):
        time.sleep(after_s)
        return agree_on_survivors(
            store,
            **{"generation": 1, "patience_s": PATIENCE_S, **options},
            rank=rank,
            ranks=ranks,
            step=step,
            grace_s=grace_s,
        )

    return call


def test_the_silent_rank_is_named_by_all_and_one_that_computes_is_not(server, sentinels):
    sentinels(0, 1, 2)  # rank 2 lives, but is not here yet; rank 3 is dead
    errors = together(server, {rank: failure(rank, (0, 1, 2, 3)) for rank in (0, 1)})
    for rank, error in errors.items():
        assert type(error) is SyncError
        assert (error.step, error.round, error.group, error.missing) == (7, 1, (0, 1, 2, 3), (3,))
        assert f"step 7, round 1, group (0, 1, 2, 3) failed on rank {rank}: no sign of life from rank 3" in str(error)
        assert f"Rank {rank} holds the parameters from after its own step 7." in str(error)


def test_a_rank_that_lives_and_never_comes_hangs(server, sentinels):
    sentinels(0, 1, 2)
    sentinels(3, step=6)
    # rank 1 heard of the failure only through the connections that rank 0, whose time was up, had closed
    errors = together(server, {0: failure(0, (0, 1, 3), waited=True), 1: failure(1, (0, 1, 3), after_s=0.2)})
    assert [errors[rank].missing for rank in (0, 1)] == [(3,), (3,)]
    assert "rank 3 lives but did not come: it is at step 6" in str(errors[0])
    assert "the others miss rank 3" in str(errors[1])


def test_a_rank_that_left_earlier_is_not_the_culprit(server, sentinels):
    """3 died in the group with 2, 2 left the group with 1, and 1 the group with 0: all of them name 3."""
    sentinels(0, 1, 2)
    errors = together(
        server,
        {
            2: failure(2, (2, 3), step=7),
            1: failure(1, (1, 2), step=8, after_s=0.1),
            0: failure(0, (0, 1), step=9, after_s=0.2),
        },
    )
    assert [errors[rank].missing for rank in (0, 1, 2)] == [(3,)] * 3
    assert "rank 1 had left at step 8, round 0, group (1, 2); the others miss rank 3" in str(errors[0])
    assert errors[0].group == (0, 1)


def test_who_waits_in_vain_as_well_does_not_hang(server, sentinels):
    """3 is stopped, 2 had left because of it; 1 and 0 were to average with 2, and 0 is a little later to find out."""
    sentinels(0, 1, 2)
    errors = together(
        server, {2: failure(2, (2, 3), step=7, waited=True), 1: failure(1, (0, 1, 2), step=8, waited=True, after_s=0.2)}
    )
    assert errors[1].missing == (3,), errors[1]


def test_nobody_missing_is_said_so_with_the_cause(server, sentinels):
    sentinels(0, 1)
    errors = together(server, {rank: failure(rank, (0, 1)) for rank in (0, 1)})
    for error in errors.values():
        assert error.missing == ()
        assert "nobody is missing, it was the exchange itself: Connection closed by peer. Rank" in str(error)


def test_a_mean_over_all_has_no_round(server):
    error = together(server, {0: failure(0, (0, 1), round=None)})[0]
    assert error.round is None
    assert error.missing == (1,)  # nobody answers for rank 1, which is silent
    assert "step 7, the mean over all, group (0, 1)" in str(error)


def test_failures_of_other_generations_do_not_count(server):
    together(server, {rank: failure(rank, (0, 1)) for rank in (0, 1)})
    error = together(server, {0: failure(0, (0, 1), generation=1)})[0]
    assert error.missing == (1,)


def test_a_sentinel_answers_again_and_not_after_it_was_closed(server, sentinels):
    sentinel = Sentinel(connect(server.port), rank=1, interval_s=0.05)
    for generation in (0, 1):
        sentinel.step = 40 + generation
        error = together(server, {0: failure(0, (0, 1), generation=generation, waited=True)})[0]
        assert f"rank 1 lives but did not come: it is at step {40 + generation}" in str(error)
    sentinel.close()
    error = together(server, {0: failure(0, (0, 1), generation=2, waited=True)})[0]
    assert "no sign of life from rank 1" in str(error)
    # the next process of that rank is not called by those calls
    sentinels(1, step=50)
    error = together(server, {0: failure(0, (0, 1), generation=3, waited=True)})[0]
    assert "it is at step 50" in str(error)


def test_all_agree_at_once_when_everybody_else_is_known_to_be_absent(server, sentinels):
    sentinels(0, 1, 2, 3)
    arrivals = {rank: arrival(rank, absent=(3,) if rank == 2 else (), step=10 + rank) for rank in (0, 1, 2)}
    agreed = together(server, arrivals)
    assert set(agreed.values()) == {Agreement(1, (0, 1, 2), 12)}


def test_a_slow_survivor_is_waited_for_beyond_the_grace(server, sentinels):
    sentinels(0, 1, 2)
    died(server, 3)
    agreed = together(server, {0: arrival(0), 1: arrival(1, after_s=0.1), 2: arrival(2, after_s=2.5 * GRACE_S, step=6)})
    assert set(agreed.values()) == {Agreement(1, (0, 1, 2), 6)}


def test_one_that_comes_after_the_decision_is_excluded(server, sentinels):
    sentinels(0, 1, 2, 3)
    together(server, {rank: arrival(rank, absent=(3,)) for rank in (0, 1, 2)})
    late = together(server, {3: arrival(3, step=4)})[3]
    assert type(late) is ExcludedError
    assert "rank 3 came too late: ranks 0, 1, 2 went on without it at step 5, as generation 1" in str(late)
    assert late.step == 3


def test_a_convener_that_dies_does_not_keep_the_others(server):
    store = connect(server.port)
    store.set("1/present/0", "5")
    store.add("1/arrived", 1)  # rank 0 came first, and was killed
    agreed = together(server, {rank: arrival(rank, patience_s=1.0) for rank in (1, 2, 3)})
    assert set(agreed.values()) == {Agreement(1, (0, 1, 2, 3), 5)}  # building that world will fail


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_when_there_is_one_world(server, sentinels, seed):
    """Random delays around the times at which it is decided: those in the world agree, the others are told."""
    draw = random.Random(seed)
    ranks = tuple(range(6))
    sentinels(*draw.sample(ranks, 4))
    delays = {rank: draw.choice((0.0, 0.3, 1.0, 2.0)) + draw.random() * 0.1 for rank in ranks}
    arrivals = {rank: arrival(rank, ranks=ranks, after_s=delays[rank], grace_s=0.3, patience_s=1.0) for rank in ranks}
    outcome = together(server, arrivals)
    worlds = {result for result in outcome.values() if isinstance(result, Agreement)}
    assert len(worlds) == 1, (seed, delays, outcome)
    for rank, result in outcome.items():
        assert (rank in next(iter(worlds)).ranks) == isinstance(result, Agreement), (seed, delays, outcome)
        assert isinstance(result, Agreement | ExcludedError)


def test_recovery_agrees_again_when_the_new_world_fails(server, sentinels):
    """Ranks 0 to 3, 3 is dead; 2 dies while the world without 3 is built."""
    sentinels(0, 1)
    seen: dict[int, list] = {0: [], 1: [], 2: []}

    def survivor(rank):
        def rebuild(agreement):
            seen[rank].append(agreement)
            if rank == 2:
                raise SystemExit  # as if killed: it does not come to the next meeting
            if 2 in agreement.ranks:
                raise RuntimeError("Connection closed by peer")

        def call(store):
            error = SyncError("", missing=(3,))
            options = {"generation": 0, "ranks": (0, 1, 2, 3), "step": 5 + rank, "error": error}
            try:
                return recover(store, **options, rank=rank, rebuild=rebuild, grace_s=GRACE_S, patience_s=2 * PATIENCE_S)
            except SystemExit:
                return None

        return call

    agreed = together(server, {rank: survivor(rank) for rank in (0, 1, 2)})
    assert agreed == {0: Agreement(2, (0, 1), 6), 1: Agreement(2, (0, 1), 6), 2: None}
    assert seen[0] == seen[1] == [Agreement(1, (0, 1, 2), 7), Agreement(2, (0, 1), 6)]


def test_recovery_gives_up_when_nobody_is_missing_and_it_always_fails(server, sentinels):
    sentinels(0, 1)

    def survivor(rank):
        def rebuild(agreement):
            raise RuntimeError("no route to host")

        return lambda store: recover(
            store,
            generation=0,
            rank=rank,
            ranks=(0, 1),
            step=5,
            error=SyncError("", missing=()),
            rebuild=rebuild,
            grace_s=GRACE_S,
            patience_s=PATIENCE_S,
        )

    errors = together(server, {rank: survivor(rank) for rank in (0, 1)})
    for error in errors.values():
        assert type(error) is SyncError
        assert "no route to host" in str(error)


def test_a_store_that_was_lost_is_said_to_be(server, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store = connect(server.port)
    assert kept_by_rank_0(store)
    host = _HOST(stop=False)
    lost = connect(host.port)
    host.end()
    error = failure(1, (1, 2))(lost)
    assert type(error) is StoreError
    assert error.missing == (0,)
    assert "key-value store" in str(error)
    assert "kept in rank 0's process" in str(error)
    with pytest.raises(StoreError, match="cannot agree with the other survivors: the key-value store"):
        arrival(1)(lost)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    error = failure(1, (1, 2))(lost)
    assert error.missing == ()
    assert "kept by torchrun's agent" in str(error)


@pytest.mark.slow
def test_a_store_whose_host_is_stopped_does_not_hang(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    host = _HOST(stop=True)
    try:
        error = failure(1, (1, 2))(host.stopped_store)
        assert type(error) is StoreError
        assert error.missing == (0,)
    finally:
        host.end()


class _HOST:
    """A process that keeps a store."""

    def __init__(self, *, stop: bool):
        program = (
            "import torch.distributed as dist, sys\n"
            "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
            "print(store.port, flush=True)\n"
            "sys.stdin.read()\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._process.stdout.readline())
        if stop:
            self.stopped_store = connect(self.port)
            os.kill(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def test_errors_survive_pickling():
    error = SyncError("DSSync: gone", step=3, round=None, group=[0, 2], missing=[2])
    for kind in (error, ExcludedError("late", step=1), StoreError("no store", missing=(0,))):
        copy = pickle.loads(pickle.dumps(kind))
        assert type(copy) is type(kind)
        assert str(copy) == str(kind)
        assert copy.__dict__ == kind.__dict__
    assert isinstance(error, RuntimeError)


def test_a_connection_of_its_own_answers_while_another_waits(server):
    shared = connect(server.port)
    own = own_connection(shared)
    waiting = threading.Thread(target=lambda: came.append(shared.get("late")), daemon=True)
    came: list[bytes] = []
    waiting.start()
    assert not own.check(["nothing"])
    own.set("late", "there")  # by the shared one it would come when the wait is over, which it ends
    waiting.join()
    assert came == [b"there"]


def test_base_store_looks_through_prefixes(server):
    assert base_store(dist.PrefixStore("a", dist.PrefixStore("b", server))) is not None
    assert isinstance(base_store(connect(server.port)), dist.TCPStore)

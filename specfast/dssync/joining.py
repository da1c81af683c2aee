"""How a worker that was started again comes back: it asks through the store, and the others let it in when they like.

The others are in the middle of their rounds and look for nobody, so they must be told when to look (``DSSync.admit_``,
once an epoch, say): a new worker needs new process groups, hence a new generation, which all of them enter together.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch.distributed as dist

from specfast.dssync.agreement import MismatchError
from specfast.dssync.faults import Agreement

_LOOK_S = 0.2
_MADE: Counter[str] = Counter()  # communicators made in this process, by the name of their process group


def init_process_group(backend: str | None = None, **options) -> None:
    """Do ``torch.distributed.init_process_group`` in a process that was started again, while the others are running.

    They made the default group once and do not come to make it again. This process's can serve for nothing but to know
    the store and its rank; so it must not look for the others, which Gloo does unless told to connect when needed.
    """
    name = "TORCH_GLOO_LAZY_INIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        dist.init_process_group(backend, **options)
    finally:
        # groups made later are made with the others, in their way
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def announce(store: dist.Store, process_group: dist.ProcessGroup | None, name: str | None) -> str:
    """Write down the name of a communicator, or (given None) return the one that its other workers wrote down.

    A process makes its communicators in the same order each time it is started, so they are found by their number.
    """
    group = dist.group.WORLD if process_group is None else process_group
    _MADE[group.group_name] += 1
    key = f"made/{_MADE[group.group_name]}"
    if name is not None:
        store.set(key, name)
        return name
    while not store.check([key]):
        time.sleep(_LOOK_S)
    return store.get(key).decode()


def ask(store: dist.Store, *, rank: int, facts: Mapping[str, Any]) -> tuple[Agreement, tuple[int, ...], Any]:
    """Ask to be let in, and wait until the others do; return the world entered, who is new in it, and what was told.

    Args:
        facts: what must be as it is with the others.

    Raises:
        MismatchError: it is not.
        RuntimeError: the store is gone.
    """
    token = uuid.uuid4().hex
    store.set(f"join/{rank}", json.dumps({"token": token, "facts": _plain(facts)}))
    while not store.check([f"welcome/{token}"]):
        time.sleep(_LOOK_S)
    answer = json.loads(store.get(f"welcome/{token}"))
    if "refused" in answer:
        raise MismatchError(f"DSSync: rank {rank} cannot come back: {answer['refused']}")
    return Agreement.from_json(answer["generation"], answer["world"]), tuple(answer["new"]), answer["told"]


def asking(store: dist.Store, *, absent: Collection[int], facts: Mapping[str, Any]) -> dict[int, str]:
    """Return the absent ranks that ask to be let in, with their tokens; refuse those that do not fit."""
    found = {}
    ours = _plain(facts)
    for rank in sorted(absent):
        if not store.check([f"join/{rank}"]):
            continue
        request = json.loads(store.get(f"join/{rank}"))
        if store.check([f"welcome/{request['token']}"]):
            continue  # was let in or refused, and is absent again
        wrong = [name for name in ours if request["facts"].get(name) != ours[name]]
        if wrong:
            said = f"its {wrong[0]} is {request['facts'].get(wrong[0])}; the others have {ours[wrong[0]]}"
            store.set(f"welcome/{request['token']}", json.dumps({"refused": said}))
        else:
            found[rank] = request["token"]
    return found


def decide(store: dist.Store, tokens: Mapping[int, str], agreement: Agreement, told: Any = None) -> None:
    """Make a world with those who asked the next generation, unless another one was agreed on meanwhile.

    Args:
        tokens: of those who asked; there may be none.
        told: what they have missed, plain values.
    """
    world = agreement.to_json()
    if store.compare_set(f"{agreement.generation}/decision", "", world).decode() != world:
        return
    welcome = {"generation": agreement.generation, "world": world, "new": sorted(tokens), "told": told}
    for token in tokens.values():
        store.set(f"welcome/{token}", json.dumps(welcome))


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(facts), default=str))

"""Before anything is averaged: do all ranks mean the same? One all-gather, and one error that names who differs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from specfast.errors import SpecfastError


class MismatchError(SpecfastError, ValueError):
    """Ranks that are to average do not fit each other; the message says which one differs, and in what."""


def agree(
    facts: Mapping[str, Any],
    process_group: dist.ProcessGroup | None,
    *,
    error: Exception | None = None,
    lists: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Compare facts between ranks, and return a name that all of them have now and never had before.

    Args:
        facts: by name; plain values that must be equal on all ranks.
        error: why this rank cannot take part; then all raise.
        lists: longer forms of some facts, fetched only to say where they differ.

    Raises:
        MismatchError: facts differ, or another rank cannot take part.
        Exception: ``error``.
    """
    mine = {"facts": dict(facts), "error": None if error is None else str(error), "name": uuid.uuid4().hex[:12]}
    everyone: list[dict] = [{}] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, mine, group=process_group)
    if error is not None:
        raise error
    for rank, other in enumerate(everyone):
        if other["error"] is not None:
            raise MismatchError(f"DSSync: rank {rank} cannot take part: {other['error']}")
    expected = everyone[0]["facts"]
    for name in expected:
        wrong = [rank for rank, other in enumerate(everyone) if other["facts"].get(name) != expected[name]]
        if wrong:
            found = everyone[wrong[0]]["facts"].get(name)
            detail = f"{_short(expected[name])} on rank 0, {_short(found)} on rank {wrong[0]}"
            if lists and name in lists:
                detail = _first_difference(lists[name], wrong[0], process_group)
            raise MismatchError(f"DSSync: {name} must be the same on all ranks; {_listed(wrong)} from rank 0: {detail}")
    return everyone[0]["name"]


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor], source: int, group: dist.ProcessGroup) -> None:
    """Give all members one member's values."""
    for tensor in tensors:
        if tensor.numel():
            sent = tensor.detach().contiguous()
            dist.broadcast(sent.view(-1).view(torch.uint8), group_src=source, group=group)  # bytes: every dtype
            tensor.detach().copy_(sent)


def _first_difference(mine: Sequence[str], rank: int, process_group: dist.ProcessGroup | None) -> str:
    """Say where a list of rank 0 and that of another first differ; called by all."""
    everyone: list[list[str]] = [[]] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, list(mine), group=process_group)
    ours, theirs = everyone[0], everyone[rank]
    for number in range(max(len(ours), len(theirs))):
        pair = [entries[number] if number < len(entries) else "nothing" for entries in (ours, theirs)]
        if pair[0] != pair[1]:
            return f"entry {number} is {pair[0]} on rank 0, {pair[1]} on rank {rank}"
    return "the lists are equal, their order is not"


def _listed(ranks: Sequence[int]) -> str:
    who = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {who} differs" if len(ranks) == 1 else f"ranks {who} differ"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

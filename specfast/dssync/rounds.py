"""The rounds of a communicator: begun, completed, accepted, and what happens in between when a worker is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from specfast.dssync.agreement import agree
from specfast.dssync.averaging import Averager, NonFiniteError, Round
from specfast.dssync.buffers import FlatBuffers
from specfast.dssync.momentum import Momentum, clear_nonfinite, find_entries
from specfast.dssync.options import Options
from specfast.dssync.tensors import PARAMETER
from specfast.dssync.workers import Workers

T = TypeVar("T")


class Rounds:
    """Where a communicator with other workers stands, and the steps that lead on from there.

    Args:
        workers: who takes part.
        buffers: what is averaged; it holds the common values, if there are such.
        verified: all workers are known to be at the same round, with the same reference.

    Attributes:
        number: of the next round.
        steps: optimizer steps so far.
        pending: the round under way.
        owing: compression has left something to be sent.
        begun: when the exchange under way began, of time.monotonic.
    """

    def __init__(
        self,
        workers: Workers,
        buffers: FlatBuffers,
        options: Options,
        optimizer: torch.optim.Optimizer,
        *,
        verified: bool,
    ):
        self.workers, self.verified, self.owing = workers, verified, False
        self.number = self.steps = workers.first_round
        self.pending: Round | None = None
        self.momentum: Momentum | None = None
        self.begun = 0.0
        self.averager = Averager(
            buffers.buckets, wire=options.wire, overlap=options.overlap, on_nonfinite=options.on_nonfinite
        )
        self._buffers, self._options, self._optimizer = buffers, options, optimizer
        self._parameters = [tensor for name, tensor in buffers.tensors.items() if name.startswith(PARAMETER)]

    @property
    def world(self) -> int:
        """Number of workers now."""
        return len(self.workers.ranks)

    @property
    def nbytes(self) -> int:
        """Memory held beside the model and the optimizer."""
        return self.averager.nbytes + self.workers.nbytes + (self.momentum.nbytes if self.momentum else 0)

    def is_global(self, number: int) -> bool:
        """Whether a round is a mean over all workers."""
        # another world begins with a mean over all of it
        return number == self.workers.renewed or bool(self._options.period and (number + 1) % self._options.period == 0)

    def advance(self) -> None:
        """Do the next round, or start it."""
        number = self.number
        self.number += 1
        self.workers.at_round(self.number)
        if self.world > 1 and number >= self.workers.first_round and self._prepared():
            self.attempt(number, lambda: self._begin(number))
            # whose values were left out takes the mean at once: there is nothing to be learned from where it is
            if not self._options.overlap or (self.pending and not self.pending.counts):
                self.finish()

    def _begin(self, number: int | None) -> None:
        """Start a round, or a mean over all workers; this rank may be alone in it."""
        everyone = number is None or self.is_global(number)
        group = self.workers.everyone if everyone else self.workers.group(number)
        if group is None:
            return
        members = self.workers.ranks if everyone else self.workers.members(number)
        packed = self.momentum.pack() if self.momentum else ()
        self.begun = time.monotonic()
        made = self.averager.make(
            group,
            members,
            number=number,
            everyone=everyone,
            packed=packed,
            symmetric=self.workers.symmetric(group),
        )
        if made is None:
            return
        self.pending = made  # before it is started: if that fails, what has begun is to be waited for
        self.averager.start(made)
        if not made.counts:
            clear_nonfinite(self._optimizer)

    def finish(self) -> None:
        """Let the round that is under way, if one is, take effect."""
        if self.pending:
            self._reclaim()
        if self._complete():
            self._accept()

    def _accept(self) -> None:
        under_way, self.pending = self.pending, None
        self.averager.accept(under_way)
        self.owing = bool(self.averager.wire) and not under_way.everyone
        if self.momentum:
            self.momentum.unpack()

    def _complete(self) -> bool:
        """Wait for the round that is under way; False if none is, or none is any more."""
        under_way = self.pending
        return under_way is not None and self.attempt(under_way.number, lambda: self.averager.complete(under_way))

    def attempt(self, number: int | None, exchange: Callable[[], None]) -> bool:
        """Do a part of a round; False if it failed, and the survivors have agreed on a new world."""
        try:
            exchange()
            return True
        except (NonFiniteError, torch.OutOfMemoryError):
            self._drop()
            raise
        except RuntimeError as error:
            cause = error
        waited = time.monotonic() - self.begun > 0.9 * self.workers.patience
        under_way, self.pending = self.pending, None
        self.workers.leave()
        if under_way is not None:
            under_way.drain()
        everyone = number is None or self.is_global(number)
        self.workers.recover(
            cause,
            step=self.steps - 1,
            round=None if everyone else number,
            group=self.workers.ranks if everyone else self.workers.members(number),
            done=self.number,
            waited=waited,
        )
        # nothing late may be written to what the next round uses
        self.averager = self.averager.renewed()
        self.momentum = None
        return False

    def _drop(self) -> None:
        """Forget the round under way, once nothing of it can be written any more to what the next one uses."""
        under_way, self.pending = self.pending, None
        if under_way is not None:
            under_way.drain()

    def with_all(self, exchange: Callable[[], T], *, momentum: bool = False) -> T | None:
        """Do something with all workers, and again with those who are left when an elastic world loses one.

        Args:
            momentum: it averages that as well, if asked for.
        """
        outcome: list[T] = []
        while self.world > 1 and not outcome:
            self.begun = time.monotonic()
            if self._prepared(momentum=momentum):
                self.attempt(None, lambda: outcome.append(exchange()))
        return outcome[0] if outcome else None

    def mean_over_all(self) -> None:
        """Average over all workers, at once; to be called by :meth:`with_all`."""
        self._begin(None)
        if self.pending is not None:
            self.averager.complete(self.pending)
            self._accept()

    def _prepared(self, *, momentum: bool = True) -> bool:
        """Find out in time what would go wrong in an exchange, or worse, not go wrong but average nothing.

        Returns:
            False if the workers have changed meanwhile.
        """
        self._reclaim()
        if not (momentum and self._options.momentum and self.momentum is None):
            return True
        found: list[dict[str, torch.dtype]] = []
        self.begun = time.monotonic()
        asked = self.attempt(
            None,
            lambda: found.append(find_entries(self._optimizer, self._parameters, self.workers.everyone)),
        )
        # nobody may have any yet, if this comes before the first step or that overflowed: look again the next time
        if asked and found[0]:
            self._make_momentum(found[0])
        return asked

    def _reclaim(self) -> None:
        moved = self._buffers.reclaim()
        if moved is not None:
            raise RuntimeError(
                f"DSSync: {moved} or its memory was replaced after DSSync was made (by model.to(), "
                "flatten_parameters(), load_state_dict(assign=True) or an assignment), so it would not be averaged; "
                "make DSSync afterwards"
            )

    def _agreed(self, facts: Mapping[str, Any]) -> bool:
        self.begun = time.monotonic()
        return self.attempt(None, lambda: agree(facts, self.workers.everyone))

    def _make_momentum(self, entries: Mapping[str, torch.dtype]) -> None:
        self.momentum = Momentum(self._optimizer, self._parameters, entries) if entries else None

    def state_dict(self) -> dict[str, Any]:
        """Return what must be known to go on; of no rank in particular, if all workers have the same."""
        pending = self._settled()
        renewed = self.workers.renewed
        return {
            "round": self.number,
            "renewed": renewed if renewed is not None and renewed >= self.number else None,
            "steps": self.steps,
            "pending": pending,
            "entries": self._entries(),
            "compression": self.averager.wire.state_dict() if self.averager.wire else None,
            "rank": self.workers.rank if pending or self.owing else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; whether all do is found out later, see :meth:`enter`."""
        self.number, self.steps = state["round"], state["steps"]
        self.workers.begin_at(state.get("renewed"))
        self._drop()
        self._make_momentum({key: getattr(torch, name) for key, name in state.get("entries", {}).items()})
        if self.averager.wire:
            self.averager.wire.load_state_dict(state["compression"])
        self.owing = state["rank"] is not None
        if state["pending"]:
            self._load_pending(state["pending"])
        self.verified = False

    def _settled(self) -> dict[str, Any] | None:
        """Return the round under way as it can be saved: its mean has come, but not taken effect."""
        if not self._complete():
            return None
        self.averager.settle(self.pending)
        return {
            "number": self.pending.number,
            "everyone": self.pending.everyone,
            # in the host's memory: a device may have no room for them
            "means": [mean.to("cpu", copy=True) for mean in self.pending.means],
            "snapshot": [source.to("cpu", copy=True) for source in self.pending.sources],
            "momentum": [bucket.to("cpu", copy=True) for bucket in self.momentum.buckets] if self.momentum else [],
        }

    def _entries(self) -> dict[str, str]:
        """Return what of the optimizer's state is averaged, with the names of dtypes."""
        entries = self.momentum.entries if self.momentum else {}
        return {key: str(dtype).removeprefix("torch.") for key, dtype in entries.items()}

    def _load_pending(self, saved: Mapping[str, Any]) -> None:
        self.pending = self.averager.settled(
            saved["number"], saved["means"], saved["snapshot"], everyone=saved["everyone"]
        )
        if saved["momentum"]:
            torch._foreach_copy_(self.momentum.buckets, saved["momentum"])

    def enter(self) -> None:
        """Before anything else: are all at the same round, where a state was loaded or workers began as they were?"""
        while self.world > 1 and not self.verified:
            facts: dict[str, Any] = {"round": self.number, "averaged optimizer state": self._entries()}
            if self.averager.wire:
                facts["reference"] = self.averager.wire.digest()
            self.verified = self._agreed(facts)

    def close(self) -> None:
        """Let go of what is under way, and of the process groups."""
        self._drop()
        self.workers.close()

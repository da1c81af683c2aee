"""DSSync: a local optimizer step, then a mean of the parameters in a small group that changes with every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from specfast.dssync.agreement import agree, broadcast
from specfast.dssync.averaging import disagreement
from specfast.dssync.buffers import FlatBuffers
from specfast.dssync.options import Options
from specfast.dssync.rounds import Rounds
from specfast.dssync.schedule import KINDS, Schedule, check, make_schedule
from specfast.dssync.tensors import PARAMETER, check_optimizer, places_of, split_tensors
from specfast.dssync.topology import Topology
from specfast.dssync.trajectory import RunningMean, Trajectory
from specfast.dssync.workers import Workers
from specfast.errors import CheckpointError

T = TypeVar("T")


class DSSync:
    """Averages a model over workers in small, changing groups, in place of gradients over all of them.

    Two lines in a training script::

        sync = DSSync(model, optimizer, group_size=4)
        ...
        loss.backward()      # local: no DistributedDataParallel, or with specfast.dssync.integrations.ddp
        sync.step()          # in place of optimizer.step()

    ``sync.step()`` does the optimizer's step with this worker's own gradient, then replaces parameters and float
    buffers by their mean in the current group. Every worker must call it equally often. At the end
    ``sync.consensus_()``, or leaving ``with sync:``, gives all workers the exact mean. With one process, or without
    torch.distributed, only the optimizer's step is left of it.

    What is averaged is moved into flat buffers here, once; make DSSync after the model is on its device and in its
    dtype, before or after the optimizer has state, before CUDA graphs are captured. Integer and boolean buffers
    (BatchNorm's count of batches) stay each worker's own, and so do non-persistent float buffers and those that are not
    finite now (attention masks).

    Memory beside the model: one copy of what is averaged; a second one with ``overlap``; with a compressed ``wire``
    three (reference, residual, staging; four with ``overlap``) and the messages under way; with ``momentum`` one of the
    state; with ``trajectory`` one in float32. ``extra_bytes`` tells.

    On a GPU nothing waits for the device, but for the check of ``on_nonfinite``. With NCCL, set
    ``TORCH_NCCL_BLOCKING_WAIT=1`` to get a :class:`SyncError` where NCCL's own watchdog would end the process.

    Args:
        model: the same on all workers.
        optimizer: of the model's parameters.
        group_size: how many workers average together; the square root of their number, where None.
        schedule: name of a family (``"grid"``; see :func:`specfast.dssync.make_schedule`) or a schedule.
        topology: where the racks are, for schedules that want to know.
        seed: of schedules that are drawn.
        average: ``"parameters"`` (all of them), or ``"trainable"`` (those that require a gradient now; choose it for
            fine-tuning, where most are frozen), and ``"buffers"``.
        momentum: average the optimizer's state of the averaged parameters, where it has their shape, too: less
            disagreement for more bytes.
        global_every: a mean over all workers takes the place of every so manieth round. None: never; with a compressed
            wire every 100th, since it renews the reference. 0: never.
        overlap: send the parameters while the next forward and backward pass run, and correct them by what their mean
            differs before the next optimizer step: hides the communication, for more disagreement.
        wire: ``"float32"`` sends values as they are (bfloat16 ones in two bytes); ``"bfloat16"`` and ``"float8"`` send
            float32 ones as compressed differences, with error feedback.
        trajectory: which rounds' weights are averaged for :meth:`trajectory_`.
        on_nonfinite: of values that are NaN or infinite after the local step: ``"raise"`` an error on all members of
            the group (costs a reading pass and a tiny all-gather while the values are under way, and on a GPU a wait);
            ``"skip"``: the others average without
            that worker, which takes their mean, and has what is not finite in its optimizer's state set to zero (costs
            a reading pass and a tiny all-gather before each round); ``"ignore"`` averages them.
        elastic: go on with those who are left when a worker is lost, see :mod:`specfast.dssync.faults`.
        symmetric: average in groups within a node by kernels that read the other GPUs' memory, where it can be had
            (16 MiB a group); elsewhere, and in overlapped or compressed rounds, by messages as usual.
        timeout: seconds that a worker waits for another one in a round.
        process_group: the workers; all processes, where None. Ranks in this class are places in it.
        broadcast_from: whose parameters and buffers all workers begin with; None: each with its own.
        rejoin: this worker was lost from an elastic run and is started again, with its rank and arguments: wait until
            the others call :meth:`admit_`, and begin with their mean, at their ``round``. Its optimizer begins anew.
            Connect it by :func:`specfast.dssync.joining.init_process_group`.

    Raises:
        ValueError: arguments do not fit each other or the model (:class:`ScheduleError`, :class:`MismatchError`: ranks
            do not fit each other).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        group_size: int | None = None,
        schedule: str | Schedule = "grid",
        topology: Topology | None = None,
        seed: int = 0,
        average: Sequence[str] = ("parameters", "buffers"),
        momentum: bool = False,
        global_every: int | None = None,
        overlap: bool = False,
        wire: str = "float32",
        trajectory: Trajectory | None = None,
        on_nonfinite: str = "raise",
        elastic: bool = False,
        symmetric: bool = False,
        timeout: float = 300.0,
        process_group: dist.ProcessGroup | None = None,
        broadcast_from: int | None = 0,
        rejoin: bool = False,
    ):
        connected = dist.is_available() and dist.is_initialized()
        world = dist.get_world_size(process_group) if connected else 1
        self.rank = dist.get_rank(process_group) if connected else 0
        if self.rank < 0:
            raise ValueError("process_group: expected one that this process is in; make DSSync in its members only")
        self.optimizer, self._seed = optimizer, seed
        self._syncing, self._closed = True, False
        self._alone = 0  # rounds of a program's only process
        self._rounds: Rounds | None = None
        self._workers: Workers | None = None

        facts, problem, descriptions = {}, None, []
        try:
            self._options = Options(
                average, momentum, global_every, overlap, wire, trajectory, on_nonfinite, elastic, symmetric, timeout
            )
            self._schedule = _resolve(schedule, world, group_size, seed, topology)
            if broadcast_from is not None and not 0 <= broadcast_from < world:
                raise ValueError(f"broadcast_from: expected a rank of 0 to {world - 1}, or None; got {broadcast_from}")
            averaged, others = split_tensors(model, average)
            self._parameters = [name for name in averaged if name.startswith(PARAMETER)]
            if momentum and not self._parameters:
                raise ValueError(f"momentum: expected average to name parameters or trainable, too; got {average!r}")
            check_optimizer(optimizer, model)
            if world > 1:
                self._buffers = FlatBuffers(averaged, places=places_of(model, averaged))
                descriptions = self._buffers.descriptions
                facts = {"schedule": self._schedule.digest(), "tensors": self._buffers.digest()}
                facts |= self._options.facts() | {"broadcast_from": broadcast_from}
        except Exception as error:
            if world == 1:
                raise
            problem = error
        if world > 1:
            if rejoin and problem is not None:
                raise problem
            name = None if rejoin else agree(facts, process_group, error=problem, lists={"tensors": descriptions})
            self._workers = Workers(
                self._schedule,
                name=name,
                facts=facts,
                averaged=self._buffers.flats,
                own=others,
                process_group=process_group,
                timeout=timeout,
                elastic=elastic,
                symmetric=self._buffers.flats[0].device if symmetric else None,
            )
            if broadcast_from is not None and not rejoin:
                broadcast([*self._buffers.flats, *others], broadcast_from, self._workers.everyone)
            verified = rejoin or broadcast_from is not None
            self._rounds = Rounds(self._workers, self._buffers, self._options, optimizer, verified=verified)
        tracked = self._buffers.flats if world > 1 else [tensor.data for tensor in averaged.values()]
        self._running = RunningMean(tracked)

    # what can be asked

    @property
    def schedule(self) -> Schedule:
        """The rounds of the present world; its ranks are places among the present workers."""
        return self._workers.schedule if self._workers else self._schedule

    @property
    def round(self) -> int:
        """Number of rounds so far, hence of the next one."""
        return self._rounds.number if self._rounds else self._alone

    @property
    def world(self) -> int:
        """Number of workers now."""
        return len(self._workers.ranks) if self._workers else 1

    @property
    def group(self) -> tuple[int, ...]:
        """The ranks that average with this one in the next round, itself among them."""
        if self._workers is None:
            return (self.rank,)
        return self._workers.ranks if self._rounds.is_global(self.round) else self._workers.members(self.round)

    @property
    def extra_bytes(self) -> int:
        """Memory held beside the model and the optimizer; a compressed round needs its messages on top."""
        return self._running.nbytes + (self._rounds.nbytes if self._rounds else 0)

    # training

    def step(self, closure: Callable | None = None) -> Any:
        """Do the optimizer's step, then average in the current group; return the closure's loss, if there is one.

        Raises:
            SyncError: a member of the group is gone; the parameters are those from after this worker's own step.
            NonFiniteError: a member's values are NaN or infinite; nothing was averaged.
            RuntimeError: with ``overlap``, an optimizer that changes the parameters before it calls the closure.
        """
        late = closure is not None and self._options.overlap and self._rounds is not None
        if late:
            self._enter()
            closure = self._settling(closure)
        else:
            self._settle()
        loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        if late:
            self._settle()  # there are optimizers that do not always call it
        if self._rounds:
            self._rounds.steps += 1
        if self._syncing:
            self._advance()
        return loss

    def average_(self) -> None:
        """Do a round without an optimizer step, for code that has done its own, as ``scaler.step(optimizer)``."""
        self._settle()
        if self._rounds:
            self._rounds.steps += 1
        self._advance()

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it ``step()`` is local, and the round does not advance; the same on all workers."""
        before, self._syncing = self._syncing, False
        try:
            yield
        finally:
            self._syncing = before

    def reschedule(self, schedule: Schedule) -> None:
        """Go on with other rounds; called by all workers at the same round, with the same schedule.

        The next round is a mean over all. :class:`specfast.dssync.replanning.Replanner` says when it is worth it. If a
        worker is lost meanwhile, those left in an elastic run go on with a schedule like it, or like the one before.

        Raises:
            ValueError: a schedule for another world, or one that never mixes (:class:`ScheduleError`); ranks have
                different ones (:class:`MismatchError`): all go on as before, and may try again.
            SyncError: a worker is gone, and the run is not elastic.
        """
        self._check_open()
        if schedule.world != self.world:
            raise ValueError(f"schedule: expected one of {self.world} ranks, the world; got one of {schedule.world}")
        check(schedule, allow_static=True)
        self._settle()
        if self._workers and schedule.world == self.world:  # else a worker was lost just now
            self._rounds.begun = time.monotonic()
            self._rounds.attempt(None, lambda: self._workers.reschedule(schedule, self.round))

    def consensus_(self) -> None:
        """Replace what is averaged by its exact mean over all workers: the same bits everywhere."""
        self._settle()
        if self._rounds:
            self._rounds.with_all(self._rounds.mean_over_all, momentum=True)

    def trajectory_(self) -> None:
        """Replace what is averaged by the mean over all workers of its running means; called by all.

        Recompute the statistics of BatchNorm layers afterwards (:func:`recompute_batch_norm`).

        Raises:
            ValueError: a worker has no running mean: no trajectory was asked for, or its first round is yet to come.
        """
        self._settle()
        counts = (self._rounds and self._rounds.with_all(self._running_counts)) or [self._running.count]
        if not all(counts):
            empty = [
                rank
                for rank, count in zip(self._workers.ranks if self._workers else [0], counts, strict=True)
                if not count
            ]
            raise ValueError(f"trajectory: nothing was added yet to the running means of ranks {empty}")
        # workers that joined later count for what they have seen
        self._running.write(self._running.count * len(counts) / sum(counts) if len(set(counts)) > 1 else 1.0)
        if self._rounds and self._rounds.averager.wire:
            self._rounds.averager.wire.forgive()
        self.consensus_()

    def admit_(self) -> tuple[int, ...]:
        """Let in workers that were lost and started again (with ``rejoin=True``); return their ranks.

        To be called by all workers at the same step, where a pause costs little: once an epoch, say. If nobody asks it
        costs a tiny broadcast; else a mean over all, so that nothing is lost, new process groups, and a broadcast.
        Those who are new get what is not averaged (counts of batches) from one of the others, who keep theirs.
        """
        self._settle()
        if self._workers is None:
            return ()
        asking = self._rounds.with_all(self._workers.asking) if self.world > 1 else self._workers.asking()
        if not asking:
            return ()
        self.consensus_()
        self._rounds.begun = time.monotonic()
        entered = self._rounds.attempt(None, lambda: self._workers.admit(asking, self.round))
        self._rounds.momentum = None  # found again by all, those who are new among them
        return tuple(asking) if entered else ()

    def with_all(self, exchange: Callable[[dist.ProcessGroup], T]) -> T | None:
        """Do an exchange of the caller's with all present workers, and return its result; None if this one is alone.

        It stands under the same protection as a round: where a worker is lost meanwhile, those left in an elastic run
        do it again without it, and in another one all get the :class:`SyncError`.

        Args:
            exchange: does collectives in the process group that it is given; called on all workers, at the same round.
        """
        self._enter()
        return self._rounds and self._rounds.with_all(lambda: exchange(self._workers.everyone))

    def consensus_distance(self) -> float:
        """Return how far apart the workers' parameters are, or where only buffers are averaged, these; called by all.

        The root of the mean over workers of the squared distance to their mean, in units of the mean's norm. It costs
        an all-reduce of the parameters through a buffer of one bucket, and changes nothing.
        """
        self._enter()
        return (self._rounds and self._rounds.with_all(self._disagreement)) or 0.0

    # saving

    def state_dict(self) -> dict[str, Any]:
        """Return what must be known to go on, beside the model's and the optimizer's state; each worker saves its own.

        Workers differ between rounds, so each saves its model and optimizer, too. What is under way is waited for.
        After ``consensus_()`` all workers' states are equal, and any of them serves all.
        """
        self._check_open()
        alone = {"round": self._alone, "steps": self._alone, "rank": None, "pending": None}
        state = self._identity() | (self._rounds.state_dict() if self._rounds else alone)
        state["running"] = self._running.state_dict()
        if self._running.count and self.world > 1:
            state["rank"] = self.rank
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, after the model and the optimizer have loaded theirs.

        Raises:
            CheckpointError: it comes from another schedule, world, rank or model, or from other options.
        """
        self._check_open()
        expected = self._identity() | {"rank": state.get("rank")}
        if expected["rank"] is not None:
            expected["rank"] = self.rank
        for name, value in expected.items():
            if state.get(name) != value:
                raise CheckpointError(
                    f"DSSync state: {name} is {_short(state.get(name))}; expected {_short(value)} as here. To go on "
                    "from the saved parameters alone, do not load it"
                )
        self._running.load_state_dict(state["running"])
        self._alone = state["round"]
        if self._rounds:
            self._rounds.load_state_dict(state)

    # ending

    def close(self) -> None:
        """Give the process groups back; the model keeps its values and its flat buffers. What is under way is lost."""
        if self._closed:
            return
        self._closed = True
        if self._rounds:
            self._rounds.close()

    def __enter__(self) -> DSSync:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self.consensus_()
        finally:
            self.close()

    # inside

    def _enter(self) -> None:
        self._check_open()
        if self._rounds:
            self._rounds.enter()

    def _settle(self) -> None:
        """Before the parameters change, or are to be known: let the round that is under way take effect."""
        self._enter()
        if self._rounds:
            self._rounds.finish()

    def _settling(self, closure: Callable) -> Callable:
        """Return a closure at the end of whose first call the round under way takes effect: till then it is hidden."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        versions = [parameter._version for parameter in parameters]
        settled = False

        def settling() -> Any:
            nonlocal settled
            if settled:
                return closure()
            if versions != [parameter._version for parameter in parameters]:
                # it would put back what they were, and undo the correction
                raise RuntimeError(
                    f"DSSync: {type(self.optimizer).__name__} changes the parameters before it calls the closure; take "
                    "overlap=False"
                )
            settled = True
            loss = closure()
            with torch.no_grad():
                self._settle()
            return loss

        return settling

    def _advance(self) -> None:
        number = self.round
        if self._rounds:
            self._rounds.advance()
        else:
            self._alone += 1
        if self._options.trajectory and self._options.trajectory.takes(number):
            self._running.add()

    def _running_counts(self) -> list[int]:
        counts = [0] * self.world
        dist.all_gather_object(counts, self._running.count, group=self._workers.everyone)
        return counts

    def _disagreement(self) -> float:
        return disagreement(self._buffers.parts(self._parameters or list(self._buffers.slots)), self._workers.everyone)

    def _identity(self) -> dict[str, Any]:
        """Return what a saved state must have in common with this communicator."""
        identity = {"world": self.world, "schedule": self.schedule.digest(), "seed": self._seed}
        identity |= {"tensors": self._buffers.digest() if self._workers else None}
        return identity | self._options.numbers()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("DSSync: closed; make a new one to go on")
        if self._workers and self._workers.failure:
            raise self._workers.failure


def _resolve(
    schedule: str | Schedule, world: int, group_size: int | None, seed: int, topology: Topology | None
) -> Schedule:
    if isinstance(schedule, str):
        if world == 1 and schedule in KINDS:  # the same script must run alone
            return Schedule(1, (((0,),),), schedule)
        return make_schedule(schedule, world, group_size, seed=seed, topology=topology)
    if schedule.world != world:
        raise ValueError(f"schedule: expected one of {world} ranks, the world; got one of {schedule.world}")
    # whoever made a static schedule has said so there
    return check(schedule, allow_static=True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:70]}..."

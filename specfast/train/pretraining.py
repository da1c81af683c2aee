"""pretrain: the loop, and everything that makes it go on exactly where it stopped."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from specfast.data.loader import SpectralLoader
from specfast.errors import CheckpointError, SpecfastError
from specfast.files import atomic_file
from specfast.models import SpecAwareConfig, SpecAwareMAE
from specfast.train.checkpoint import (
    TrainingState,
    WorkerState,
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    load_latest,
    load_worker,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_worker,
    set_aside,
)
from specfast.train.config import PretrainConfig, resume_conflicts
from specfast.train.distributed import World, connect
from specfast.train.feed import feed
from specfast.train.gradients import UpdateLoss, compute_gradient, joint_loss
from specfast.train.initial import initial_model
from specfast.train.logging import Row, RunLog
from specfast.train.optimizer import make_optimizer
from specfast.train.precision import use_bf16
from specfast.train.schedule import learning_rate
from specfast.train.signals import StopSignals, TrainingInterrupted
from specfast.train.sync import make_sync

_NON_FINITE_HELP = (
    "A smaller lr, a longer warmup or precision float32 help most often; otherwise look for extreme values in the data "
    "(specfast prepare --max-value)"
)
CHECKPOINTS_FOLDER, MODEL_FOLDER, CONFIG_FILE = "checkpoints", "model", "config.yaml"


class NonFiniteLossError(SpecfastError, ArithmeticError):
    """The loss or its gradient became NaN or infinite; nothing was updated with it."""


@dataclass
class PretrainResult:
    """What a run leaves behind.

    Attributes:
        model: in evaluation mode, on the device it was trained on.
        history: the rows of log.csv, by column name; empty in processes of rank above 0.
        out_dir: folder with ``config.yaml``, ``log.csv``, ``checkpoints/`` and ``model/`` (for from_pretrained).
        seconds: training time, that before a resume included.
    """

    model: SpecAwareMAE
    history: list[dict[str, float]]
    out_dir: Path
    seconds: float


def pretrain(config: PretrainConfig, *, progress: bool = True) -> PretrainResult:
    """Pre-train SpecAware on stores, from the start or from where a run in ``config.out`` stopped.

    Works alone and in each of the processes that torchrun started. Samples, masks and dropout are fixed by
    ``config.seed``: on a CPU, a run that was stopped at any moment and started again logs bitwise the losses of one
    that was not. torch's own random state is left as it was.

    With ``config.sync`` other than ddp each process has its own gradient and, until the end, its own parameters. What
    concerns all is then agreed upon at updates that are logged, saved or the last, not at each: the losses of a row
    (over all samples of that update; ``grad_norm`` is a mean over processes), a signal to stop, and a loss that is not
    finite. On a slow network ``config.log_every`` is best not 1. The model that is left is the mean over all.

    Args:
        config: the options.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: options do not fit each other, the data, or the run that is to be resumed.
        CheckpointError: weights or checkpoints cannot be used.
        NonFiniteLossError: the loss or its gradient became NaN or infinite; the state before that update is saved, or,
            where processes have parameters of their own, the run can go on from the last checkpoint.
        TrainingInterrupted: SIGTERM or SIGINT came; the state is saved.
    """
    if not config.data:
        raise ValueError("data: expected at least one store made by specfast prepare; got none")
    with connect(config.device) as world:
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices), StopSignals(insist=world.size == 1) as signals:
            run = _Run(config, world, progress and world.is_main)
            try:
                return run.train(signals)
            finally:
                run.close()


class _Run:
    """One process's part of a run."""

    def __init__(self, config: PretrainConfig, world: World, progress: bool):
        self.config, self.world = config, world
        self.out = Path(config.out)
        self.checkpoints = self.out / CHECKPOINTS_FOLDER
        self.bf16 = use_bf16(config.precision, world.device)
        state = self._find_state()
        self.step = state.step if state else 0
        self.seconds = state.seconds if state else 0.0

        torch.manual_seed(config.seed)
        self.model = self._model(state).to(world.device).train()
        self.optimizer = make_optimizer(self.model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
        self.loader = SpectralLoader(
            config.data,
            batch_size=config.batch_size,
            crop=config.crop,
            bands=config.bands,
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            workers=config.workers,
            prefetch=config.prefetch,
            flips=config.flips,
            patch_size=self.model.config.patch_size,
        )
        self._seed_dropout()
        if config.compile:
            # the blocks alone: their shapes do not depend on the bands, so there is nothing to compile again
            for block in (*self.model.blocks, *self.model.decoder_blocks):
                block.compile()
        self.sync = make_sync(config, world, self.model, self.optimizer)
        self.failed = (0, 0.0, 0.0)  # step, loss and norm of this process's first update that was not finite
        if state:
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)
            self.loader.load_state_dict(state.loader)
            self.sync.load_state_dict(state.sync)
            self._restore_dropout(state)
        self.log = self._open_log(progress) if world.is_main else None

    @property
    def samples_per_update(self) -> int:
        return self.config.batch_size * self.config.accumulate * self.world.size

    def train(self, signals: StopSignals) -> PretrainResult:
        """Do the updates that are left."""
        config = self.config
        started = time.perf_counter() - self.seconds
        row_step, row_seconds = self.step, self.seconds
        parts = feed(self.loader, self.model, self.world.device)
        try:
            while self.step < config.steps:
                lr = learning_rate(
                    self.step,
                    steps=config.steps,
                    warmup_steps=config.warmup_steps,
                    peak=config.lr,
                    final=config.final_lr,
                )
                before = random_state(self.world.device)
                update = compute_gradient(
                    self.sync.forward,
                    self.model,
                    parts,
                    count=config.accumulate,
                    mask_ratio=config.mask_ratio,
                    world=self.sync.peers,
                    bf16=self.bf16,
                    clip_norm=config.clip_norm,
                    stop=signals.received is not None,
                )
                self.seconds = time.perf_counter() - started
                if not update.finite:
                    if self.sync.everywhere:
                        raise self._not_finite(update, before)
                    self._leave_out(update)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.sync.step()
                self.step += 1
                last = self.step == config.steps
                logged = last or self.step % config.log_every == 0
                saved = last or self.step % config.checkpoint_every == 0
                if not self.sync.everywhere:
                    update = self._agree(update) if logged or saved else replace(update, stop=False)
                if self.log:
                    if logged or update.stop:
                        speed = (self.step - row_step) * self.samples_per_update / (self.seconds - row_seconds)
                        row_step, row_seconds = self.step, self.seconds
                        self.log.write(self._row(update, lr, speed))
                    self.log.advance()
                if saved or update.stop:
                    path = self._save(random_state(self.world.device))
                if update.stop and not last:
                    self.world.barrier()  # torchrun ends all processes once one has left
                    raise TrainingInterrupted(signals.received or 15, self.step, path)
        finally:
            parts.close()
        return self._finish()

    def close(self) -> None:
        self.sync.close()
        if self.log:
            self.log.close()

    def _find_state(self) -> TrainingState | None:
        """Read the newest checkpoint of the run in the folder that is whole in all processes."""
        if self.world.is_main and self.config.resume == "never" and (saved := checkpoints(self.checkpoints)):
            raise ValueError(f"resume: never was asked for, but {saved[0]} is there; give another out")
        while True:
            found = load_latest(self.checkpoints) if self.world.is_main else None
            path = self.world.broadcast(found and found[0])
            if path is None:
                return None
            state = found[1] if found else load_checkpoint(path)
            if conflicts := resume_conflicts(state.config, len(state.random), self.config, self.world.size):
                raise ValueError(
                    f"resume: the run in {self.out} was made with other options: {'; '.join(conflicts)}. "
                    "Give the same ones to go on, or another out to start anew"
                )
            if state.sync is None or self._load_own(path, state):
                return state

    def _load_own(self, path: Path, state: TrainingState) -> bool:
        """Put this process's own parameters into ``state``; if one process cannot, set the checkpoint aside."""
        problem = None
        if not self.world.is_main:
            try:
                vars(state).update(vars(load_worker(path, self.world.rank)))
            except CheckpointError as error:
                problem = str(error)
        problems = list(filter(None, self.world.gather(problem) or []))
        others = checkpoints(self.checkpoints)[1:] if self.world.is_main else []
        if problems and others:
            set_aside(path)
            warnings.warn(f"{'; '.join(problems)}; {path.name} set aside, going back to {others[0].name}", stacklevel=2)
        elif problems:
            problems.append("no other checkpoint is there. Start again in another folder")
        problems, others = self.world.broadcast((problems, bool(others)))
        if problems and not others:
            raise CheckpointError("; ".join(problems))
        return not problems

    def _model(self, state: TrainingState | None) -> SpecAwareMAE:
        model = SpecAwareMAE(SpecAwareConfig.from_dict(state.architecture)) if state else initial_model(self.config)
        model.config.gradient_checkpointing = self.config.gradient_checkpointing
        return model

    def _seed_dropout(self) -> None:
        words = np.random.SeedSequence([self.config.seed, self.step, self.world.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> 1))

    def _restore_dropout(self, state: TrainingState) -> None:
        saved = (state.config["batch_size"], state.config["accumulate"], len(state.random))
        if saved == (self.config.batch_size, self.config.accumulate, self.world.size):
            restore_random_state(state.random[self.world.rank], self.world.device)
        elif self.world.is_main:
            warnings.warn(
                "resume: samples are spread over passes and processes in another way than before; samples and masks "
                "stay the same, dropout does not",
                stacklevel=2,
            )

    def _open_log(self, progress: bool) -> RunLog:
        self.out.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.out / CONFIG_FILE) as file:
            file.write(self.config.to_yaml().encode())
        log = RunLog(
            self.out,
            step=self.step,
            steps=self.config.steps,
            progress=progress,
            tensorboard=self.config.tensorboard,
        )
        if self.step:
            done = self.step == self.config.steps
            log.say(f"{self.out}: " + ("complete already" if done else f"going on after step {self.step}"))
        return log

    def _row(self, update: UpdateLoss, lr: float, speed: float) -> Row:
        return Row(
            step=self.step,
            loss=update.loss,
            loss_spectral=update.loss_spectral,
            loss_charbonnier=update.loss_charbonnier,
            lr=lr,
            grad_norm=update.grad_norm,
            samples=self.step * self.samples_per_update,
            samples_per_second=speed,
            seconds=self.seconds,
        )

    def _leave_out(self, update: UpdateLoss) -> None:
        """Keep an update that is not finite from the parameters, so that the others' averages stay as they are."""
        if not self.failed[0]:
            self.failed = (self.step + 1, update.loss, update.grad_norm)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def _agree(self, update: UpdateLoss) -> UpdateLoss:
        """Return all processes' losses, where each has its own; stop all if one had a loss that was not finite."""
        update, failures = joint_loss(update, self.world, self.failed)
        step, rank = min(((int(row[0]), rank) for rank, row in enumerate(failures) if row[0]), default=(0, 0))
        if not step:
            return update
        self.world.barrier()  # torchrun ends all processes once one has left
        _, loss, norm = failures[rank]
        newest = next(iter(checkpoints(self.checkpoints)), "none yet")
        raise NonFiniteLossError(
            f"step {step}: in process {rank} loss is {loss:g} and its gradient's norm {norm:g}; that update was left "
            f"out, and nothing was saved since. The last checkpoint: {newest}. {_NON_FINITE_HELP}"
        )

    def _save(self, random: dict) -> Path:
        """Write a checkpoint; all processes take part, the main one writes what they share."""
        path = checkpoint_path(self.checkpoints, self.step)
        sync = self.sync.state_dict()
        if sync is not None and not self.world.is_main:
            own = WorkerState(model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), sync=sync)
            save_worker(path, self.world.rank, own)
        # the main process gets here when all have written
        states = self.world.gather(random)
        if self.log:
            self.log.sync()
            state = TrainingState(
                step=self.step,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                # after an update that failed, the loader itself is ahead
                loader={**self.loader.state_dict(), "samples": self.step * self.samples_per_update},
                architecture=self.model.config.to_dict(),
                config=self.config.to_dict(),
                random=states,
                seconds=self.seconds,
                sync=sync,
            )
            save_checkpoint(self.checkpoints, state, self.config.keep)
        return path

    def _not_finite(self, update: UpdateLoss, before: dict) -> NonFiniteLossError:
        path = self._save(before)
        self.world.barrier()
        return NonFiniteLossError(
            f"step {self.step + 1}: loss is {update.loss:g} and its gradient's norm {update.grad_norm:g}; nothing was "
            f"updated, and the state after step {self.step} is in {path}. {_NON_FINITE_HELP}"
        )

    def _finish(self) -> PretrainResult:
        self.sync.consensus()
        self.model.config.gradient_checkpointing = False
        folder = self.out / MODEL_FOLDER
        if self.log:
            self.model.save_pretrained(folder)
        self.world.barrier()
        return PretrainResult(
            model=self.model.eval(),
            history=self.log.history if self.log else [],
            out_dir=self.out,
            seconds=self.seconds,
        )

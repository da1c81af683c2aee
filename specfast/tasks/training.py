"""fit: the training loop of all task models, and everything that makes it go on exactly where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from specfast.models.downstream import DownstreamModel
from specfast.tasks.options import FitOptions
from specfast.train.checkpoint import TrainingState, checkpoints, load_latest, save_checkpoint
from specfast.train.logging import CsvLog
from specfast.train.optimizer import parameter_groups
from specfast.train.precision import use_bf16
from specfast.train.pretraining import NonFiniteLossError
from specfast.train.schedule import learning_rate
from specfast.train.signals import StopSignals, TrainingInterrupted

CHECKPOINTS_FOLDER, LOG_FILE = "checkpoints", "log.csv"


@dataclass(frozen=True)
class Row:
    """What is logged of one update.

    Attributes:
        step: updates done, from 1; loss: before the update; lr: of the head; grad_norm: before clipping; seconds: so
            far.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float


NAMES = tuple(field.name for field in dataclasses.fields(Row))


@dataclass(frozen=True)
class FitResult:
    """Attributes: history: the logged rows by column name; seconds: training time, that before a resume included."""

    history: list[dict[str, float]]
    seconds: float


def fit(
    model: DownstreamModel,
    loss_of_step: Callable[[int], Tensor | Iterable[Tensor]],
    options: FitOptions,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
    name: str = "fit",
    inputs: str = "",
    started: bool = False,
) -> FitResult:
    """Train a task model in place; afterwards it is in evaluation mode.

    torch's generator is seeded anew before every step, from ``seed`` and the step's number, so dropout and everything
    that ``loss_of_step`` draws from it is the same after a resume; torch's own random state is left as it was.

    Args:
        model: on the device where it is to be trained. Frozen parts of its encoder get no gradient; an encoder frozen
            as a whole runs in evaluation mode.
        loss_of_step: step (from 0) -> the loss, or parts of it one by one whose sum is the loss: each part's graph is
            freed before the next is asked for. It may depend on nothing but the step and the model.
        options: see :class:`FitOptions`.
        seed: of what is drawn in training.
        out: folder for ``log.csv`` and ``checkpoints/``; None writes nothing, and then nothing can be resumed.
        resume: go on from a checkpoint in ``out``; if not, a folder that holds one is an error.
        progress: show a bar on stderr; ``name`` stands in front of it.
        inputs: a digest of what ``loss_of_step`` is made of, such as labels and scenes: a run in ``out`` with another
            one is not gone on with. Empty: nothing is compared.
        started: the model is of use as it is, so that no step at all is a choice, too.

    Raises:
        ValueError: the number of steps is not set, or 0 for a model that needs some; the run in ``out`` was made with
            other options or inputs, another seed or another model.
        NonFiniteLossError: the loss or its gradient became NaN or infinite; nothing was updated with it.
        TrainingInterrupted: SIGTERM or SIGINT came (only with ``out``); the state is saved.
    """
    if not options.steps and not (started and options.steps == 0):
        raise ValueError(f"steps: expected at least 1, got {options.steps}")
    device = next(model.parameters()).device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _trainable(model, options.tuned_blocks),
        StopSignals(insist=True) if out is not None else contextlib.nullcontext() as signals,
    ):
        run = _Fit(model, options, seed, None if out is None else Path(out), resume, progress, name, inputs)
        try:
            return run.train(loss_of_step, signals)
        finally:
            run.close()


class _Fit:
    def __init__(self, model, options, seed, out, resume, progress, name, inputs):
        self.model, self.options, self.seed, self.name = model, options, seed, name
        self.device = next(model.parameters()).device
        self.bf16 = use_bf16(options.precision, self.device)
        groups = learning_groups(model, options)
        self.peaks = [group.pop("peak") for group in groups]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
        self.identity = {**dataclasses.asdict(options), "seed": seed, "name": name}
        if inputs:
            self.identity["inputs"] = inputs
        self.checkpoints = None if out is None else out / CHECKPOINTS_FOLDER
        self.step, self.seconds, self.rows = 0, 0.0, []
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            self._go_on(resume)
        self.log = None if out is None else CsvLog(out / LOG_FILE, self.step, NAMES)
        self.bar = tqdm(total=options.steps, initial=self.step, desc=name, unit="step", disable=not progress)

    def train(self, loss_of_step, signals: StopSignals | None) -> FitResult:
        options = self.options
        started = time.perf_counter() - self.seconds
        warmup = round(options.warmup * options.steps)
        if not options.steps and self.checkpoints is not None:
            self._save()
        while self.step < options.steps:
            loss, norm = self._gradient(loss_of_step)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._not_finite(loss, norm)
            share = learning_rate(self.step, steps=options.steps, warmup_steps=warmup, peak=1.0)
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = share * peak
            self.optimizer.step()
            self.step += 1
            self.seconds = time.perf_counter() - started
            last, stop = self.step == options.steps, signals is not None and signals.received is not None
            if last or stop or self.step % options.log_every == 0:
                self._write(Row(self.step, loss, share * options.lr, norm, self.seconds))
            self.bar.update()
            if self.checkpoints is not None and (last or stop or self.step % options.checkpoint_every == 0):
                path = self._save()
                if stop and not last:
                    raise TrainingInterrupted(signals.received, self.step, path)
        self.model.eval()
        return FitResult(self.log.rows if self.log else self.rows, self.seconds)

    def close(self) -> None:
        self.bar.close()
        if self.log:
            self.log.close()

    def _gradient(self, loss_of_step) -> tuple[float, float]:
        """Leave the clipped gradient of the step's loss in the parameters; return the loss and the gradient's norm."""
        words = np.random.SeedSequence([self.seed, self.step]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> 1))
        self.model.train()
        if self.options.tuned_blocks == 0:
            self.model.encoder.eval()
        self.optimizer.zero_grad()
        total = 0.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            parts = loss_of_step(self.step)
        parts = iter((parts,) if isinstance(parts, Tensor) else parts)
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                part = next(parts, None)
            if part is None:
                break
            part.backward()
            total += float(part.detach())
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        largest = self.options.clip_norm or math.inf
        return total, float(torch.nn.utils.clip_grad_norm_(trained, largest))

    def _write(self, row: Row) -> None:
        if self.log:
            self.log.write(row)
        else:
            self.rows.append(dataclasses.asdict(row))
        self.bar.set_postfix_str(f"loss {row.loss:.4f}", refresh=False)

    def _save(self) -> Path:
        self.log.sync()
        state = TrainingState(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            loader={},
            architecture=self.model.config.to_dict(),
            config=self.identity,
            random=[],
            seconds=self.seconds,
        )
        return save_checkpoint(self.checkpoints, state, keep=1)

    def _go_on(self, resume: bool) -> None:
        if not resume and (found := checkpoints(self.checkpoints)):
            raise ValueError(f"resume: {found[0]} is there, but the run is not to be resumed; give another out")
        found = load_latest(self.checkpoints)
        if found is None:
            return
        path, state = found
        expected = {**self.identity, "model": self.model.config.to_dict()}
        saved = {**state.config, "model": state.architecture}
        if other := sorted(key for key in expected.keys() | saved.keys() if expected.get(key) != saved.get(key)):
            raise ValueError(
                f"out: the run in {path} was made with other {', '.join(other)}; give the same to go on, or another out"
            )
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.step, self.seconds = state.step, state.seconds

    def _not_finite(self, loss: float, norm: float) -> NonFiniteLossError:
        saved = next(iter(checkpoints(self.checkpoints)), None) if self.checkpoints is not None else None
        return NonFiniteLossError(
            f"{self.name}, step {self.step + 1}: loss is {loss:g} and its gradient's norm {norm:g}; nothing was "
            f"updated with it. The last checkpoint: {saved or 'none'}. A smaller lr, or precision float32, helps most "
            "often; otherwise look for extreme values in the data"
        )


def learning_groups(model: DownstreamModel, options: FitOptions) -> list[dict]:
    """Split the trainable parameters by learning rate and decay; each group has its ``peak`` learning rate.

    Biases, norms and tokens are not decayed. The encoder's last block has ``encoder_lr``, each one before it
    ``layer_decay`` times that of its successor; the embedding stands before the first block.
    """
    plain = {id(parameter) for parameter in parameter_groups(model, 1.0)[1]["params"]}
    depth = len(model.encoder.blocks)
    groups: dict[tuple[float, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = options.lr
            if name.startswith("encoder."):
                words = name.split(".")
                place = int(words[2]) + 1 if words[1] == "blocks" else depth if words[1] == "norm" else 0
                peak = options.encoder_lr * options.layer_decay ** (depth - place)
            groups.setdefault((peak, id(parameter) in plain), []).append(parameter)
    return [
        {"params": parameters, "peak": peak, "weight_decay": 0.0 if unchanged else options.weight_decay}
        for (peak, unchanged), parameters in groups.items()
    ]


@contextlib.contextmanager
def _trainable(model: DownstreamModel, tuned_blocks: int):
    """Freeze the encoder but for its last ``tuned_blocks`` blocks and the norm behind them (-1: freeze nothing)."""
    encoder = model.encoder
    if tuned_blocks > len(encoder.blocks):
        raise ValueError(f"tuned_blocks: the encoder has {len(encoder.blocks)} blocks; got {tuned_blocks}")
    before = {parameter: parameter.requires_grad for parameter in encoder.parameters()}
    if tuned_blocks >= 0:
        tuned: list[nn.Module] = [*encoder.blocks[len(encoder.blocks) - tuned_blocks :], encoder.norm]
        kept = {parameter for module in tuned for parameter in module.parameters()} if tuned_blocks else set()
        for parameter in encoder.parameters():
            parameter.requires_grad_(before[parameter] and parameter in kept)
    try:
        yield
    finally:
        for parameter, trains in before.items():
            parameter.requires_grad_(trains)
            parameter.grad = None

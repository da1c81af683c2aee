"""Checkpoints: one file holds all that a run needs to go on as if it had never stopped.

Where processes have parameters of their own (``sync`` other than ddp), that file is the main process's and each of the
others writes one beside it, before it: the main file says that all are complete.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specfast.errors import CheckpointError
from specfast.files import TEMPORARY, atomic_file

FORMAT, VERSION = "specfast pre-training checkpoint", 1
WORKER_FORMAT, WORKER_VERSION = "specfast pre-training checkpoint of a worker", 1
_NAME = re.compile(r"step_(\d{9})\.pt")


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file is cut off or altered."""


@dataclass
class TrainingState:
    """A run between two updates.

    Attributes:
        step: updates done.
        model, optimizer, loader: their state dicts; model and optimizer of the main process.
        architecture: the model configuration's fields.
        config: the run's options.
        random: :func:`random_state` of each process.
        seconds: time spent in training so far.
        sync: state dict of what averages the parameters, in the main process; None if gradients are.
    """

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    loader: dict[str, Any]
    architecture: dict[str, Any]
    config: dict[str, Any]
    random: list[dict[str, Any]]
    seconds: float
    sync: dict[str, Any] | None = None


@dataclass
class WorkerState:
    """What a process has for itself where parameters are averaged: the state dicts of model, optimizer and sync."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    sync: dict[str, Any]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's generators of this process: the CPU's, and the device's if it is a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set torch's generators as :func:`random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoint files, the newest first."""
    return sorted((path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)), reverse=True)


def save_checkpoint(folder: Path, state: TrainingState, keep: int) -> Path:
    """Write ``state`` to a file of its own, then remove all but the newest ``keep``.

    The file appears under its name only when complete and on disk; an older one is removed only after that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, state.step)
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, "version": VERSION, **vars(state)}, file)
    for old in checkpoints(folder)[keep:]:
        old.unlink()
    _remove_workers_without_main(path)
    return path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the file of the checkpoint after ``step`` updates."""
    return folder / f"step_{step:09d}.pt"


def save_worker(path: Path, rank: int, state: WorkerState) -> None:
    """Write what process ``rank`` has for itself beside the checkpoint ``path``, which is written afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(_worker_path(path, rank)) as file:
        torch.save({"format": WORKER_FORMAT, "version": WORKER_VERSION, **vars(state)}, file)


def load_worker(path: Path, rank: int) -> WorkerState:
    """Read what process ``rank`` saved for itself with the checkpoint ``path``.

    Raises:
        DamagedCheckpointError: the file is missing or damaged.
        CheckpointError: it is no such file, or one of another version.
    """
    path = _worker_path(path, rank)
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: missing; it holds the parameters of process {rank}")
    return WorkerState(**_read(path, WORKER_FORMAT, WORKER_VERSION))


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to ``*.damaged``."""
    os.replace(path, path.with_name(path.name + ".damaged"))


def _worker_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}.worker_{rank:05d}.pt")


def _remove_workers_without_main(newest: Path) -> None:
    """Remove what processes saved for themselves with checkpoints that are gone, or were never completed.

    Files after ``newest`` stay: a process may be ahead of the main one, and at its next checkpoint already.
    """
    complete = {path.stem for path in checkpoints(newest.parent)}
    for path in newest.parent.glob("step_*.worker_*.pt"):
        step = path.name.partition(".")[0]
        if step not in complete and step < newest.stem:
            path.unlink()


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        DamagedCheckpointError: the file is damaged.
        CheckpointError: it is no checkpoint, or one of another version.
    """
    return TrainingState(**_read(path, FORMAT, VERSION))


def _read(path: Path, file_format: str, file_version: int) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch's own reader takes damaged numbers for good ones
            if (broken := archive.testzip()) is not None:
                raise DamagedCheckpointError(f"{path}: damaged; the checksum of {broken} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # both readers raise many types on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedCheckpointError(f"{path}: damaged or incomplete: {reason}") from error
    if not isinstance(content, dict) or content.pop("format", None) != file_format:
        raise CheckpointError(f"{path}: no checkpoint of specfast pretrain")
    if (version := content.pop("version", None)) != file_version:
        raise CheckpointError(f"{path}: is of version {version}; this specfast reads version {file_version}")
    return content


def load_latest(folder: Path) -> tuple[Path, TrainingState] | None:
    """Read the newest checkpoint that is whole; None if there are no checkpoints.

    A damaged one is renamed to ``*.damaged`` with a warning, and the one before is taken. Leftovers of writes that were
    cut short are removed.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    for leftover in folder.glob(f"step_*{TEMPORARY}"):
        leftover.unlink()
    damaged: list[tuple[Path, CheckpointError]] = []
    for path in checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged.append((path, error))
            continue
        for bad, reason in damaged:
            set_aside(bad)
            warnings.warn(f"{reason}; set aside, going back to {path.name}", stacklevel=2)
        return path, state
    if damaged:
        reasons = "; ".join(str(reason) for _, reason in damaged)
        raise CheckpointError(f"{folder}: no checkpoint can be read: {reasons}. Start again in another folder")
    return None

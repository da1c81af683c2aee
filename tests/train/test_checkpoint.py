"""Checkpoints are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from specfast.errors import CheckpointError
from specfast.train.checkpoint import (
    TrainingState,
    checkpoints,
    load_checkpoint,
    load_latest,
    random_state,
    restore_random_state,
    save_checkpoint,
)


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        model={"weight": torch.full((50, 50), float(step))},
        optimizer={
            "state": {0: {"step": torch.tensor(float(step))}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}],
        },
        loader={"samples": step, "seed": 0, "data": "x"},
        architecture={"depth": 1},
        config={"lr": 0.1, "bands": [4, 9], "vit": None},
        random=[random_state(torch.device("cpu"))],
        seconds=1.5,
    )


def test_round_trip(tmp_path):
    saved = state(3)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=2))
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert torch.equal(loaded.random[0]["cpu"], saved.random[0]["cpu"])
    for name in ("step", "loader", "architecture", "config", "seconds", "optimizer"):
        assert getattr(loaded, name) == getattr(saved, name), name


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, state(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000000010.pt", "step_000000009.pt"]
    assert load_latest(tmp_path)[1].step == 10


def test_no_checkpoint_at_all(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "none") is None


def _truncate(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def _empty(path):
    os.truncate(path, 0)


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    middle = content.index(torch.full((50, 50), 2.0).numpy().tobytes()) + 5000  # within the weights
    content[middle] ^= 1
    path.write_bytes(content)


def _replace_by_text(path):
    path.write_text("not a checkpoint\n" * 100)


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip_a_bit, _replace_by_text])
def test_a_damaged_last_one_gives_way_to_the_one_before(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), keep=2)
    damage(tmp_path / "step_000000002.pt")
    with pytest.raises(CheckpointError, match=r"step_000000002\.pt: damaged"):
        load_checkpoint(tmp_path / "step_000000002.pt")
    with pytest.warns(UserWarning, match=r"step_000000002\.pt: damaged.*going back to step_000000001\.pt"):
        path, loaded = load_latest(tmp_path)
    assert path.name == "step_000000001.pt"
    assert loaded.step == 1
    # set aside: it must neither be kept in the place of a good one nor be tried again
    assert (tmp_path / "step_000000002.pt.damaged").is_file()
    save_checkpoint(tmp_path, state(2), keep=1)
    assert load_latest(tmp_path)[1].step == 2


def test_none_readable_is_an_error_and_touches_nothing(tmp_path):
    for step in (1, 2):
        _truncate(save_checkpoint(tmp_path, state(step), keep=2))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read: .*_000000002\.pt: .*_000000001\.pt: "):
        load_latest(tmp_path)
    assert len(checkpoints(tmp_path)) == 2


def test_other_files_and_versions_are_refused_by_name(tmp_path):
    path = tmp_path / "step_000000001.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of specfast pretrain"):
        load_latest(tmp_path)
    torch.save({"format": "specfast pre-training checkpoint", "version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99"):
        load_latest(tmp_path)


class _Dangerous:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step_000000001.pt"
    torch.save({"format": "specfast pre-training checkpoint", "version": 1, "model": _Dangerous()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_old_ones(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1), keep=1)

    def full(content, file):
        file.write(b"x" * 1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, state(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_random_state_round_trip():
    device = torch.device("cpu")
    before = random_state(device)
    drawn = torch.rand(5)
    restore_random_state(before, device)
    assert torch.equal(torch.rand(5), drawn)


_KILLED_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from specfast.train.checkpoint import TrainingState, checkpoints, load_latest, save_checkpoint

torch.set_num_threads(1)
folder, random_delay = Path(sys.argv[1]), random.Random(0)

def write_on(step, said):
    while True:
        step += 1
        model = {"weight": torch.full((200, 200), float(step))}
        save_checkpoint(folder, TrainingState(step, model, {}, {}, {}, {}, [], 0.0), keep=2)
        os.write(said, step.to_bytes(8, "little"))

step = partial = 0
for _ in range(30):
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        write_on(step, said)
    os.close(said)
    os.read(heard, 8)  # at least one is written
    time.sleep(random_delay.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    confirmed = step + 1
    while word := os.read(heard, 8):
        confirmed = int.from_bytes(word, "little")
    os.close(heard)
    partial += any(folder.glob("*.tmp"))
    path, state = load_latest(folder)
    assert state.step >= confirmed, (state.step, confirmed)
    assert state.step <= confirmed + 1
    assert bool((state.model["weight"] == state.step).all())
    assert 1 <= len(checkpoints(folder)) <= 3
    step = state.step
print(step, partial)
"""


def test_kill_9_while_writing_never_loses_a_finished_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _KILLED_WRITERS, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last, partial = map(int, done.stdout.split())
    assert last >= 30
    assert partial > 0  # some were killed in the middle of a file

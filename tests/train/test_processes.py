"""The command in processes of its own: killed, stopped, and several of them under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from specfast.train import PretrainConfig, pretrain, read_log
from specfast.train.checkpoint import checkpoints, load_checkpoint

STEPS = 12

# `specfast pretrain ARGUMENTS`, killed as by `kill -9` when asked for
_COMMAND = """
import os, signal, sys
import torch
from specfast.cli import main
from specfast.train import checkpoint, logging

torch.set_num_threads(1)
moment, step = sys.argv[1], int(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

write, save = logging.CsvLog.write, torch.save

def write_row(log, row):
    write(log, row)
    if moment == "after a row" and row.step == step:
        die()

def save_half(content, file, **options):
    if moment == "within a checkpoint" and content["step"] == step:
        file.write(b"PK" + bytes(5000))
        file.flush()
        die()
    save(content, file, **options)

logging.CsvLog.write = write_row
torch.save = save_half
sys.exit(main(["pretrain", *sys.argv[3:]]))
"""


def arguments(options: dict, **changes) -> list[str]:
    """Return the options as flags."""
    flags = []
    for name, value in {**options, **changes}.items():
        if name == "model_options":
            value = [f"{key}={number}" for key, number in value.items()]
        values = value if isinstance(value, (list, tuple)) else [value]
        flags += ["--" + name.replace("_", "-"), *map(str, values)]
    return flags


def environment() -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def specfast_pretrain(*flags: str, moment: str = "never", step: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", _COMMAND, moment, str(step), *flags, "--quiet"]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def losses(folder: Path) -> list[tuple]:
    """Every logged number but the times, as the text in the file."""
    return [tuple(line.split(",")[:7]) for line in (folder / "log.csv").read_text().splitlines()]


@pytest.fixture
def uninterrupted(options, tmp_path) -> list[tuple]:
    pretrain(PretrainConfig(**{**options, "steps": STEPS, "out": str(tmp_path / "whole")}), progress=False)
    return losses(tmp_path / "whole")


@pytest.mark.parametrize(("moment", "step", "kept"), [("after a row", 7, 4), ("within a checkpoint", 8, 4)])
def test_after_kill_9_the_same_command_logs_the_same_losses_bitwise(
    options, tmp_path, uninterrupted, moment, step, kept
):
    flags = arguments(options, steps=STEPS, checkpoint_every=4)
    killed = specfast_pretrain(*flags, moment=moment, step=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    out = tmp_path / "run"
    assert len(losses(out)) == 1 + step  # no row that was logged is lost
    assert load_checkpoint(checkpoints(out / "checkpoints")[0]).step == kept
    resumed = specfast_pretrain(*flags)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(out) == uninterrupted
    assert not list((out / "checkpoints").glob("*.tmp"))
    assert f"{out}: 12 steps" in resumed.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_sets_the_exit_code(options, tmp_path, number):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "specfast", "pretrain", *arguments(options, steps=100_000), "--quiet"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not ((out / "log.csv").is_file() and len(read_log(out / "log.csv")) >= 2):
            time.sleep(0.05)
        process.send_signal(number)
        error = process.communicate()[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, error
    rows = read_log(out / "log.csv")
    saved = load_checkpoint(checkpoints(out / "checkpoints")[0])
    assert saved.step == rows[-1]["step"] >= 2
    assert f"stopped by {signal.Signals(number).name} after step {saved.step}" in error
    assert "run the same command again" in error
    assert not (out / "model").exists()


_RANK = """
import sys
import torch
import torch.distributed as dist
from specfast.cli import main
from specfast.train import pretraining

torch.nn.Dropout.forward = lambda self, x: x
finish = pretraining._Run._finish

def keep(run):
    torch.save((run.world.rank, run.model.state_dict()), f"{run.out}/rank_{run.world.rank}.pt")
    return finish(run)

pretraining._Run._finish = keep
code = main(["pretrain", *sys.argv[1:]])
assert not dist.is_initialized()
sys.exit(code)
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def test_two_processes_train_as_one_with_the_double_batch(options, no_dropout, tmp_path):
    """Gradients, hence losses and weights, agree up to rounding: the loss is normalized over all processes' pixels."""
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    flags = arguments(options, precision="float32", batch_size=2)
    done = torchrun(str(script), *flags, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps in") == 1  # only the main process speaks
    ranks = [torch.load(tmp_path / "run" / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [number for number, _ in ranks] == [0, 1]
    for name, value in ranks[0][1].items():
        assert torch.equal(value, ranks[1][1][name]), name

    one = {**options, "precision": "float32", "batch_size": 4, "out": str(tmp_path / "one")}
    alone = pretrain(PretrainConfig(**one), progress=False)
    together = read_log(tmp_path / "run" / "log.csv")
    assert [row["samples"] for row in together] == [row["samples"] for row in alone.history] == [4, 8, 12, 16]
    for a, b in zip(alone.history, together, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4), a["step"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3), a["step"]
    saved = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert len(saved.random) == 2
    assert not torch.equal(saved.random[0]["cpu"], saved.random[1]["cpu"])


@pytest.mark.slow
def test_torchrun_resumes_bitwise_after_kill_9(options, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(_COMMAND)
    for out, moment in (("whole", "never"), ("run", "after a row")):
        flags = arguments(options, steps=8, checkpoint_every=3, out=str(tmp_path / out))
        done = torchrun(str(script), moment, "5", *flags, "--quiet")
        assert (done.returncode == 0) == (out == "whole"), done.stderr
    done = torchrun("-m", "specfast", "pretrain", *flags, "--quiet")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_stops_on_sigterm(options, tmp_path):
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "specfast", "pretrain", *arguments(options, steps=100_000), "--quiet"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not ((out / "log.csv").is_file() and len(read_log(out / "log.csv")) >= 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        error = process.communicate()[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    saved = load_checkpoint(checkpoints(out / "checkpoints")[0])
    assert saved.step == read_log(out / "log.csv")[-1]["step"], error
    assert "stopped by SIGTERM" in error

"""Pre-training with parameters averaged in groups: what it computes, how it resumes, stops and fails."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from specfast import SpecAwareMAE
from specfast.data.loader import SpectralLoader
from specfast.dssync import Topology, make_schedule
from specfast.dssync import plan as make_plan
from specfast.errors import CheckpointError
from specfast.files import write_atomic
from specfast.train import NonFiniteLossError, PretrainConfig, TrainingInterrupted, pretrain, pretraining, read_log
from specfast.train import logging as train_logging
from specfast.train.checkpoint import checkpoints, load_checkpoint, load_worker
from specfast.train.distributed import World
from specfast.train.feed import feed
from specfast.train.gradients import UpdateLoss, compute_gradient, joint_loss
from specfast.train.initial import initial_model
from specfast.train.optimizer import make_optimizer
from specfast.train.schedule import learning_rate
from specfast.train.sync import PeriodicMeans
from tests.dssync import processes
from tests.train.test_processes import _COMMAND, arguments, environment

CPU = torch.device("cpu")
WAYS = {
    "dssync": {"sync": "dssync", "sync_group": 2},
    "overlap": {"sync": "dssync", "sync_overlap": True, "sync_momentum": True},
    "wire": {"sync": "dssync", "sync_wire": "bfloat16", "sync_global_every": 3},
    "domain": {"sync": "dssync", "sync_domain": 2},
    "postlocal": {"sync": "postlocal", "sync_global_every": 3, "warmup": 0.2},
}


def numbers(folder: str | Path) -> list[tuple]:
    """Every logged number but the times, as the text in the file."""
    return [tuple(line.split(",")[:7]) for line in (Path(folder) / "log.csv").read_text().splitlines()]


def _pretrain(rank: int, options: dict, dies_after: int | None = None) -> tuple[list, dict]:
    """Run as one of several processes; at ``dies_after`` updates as by `kill -9`."""
    torch.nn.Dropout.forward = lambda self, x: x
    if dies_after is not None:
        updates = itertools.count()

        def compute_or_die(*args, **kwargs):
            if next(updates) == dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return compute_gradient(*args, **kwargs)

        pretraining.compute_gradient = compute_or_die
    result = pretrain(PretrainConfig(**options), progress=False)
    # clones: a pickled view takes the whole flat buffer along
    return result.history, {name: value.clone() for name, value in result.model.state_dict().items()}


def by_hand(rank: int, options: dict) -> tuple[list, dict]:
    """The reference: the same parts in a plain loop, and a mean over each group by way of an all-gather."""
    torch.nn.Dropout.forward = lambda self, x: x
    config = PretrainConfig(**options)
    world = dist.get_world_size()
    torch.manual_seed(config.seed)
    model = initial_model(config).train()
    optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
    loader = SpectralLoader(
        config.data,
        batch_size=config.batch_size,
        crop=config.crop,
        bands=config.bands,
        seed=config.seed,
        rank=rank,
        world_size=world,
        workers=0,
        patch_size=model.config.patch_size,
    )
    schedule = make_schedule("grid", world, config.sync_group)
    rows = []
    for step, parts in zip(range(config.steps), _grouped(feed(loader, model, CPU), config.accumulate), strict=False):
        alone = World(0, 1, CPU)
        settings = {"mask_ratio": config.mask_ratio, "world": alone, "clip_norm": config.clip_norm}
        update = compute_gradient(model, model, parts, count=config.accumulate, **settings)
        rate = {"steps": config.steps, "warmup_steps": config.warmup_steps, "peak": config.lr, "final": config.final_lr}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, **rate)
        optimizer.step()
        members = schedule.group_of(rank, step)
        _mean_(model, members)
        losses = [None] * world
        dist.all_gather_object(losses, (update.loss * update.pixels, update.pixels))
        rows.append(sum(loss for loss, _ in losses) / sum(pixels for _, pixels in losses))
    _mean_(model, range(world))
    return rows, model.state_dict()


def _grouped(parts, count: int):
    while True:
        yield [next(parts) for _ in range(count)]


@torch.no_grad()
def _mean_(model, members) -> None:
    for parameter in model.parameters():
        everyone = [torch.empty_like(parameter) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, parameter.contiguous())
        parameter.copy_(torch.stack([everyone[member] for member in members]).sum(dim=0) / len(members))


@pytest.fixture
def several(options) -> dict:
    return {**options, "precision": "float32", "steps": 5, "workers": 0, "warmup": 0.4}


def test_it_is_local_updates_and_group_means(several, tmp_path):
    """Bitwise the reference's model and, up to the order of a sum, its losses."""
    options = {**several, **WAYS["dssync"], "accumulate": 2}
    results = processes.run(4, _pretrain, options, tmp_path=tmp_path)
    expected = processes.run(4, by_hand, options, tmp_path=tmp_path)
    history = results[0][0]
    assert [row["samples"] for row in history] == [16, 32, 48, 64, 80]
    assert [row["loss"] for row in history] == pytest.approx(expected[0][0], rel=1e-6)
    for rank in range(4):
        assert all(torch.equal(results[rank][1][name], value) for name, value in results[0][1].items())
    for name, value in expected[0][1].items():
        torch.testing.assert_close(results[0][1][name], value, rtol=1e-6, atol=1e-8, msg=name)
    saved = SpecAwareMAE.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in results[0][1].items())


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way in ("overlap", "domain") else ()) for way in WAYS]
)
def test_resumes_bitwise_after_kill_9(several, tmp_path, way):
    options = {**several, **WAYS[way], "steps": 7, "checkpoint_every": 2}
    whole = processes.run(4, _pretrain, {**options, "out": str(tmp_path / "whole")}, tmp_path=tmp_path)
    with pytest.raises(processes.ProcessError, match="exit code -9"):
        processes.run(4, _pretrain, options, 5, tmp_path=tmp_path)
    (newest, *_) = checkpoints(tmp_path / "run" / "checkpoints")
    assert load_checkpoint(newest).step == 4
    assert len(numbers(tmp_path / "run")) == 1 + 5
    # in a checkpoint each process has its own parameters; with two domains, groups are of all
    main = load_checkpoint(newest).model
    own = [load_worker(newest, rank).model for rank in range(1, 4)]
    assert all(torch.equal(o[name], value) for o in own for name, value in main.items()) == (way == "domain")
    resumed = processes.run(4, _pretrain, options, tmp_path=tmp_path)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    for (_, before), (_, after) in zip(whole, resumed, strict=True):
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_finished_run_is_loaded(several, tmp_path):
    options = {**several, **WAYS["dssync"], "steps": 3}
    first = processes.run(2, _pretrain, options, tmp_path=tmp_path)
    again = processes.run(2, _pretrain, options, tmp_path=tmp_path)
    assert again[0][0] == first[0][0]
    assert all(torch.equal(again[1][1][name], value) for name, value in first[0][1].items())


def _is_ddp_in_the_warm_up(rank: int, options: dict) -> None:
    options = {**options, "warmup": 1.0}
    local, parameters = _pretrain(rank, {**WAYS["postlocal"], **options, "out": options["out"] + "/local"})
    ddp, expected = _pretrain(rank, {**options, "out": options["out"] + "/ddp"})
    assert [row["loss"] for row in local] == [row["loss"] for row in ddp]
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())


def test_post_local_sgd_is_ddp_in_the_warm_up(several, tmp_path):
    processes.run(2, _is_ddp_in_the_warm_up, several, tmp_path=tmp_path)


def _stopped(rank: int, options: dict) -> int:
    compute, updates = pretraining.compute_gradient, itertools.count(1)

    def compute_and_stop(*args, **kwargs):
        if next(updates) == 3 and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return compute(*args, **kwargs)

    pretraining.compute_gradient = compute_and_stop
    with pytest.raises(TrainingInterrupted) as caught:
        _pretrain(rank, options)
    return caught.value.step


def test_a_signal_to_one_process_stops_all_at_the_next_row(several, tmp_path):
    options = {**several, **WAYS["dssync"], "steps": 8, "log_every": 4, "checkpoint_every": 100}
    assert processes.run(2, _stopped, options, tmp_path=tmp_path) == [4, 4]
    whole = {**options, "out": str(tmp_path / "whole")}
    processes.run(2, _pretrain, whole, tmp_path=tmp_path)
    processes.run(2, _pretrain, options, tmp_path=tmp_path)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == [4, 8]


def _not_finite(rank: int, options: dict) -> str:
    compute, updates = pretraining.compute_gradient, itertools.count(1)

    def compute_and_spoil(*args, **kwargs):
        update = compute(*args, **kwargs)
        if next(updates) != 2 or rank != 1:
            return update
        for parameter in args[1].parameters():
            parameter.grad.fill_(float("nan"))  # must not get into anybody's parameters
        return dataclasses.replace(update, loss=float("nan"))

    pretraining.compute_gradient = compute_and_spoil
    with pytest.raises(NonFiniteLossError) as caught:
        _pretrain(rank, options)
    return str(caught.value)


@pytest.mark.parametrize("way", ["dssync", "postlocal"])
def test_a_loss_that_is_not_finite_in_one_process_stops_all(several, tmp_path, way):
    options = {**several, **WAYS[way], "steps": 8, "log_every": 3, "checkpoint_every": 2}
    for message in processes.run(2, _not_finite, options, tmp_path=tmp_path):
        assert message.startswith("step 2: in process 1 loss is nan and its gradient's norm ")
        assert "The last checkpoint: none yet" in message  # none was written at step 2, after it
    assert read_log(tmp_path / "run" / "log.csv") == []


def _cannot_resume(rank: int, options: dict, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        _pretrain(rank, options)


def test_a_damaged_workers_file_costs_only_its_steps(several, tmp_path):
    options = {**several, **WAYS["dssync"], "steps": 6, "checkpoint_every": 2, "keep": 3}
    processes.run(2, _pretrain, options, tmp_path=tmp_path)
    before = numbers(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"step_00000000{step}{part}.pt" for step in (2, 4, 6) for part in ("", ".worker_00001")]
    os.truncate(folder / "step_000000006.worker_00001.pt", 1000)
    (folder / "step_000000004.worker_00001.pt").unlink()
    processes.run(2, _pretrain, options, tmp_path=tmp_path)
    assert numbers(tmp_path / "run") == before
    for step in (4, 6):
        assert (folder / f"step_00000000{step}.pt.damaged").is_file()
        assert (folder / f"step_00000000{step}.pt").is_file()
    for path in folder.glob("*.worker_*"):
        path.unlink()
    (folder / "step_000000002.pt").unlink()
    (folder / "step_000000004.pt").unlink()
    match = r"step_000000006\.worker_00001\.pt: missing; .*no other checkpoint is there"
    processes.run(2, _cannot_resume, options, match, tmp_path=tmp_path)
    assert (folder / "step_000000006.pt").is_file()


def _resume_elsewhere(rank: int, options: dict) -> None:
    with pytest.raises(ValueError, match="processes are 2 now and were 4, and each has its own parameters"):
        _pretrain(rank, {**options, "batch_size": 2 * options["batch_size"]})


def test_the_number_of_processes_must_stay(several, tmp_path):
    options = {**several, **WAYS["dssync"], "steps": 2}
    processes.run(4, _pretrain, options, tmp_path=tmp_path)
    processes.run(2, _resume_elsewhere, options, tmp_path=tmp_path)


def _does_not_fit(rank: int, options: dict, topology: str) -> None:
    for changes, message in (
        ({"sync_topology": topology}, "sync_topology: expected a network of the 3 processes; .* has 4"),
        ({"sync_group": 4}, "sync_group: expected at most the 3 processes; got 4"),
        ({"sync_domain": 2}, "sync_domain: expected a divisor of the 3 processes, and less than them; got 2"),
        ({"sync_domain": 3}, "sync_domain: expected a divisor of the 3 processes, and less than them; got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            _pretrain(rank, {**options, "sync": "dssync", **changes})


def test_options_that_do_not_fit_the_world(several, two_racks, tmp_path):
    processes.run(3, _does_not_fit, several, two_racks, tmp_path=tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_racks(tmp_path) -> str:
    topology = {"racks": [2, 2], "nic_gbit_s": 10, "uplink_gbit_s": 0.1}
    return str(write_atomic(tmp_path / "topology.json", json.dumps(topology).encode()))


def _rounds(rank: int, options: dict) -> list:
    made, finish = [], pretraining._Run._finish

    def note(run):
        made.append(run.sync.sync.schedule.rounds)
        return finish(run)

    pretraining._Run._finish = note
    for schedule in ({"sync_schedule": "emissary"}, {"sync_schedule": "plan"}, {"sync_domain": 2}):
        out = f"{options['out']}/{len(made)}"
        _pretrain(rank, {**options, "steps": 1, "sync": "dssync", "out": out, **schedule})
    return made


def test_groups_that_fit_the_network(several, two_racks, tmp_path):
    options = {**several, "sync_topology": two_racks}
    emissary, plan, domains = processes.run(4, _rounds, options, tmp_path=tmp_path)[0]
    topology = Topology.load(two_racks)
    assert emissary == make_schedule("emissary", 4, topology=topology).rounds
    size = sum(p.nbytes for p in initial_model(PretrainConfig(**several)).parameters())
    assert plan == make_plan(topology, size).schedule.rounds
    assert domains == make_schedule("grid", 2).rounds


def test_one_process_has_nobody_to_agree_with(several, tmp_path):
    alone = pretrain(PretrainConfig(**several), progress=False)
    for way in ("dssync", "postlocal"):
        out = str(tmp_path / way)
        other = pretrain(PretrainConfig(**{**several, **WAYS[way], "warmup": 0.4, "out": out}), progress=False)
        assert [row["loss"] for row in other.history] == [row["loss"] for row in alone.history]


def test_a_ddp_checkpoint_from_before_there_was_sync(several, tmp_path, monkeypatch):
    """Its options name no way to synchronize, and its state has none."""
    whole = pretrain(PretrainConfig(**{**several, "out": str(tmp_path / "whole")}), progress=False)
    write = train_logging.CsvLog.write
    monkeypatch.setattr(
        train_logging.CsvLog, "write", lambda log, row: (write(log, row), row.step == 2 and signal.raise_signal(15))
    )
    with pytest.raises(TrainingInterrupted):
        pretrain(PretrainConfig(**several), progress=False)
    monkeypatch.undo()
    (path,) = checkpoints(tmp_path / "run" / "checkpoints")
    content = torch.load(path, weights_only=True)
    del content["sync"]
    content["config"] = {name: value for name, value in content["config"].items() if not name.startswith("sync")}
    torch.save(content, path)
    resumed = pretrain(PretrainConfig(**several), progress=False)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync": "ring"}, "sync: expected one of ddp, dssync, postlocal; got 'ring'"),
        ({"sync_group": 1}, "sync_group: expected a whole number of at least 2, or null; got 1"),
        ({"sync_group": 2}, "sync_group: only with sync dssync; got 2 with sync ddp"),
        ({"sync_overlap": True}, "sync_overlap: only with sync dssync; got True with sync ddp"),
        ({"sync_global_every": 4}, "sync_global_every: only with sync dssync or postlocal; got 4 with sync ddp"),
        ({"sync": "postlocal", "sync_wire": "float8", "sync_global_every": 2}, "sync_wire: only with sync dssync"),
        ({"sync": "dssync", "sync_schedule": "static"}, "sync_schedule: expected one of grid, ragged, random, racks, "),
        (
            {"sync": "dssync", "sync_schedule": "plan"},
            "sync_topology: expected a file, for sync_schedule plan",
        ),
        ({"sync": "postlocal"}, "sync_global_every: expected the number of updates between global means"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**options)


def _joint(rank: int) -> tuple[UpdateLoss, list]:
    world = World(rank, 2, CPU)
    own = UpdateLoss(1.0 + rank, 2.0, 3.0 * rank, grad_norm=4.0 + rank, pixels=10.0 + 20.0 * rank, stop=rank == 1)
    return joint_loss(own, world, (rank, 7.0))


def test_losses_of_all_processes_are_weighted_by_their_pixels(tmp_path):
    for joint, notes in processes.run(2, _joint, tmp_path=tmp_path):
        assert joint == UpdateLoss(1.75, 2.0, 2.25, grad_norm=4.5, pixels=40.0, stop=True)
        assert notes == [[0.0, 7.0], [1.0, 7.0]]


def _shares(rank: int, options: dict) -> list[int]:
    config = PretrainConfig(**{**options, **WAYS["postlocal"], "warmup": 0.4})
    model = initial_model(config)
    made = PeriodicMeans(config, World(rank, 2, CPU), model, make_optimizer(model, lr=0.1, weight_decay=0.0))
    sizes = []
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sizes.append(made.peers.size)
        made.step()
    return sizes


def test_post_local_sgd_shares_gradients_in_the_warm_up_only(several, tmp_path):
    assert processes.run(2, _shares, several, tmp_path=tmp_path) == [[2, 2, 1, 1]] * 2


@pytest.mark.slow
def test_the_command_of_the_readme_resumes_bitwise_after_kill_9(several, tmp_path):
    """``torchrun --nproc-per-node 4 -m specfast pretrain ... --sync dssync``, the main process killed after a row."""
    script = tmp_path / "command.py"
    script.write_text(_COMMAND)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    for out, command in (
        ("whole", ["-m", "specfast", "pretrain"]),
        ("run", [str(script), "after a row", "5"]),
        ("run", ["-m", "specfast", "pretrain"]),
    ):
        flags = arguments(several, steps=7, checkpoint_every=2, out=str(tmp_path / out), sync="dssync", sync_group=2)
        done = subprocess.run([*launch, *command, *flags, "--quiet"], env=environment(), capture_output=True, text=True)
        assert (done.returncode == 0) == (command[0] == "-m"), done.stderr
    assert "7 steps in" in done.stdout
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")

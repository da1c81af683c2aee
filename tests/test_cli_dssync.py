"""``specfast dssync``: plans, simulations and measurements from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from specfast import cli
from specfast.dssync.schedule import Schedule, make_schedule
from specfast.dssync.topology import Topology


@pytest.fixture
def two_racks(tmp_path):
    path = tmp_path / "topo.json"
    path.write_text(json.dumps({"racks": [6, 6], "nic_gbit_s": 10, "uplink_gbit_s": 10}))
    return path


def test_plan_prints_rounds_contraction_time_and_gain(capsys, two_racks):
    assert cli.main(["dssync", "plan", "--world", "12", "--group", "3", "--topology", str(two_racks)]) == 0
    out = capsys.readouterr().out
    made = cli_json(capsys, ["plan", "--world", "12", "--group", "3", "--topology", str(two_racks), "--json"])
    schedule = Schedule.from_json(made["schedule"])
    for number, partition in enumerate(schedule.rounds):
        text = " ".join("{" + ",".join(map(str, group)) + "}" for group in partition)
        assert f"round {number:<3}  {text}\n" in out
    assert f"{made['contraction']:.3g} a period" in out
    assert f"{1e3 * made['seconds']:.3g} ms; DDP's all-reduce {1e3 * made['ring_seconds']:.3g} ms" in out
    assert f"{made['gain']:.2f} times as fast" in out
    assert out.endswith("use DS-Sync: it saves 37% of a step with DDP's all-reduce\n")
    assert "12 workers, NIC 10 Gbit/s, latency 50 us; 2 racks of 6 workers, uplink 10 Gbit/s (6:1)" in out


def cli_json(capsys, arguments):
    assert cli.main(["dssync", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_plan_says_when_ddp_is_better(capsys):
    arguments = ["dssync", "plan", "--world", "16", "--nic-gbit", "400", "--latency-us", "5", "--compute-ms", "50"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("use DDP: the best schedule saves nothing of a step")


def test_plan_for_a_flat_network_of_an_awkward_size(capsys):
    assert cli.main(["dssync", "plan", "--world", "13", "--group", "4"]) == 0
    out = capsys.readouterr().out
    assert "13 has no factors near 4: a ragged grid" in out
    assert "0.158 a period" in out
    made = cli_json(capsys, ["plan", "--world", "13", "--group", "4", "--json"])
    assert made["digest"] == make_schedule("grid", 13, 4).digest()


def test_long_periods_are_cut_short(capsys, tmp_path):
    path = tmp_path / "topo.json"
    path.write_text(json.dumps({"racks": [16], "nic_gbit_s": 10, "slow_nics_gbit_s": {"15": 2.5}}))
    assert cli.main(["dssync", "plan", "--topology", str(path)]) == 0
    out = capsys.readouterr().out
    assert "round 11 " in out
    assert "round 12 " not in out
    assert " more (--json has all)" in out
    assert "rank 15 joins one round in " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "plan: expected --world N, --topology FILE or both; got neither"),
        (["plan", "--world", "0"], "--world: expected one worker or more; got 0"),
        (["plan", "--world", "11", "--topology", "@"], "--world: expected 12, the workers in @; got 11"),
        (["plan", "--nic-gbit", "5", "--topology", "@"], "--nic-gbit: @ says it already; give one of them"),
        (["plan", "--world", "4", "--group", "5"], "group_size: expected 2 to 4, the number of ranks; got 5"),
        (["plan", "--world", "4", "--mbytes", "0"], "--mbytes: expected a positive number; got 0"),
        (["plan", "--world", "4", "--nic-gbit", "-1"], "bandwidth: expected positive numbers; got -125000000.0"),
        (["simulate", "--rack", "0"], "--rack, --oversubscription, --every: expected 1 or more; got 0, 4, 8"),
        (["simulate", "--worlds", "1"], "worlds: expected 2 workers or more; got 1"),
        (["measure"], "measure_topology: expected an initialized process group (run under torchrun); got none"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, two_racks, arguments, message):
    monkeypatch.delenv("SPECFAST_DEBUG", raising=False)
    arguments = [str(two_racks) if argument == "@" else argument for argument in arguments]
    assert cli.main(["dssync", *arguments]) == 2
    assert capsys.readouterr().err == f"specfast dssync: {message.replace('@', str(two_racks))}\n"


def test_action_is_needed(capsys):
    assert cli.main(["dssync"]) == 2
    assert "the following arguments are required: ACTION" in capsys.readouterr().err


def test_simulate_prints_a_table_and_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["simulate", "--worlds", "4", "8", "--rack", "4", "--mbytes", "10", "--jitter", "0.1"]
    out = tmp_path / "scaling.png"
    rows = cli_json(capsys, [*arguments, "--json", "--out", str(out)])
    assert {(row["world"], row["strategy"]) for row in rows} >= {(4, "ring"), (8, "DS-Sync, planned")}
    assert out.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["dssync", *arguments]) == 0
    header, names, four, eight = capsys.readouterr().out.splitlines()
    assert header == "milliseconds a step / disagreement"
    assert names.split()[0] == "workers"
    ring = {row["world"]: row["seconds"] for row in rows if row["strategy"] == "ring"}
    assert four.split()[:2] == ["4", f"{1e3 * ring[4]:.4g}/0"]
    assert eight.split()[:2] == ["8", f"{1e3 * ring[8]:.4g}/0"]


def test_measure_under_torchrun_then_plan(capsys, tmp_path):
    out = tmp_path / "measured.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["specfast", "dssync", "measure", "--device", "cpu", "--mbytes", "0.2", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"written to {out}" in done.stdout
    assert Topology.load(out).world == 2
    assert cli.main(["dssync", "plan", "--topology", str(out)]) == 0
    assert "2 workers" in capsys.readouterr().out

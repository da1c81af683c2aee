"""python -m bench: what it measures, writes, skips and refuses."""

from __future__ import annotations

import json

import pytest
import torch

from bench import __main__ as command
from bench import machine
from bench.plan import SUITES, Choice, plan
from bench.results import read_rows
from bench.shapes import BASE, TINY, Shape
from bench.step import EncoderBench, StepBench

CPU = torch.device("cpu")


def run(folder, *arguments: str) -> int:
    return command.main(["--quick", "--device", "cpu", "--out", str(folder), *arguments])


def test_rows_are_complete_and_resumed(tmp_path, monkeypatch, capsys):
    for module in (command, machine):
        monkeypatch.setattr(module, "commit", lambda: "abc1234")
    arguments = ["operators", "--operators", "spectral_loss", "--dtypes", "float32", "--modes", "full"]
    assert run(tmp_path, *arguments) == 0
    rows = read_rows(tmp_path / "cpu-operators.json")
    assert {row["provider"] for row in rows} == {"reference", "specfast", "specfast-eager"}
    for row in rows:
        assert {"p20_ms", "p50_ms", "p80_ms", "peak_memory", "gbs", "tflops", "percent_of_floor"} <= set(row)
        assert {"relative_error", "device", "torch", "specfast", "commit", "shape", "dtype", "mode"} <= set(row)
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
    assert capsys.readouterr().out.count("spectral_loss") == 3
    assert run(tmp_path, *arguments, "--resume") == 0
    assert capsys.readouterr().out.count("spectral_loss") == 0
    assert read_rows(tmp_path / "cpu-operators.json") == rows


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, monkeypatch):
    measure, calls = command.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "operators", "--operators", "spectral_loss", "--dtypes", "float32")
    rows = json.loads((tmp_path / "cpu-operators.json").read_text())["rows"]
    assert {row["mode"] for row in rows} == {"forward"}
    assert all("p50_ms" in row for row in rows)


def test_a_wrong_result_fails_the_command(tmp_path, monkeypatch, capsys):
    from bench import operators

    right = operators.ops.spectral_loss
    monkeypatch.setattr(operators.ops, "spectral_loss", lambda *args: tuple(1.001 * out for out in right(*args)))
    assert run(tmp_path, "operators", "--operators", "spectral_loss", "--dtypes", "float32", "--modes", "forward") == 1
    assert "no time is reported" in capsys.readouterr().out
    rows = {row["provider"]: row for row in read_rows(tmp_path / "cpu-operators.json")}
    assert "p50_ms" in rows["reference"]
    assert "p50_ms" not in rows["specfast"]


def test_unknown_suites_and_empty_choices_are_refused(tmp_path, capsys):
    for arguments, message in ((["speed"], "expected one of"), (["step", "--operators", "patch_pool"], "nothing to")):
        with pytest.raises(SystemExit):
            run(tmp_path, *arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_plan_covers_what_is_promised(device):
    jobs = {suite: plan(suite, torch.device(device), Choice()) for suite in SUITES}
    everything = [job for suite in jobs.values() for job in suite]
    assert {job.shape.sizes for job in everything} == {BASE}
    samples = 64 if device == "cuda" else 2
    modules = {(job.kernel, job.shape.bands) for job in jobs["operators"] if job.unit == "module"}
    assert modules == {(kernel, bands) for kernel in ("hyper_embed", "hyper_linear_loss") for bands in (100, 202, 425)}
    steps = [job for job in jobs["step"] if job.unit == "step"]
    assert {job.shape.bands for job in steps if job.shape.samples == samples} == {100, 202, 425}
    assert any("reference-compile" in (job.providers or ()) for job in steps)
    assert torch.bfloat16 in {job.dtype for job in everything}
    assert (torch.float32 in {job.dtype for job in everything}) == (device == "cpu")
    for axis in ("bands", "patches", "samples"):
        values = [getattr(job.shape, axis) for job in (*jobs["scaling"], *jobs["operators"])]
        assert max(values) >= 16 * min(values), axis


def test_providers_of_a_step_give_one_gradient():
    shape = Shape(2, 12, 32, TINY)
    bench = StepBench("specaware_tiny_patch8", CPU, 32)
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    work = bench.work(shape, torch.float32, ("reference", "specfast"))
    results = {name: p.outputs(p.setup()()) for name, p in work.providers.items()}
    reference = results["reference"]
    clipped = torch.cat([value for name, value in reference.items() if name.startswith("gradient")])
    assert clipped.norm() == pytest.approx(min(1.0, float(reference["norm"])), rel=1e-3)
    assert "gradient of decoder_blocks.0" in reference
    torch.testing.assert_close(results["specfast"], results["reference"], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, bench.model.parameters(), strict=True))


def test_providers_of_an_encoder_give_one_result():
    work = EncoderBench("specaware_tiny_patch8", CPU, 32).work(
        Shape(2, 12, 32, TINY), torch.float32, ("reference", "specfast")
    )
    results = {name: p.outputs(p.setup()()) for name, p in work.providers.items()}
    torch.testing.assert_close(results["specfast"], results["reference"], rtol=1e-4, atol=1e-4)

"""python -m bench.tasks: its result files, and the tables that are made of them."""

from __future__ import annotations

import json

import pytest

from bench.tasks import __main__ as command
from bench.tasks import report


def test_results_are_complete_and_kept(shared, tmp_path, monkeypatch):
    arguments = ["--data", str(shared / "data"), "--quick", "--work", str(tmp_path)]
    arguments += ["--cases", "indian-pines-tr-te", "anomaly"]
    assert command.main(arguments) == 0
    results = report.read(tmp_path / "results")
    assert list(results) == ["indian-pines-tr-te", "anomaly"]
    found = results["indian-pines-tr-te"]
    assert {"device", "torch", "commit"} <= set(found["versions"])
    assert found["settings"]["training"]["published maps"]["reach"] == "near"
    assert {row["kind"] for row in found["rows"]} == {"fine-tuned", "features", "control", "baseline"}
    assert all(0 < row["overall_accuracy"]["mean"] < 1 for row in found["rows"])
    pretraining = json.loads((tmp_path / "results" / "pretraining.json").read_text())
    assert pretraining["samples"] == 16
    text = report.details(results, pretraining)
    best = report.best(found["rows"])
    assert f"| **{report.percent(best)}** |" in text
    assert "local RX" in text
    assert "tokens or none" in text
    before = (tmp_path / "results" / "anomaly.json").read_text(encoding="utf-8")
    identity = json.loads(before)
    identity = {name: identity[name] for name in ("encoder", "effort", "versions")}
    monkeypatch.setattr(command, "commit", lambda: identity["versions"]["commit"].removesuffix("+"))
    assert command.is_current(tmp_path / "results" / "anomaly.json", identity)
    assert not command.is_current(tmp_path / "results" / "anomaly.json", {**identity, "encoder": "another"})
    assert not command.is_current(tmp_path / "results" / "change.json", identity)
    monkeypatch.setattr(command, "commit", lambda: "abc+")
    assert not command.is_current(tmp_path / "results" / "anomaly.json", identity)


def test_data_that_are_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path)])
    assert f"--data: expected a folder with indian_pines, enmap_potsdam and so on; got {tmp_path}" in (
        capsys.readouterr().err
    )


def test_a_bar_is_missed_by_the_number_or_by_a_baseline():
    def row(kind, inputs, value):
        score = {"mean": value, "std": 0.01, "values": [value, value]}
        return {"method": inputs, "kind": kind, "inputs": inputs, "split": "by tile", "labels_per_class": 50} | {
            "overall_accuracy": score
        }

    def words(ours, baseline):
        rows = [
            row("fine-tuned", "fine-tuned", ours),
            row("control", "fine-tuned random encoder", 0.99),
            row("control", "fine-tuned spectra", 0.5),
            row("baseline", "svm", baseline),
        ]
        return report.asked({"enmap": {"rows": rows}}).splitlines()[-1]

    assert words(0.73, 0.70).endswith("| 72 | 73.0 ± 1.0 | 99.0 ± 1.0 | 50.0 ± 1.0 | 70.0 ± 1.0 (svm) | met |")
    assert words(0.71, 0.70).endswith("| below the number |")
    assert words(0.73, 0.74).endswith("| below the best baseline |")
    assert words(0.60, 0.74).endswith("| below the number and the best baseline |")


def test_the_documents_hold_what_was_measured():
    for path, text in report.documents().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m bench.tasks.report --write"
    assert all((report.ROOT / path).is_file() for path in report.figures(report.read()))

"""What docs/tasks.md shows of changes and anomalies runs as it is printed there, commands and Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import specfast
from specfast import cli
from specfast.data.sensors import sensors
from tests.tasks.change_scenes import SMALL

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page names: two dates of fields, what changed, targets, a saved model."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    counts = 1500 + 400 * rng.random((5, len(sensors()["indian_pines"].wavelength)))
    fields = rng.integers(0, 5, size=(6, 6))
    later = np.where(rng.random((6, 6)) < 0.4, (fields + 1) % 5, fields)
    for name, one in (("before", fields), ("after", later), ("scene", fields)):
        pixels = counts[np.kron(one, np.ones((8, 8), dtype=int))]
        if name == "scene":
            pixels[3, 4], pixels[20, 30] = counts[[0, 1], ::-1]
        np.save(f"{name}.npy", (pixels + rng.normal(0, 4, pixels.shape)).astype(np.uint16))
    np.save("changes.npy", np.kron(fields != later, np.ones((8, 8), dtype=np.uint8)))
    targets = np.zeros((48, 48), dtype=np.uint8)
    targets[[3, 20], [4, 30]] = 1
    np.save("targets.npy", targets)
    specfast.create_model("specaware_tiny_patch8", task="encoder", **SMALL).save_pretrained("run/model")
    return tmp_path


def section(heading: str, language: str) -> list[str]:
    text = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_of_changes(folder, monkeypatch):
    after, real = np.load("after.npy"), specfast.data.open
    after[:2, :3] = 0  # the labels reach into pixels without a measurement
    np.save("after.npy", after)
    monkeypatch.setattr(specfast.data, "open", lambda path, **told: real(path, nodata=0, **told))
    (block,) = section("Change between two dates", "python")
    names = {}
    exec(compile(block, str(PAGE), "exec"), names)
    changed = np.load("changes.npy") > 0
    assert ((names["probability"] > 0.5) == changed).mean() > 0.95
    assert names["uncertainty"].shape == changed.shape
    assert (names["labels"] == 0).sum() == 6
    assert (folder / "detector" / "model" / "config.json").is_file()


def test_commands_of_changes(folder):
    pytest.importorskip("rasterio")
    pytest.importorskip("sklearn")
    measured, *others = section("Change between two dates", "sh")[0].splitlines()
    quick = ["--steps", "5", "--quiet"]  # the page's own, but fewer updates
    assert cli.main([*shlex.split(measured)[1:], *quick, "--seeds", "1", "--labels-per-class", "5"]) == 0
    assert (folder / "detector" / "change.md").is_file()
    assert cli.main([*shlex.split(others[0])[1:], *quick]) == 0
    assert cli.main([*shlex.split(others[1])[1:], "--quiet"]) == 0
    assert (folder / "change.tif").is_file()


def test_python_of_anomalies(folder, capsys):
    pytest.importorskip("sklearn")
    (block,) = section("Anomalies", "python")
    names = {}
    exec(compile(block, str(PAGE), "exec"), names)
    assert set(names["scores"].ravel().argsort()[-2:]) == {3 * 48 + 4, 20 * 48 + 30}
    assert "| RX, all bands | 100.0 |" in capsys.readouterr().out

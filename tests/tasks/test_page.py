"""The Python of docs/tasks.md runs as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import specfast
from specfast.data.sensors import sensors
from tests.models.conftest import TINY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


def test_python_of_the_page(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    ours = [block for block in blocks if "train_segmenter" in block or "specfast.tasks import FitOptions, fit" in block]
    assert len(ours) == 2
    monkeypatch.chdir(tmp_path)
    bands = len(sensors()["indian_pines"].wavelength)
    labels = np.random.default_rng(0).permutation(np.arange(64) % 3 + 1).reshape(8, 8).repeat(8, 0).repeat(8, 1)
    counts = 1500 + 400 * np.random.default_rng(1).random((4, bands))[labels]
    np.save("scene.npy", counts.astype(np.int16))
    np.save("labels.npy", labels)
    specfast.create_model("specaware_tiny_patch8", task="encoder", **TINY).save_pretrained("run/model")
    names = {}
    for block in ours:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (names["classes"] == labels).mean() > 0.9
    assert specfast.load_model("segmenter/model").config.options["spectral_sides"] == [1, 3]
    assert (tmp_path / "fitted" / "log.csv").is_file()

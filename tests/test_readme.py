"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

import specfast

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_example(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    bands = 12
    np.random.default_rng(0).random((bands, 70, 66), dtype=np.float32).tofile(tmp_path / "scene.img")
    header = {
        "samples": 66,
        "lines": 70,
        "bands": bands,
        "data type": 4,
        "interleave": "bsq",
        "byte order": 0,
        "sensor type": "AVIRIS-NG",
        "wavelength units": "Micrometers",
        "wavelength": "{" + ", ".join(f"{w:.4f}" for w in np.linspace(0.4, 2.4, bands)) + "}",
        "map info": "{UTM, 1, 1, 500000, 4000000, 4, 4, 11, North, WGS-84, units=Meters}",
    }
    (tmp_path / "scene.hdr").write_text("ENVI\n" + "".join(f"{key} = {value}\n" for key, value in header.items()))
    monkeypatch.chdir(tmp_path)
    loaded = []
    monkeypatch.setattr(specfast, "load_published", loaded.append)  # the published weights are not ours to ship
    names: dict = {}
    exec(example, names)
    assert loaded == ["specaware_base.pth"]
    assert "fwhm" in capsys.readouterr().out
    assert torch.isfinite(names["out"].loss)
    assert names["features"].tokens.shape == (1, 64, 192)
    assert (tmp_path / "my-model" / "model.safetensors").is_file()

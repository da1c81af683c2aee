"""``specfast export`` from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from specfast import cli
from specfast.export import formats
from tests.models.conftest import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a model, and a scene of five EnMAP bands."""
    folder = tmp_path_factory.mktemp("export")
    make_model(image_size=16).save_pretrained(folder / "model")
    cube = np.random.default_rng(0).random((40, 50, 5), dtype=np.float32)
    np.save(folder / "scene.npy", cube)
    return folder


SCENE = ("--sensor", "enmap", "--level", "L2", "--gsd", "30")


def run(folder, *arguments: str) -> int:
    return cli.main(["export", str(folder / "model"), "--format", "torch", *arguments])


def test_a_sensor_by_name(folder, tmp_path, capsys):
    out = tmp_path / "encoder.pt2"
    assert run(folder, "--sensor", "enmap", "--level", "L2", "--out", str(out), "--size", "24") == 0
    printed = capsys.readouterr().out
    assert f"{out}: torch, 224 bands in, cls, level_1, level_2, level_3, level_4 out" in printed
    assert "folded against the model's encoder  exact" in printed
    outputs = torch.export.load(out).module()(torch.rand(3, 224, 24, 24))
    assert [list(output.shape) for output in outputs] == [[3, 32], *[[3, 32, 3, 3]] * 4]


@pytest.fixture
def hdr_scene(folder):
    """The scene as ENVI, whose header tells its bands."""
    cube = np.load(folder / "scene.npy")
    (folder / "scene.img").write_bytes(cube.tobytes())
    (folder / "scene.hdr").write_text(
        "ENVI\nsamples = 50\nlines = 40\nbands = 5\nheader offset = 0\ndata type = 4\ninterleave = bip\n"
        "byte order = 0\nwavelength units = nanometers\nwavelength = {500, 550, 600, 700, 800}\n"
        "fwhm = {9, 9, 9, 9, 9}\n"
    )
    return folder / "scene.hdr"


def test_scenes_tell_the_bands(folder, hdr_scene, tmp_path, capsys):
    out = tmp_path / "encoder.pt2"
    assert run(folder, "--scenes", str(hdr_scene), *SCENE, "--out", str(out), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bands"] == 5
    assert facts["exact"] is True
    stored = json.loads((tmp_path / "encoder.pt2.json").read_text())
    assert stored["input"]["bands"]["wavelength_nm"] == [500, 550, 600, 700, 800]
    assert stored["input"]["shape"] == ["batch", 5, 16, 16]


def test_folded_content_is_measured_on_other_windows(folder, hdr_scene, tmp_path, capsys):
    out = tmp_path / "encoder.pt2"
    arguments = ("--scenes", str(hdr_scene), *SCENE, "--fold-content", "--out", str(out))
    assert run(folder, *arguments, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exact"] is False
    assert 0 < facts["difference_from_encoder"]["embedding"] < 1
    stored = json.loads((tmp_path / "encoder.pt2.json").read_text())
    assert stored["reference_windows"] == 3  # of six: 2 x 3 windows of 16 pixels
    assert stored["difference_from_encoder"] == facts["difference_from_encoder"]
    assert run(folder, *arguments) == 0
    assert "approximate, relative RMS on unseen windows: embedding " in capsys.readouterr().out


def test_one_window_leaves_none_to_measure_on(folder, hdr_scene, tmp_path, capsys):
    out = tmp_path / "encoder.pt2"
    given = ("--scenes", str(hdr_scene), *SCENE, "--fold-content", "--size", "40", "--out", str(out))
    assert run(folder, *given) == 0
    assert "approximate; no window was left to measure on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fold-content", "--sensor", "enmap", "--level", "L2"), "--fold-content: expected --scenes"),
        (("--sensor", "enmap"), "--sensor: expected a sensor and --level, or --scenes"),
        (("--sensor", "nothing", "--level", "L2"), "sensor: 'nothing' is none of"),
        (("--sensor", "enmap", "--level", "L2", "--size", "20"), "image_size: expected multiples of the patch size 8"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, arguments, message):
    assert run(folder, *arguments, "--out", str(tmp_path / "a.pt2")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_model_folder(tmp_path, capsys):
    arguments = ["export", str(tmp_path / "nothing"), "--format", "torch", "--out", "a.pt2"]
    assert cli.main([*arguments, "--sensor", "enmap", "--level", "L2"]) == 2
    assert "nothing: no such model folder" in capsys.readouterr().err


def test_a_failed_comparison_is_exit_code_1(folder, tmp_path, capsys, monkeypatch):
    def write(folded, program, file):
        file.write_bytes(b"")
        return lambda image: [value + 1 for value in folded(image)]

    monkeypatch.setitem(formats.FORMATS, "torch", (write, (".pt2",)))
    given = ("--sensor", "enmap", "--level", "L2", "--out", str(tmp_path / "a.pt2"))
    assert run(folder, *given) == 1
    assert "differs from the folded encoder" in capsys.readouterr().err

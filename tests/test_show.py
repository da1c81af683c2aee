"""``specfast show``: where it writes, what it says, and that mistakes are one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from specfast import cli


@pytest.fixture
def class_map(tmp_path):
    np.save(tmp_path / "map.npy", np.repeat([[1, 2, 2]], 3, axis=0))
    return tmp_path / "map.npy"


def test_without_out_the_picture_lies_beside_the_file(class_map, capsys):
    assert cli.main(["show", str(class_map)]) == 0
    picture = class_map.with_name("map.show.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == (
        f"{class_map}: classes, 3 x 3 pixels, 9 with one of 2 classes; written to {picture}\n"
    )


def test_json_tells_what_was_recognized_and_nothing_else(class_map, tmp_path, capsys):
    assert cli.main(["show", str(class_map), "--out", str(tmp_path / "x.html"), "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (said["kind"], said["pixels"]) == ("classes", {"1": 3, "2": 6})
    assert said["written"] == str(tmp_path / "x.html")
    assert "written to" in captured.err


def test_a_folder_becomes_a_page_in_it(class_map, capsys):
    assert cli.main(["show", str(class_map.parent)]) == 0
    assert (class_map.parent / "report.html").is_file()


def test_options_reach_the_picture(tmp_path, capsys):
    np.save(tmp_path / "cube.npy", np.random.default_rng(0).random((6, 7, 9)))
    argv = ["show", str(tmp_path / "cube.npy"), "--bands", "8", "4", "0", "--stretch", "1", "99", "--spectra", "2,3"]
    assert cli.main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["composite"], said["stretch"], said["spectra"]) == ("bands 8, 4, 0", [1.0, 99.0], [[2, 3]])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{map}", "--out", "{map}"], "is a file that is to be shown"),
        (["{map}", "--out", "x.gif"], "expected a file that ends in"),
        (["{map}", "--spectra", "1,1"], "spectra: goes with scene"),
        (["nowhere.tif"], "no such file"),
        (["{map}", "--spectra", "1"], "expected ROW,COL such as 12,80"),
        (["{map}", "--kind", "picture"], "invalid choice"),
    ],
)
def test_mistakes_are_named_and_nothing_is_overwritten(class_map, capsys, argv, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = class_map.read_bytes()
    assert cli.main(["show", *(part.format(map=class_map) for part in argv)]) == 2
    assert message in capsys.readouterr().err
    assert class_map.read_bytes() == before

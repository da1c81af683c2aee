"""python -m bench.pictures: real scenes become the pictures of the docs, always the same bytes; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from bench import pictures
from specfast.cli.demo.stages import MARKER
from specfast.cli.demo.work import Settings

PNG = b"\x89PNG\r\n\x1a\n"


def made(tmp_path: Path, *argv: object) -> dict[str, bytes]:
    """Run the script into an empty folder; return its files by name."""
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    assert pictures.main([*map(str, argv), "--out", str(out)]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def refused(capsys, *argv: object) -> str:
    """Run the script with a mistake in its call; return the last line of stderr."""
    with pytest.raises(SystemExit) as stop:
        pictures.main([str(one) for one in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def finished_demo(folder: Path, **different) -> Path:
    """Write what the script reads of a finished demo."""
    settings = Settings(**different)
    for stage, config in {"pretrain": settings.pretraining(), "probe": settings.probing()}.items():
        (folder / stage).mkdir(parents=True)
        (folder / stage / MARKER).write_text(json.dumps({"done": True, "config": config}))
    (folder / "overview.png").write_bytes(PNG + b"of the demo")
    return folder


def test_two_runs_make_the_same_pictures(shared, tmp_path):
    names = ("show-scene", "show-anomaly")
    first, second = (made(tmp_path, *names, "--data", shared / "data") for _ in range(2))
    assert sorted(first) == ["show-anomaly.png", "show-scene.png"]
    for content in first.values():
        assert content.startswith(PNG)
        assert min(int.from_bytes(content[start : start + 4], "big") for start in (16, 20)) > 500  # width, height
    assert first == second


@pytest.mark.slow
def test_change_is_drawn_as_large_as_the_committed_picture(shared, tmp_path):
    """The bytes depend on processor and versions, but the size on the drawing only."""
    (content,) = made(tmp_path, "show-change", "--data", shared / "data").values()
    assert content.startswith(PNG)
    assert content[16:24] == (pictures.IMAGES / "show-change.png").read_bytes()[16:24]


def test_labels_are_as_many_of_each_kind_and_true():
    truth = np.zeros((40, 30), dtype=np.uint8)
    truth[:8] = 1
    labels = pictures.draw_labels(truth)
    known = labels != pictures.UNLABELED
    np.testing.assert_array_equal(labels[known], truth[known])
    assert [(labels == value).sum() for value in (0, 1)] == [pictures.LABELS] * 2


def test_demo_is_the_picture_of_a_usual_run(tmp_path):
    assert made(tmp_path, "--demo", finished_demo(tmp_path / "demo")) == {"demo.png": PNG + b"of the demo"}


def test_demo_of_other_settings_or_unfinished_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    other = finished_demo(tmp_path / "other", steps=6)
    assert f"{other / 'pretrain'} was made with others" in refused(capsys, "--demo", other, "--out", out)
    half = finished_demo(tmp_path / "half")
    (half / "probe" / MARKER).write_text('{"done": false}')
    assert f"{half} lacks its stage probe" in refused(capsys, "--demo", half, "--out", out)
    bare = finished_demo(tmp_path / "bare")
    (bare / "overview.png").unlink()
    assert f"{bare} lacks overview.png" in refused(capsys, "--demo", bare, "--out", out)
    assert not any(out.iterdir())


def test_mistakes_in_the_call_are_named(tmp_path, capsys):
    assert "expected one of show-scene, show-change, show-anomaly, demo; got 'no'" in refused(capsys, "no")
    assert "give --data, --demo or both" in refused(capsys)
    assert "--data: show-scene needs it" in refused(capsys, "show-scene", "--demo", tmp_path)
    assert "--demo: demo needs it" in refused(capsys, "demo", "--data", tmp_path)
    absent = tmp_path / "absent"
    assert f"--data: {absent} is no folder" in refused(capsys, "--data", absent)
    message = f"--data: {tmp_path} lacks {pictures.TARGETS}, which show-anomaly needs"
    assert message in refused(capsys, "show-anomaly", "--data", tmp_path)


def test_a_command_that_fails_has_said_why(tmp_path, capsys):
    scene = tmp_path / pictures.SCENE
    scene.parent.mkdir()
    scene.write_bytes(b"no array")
    message = refused(capsys, "show-scene", "--data", tmp_path, "--out", tmp_path / "out")
    assert message.startswith("specfast show: ")
    assert str(scene) in message

"""The CSV log through crashes and resumes; TensorBoard events."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from specfast.train.logging import NAMES, CsvLog, Row, RunLog, read_log


def row(step: int, loss: float = 0.5) -> Row:
    return Row(step, loss, loss / 2, loss / 4, 1e-3, 1.0, 8 * step, 100.0, 0.1 * step)


@pytest.fixture
def path(tmp_path):
    log = CsvLog(tmp_path / "log.csv", 0)
    for step in range(1, 6):
        log.write(row(step))
    log.close()
    return tmp_path / "log.csv"


def test_rows_after_the_resumed_step_are_cut(path):
    log = CsvLog(path, 3)
    log.write(row(4, loss=0.25))
    log.close()
    assert [r["step"] for r in read_log(path)] == [1, 2, 3, 4]
    assert read_log(path)[-1]["loss"] == 0.25
    assert log.rows == read_log(path)
    assert list(log.rows[0]) == list(NAMES)


def test_a_line_that_was_cut_off_is_dropped(path):
    whole = read_log(path)
    with open(path, "a") as file:
        file.write("6,0.5,0.2")
    assert read_log(path) == whole
    log = CsvLog(path, 6)
    log.write(row(6))
    log.close()
    assert [r["step"] for r in read_log(path)] == [1, 2, 3, 4, 5, 6]


def test_rows_are_with_the_system_as_soon_as_written(tmp_path):
    log = CsvLog(tmp_path / "log.csv", 0)
    log.write(row(1))
    assert len(read_log(tmp_path / "log.csv")) == 1
    log.close()


def test_float32_survives(tmp_path):
    values = np.random.default_rng(0).random(200, dtype=np.float32)
    log = CsvLog(tmp_path / "log.csv", 0)
    for step, value in enumerate(values, start=1):
        log.write(row(step, loss=float(value)))
    log.close()
    assert [np.float32(r["loss"]) for r in read_log(tmp_path / "log.csv")] == list(values)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(NAMES) + "\n1,2\n", ",".join(NAMES) + "\n" + "x," * 8 + "x\n"])
def test_a_file_that_is_no_log_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"log\.csv: "):
        CsvLog(path, 0)
    assert path.read_text() == text


def test_tensorboard_events(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, step=0, steps=2, progress=False, tensorboard=True)
    log.write(row(1))
    log.write(row(2, loss=0.125))
    log.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in NAMES[1:]}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.125)]


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    plain = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.startswith(("torch.utils.tensorboard", "tensorboard")):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match=r"specfast\[tensorboard\]"):
        RunLog(tmp_path, step=0, steps=1, progress=False, tensorboard=True)


def test_progress_shows_loss_speed_and_steps(tmp_path, capsys):
    log = RunLog(tmp_path, step=0, steps=2, progress=True, tensorboard=False)
    for step in (1, 2):
        log.write(row(step))
        log.advance()
    log.say("said")
    log.close()
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss 0.5000, 100.0 samples/s" in shown
    assert "said\n" in shown

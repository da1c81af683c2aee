"""Scenes of any length in flat memory; runs that are stopped, killed, changed or started twice."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

from specfast.data import open as open_image
from specfast.errors import DataError
from specfast.infer import map_scene
from specfast.infer.spool import Spool

SAMPLES, BANDS = 40, 8
HEADER = f"""ENVI
samples = {SAMPLES}
lines = {{lines}}
bands = {BANDS}
header offset = 0
data type = 4
interleave = bil
byte order = 0
map info = {{{{UTM, 1, 1, 400000, 5800000, 5, 5, 33, North, WGS-84, units=Meters}}}}
wavelength units = Nanometers
wavelength = {{{{{", ".join(str(450 + 200 * band) for band in range(BANDS))}}}}}
fwhm = {{{{{", ".join(["10"] * BANDS)}}}}}
"""


def flightline(folder, lines: int):
    """A sparse ENVI file: zeros take no room on disk; every thousandth line holds something."""
    (folder / f"line{lines}.hdr").write_text(HEADER.format(lines=lines))
    path = folder / f"line{lines}.img"
    row_bytes = SAMPLES * BANDS * 4
    with path.open("wb") as file:
        file.truncate(lines * row_bytes)
        for line in range(0, lines, 1000):
            file.seek(line * row_bytes)
            file.write(np.full((BANDS, SAMPLES), 1 + line, dtype="<f4").tobytes())
    return open_image(path, gsd=5, sensor="others", level="L1")


@pytest.mark.parametrize("ending", ["npy", "img", "tif"])
def test_memory_does_not_grow_with_the_scene(bands, tmp_path, ending):
    peaks = {}
    for lines in (300, 1000, 8000):  # the first fills caches
        image = flightline(tmp_path, lines)
        tracemalloc.start()
        map_scene(image, bands(window=64), tmp_path / f"map{lines}.{ending}")
        peaks[lines] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[8000] < 1.2 * peaks[1000] + 100_000  # the map alone would be 2.5 MB


def test_a_long_flightline_is_mapped_line_by_line(bands, tmp_path):
    image = flightline(tmp_path, 8000)
    map_scene(image, bands(window=64), tmp_path / "map.npy")
    found = np.load(tmp_path / "map.npy", mmap_mode="r")
    assert found.shape == (2, 8000, SAMPLES)
    marked = found[0, :, 0]
    assert np.array_equal(np.flatnonzero(marked), np.arange(0, 8000, 1000))
    assert np.array_equal(marked[::1000], np.arange(1, 8001, 1000, dtype=np.float32))


class Stop(Exception):
    pass


def stopping(bands, after: int):
    """A predictor that gives up after so many windows."""

    class Stopping(bands):
        def __call__(self, samples):
            if self.seen >= after:
                raise Stop
            return super().__call__(samples)

    predictor = Stopping()
    predictor.__class__.__name__ = bands.__name__  # the run is told by its predictor, too
    return predictor


@pytest.mark.parametrize("after", [0, 5, 14, 27])
def test_a_stopped_run_goes_on_and_gives_the_same_bits(make_image, classes, tmp_path, after):
    image = make_image(90, 30, holes=((30, 0, 8, 30),))
    whole = map_scene(
        image, classes(overlap=0.6, context=5.0), tmp_path / "whole.npy", probabilities=True, batch_size=2
    )
    predictor = stopping(classes, after)
    predictor.overlap, predictor.context = 0.6, 5.0
    with pytest.raises(Stop):
        map_scene(image, predictor, tmp_path / "map.npy", probabilities=True, batch_size=2)
    assert not (tmp_path / "map.npy").exists()
    rest = classes(overlap=0.6, context=5.0)
    result = map_scene(image, rest, tmp_path / "map.npy", probabilities=True, batch_size=2)
    for name in ("map.npy", "map_probabilities.npy"):
        assert np.array_equal(
            np.load(tmp_path / name), np.load(tmp_path / name.replace("map", "whole")), equal_nan=True
        )
    if after > 5:
        assert 0 < result.resumed_rows < 90
        assert result.notes == [f"went on after row {result.resumed_rows} of 90 of an interrupted run"]
        assert result.pixels == (90 - result.resumed_rows) * 30 < whole.pixels
    assert not list(tmp_path.glob("*.partial"))


KILLED = """
    import os, signal, sys
    import numpy as np
    from pathlib import Path
    from specfast.data import open as open_image
    from specfast.infer import Predictor, map_scene

    class Mean(Predictor):
        outputs = ("mean",)
        window, overlap, identity = 32, 0.25, "mean"
        left = int(sys.argv[3])

        def __call__(self, samples):
            import torch
            Mean.left -= 1
            if Mean.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return torch.stack([sample.image.mean(dim=0, keepdim=True) for sample in samples])

    image = open_image(sys.argv[1], gsd=5, sensor="others", level="L1")
    result = map_scene(image, Mean(), sys.argv[2])
    print(result.resumed_rows)
"""


def test_a_killed_run_goes_on_and_the_older_file_stays_whole_until_then(tmp_path):
    cube = np.random.default_rng(0).random((400, BANDS, SAMPLES), dtype=np.float32)
    (tmp_path / "line.hdr").write_text(HEADER.format(lines=400))
    (tmp_path / "line.img").write_bytes(cube.tobytes())
    out = tmp_path / "map.tif"
    out.write_bytes(b"the older file")

    def run(windows: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "line.img", out, str(windows)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for windows in (17, 12):  # killed twice: the second run, too, goes on where the first stopped
        assert run(windows).returncode == -signal.SIGKILL
        assert out.read_bytes() == b"the older file"
    finished = run(-1)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 200
    with pytest.importorskip("rasterio").open(out) as file:
        np.testing.assert_allclose(file.read(1), cube.mean(axis=1), rtol=1e-5)
    assert not (tmp_path / "map.tif.partial").exists()


def test_rows_of_other_settings_are_thrown_away(make_image, bands, tmp_path):
    image = make_image(90, 30)
    with pytest.raises(Stop):
        map_scene(image, stopping(bands, 20), tmp_path / "map.npy")
    result = map_scene(image, bands(identity="other weights"), tmp_path / "map.npy")
    assert result.resumed_rows == 0
    assert result.notes == ["an interrupted run with other settings was found; begun anew"]


def test_another_scene_of_the_same_name_is_not_continued(make_image, bands, tmp_path):
    with pytest.raises(Stop):
        map_scene(make_image(90, 30, seed=1), stopping(bands, 20), tmp_path / "map.npy")
    image = make_image(90, 30, seed=2)
    assert map_scene(image, bands(), tmp_path / "map.npy").resumed_rows == 0
    assert np.array_equal(np.load(tmp_path / "map.npy"), image.read()[:2])


@pytest.mark.parametrize("given", ["line300.img", "line300.hdr"])
def test_a_scene_whose_pixels_were_rewritten_is_not_continued(bands, tmp_path, given):
    flightline(tmp_path, 300)
    told = {"gsd": 5, "sensor": "others", "level": "L1"}
    with pytest.raises(Stop):
        map_scene(open_image(tmp_path / given, **told), stopping(bands, 20), tmp_path / "map.npy")
    cube = np.random.default_rng(0).random((300, BANDS, SAMPLES), dtype=np.float32)
    (tmp_path / "line300.img").write_bytes(cube.tobytes())
    assert map_scene(open_image(tmp_path / given, **told), bands(), tmp_path / "map.npy").resumed_rows == 0
    assert np.array_equal(np.load(tmp_path / "map.npy"), cube[:, :2].transpose(1, 0, 2))


@pytest.mark.parametrize("names", [("first", "second"), ("s.first", "s.second")], ids=str)
def test_another_cube_of_one_file_is_not_continued(bands, tmp_path, names):
    import scipy.io

    cubes = {name: np.random.default_rng(seed).random((90, 30, 6)) for seed, name in enumerate(("first", "second"))}
    scipy.io.savemat(tmp_path / "scenes.mat", cubes if "." not in names[0] else {"s": cubes})
    told = {"wavelength": np.linspace(450, 2300, 6), "fwhm": [10] * 6, "gsd": 5, "sensor": "others", "level": "L1"}
    first, second = (open_image(tmp_path / "scenes.mat", variable=name, **told) for name in names)
    with pytest.raises(Stop):
        map_scene(first, stopping(bands, 20), tmp_path / "map.npy")
    assert map_scene(second, bands(), tmp_path / "map.npy").resumed_rows == 0


def test_a_result_is_not_cut_off_by_a_run_after_a_kill(make_image, bands, tmp_path, monkeypatch):
    """An ENVI result is a link to the rows; a run that was killed before it removed them leaves both."""
    image, out = make_image(90, 30), tmp_path / "map.img"
    with monkeypatch.context() as patched:
        patched.setattr(Spool, "remove", lambda self: self._close())
        map_scene(image, bands(), out)
    assert (tmp_path / "map.img.partial" / "layer0.rows").exists()
    before = out.read_bytes()
    with pytest.raises(Stop):
        map_scene(make_image(90, 30, seed=1), stopping(bands, 20), out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("damage", ["journal cut off", "rows cut off", "rows gone", "journal gone"])
def test_what_a_crash_left_is_checked(make_image, bands, tmp_path, damage):
    image = make_image(90, 30)
    with pytest.raises(Stop):
        map_scene(image, stopping(bands, 20), tmp_path / "map.npy")
    journal, rows = tmp_path / "map.npy.partial" / "journal.jsonl", tmp_path / "map.npy.partial" / "layer0.rows"
    finished = json.loads(journal.read_text().splitlines()[-1])["rows"]
    assert finished > 16
    if damage == "journal cut off":
        journal.write_bytes(journal.read_bytes()[:-6])
    elif damage == "rows cut off":
        os.truncate(rows, rows.stat().st_size - 1000)
    elif damage == "rows gone":
        rows.unlink()
    else:
        journal.unlink()
    result = map_scene(image, bands(), tmp_path / "map.npy")
    assert (result.resumed_rows > 0) == damage.endswith("cut off")
    assert result.resumed_rows < finished
    assert np.array_equal(np.load(tmp_path / "map.npy"), image.read()[:2])


def test_two_runs_do_not_write_one_file(make_image, bands, tmp_path):
    (tmp_path / "map.npy.partial").mkdir()
    with (tmp_path / "map.npy.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"map\.npy\.partial: another process is writing this result"):
            map_scene(make_image(20, 20), bands(), tmp_path / "map.npy")


def test_what_a_writer_did_not_finish_takes_no_room(make_image, bands, tmp_path):
    folder = tmp_path / "map.npy.partial"
    (folder / "result.zarr" / "values").mkdir(parents=True)
    (folder / "result.npy").write_bytes(b"half")
    with pytest.raises(Stop):
        map_scene(make_image(90, 30), stopping(bands, 20), tmp_path / "map.npy")
    assert not list(folder.glob("result*"))


def test_a_failing_writer_leaves_the_older_file_and_all_rows(make_image, bands, tmp_path, monkeypatch):
    from specfast.infer.writers import npy

    image, out = make_image(40, 30), tmp_path / "map.npy"
    out.write_bytes(b"the older file")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(npy.np.lib.format, "open_memmap", full)
        with pytest.raises(OSError, match="No space left"):
            map_scene(image, bands(), out)
    assert out.read_bytes() == b"the older file"
    again = bands()
    assert map_scene(image, again, out).resumed_rows == 40
    assert not again.seen
    assert np.array_equal(np.load(out), image.read()[:2])

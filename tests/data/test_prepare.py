"""Preparing a store: which tiles and bands are kept, and what interruptions, changes and mistakes lead to."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from specfast.cli import main
from specfast.data import SpectralImage, preparation, store_format, tiling
from specfast.data.preparation import prepare
from specfast.data.store import SpectralStore
from specfast.errors import DataError


def make_scene(bands=4, height=16, width=16, *, name="scene", seed=0, values=None, **kwargs) -> SpectralImage:
    if values is None:
        values = np.random.default_rng(seed).random((bands, height, width), dtype=np.float32)
    options = {"wavelength": np.linspace(450, 2300, len(values)), "fwhm": np.full(len(values), 8.0), "gsd": 4.0}
    return SpectralImage.from_array(values, **(options | {"sensor": "others", "level": "L2", "name": name} | kwargs))


@pytest.mark.parametrize(
    ("length", "tile", "stride", "expected"),
    [
        (512, 256, 256, [0, 256]),
        (513, 256, 256, [0, 256, 257]),
        (256, 256, 256, [0]),
        (100, 256, 256, [0]),
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (1, 1, 1, [0]),
    ],
)
def test_tile_starts(length, tile, stride, expected):
    assert tiling.tile_starts(length, tile, stride) == expected


class TestExamine:
    @pytest.fixture
    def image(self):
        return np.full((5, 4, 10), 0.5, dtype=np.float32)

    def test_clean(self, image):
        image[:, 0, :3] = [0.0, 1e-6, 2.5]
        verdict = tiling.examine(image, 2.5)
        assert verdict.valid.all()
        assert (verdict.invalid_share, verdict.masked_share, verdict.peak) == (0, 0, 2.5)
        assert verdict.rejected(0.0) == ""

    def test_a_value_above_the_maximum_makes_all_bands_of_its_pixel_invalid(self, image):
        image[2, 1, 3] = 2.6
        verdict = tiling.examine(image, 2.5)
        assert verdict.invalid_share == pytest.approx(5 / 200)
        assert (~verdict.valid).sum() == 1
        assert not verdict.valid[1, 3]
        assert verdict.rejected(0.0) == "above maximum"
        assert tiling.examine(image, None).valid.all()

    def test_negative_noise_counts_but_is_not_masked(self, image):
        image[:3] = -0.01
        verdict = tiling.examine(image, 2.5)
        assert verdict.invalid_share == pytest.approx(0.6)
        assert verdict.valid.all()
        assert verdict.rejected(0.2) == "negative"

    def test_undeclared_fill_values_are_masked(self, image):
        image[:, 0] = -9999
        verdict = tiling.examine(image, None)
        assert not verdict.valid[0].any()
        assert verdict.valid[1:].all()
        assert verdict.peak == 0.5

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_missing_band_masks_the_pixel_but_is_one_invalid_value(self, image, value):
        image[0, 0, 0] = value
        verdict = tiling.examine(image, 2.5)
        assert verdict.invalid_share == pytest.approx(1 / 200)
        assert not verdict.valid[0, 0]
        assert verdict.no_data.tolist() == [1, 0, 0, 0, 0]

    def test_a_band_without_data_rejects_though_its_share_is_small(self, image):
        image[4] = np.nan
        verdict = tiling.examine(image, 2.5)
        assert verdict.invalid_share == pytest.approx(0.2)
        assert verdict.masked_share == 1.0
        assert verdict.rejected(0.2) == "no data"


@pytest.mark.parametrize("peak", [0.0, 1e-30, 1e-6, 0.0624, 0.0625, 1.0, 32767.0, 32768.0, 65504.0, 65536.0, 1e7])
def test_float16_exponent_brings_the_peak_into_range(peak):
    exponent = tiling.float16_exponent(peak)
    if 0.0625 <= peak < 32768 or peak == 0:
        assert exponent == 0
    else:
        assert 0.0625 <= peak * 2.0**exponent <= 32768


def test_tiles_at_the_limit_of_invalid_values_are_kept():
    values = np.full((2, 10, 20), 0.5, dtype=np.float32)
    values[:, :2, :10] = np.nan  # a fifth of the first tile
    values[:, :2, 10:] = np.nan
    values[:, 2, 10] = np.nan  # one pixel more in the second
    seen = []
    store = prepare([make_scene(values=values)], tile=10, on_scene=lambda record, status: seen.append((record, status)))
    assert [(tile.row, tile.col) for tile in map(store.tile, range(len(store)))] == [(0, 0)]
    assert store.tile(0).valid_share == pytest.approx(0.8)
    ((record, status),) = seen
    assert record.rejected == {"no data": 1}
    assert status == "prepared"
    assert len(prepare([make_scene(values=values)], tile=10, max_invalid=0.21)) == 2


def test_published_maximum_depends_on_sensor_and_level():
    kept = {}
    for sensor, level, value in (
        ("aviris_classic", "L1", 31.0),
        ("aviris_ng", "L1", 31.0),
        ("aviris_3", "L2", 2.6),
        ("enmap", "L2", 2.6),
    ):
        values = np.full((3, 8, 8), 0.5, dtype=np.float32)
        values[0, 0, 0] = value
        scene = make_scene(values=values, sensor=sensor, level=level, wavelength=[450, 550, 650])
        kept[sensor] = prepare([scene]).tile(0).valid_share == 1.0
    assert kept == {"aviris_classic": False, "aviris_ng": True, "aviris_3": False, "enmap": True}
    with pytest.raises(DataError, match="above maximum"):
        prepare([make_scene(values=values)], max_value=0.4)


def test_bad_bands_and_water_bands_are_dropped():
    from specfast.data import sensors

    sensor = sensors()["aviris_classic"]
    good = np.ones(224, dtype=bool)
    good[[0, 110]] = False
    values = np.random.default_rng(0).random((224, 8, 8), dtype=np.float32)
    table = {"wavelength": sensor.wavelength, "fwhm": np.full(224, 9.0), "sensor": "aviris_classic"}
    water = [*range(103, 114), *range(152, 168)]
    for level, dropped in (("L2", {0, *water}), ("L1", {0, 110})):
        scene = make_scene(values=values, good_bands=good, level=level, **table)
        (record,) = prepare([scene]).scenes
        assert record.bands == [band for band in range(224) if band not in dropped]
        np.testing.assert_allclose(record.wavelength, np.asarray(sensor.wavelength)[record.bands])
        assert any("2 bands marked bad dropped" in note for note in record.notes)
        assert any("26 water bands" in note for note in record.notes) == (level == "L2")
    part = np.arange(90, 130)  # a file with some of the sensor's bands
    table |= {"wavelength": np.asarray(sensor.wavelength)[part], "fwhm": np.full(40, 9.0)}
    (record,) = prepare([make_scene(values=values[part], **table)]).scenes
    assert record.bands == [i for i, band in enumerate(part) if band not in water]


def test_only_one_tile_is_read_at_a_time(monkeypatch):
    scene, windows = make_scene(3, 64, 100), []
    read = type(scene).read

    def recording(self, window=None, bands=None):
        windows.append(window)
        return read(self, window, bands)

    monkeypatch.setattr(type(scene), "read", recording)
    store = prepare([scene], tile=16, stride=12)
    assert len(store) == len(set(windows) & {(t.row, t.col, 16, 16) for t in map(store.tile, range(len(store)))})
    assert max(height for _, _, height, _ in windows) == 16


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tile": 0}, "tile: expected at least 1"),
        ({"tile": 8, "stride": 9}, "stride: 9 is larger than the tile"),
        ({"max_invalid": 1.5}, "max_invalid"),
        ({"max_value": -1}, "max_value"),
        ({"max_value": float("nan")}, "max_value"),
    ],
)
def test_options_out_of_range(change, match):
    with pytest.raises(ValueError, match=match):
        prepare([make_scene()], **change)


def test_metadata_that_is_missing_is_named_with_its_flags(tmp_path):
    with pytest.raises(
        DataError,
        match=r"scene: wavelength, gsd, level not in the file; pass --sensor \.\.\. --gsd \.\.\. --level \.\.\. to",
    ):
        prepare([make_scene(wavelength=None, gsd=None, level=None)], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_values_that_are_no_measurement_are_refused():
    values = np.full((4, 16, 16), 0.5, dtype=np.float32)
    values[2, 3, 3] = 9.96921e36  # NetCDF's default fill value
    with pytest.raises(DataError, match=r"scene: band 2 .* value 9.96921e\+36, which is no measurement; .*--nodata"):
        prepare([make_scene(values=values)])
    assert len(prepare([make_scene(values=values)], max_value=10)) == 1


def test_nothing_kept_says_why():
    values = np.full((4, 16, 16), 0.5, dtype=np.float32)
    values[1] = np.nan
    with pytest.raises(DataError, match=r"(?s)no tile was kept.*scene: 1 tiles mostly no data.*bands 1 .*no data any"):
        prepare([make_scene(values=values)])


def test_reflectance_that_was_not_scaled_is_noticed():
    (record,) = prepare([make_scene(values=np.full((2, 8, 8), 4000.0, dtype=np.float32))]).scenes
    assert any("values up to 4000" in note and "--scale" in note for note in record.notes)


def test_two_scenes_of_one_name():
    with pytest.raises(DataError, match="scene: two different scenes have this name"):
        prepare([make_scene(seed=1), make_scene(seed=2)])
    assert len(prepare([make_scene(seed=1), make_scene(seed=1)])) == 1


class TestOnDisk:
    @pytest.fixture
    def files(self, tmp_path):
        """Three scenes as .npy files of the sensor CASI with 72 bands."""
        paths = []
        for number in range(3):
            path = tmp_path / f"scene{number}.npy"
            np.save(path, np.random.default_rng(number).random((72, 40, 24), dtype=np.float32))
            paths.append(path)
        return paths

    @pytest.fixture
    def run(self, tmp_path):
        def run(files, **options):
            statuses = []
            options = {"tile": 16, "sensor": "casi_1500", "level": "L1", "gsd": 1.0} | options
            on_scene = lambda record, status: statuses.append((record.name, status))  # noqa: E731
            store = prepare(files, tmp_path / "store", on_scene=on_scene, **options)
            return store, [status for _, status in statuses]

        return run

    def test_a_scene_that_is_done_is_not_done_again(self, run, files):
        store, statuses = run(files[:2])
        assert statuses == ["prepared"] * 2
        before = {path: path.stat().st_mtime_ns for path in (store.path / "scenes").iterdir()}
        again, statuses = run(files)
        assert statuses == ["already done", "already done", "prepared"]
        assert before.items() <= {path: path.stat().st_mtime_ns for path in (store.path / "scenes").iterdir()}.items()
        assert len(again) == 3 * len(store) // 2
        assert again.fingerprint == run(files)[0].fingerprint

    def test_a_source_that_changed_is_prepared_again(self, run, files):
        store, _ = run(files)
        np.save(files[1], np.random.default_rng(9).random((72, 40, 24), dtype=np.float32))
        again, statuses = run(files)
        assert statuses == ["already done", "changed, prepared again", "already done"]
        assert again.fingerprint != store.fingerprint
        assert len(list((store.path / "scenes").glob("*.f16"))) == 3
        again.verify()
        reread = SpectralStore.open(store.path)
        expected = np.load(files[1])[reread.scenes[1].bands, :16, :16]
        first = next(i for i in range(len(reread)) if reread.tile(i).scene.name == reread.scenes[1].name)
        np.testing.assert_allclose(reread.read(first).numpy(), expected, rtol=2**-11)

    def test_a_damaged_scene_is_prepared_again(self, run, files):
        store, _ = run(files)
        for path, damage in zip(sorted((store.path / "scenes").glob("*.f16"))[:2], (os.truncate, None), strict=True):
            damage(path, 5000) if damage else path.unlink()
        again, statuses = run(files)
        assert statuses == ["damaged, prepared again", "damaged, prepared again", "already done"]
        assert again.fingerprint == store.fingerprint
        SpectralStore.open(store.path).verify()

    def test_other_metadata_prepares_again(self, run, files):
        run(files[:1])
        assert run(files[:1], gsd=2.0)[1] == ["changed, prepared again"]
        assert run(files[:1], scale=2.0, gsd=2.0)[1] == ["changed, prepared again"]

    def test_other_options_are_an_error(self, run, files):
        run(files[:1])
        with pytest.raises(DataError, match=r"other options \(tile was 16, now 8; stride was 16, now 8\)"):
            run(files, tile=8)

    def test_options_of_a_store_without_tiles_may_change(self, run, files):
        with pytest.raises(DataError, match="no tile was kept"):
            run(files, max_value=1e-6)
        assert len(run(files)[0]) == 3 * 6

    def test_a_folder_with_other_things_is_refused(self, run, files, tmp_path):
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "thesis.tex").touch()
        with pytest.raises(DataError, match="neither empty nor a specfast store"):
            run(files)
        with pytest.raises(DataError, match=r"scene2.npy: a file is in the way"):
            prepare([make_scene()], files[2])

    def test_a_second_run_at_the_same_time_is_refused(self, run, files, tmp_path):
        def at_the_same_time(record, status):
            with pytest.raises(DataError, match="another specfast prepare is writing here"):
                run(files)

        prepare(
            files[:1], tmp_path / "store", on_scene=at_the_same_time, tile=16, sensor="casi_1500", level="L1", gsd=1
        )
        assert len(run(files)[0]) == 18

    def test_disk_full(self, run, files, monkeypatch):
        pack, packed = store_format.TileLayout.pack, []

        def full(self, values, valid):
            packed.append(1)
            if len(packed) > 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pack(self, values, valid)

        monkeypatch.setattr(store_format.TileLayout, "pack", full)
        with pytest.raises(DataError, match="no space left while writing scene scene1"):
            run(files)
        monkeypatch.undo()
        store, statuses = run(files)
        assert statuses == ["already done", "prepared", "prepared"]
        assert not list((store.path / "scenes").glob(".*"))

    def test_kill_leaves_a_usable_store(self, run, files, tmp_path):
        complete = prepare(files, tile=16, sensor="casi_1500", level="L1", gsd=1.0)
        script = (
            "import sys, time\n"
            "from specfast.data import preparation, store_format\n"
            "pack = store_format.TileLayout.pack\n"
            "def slow(*args):\n"
            "    print('tile', flush=True)\n"
            "    time.sleep(0.05)\n"
            "    return pack(*args)\n"
            "store_format.TileLayout.pack = slow\n"
            "preparation.prepare(sys.argv[2:], sys.argv[1], tile=16, sensor='casi_1500', level='L1', gsd=1.0)\n"
        )
        out = tmp_path / "store"
        for tiles, scenes in ((3, 0), (8, 1)):  # in the middle of the first scene, then of the second
            child = subprocess.Popen(
                [sys.executable, "-c", script, str(out), *map(str, files)], stdout=subprocess.PIPE, text=True
            )
            for _ in range(tiles):
                assert child.stdout.readline() == "tile\n"
            child.kill()
            assert child.wait() == -signal.SIGKILL
            child.stdout.close()
            assert len(list(out.glob("scenes/*.json"))) == scenes
            assert list(out.glob("scenes/.*.partial"))
        partial = SpectralStore.open(out)
        partial.verify()
        assert len(partial) == 6
        store, statuses = run(files)
        assert statuses == ["already done", "prepared", "prepared"]
        assert store.fingerprint == complete.fingerprint
        assert not list((out / "scenes").glob(".*"))
        for index in range(len(store)):
            assert torch.equal(store.read(index), complete.read(index))

    def test_a_run_stopped_between_tiles_and_record(self, run, files, monkeypatch):
        monkeypatch.setattr(preparation, "write_json", _stopping_at("scene1", preparation.write_json))
        with pytest.raises(KeyboardInterrupt):
            run(files)
        monkeypatch.undo()
        np.save(files[1], np.random.default_rng(9).random((72, 40, 24), dtype=np.float32))
        store, statuses = run(files)
        assert statuses == ["already done", "prepared", "prepared"]
        assert len(list((store.path / "scenes").glob("*.f16"))) == 3

    def test_command(self, files, tmp_path, capsys):
        flags = ["--tile", "16", "--sensor", "casi_1500", "--level", "L1", "--gsd", "1", "--quiet"]
        command = ["prepare", *map(str, files), str(tmp_path / "store"), *flags]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "scene0: prepared; 6 tiles of 16 x 16 kept, 0 left out" in said
        assert "18 tiles of 3 scenes, 0 left out" in said
        assert main([*command, "--verify"]) == 0
        said = capsys.readouterr().out
        assert "scene2: already done" in said
        assert "all 18 tiles verified" in said
        assert main(["prepare", "--verify", "--quiet", str(tmp_path / "store")]) == 0
        capsys.readouterr()
        assert main(["prepare", str(tmp_path / "store")]) == 2
        assert "expected scenes and then the folder" in capsys.readouterr().err
        assert main([*command, "--max-value", "1e-6"]) == 2
        assert "other options (max_value was None, now 1e-06)" in capsys.readouterr().err


def _stopping_at(name, write):
    def write_or_stop(path, content):
        if path.name.startswith(name):
            raise KeyboardInterrupt
        write(path, content)

    return write_or_stop


def test_real_scenes_of_several_sensors(shared, tmp_path):
    """EnMAP tiles and the Salton Sea scene: bad, water and out-of-range bands gone, values as in the files."""
    from specfast.data import open as open_image

    enmap = sorted((shared / "data" / "enmap_potsdam" / "images").glob("*.tif"))[:3]
    salton = shared / "data" / "aviris_salton_sea" / "salton_sea_roi.mat"
    store = prepare(
        [*enmap, open_image(salton, sensor="aviris_classic", level="L2", gsd=15.0)],
        tmp_path / "store",
        tile=32,
        max_invalid=1.0,
    )
    store.verify()
    bands = {record.sensor: len(record.bands) for record in store.scenes}
    assert bands["enmap"] == 218
    assert bands["aviris_classic"] <= 204
    image = open_image(enmap[0])
    record = next(record for record in store.scenes if record.source == str(enmap[0].resolve()))
    index = next(i for i in range(len(store)) if store.tile(i).scene is record)
    sample, expected = store.sample(index), image.read(bands=np.array(record.bands))
    valid = np.ones((32, 32), dtype=bool) if sample.valid is None else sample.valid.numpy()
    np.testing.assert_allclose(sample.image.numpy()[:, valid], expected[:, valid], rtol=2**-11, atol=2**-25)
    content = json.loads(next((tmp_path / "store" / "scenes").glob("*.json")).read_text())
    assert content["version"] == 1

"""The store's format and reading: what comes back, what is touched, what damage is noticed."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from specfast.data import SpectralImage
from specfast.data.preparation import prepare
from specfast.data.store import SpectralStore
from specfast.data.store_format import TileLayout
from specfast.errors import DataError


def make_scene(bands=6, height=20, width=21, *, name="scene", seed=0, scale=1.0, **kwargs) -> SpectralImage:
    """Return a scene of random reflectance that float16 holds exactly (multiples of 1/1024 below 1)."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1024, (bands, height, width)).astype(np.float32) / 1024 * scale
    options = {"wavelength": np.linspace(450, 2300, bands), "fwhm": np.full(bands, 8.0), "gsd": 4.0}
    options |= {"sensor": "others", "level": "L2", "name": name} | kwargs
    return SpectralImage.from_array(values, **options)


@pytest.fixture
def image():
    return make_scene()


@pytest.fixture(params=["disk", "memory"])
def store(request, image, tmp_path):
    return prepare([image], tmp_path / "store" if request.param == "disk" else None, tile=16)


def test_tiles_cover_the_scene_and_hold_its_values(store, image):
    covered = np.zeros(image.shape[1:], dtype=bool)
    assert len(store) == 4
    for index in range(len(store)):
        tile = store.tile(index)
        assert tile.shape == (6, 16, 16)
        assert tile.valid_share == 1.0
        expected = image.read((tile.row, tile.col, 16, 16))
        torch.testing.assert_close(store.read(index), torch.from_numpy(expected), rtol=0, atol=0)
        covered[tile.row : tile.row + 16, tile.col : tile.col + 16] = True
    assert covered.all()


@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("bands", [None, [4, 0, 5], slice(1, 4), np.array([2])], ids=["all", "list", "slice", "one"])
def test_windows_bands_and_flips(store, bands, flip):
    whole = store.read(3).numpy()
    part = store.read(3, (2, 5, 9, 7), bands, flip=flip).numpy()
    expected = whole[:, 2:11, 5:12][slice(None) if bands is None else bands]
    expected = expected[:, :: -1 if flip[0] else 1, :: -1 if flip[1] else 1]
    np.testing.assert_array_equal(part, expected)


def test_a_plane_larger_than_one_serial_copy():
    image = make_scene(2, 200, 300)
    store = prepare([image], tile=400)
    window = (3, 7, 190, 280)
    for flip in (False, True):
        expected = image.read(window)[:, :: -1 if flip else 1]
        np.testing.assert_array_equal(store.read(0, window, flip=(flip, False)).numpy(), expected)


def test_read_writes_into_a_strided_place(store):
    place = torch.full((6, 20, 20), -7.0)
    store.read(1, (0, 0, 8, 8), out=place[:, :8, :8])
    torch.testing.assert_close(place[:, :8, :8], store.read(1, (0, 0, 8, 8)), rtol=0, atol=0)
    assert (place[:, 8:] == -7).all()


def test_stores_on_disk_and_in_memory_are_the_same(image, tmp_path):
    disk, memory = prepare([image], tmp_path / "store", tile=16), prepare([image], tile=16)
    reopened = SpectralStore.open(tmp_path / "store")
    assert disk.fingerprint == memory.fingerprint == reopened.fingerprint
    for index in range(len(disk)):
        assert torch.equal(disk.read(index), memory.read(index))
        assert torch.equal(disk.read(index), reopened.read(index))


def test_sample_equals_the_images_own_sample(image):
    image = make_scene(width=24)
    store = prepare([image], tile=24)
    ours, theirs = store.sample(0, (1, 2, 8, 8), [5, 1]), image.sample((1, 2, 8, 8), np.array([5, 1]))
    torch.testing.assert_close(ours.image, torch.as_tensor(theirs.image), rtol=0, atol=0)
    for name in ("wavelength", "fwhm"):
        torch.testing.assert_close(
            getattr(ours, name).double(), torch.as_tensor(getattr(theirs, name)).double(), rtol=1e-6, atol=0
        )
    assert (ours.gsd, ours.sensor, ours.level) == (theirs.gsd, theirs.sensor, theirs.level)
    assert ours.valid is None


def test_valid_mask_in_windows_of_odd_widths():
    values = np.full((3, 13, 19), 0.5, dtype=np.float32)
    holes = np.random.default_rng(1).random((13, 19)) < 0.15
    values[:, holes] = np.nan
    image = SpectralImage.from_array(
        values, wavelength=[500, 600, 700], fwhm=[5, 5, 5], gsd=1.0, sensor="others", level="L2", name="holes"
    )
    store = prepare([image], tile=32)
    np.testing.assert_array_equal(store.read_valid(0), ~holes)
    np.testing.assert_array_equal(store.read_valid(0, (2, 3, 7, 11)), ~holes[2:9, 3:14])
    assert store.tile(0).valid_share == pytest.approx(1 - holes.mean())
    assert (store.read(0)[:, torch.from_numpy(holes)] == 0).all()
    assert bool(store.sample(0).valid[0, 0]) == (not holes[0, 0])


@pytest.mark.parametrize("scale", [2.0**-30, 1e-5, 1.0, 3e4, 1e6], ids=str)
def test_float16_keeps_eleven_bits_at_any_magnitude(scale):
    image = make_scene(scale=scale)
    stored, given = prepare([image], tile=32).read(0).numpy(), image.read()
    large = given > given.max() / 1000
    assert np.abs(stored / np.where(large, given, 1) - 1)[large].max() <= 2**-11
    assert np.isfinite(stored).all()


def test_concurrent_reads_and_more_scenes_than_open_maps(tmp_path, monkeypatch):
    monkeypatch.setattr("specfast.data.store._OPEN_MAPS", 2)
    images = [make_scene(name=f"s{n}", seed=n) for n in range(6)]
    store = prepare(images, tmp_path / "store", tile=32)
    with ThreadPoolExecutor(4) as pool:
        tiles = list(pool.map(lambda n: store.read(n % 6), range(60)))
    for n, tile in enumerate(tiles):
        np.testing.assert_array_equal(tile.numpy(), images[n % 6].read())


def resident_pages(path) -> np.ndarray:
    """Return which 4096-byte pages of a file lie in the page cache."""
    size = path.stat().st_size
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    address = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) == 0
    return (np.frombuffer(flags, dtype=np.uint8) & 1).astype(bool)


def drop_from_cache(path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="counts pages of 4096 bytes")
def test_a_crop_of_some_bands_fetches_only_its_pages(tmp_path):
    bands, side = 40, 128
    image = make_scene(bands, side, 2 * side)
    prepare([image], tmp_path / "store", tile=side)
    store = SpectralStore.open(tmp_path / "store")
    (file,) = (tmp_path / "store" / "scenes").glob("*.f16")
    drop_from_cache(file)
    if resident_pages(file).any():
        pytest.skip("this file system does not let go of its page cache")
    chosen, (row, rows) = [3, 11, 12, 30], (40, 64)
    part = store.read(1, (row, 8, rows, 100), chosen)
    layout = TileLayout(bands, side, side)
    wanted = np.zeros(file.stat().st_size // 4096, dtype=bool)
    for band in chosen:
        first = layout.stride + band * layout.plane + row * side * 2
        wanted[first // 4096 : -(-(first + rows * side * 2) // 4096)] = True
    np.testing.assert_array_equal(resident_pages(file), wanted)
    assert wanted.mean() < 0.04
    np.testing.assert_array_equal(part.numpy(), image.read((row, side + 8, rows, 100), np.array(chosen)))


@pytest.mark.parametrize(
    ("window", "bands", "error", "match"),
    [
        ((0, 0, 17, 4), None, ValueError, r"window: .*16 x 16.*\(0, 0, 17, 4\)"),
        ((-1, 0, 4, 4), None, ValueError, "window"),
        ((0, 0, 0, 4), None, ValueError, "window"),
        (None, [6], IndexError, "bands: expected 0 to 5, got 6"),
        (None, [-1], IndexError, "bands"),
    ],
)
def test_reading_outside_is_an_error(store, window, bands, error, match):
    with pytest.raises(error, match=match):
        store.read(0, window, bands)


def test_wrong_tile_or_output_is_an_error(store):
    for index in (4, -1):
        with pytest.raises(IndexError, match="tile: expected 0 to 3"):
            store.tile(index)
    with pytest.raises(ValueError, match=r"out: expected float32 \[6, 16, 16\]"):
        store.read(0, out=torch.empty(6, 16, 15))
    with pytest.raises(ValueError, match="out: expected float32"):
        store.read(0, out=torch.empty(6, 16, 16, dtype=torch.float16))


class TestDamage:
    @pytest.fixture
    def folder(self, image, tmp_path):
        prepare([image], tmp_path / "store", tile=16)
        return tmp_path / "store"

    @pytest.fixture
    def data(self, folder):
        (file,) = (folder / "scenes").glob("*.f16")
        return file

    def test_truncated(self, folder, data):
        os.truncate(data, data.stat().st_size - 1)
        with pytest.raises(DataError, match=rf"{data.name}: truncated: \d+ bytes, expected \d+"):
            SpectralStore.open(folder)

    def test_truncated_after_opening(self, folder, data):
        store = SpectralStore.open(folder)
        os.truncate(data, 4096)
        with pytest.raises(DataError, match="truncated"):
            store.read(0)

    def test_missing(self, folder, data):
        data.unlink()
        with pytest.raises(DataError, match=rf"{data.name}: the tiles of scene scene are missing"):
            SpectralStore.open(folder)

    def test_changed_bytes(self, folder, data):
        SpectralStore.open(folder).verify()
        content = bytearray(data.read_bytes())
        content[TileLayout(6, 16, 16).stride * 2 + 100] ^= 1
        data.write_bytes(content)
        with pytest.raises(DataError, match=r"tile scene\[row 4, col 0\] is damaged"):
            SpectralStore.open(folder).verify()

    def test_other_version(self, folder):
        index = folder / "store.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
        with pytest.raises(DataError, match="version 99 of the store format, this specfast reads version 1"):
            SpectralStore.open(folder)

    def test_broken_scene_record(self, folder):
        (record,) = (folder / "scenes").glob("*.json")
        content = json.loads(record.read_text())
        del content["wavelength"]
        record.write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"{record.name}: not a complete scene record .*wavelength"):
            SpectralStore.open(folder)
        record.write_text("{")
        with pytest.raises(DataError, match="not valid JSON"):
            SpectralStore.open(folder)

    def test_not_a_store(self, tmp_path):
        with pytest.raises(DataError, match=r"no specfast store here \(store.json is missing\)"):
            SpectralStore.open(tmp_path)

    def test_reading_never_writes_to_the_file(self, folder, data):
        before = data.read_bytes()
        store = SpectralStore.open(folder)
        store.read(0).fill_(9)
        store._map(0).bytes[:64] = 255
        assert data.read_bytes() == before

"""MATLAB files of both kinds: where the cube is, which axis the bands are, what structs say."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.io

from specfast.data import open as open_image
from specfast.errors import DataError

WAVELENGTH = np.array([450.0, 550, 650, 850, 1600])


@pytest.fixture
def hwc(cube):
    """The cube as MATLAB holds it, [H, W, C]."""
    return np.ascontiguousarray(cube.transpose(1, 2, 0)).astype("f4")


def write_v73(path, variables):
    """Write as MATLAB 7.3 does: 512 bytes of its own, axes reversed, classes as attributes, structs as groups."""
    with h5py.File(path, "w", userblock_size=512) as file:

        def put(group, values):
            for name, value in values.items():
                if isinstance(value, dict):
                    inner = group.create_group(name)
                    inner.attrs["MATLAB_class"] = np.bytes_("struct")
                    put(inner, value)
                    continue
                kind = {"f4": "single", "f8": "double", "i2": "int16"}.get(np.asarray(value).dtype.str[1:], "char")
                if isinstance(value, str):
                    value = np.array([[ord(c)] for c in value], dtype="u2").T
                dataset = group.create_dataset(name, data=np.atleast_2d(value).T)
                dataset.attrs["MATLAB_class"] = np.bytes_(kind)

        put(file, variables)
        file.create_dataset("#refs#/a", data=np.zeros((9, 9, 9)))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + b" " * 8 + b"\x00\x02IM")


@pytest.fixture(params=["v5", "v5-compressed", "v7.3"])
def write(request, tmp_path):
    def write(variables, name="scene.mat"):
        path = tmp_path / name
        if request.param == "v7.3":
            write_v73(path, variables)
        else:
            scipy.io.savemat(path, variables, do_compression="compressed" in request.param)
        return path

    return write


def test_cube_among_pictures_and_tables(write, hwc, cube):
    variables = {"rgb": np.zeros((60, 70, 3), "f8"), "X": hwc, "wl": WAVELENGTH[None] / 1000, "gt": np.zeros((6, 7))}
    image = open_image(write(variables))
    assert (image.shape, image.reader, image.dtype) == ((5, 6, 7), "mat", np.float32)
    np.testing.assert_allclose(image.wavelength, WAVELENGTH)
    np.testing.assert_array_equal(image.read(), cube)
    np.testing.assert_array_equal(image.read((1, 2, 3, 4), [4, 0, 0]), cube[[4, 0, 0], 1:4, 2:6])


def test_axis_of_the_bands_by_the_table(write, hwc, cube):
    for name, array in (("a", hwc), ("b", hwc.transpose(2, 0, 1)), ("c", hwc.transpose(0, 2, 1))):
        image = open_image(write({"X": array, "wavelengths": WAVELENGTH[:, None]}, f"{name}.mat"))
        np.testing.assert_array_equal(image.read(), cube)
        assert not any("axis" in note for note in image.assumptions)
    image = open_image(write({"X": hwc.transpose(2, 0, 1)}, "d.mat"))
    np.testing.assert_array_equal(image.read(), cube.transpose(2, 0, 1))
    assert any("axis 2 of (5, 6, 7) taken" in note for note in image.assumptions)
    given = open_image(write({"X": hwc.transpose(2, 0, 1)}, "e.mat"), wavelength=WAVELENGTH)
    np.testing.assert_array_equal(given.read(), cube)
    with pytest.raises(DataError, match=r"no axis of the array \(6, 7, 5\) has 4 bands"):
        open_image(write({"X": hwc}, "f.mat"), wavelength=WAVELENGTH[:4])


def test_square_cube_takes_the_last_axis_and_says_so(write):
    array = np.arange(125.0).reshape(5, 5, 5)
    image = open_image(write({"X": array, "wl": WAVELENGTH[None]}))
    np.testing.assert_array_equal(image.read(), array.transpose(2, 0, 1))
    assert any("several axes" in note for note in image.assumptions)


def test_several_cubes_are_asked_about(write, hwc):
    path = write({"before": hwc, "after": hwc + 1, "wl": WAVELENGTH[None]})
    with pytest.raises(DataError, match=r"scene.mat: several arrays .*(before|after) 6x7x5, .*variable=<name>"):
        open_image(path)
    np.testing.assert_array_equal(open_image(path, variable="after").read(), hwc.transpose(2, 0, 1) + 1)
    with pytest.raises(DataError, match=r"variable 'now' is none of its arrays with 3 axes: .*6x7x5"):
        open_image(path, variable="now")


def test_struct_with_a_header(write, hwc):
    info = {
        "samples": np.array([[7.0]]),
        "lines": np.array([[6.0]]),
        "wavelength": WAVELENGTH[None],
        "wavelength_units": "Nanometers",
        "fwhm": np.full((1, 5), 9.0),
        "bbl": np.array([[1.0, 1, 0, 1, 1]]),
        "data_ignore_value": np.array([[3.0]]),
        "map_info": "{ UTM , 1 , 1 , 500000 , 4000000 , 15.5 , 15.5 , 11 , North , WGS-84 , units=Meters }",
    }
    image = open_image(write({"scene": {"X": hwc, "info": info}, "wl": WAVELENGTH[None] / 1000}))
    assert image.shape == (5, 6, 7)
    np.testing.assert_array_equal(image.wavelength, WAVELENGTH)
    assert image.fwhm.tolist() == [9] * 5
    assert image.good_bands.tolist() == [True, True, False, True, True]
    assert (image.gsd, image.nodata, image.crs) == (15.5, 3, "EPSG:32611")
    assert image.transform == (15.5, 0, 500000, 0, -15.5, 4000000)
    assert not image.assumptions


def test_old_files_load_the_cube_when_first_read(tmp_path, monkeypatch, hwc):
    hwc = np.tile(hwc, (30, 30, 1))
    scipy.io.savemat(tmp_path / "a.mat", {"X": hwc, "wl": WAVELENGTH})
    load, loaded = scipy.io.loadmat, []
    monkeypatch.setattr(scipy.io, "loadmat", lambda *args, variable_names: loaded.append(variable_names) or load(*args))
    image = open_image(tmp_path / "a.mat")
    assert loaded == [["wl"]]
    image.read((0, 0, 1, 1))
    image.read((1, 1, 1, 1))
    assert loaded == [["wl"], ["X"]]


def test_new_files_are_read_by_window(tmp_path, monkeypatch):
    write_v73(tmp_path / "a.mat", {"X": np.zeros((64, 64, 50), "f4"), "wl": np.linspace(400, 2400, 50)[None]})
    asked, get = [], h5py.Dataset.__getitem__

    def count(self, key, **kwargs):
        result = get(self, key, **kwargs)
        asked.append(np.size(result))
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", count)
    image = open_image(tmp_path / "a.mat")
    assert sum(asked) == 50
    image.read((3, 4, 5, 6), [7, 30, 8])
    assert sum(asked) == 50 + 3 * 5 * 6


def test_hdf5_by_another_program_keeps_its_axes(tmp_path, hwc, cube):
    with h5py.File(tmp_path / "python.mat", "w") as file:
        file["X"], file["wavelength"] = hwc, WAVELENGTH
    np.testing.assert_array_equal(open_image(tmp_path / "python.mat").read(), cube)


class TestBadInput:
    def test_no_cube(self, write):
        with pytest.raises(DataError, match=r"scene.mat: holds no numeric array with 3 axes; it holds gt 6x7"):
            open_image(write({"gt": np.zeros((6, 7))}))

    def test_cut_off(self, write, hwc):
        path = write({"wl": WAVELENGTH[None], "X": np.tile(hwc, (9, 9, 1))})
        size = path.stat().st_size
        for keep in (size - 1, size // 2, 700, 200, 10):
            with path.open("r+b") as file:
                file.truncate(keep)
            with pytest.raises(DataError, match=r"scene.mat: .*cut off"):
                open_image(path)

    def test_complex(self, tmp_path, hwc):
        scipy.io.savemat(tmp_path / "a.mat", {"X": hwc * 1j})
        with pytest.raises(DataError, match=r"a.mat: .*complex"):
            open_image(tmp_path / "a.mat").read()

    def test_not_matlab(self, tmp_path):
        (tmp_path / "a.mat").write_text("this is a text, and a long one at that, of more than a header's bytes" * 9)
        with pytest.raises(DataError, match=r"a.mat: cannot be read as a MATLAB file"):
            open_image(tmp_path / "a.mat")

"""Readers against random files: what was written comes back, and what is damaged is one clear error or harmless."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specfast.data import open as open_image
from specfast.errors import DataError

from .conftest import AXES, ENVI_CODES

common = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
few, many = settings(max_examples=40, **common), settings(max_examples=100, **common)

UNITS = {  # as written, what a file's numbers are for wavelengths in nm
    "Nanometers": lambda nm: nm,
    "nm": lambda nm: nm,
    "Micrometers": lambda nm: nm / 1e3,
    "um": lambda nm: nm / 1e3,
    "Unknown": lambda nm: nm / 1e3,
    "": lambda nm: nm,
    "Wavenumber": lambda nm: 1e7 / nm,
    "GHz": lambda nm: 299_792_458.0 / nm,
}


@st.composite
def scenes(draw):
    """A cube, and the words of its header."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7)))
    dtype = draw(st.sampled_from(sorted(ENVI_CODES)))
    cube = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape).astype(dtype)
    # in any order, as where two detectors overlap, and no two alike
    wavelength = draw(st.lists(st.integers(380, 2500), min_size=shape[0], max_size=shape[0], unique=True))
    return {
        "cube": cube,
        "interleave": draw(st.sampled_from(sorted(AXES))),
        "order": draw(st.integers(0, 1)),
        "offset": draw(st.sampled_from([0, 1, 512])),
        "wavelength": np.array(wavelength, dtype=float),
        "unit": draw(st.sampled_from(sorted(UNITS))),
        "good": draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0])),
        "nodata": draw(st.sampled_from([None, 7, -9999])),
        "end": draw(st.sampled_from(["\n", "\r\n"])),
        "wrap": draw(st.integers(1, 4)),
        "upper": draw(st.booleans()),
        "comment": draw(st.booleans()),
    }


def listed(values, wrap: int) -> str:
    """A header's list with a line break after every ``wrap`` items."""
    parts = [f"{value}" for value in values]
    return "{" + ",\n  ".join(", ".join(parts[i : i + wrap]) for i in range(0, len(parts), wrap)) + "}"


def header_of(scene: dict) -> str:
    bands, lines, samples = scene["cube"].shape
    keys = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "header offset": scene["offset"],
        "file type": "ENVI Standard",
        "data type": ENVI_CODES[scene["cube"].dtype.str[1:]],
        "interleave": scene["interleave"],
        "byte order": scene["order"],
        "wavelength": listed(map(repr, UNITS[scene["unit"]](scene["wavelength"]).tolist()), scene["wrap"]),
        "bbl": listed((int(flag) for flag in scene["good"]), scene["wrap"]),
    }
    if scene["unit"]:
        keys["wavelength units"] = scene["unit"]
    if scene["nodata"] is not None:
        keys["data ignore value"] = scene["nodata"]
    lines = [f"{key.upper() if scene['upper'] else key} = {value}" for key, value in keys.items()]
    if scene["comment"]:
        lines.insert(3, "; bands = 99 {")
    return "\n".join(["ENVI", *lines, ""]).replace("\n", scene["end"])


def write(scene: dict, folder: Path) -> Path:
    """Write header and data; the header's path."""
    stored = scene["cube"].transpose(AXES[scene["interleave"]])
    content = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("<>"[scene["order"]])).tobytes()
    (folder / "scene.img").write_bytes(b"\xff" * scene["offset"] + content)
    (folder / "scene.hdr").write_bytes(header_of(scene).encode())
    return folder / "scene.hdr"


@pytest.fixture
def folder():
    """A folder that one test's examples share, unlike tmp_path's lifetime rules for hypothesis."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read_all(path: Path, **options):
    """Everything a reader is asked for; None where it refused with one clear error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(path, out_of_range="keep", **options)
            good, notes = image.good_bands, image.assumptions
            return image, image.read(), good, notes
        except DataError as error:
            text = str(error)
            assert str(path.with_suffix("")) in text, f"names no file: {text}"
            assert "\n" not in text.strip(), f"more than one line: {text}"
            return None


@many
@given(scene=scenes())
def test_what_was_written_as_envi_comes_back(folder, scene):
    found = read_all(write(scene, folder))
    assert found is not None
    image, values, good, notes = found
    expected = scene["cube"].astype(np.float32)
    if scene["nodata"] is not None:
        expected = np.where(scene["cube"].astype(float) == scene["nodata"], np.nan, expected)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(image.wavelength, scene["wavelength"], rtol=1e-9)
    marked = np.array(scene["good"])
    assert not good[~marked].any()  # a band marked bad never is good; one without any data is not, either
    np.testing.assert_array_equal(good, marked & np.isfinite(expected).any(axis=(1, 2)))
    if scene["unit"] in ("", "Unknown"):
        assert any("unit" in note for note in notes)


@many
@given(scene=scenes(), data=st.data())
def test_a_header_cut_off_anywhere_is_an_error_or_says_what_it_took_for_granted(folder, scene, data):
    path = write(scene, folder)
    whole, text = read_all(path), path.read_bytes()
    path.write_bytes(text[: data.draw(st.integers(0, len(text) - 1), label="length")])
    if (found := read_all(path)) is None:
        return
    image, values, _, notes = found
    if image.shape == whole[0].shape and not any("taken as" in note for note in notes):
        np.testing.assert_array_equal(np.nan_to_num(values), np.nan_to_num(scene["cube"].astype(np.float32)))


@many
@given(scene=scenes(), data=st.data())
def test_a_header_with_a_wrong_value_never_gives_bands_of_another_number(folder, scene, data):
    path = write(scene, folder)
    lines = path.read_text().splitlines()
    place = data.draw(st.integers(1, len(lines) - 1), label="line")
    junk = st.one_of(
        st.text(max_size=12),
        st.integers(-(10**30), 10**30).map(str),
        st.sampled_from(["nan", "inf", "{", "{}", "1e9", "-1", "\u0663"]),
    )
    lines[place] = f"{lines[place].partition('=')[0].strip()} = {data.draw(junk, label='value')}"
    path.write_text("\n".join(lines), encoding="utf-8")
    if (found := read_all(path)) is not None:
        image, values, good, _ = found
        assert values.shape == image.shape
        assert len(good) == image.shape[0]
        assert image.wavelength is None or len(image.wavelength) == image.shape[0]
        assert np.prod(image.shape) == scene["cube"].size


@few
@given(scene=scenes(), change=st.integers(-40, 40).filter(bool))
def test_data_of_another_size_are_refused(folder, scene, change):
    path = write(scene, folder)
    content = (folder / "scene.img").read_bytes()
    other = content[:change] if change < 0 else content + b"\0" * change
    (folder / "scene.img").write_bytes(other)
    with pytest.raises(DataError, match=r"scene\.img: holds \d+ bytes, but its header scene\.hdr asks for \d+"):
        open_image(path)


def cube_of_5() -> np.ndarray:
    return (np.arange(5 * 16 * 12).reshape(5, 16, 12) % 97).astype("f4")


def write_npy(path: Path) -> None:
    np.save(path, cube_of_5())


def write_mat(path: Path) -> None:
    values = {"cube": cube_of_5().transpose(1, 2, 0), "wavelength": np.array([450.0, 550, 650, 850, 1600])}
    scipy.io.savemat(path, values, do_compression=path.stem.endswith("z"))


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("cube", data=cube_of_5(), chunks=(5, 4, 4), compression="gzip")
        file["wavelength"] = np.array([450.0, 550, 650, 850, 1600])
        file["wavelength"].attrs["units"] = "nm"


def write_tiff(path: Path) -> None:
    options = {"driver": "GTiff", "count": 5, "height": 16, "width": 12, "dtype": "float32", "compress": "deflate"}
    with warnings.catch_warnings(), rasterio.open(path, "w", **options) as raster:
        warnings.simplefilter("ignore")
        raster.write(cube_of_5())


FORMATS = {
    "scene.npy": write_npy,
    "plain.mat": write_mat,
    "scene_z.mat": write_mat,
    "scene.h5": write_hdf5,
    "scene.tif": write_tiff,
}


@pytest.fixture(params=FORMATS)
def written(request, folder):
    path = folder / request.param
    FORMATS[request.param](path)
    assert read_all(path) is not None
    return path


@many
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_one_clear_error_or_whole(written, data):
    """Some formats end with what no reader needs."""
    content = written.read_bytes()
    short = written.with_name("cut_" + written.name)
    short.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    found = read_all(short)
    if found is not None:
        np.testing.assert_array_equal(found[1], cube_of_5())


@many
@given(data=st.data())
def test_a_file_with_wrong_bytes_is_one_clear_error_or_an_image(written, data):
    content = bytearray(written.read_bytes())
    for _ in range(data.draw(st.integers(1, 4), label="bytes")):
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        content[place] = data.draw(st.integers(0, 255), label="value")
    wrong = written.with_name("wrong_" + written.name)
    wrong.write_bytes(content)
    found = read_all(wrong)
    if found is not None:
        assert found[1].shape == found[0].shape


@few
@given(
    content=st.binary(max_size=400), ending=st.sampled_from([".hdr", ".img", ".mat", ".npy", ".tif", ".nc", ".h5", ""])
)
def test_any_bytes_are_no_crash(folder, content, ending):
    path = folder / f"any{ending}"
    path.write_bytes(content)
    read_all(path)
    shutil.rmtree(folder)
    folder.mkdir()


def test_the_error_of_a_damaged_file_names_it_and_the_cause(written):
    short = written.with_name("cut_" + written.name)
    short.write_bytes(written.read_bytes()[: len(written.read_bytes()) // 2])
    with pytest.raises(DataError, match=re.escape(str(short))):
        open_image(short).read()

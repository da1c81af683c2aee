"""NumPy files."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.data import open as open_image
from specfast.errors import DataError

WAVELENGTH = [450, 550, 650, 850, 1600]


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", ">u4", "f2", "f4", ">f4", "f8", "i8", "?"])
@pytest.mark.parametrize("fortran", [False, True], ids=["C", "F"])
def test_types_and_orders(tmp_path, cube, dtype, fortran):
    values = cube.astype(dtype)
    stored = values.transpose(1, 2, 0)
    np.save(tmp_path / "a.npy", np.asfortranarray(stored) if fortran else np.ascontiguousarray(stored))
    image = open_image(tmp_path / "a.npy", wavelength=WAVELENGTH, fwhm=[9] * 5, gsd=1, sensor="others", level="L2")
    assert (image.shape, image.reader, image.dtype) == ((5, 6, 7), "npy", np.dtype(dtype))
    np.testing.assert_array_equal(image.read((1, 2, 3, 4), [3, 1]), values[[3, 1], 1:4, 2:6].astype("f4"))
    assert image.sample().image.shape == (5, 6, 7)


def test_bands_first(tmp_path, cube):
    np.save(tmp_path / "a.npy", cube)
    np.testing.assert_array_equal(open_image(tmp_path / "a.npy", wavelength=WAVELENGTH).read(), cube)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), r"expected an array with 3 axes, got shape \(3, 4\)"),
        (np.zeros((3, 4, 0)), r"at least one band and one pixel"),
        (np.zeros((3, 4, 5), complex), r"expected real numbers, got complex128"),
        (np.array([{"a": 1}]), "cannot be read as a NumPy array"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a.npy: .*{message}"):
        open_image(tmp_path / "a.npy")


@pytest.mark.parametrize("keep", [300, 100, 8])
def test_cut_off(tmp_path, cube, keep):
    np.save(tmp_path / "a.npy", cube)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(keep)
    with pytest.raises(DataError, match=r"a.npy: cannot be read as a NumPy array .* cut off"):
        open_image(tmp_path / "a.npy")

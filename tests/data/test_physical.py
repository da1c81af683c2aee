"""Stored numbers become physical values: whatever their order in memory, and however many are worked on at once."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.data import physical as module
from specfast.data.physical import physical

SCALE, OFFSET = np.array([2.0, 4.0, 8.0, 16.0, 32.0]), np.linspace(-1, 1, 5)


@pytest.fixture(params=[1, 60, 2**20], ids=lambda numbers: f"{numbers} at once")
def at_once(request, monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", request.param)


def stored(dtype, order):
    """[5, 9, 6] with a number 7 in pixel (4, 2) and, where the type has it, an infinity in pixel (8, 5)."""
    cube = np.random.default_rng(0).integers(8, 200, (5, 9, 6)).astype(dtype)
    cube[3, 4, 2] = 7
    if cube.dtype.kind == "f":
        cube[0, 8, 5] = np.inf
    return np.ascontiguousarray(cube.transpose(order)).transpose(np.argsort(order))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)], ids=["bsq", "bil", "bip"])
@pytest.mark.parametrize("dtype", ["u1", ">i2", "i4", "f4", ">f8"])
@pytest.mark.parametrize("factors", [(1.0, 0.0), (100.0, -0.5), (SCALE, OFFSET)], ids=["plain", "scaled", "by band"])
@pytest.mark.usefixtures("at_once")
def test_values_and_valid_pixels(order, dtype, factors):
    cube = stored(dtype, order)
    scale, offset = (np.reshape(factor, (-1, 1, 1)) for factor in factors)
    expected = cube.astype(np.float64) / scale + offset
    expected[3, 4, 2] = np.nan
    expected[np.isinf(expected)] = np.nan
    values, valid = physical(cube, 7, *factors)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert np.argwhere(~valid).tolist() == [[4, 2], *([[8, 5]] if cube.dtype.kind == "f" else [])]


@pytest.mark.usefixtures("at_once")
def test_without_bands_no_pixel_lacks_one():
    values, valid = physical(np.zeros((0, 3, 4), dtype=np.int16), None, 1.0, 0.0)
    assert values.shape == (0, 3, 4)
    assert valid.all()

"""Files in the formats that the readers take, written small."""

from __future__ import annotations

import numpy as np
import pytest

ENVI_CODES = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12, "u4": 13, "i8": 14, "u8": 15}
AXES = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


@pytest.fixture
def write_envi(tmp_path):
    """Write a cube [C, H, W] as ENVI; ``more`` adds header lines, ``skip`` leaves keys out. Returns the header."""

    def write(cube, *, interleave="bsq", order=0, offset=0, more="", skip=(), name="scene.img", header="scene.hdr"):
        bands, lines, samples = cube.shape
        dtype = cube.dtype.newbyteorder("<>"[order])
        content = np.ascontiguousarray(cube.transpose(AXES[interleave])).astype(dtype).tobytes()
        (tmp_path / name).write_bytes(b"\xff" * offset + content)
        keys = {
            "samples": samples,
            "lines": lines,
            "bands": bands,
            "header offset": offset,
            "file type": "ENVI Standard",
            "data type": ENVI_CODES[cube.dtype.str[1:]],
            "interleave": interleave,
            "byte order": order,
        }
        lines = [f"{key} = {value}" for key, value in keys.items() if key not in skip]
        (tmp_path / header).write_text("\n".join(["ENVI", *lines, more]) + "\n")
        return tmp_path / header

    return write


@pytest.fixture
def cube():
    """A cube [5, 6, 7] of whole numbers below 100, each of them once or twice."""
    return (np.random.default_rng(0).permutation(210) % 100).reshape(5, 6, 7)


@pytest.fixture
def bands():
    """Header lines with wavelengths of five bands in nm and their widths."""
    return "wavelength units = Nanometers\nwavelength = {450, 550, 650,\n 850, 1600}\nfwhm = {8, 8, 9, 9, 12}"

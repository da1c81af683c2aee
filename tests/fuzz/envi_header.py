"""Any bytes as an ENVI header: one DataError, or an image whose tables fit its bands. Run by `make fuzz`."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["specfast.data"]):
    from specfast.data import open as open_image
    from specfast.errors import DataError

START = b"""ENVI
samples = 2
lines = 3
bands = 2
header offset = 0
data type = 1
interleave = bsq
byte order = 0
wavelength units = nm
wavelength = {500, 600}
fwhm = {10, 10}
bbl = {1, 0}
data ignore value = 7
reflectance scale factor = 100
map info = {UTM, 1, 1, 400000, 5000000, 30, 30, 33, North, WGS-84, units=Meters, rotation=10}
sensor type = AVIRIS
"""
folder = Path(tempfile.mkdtemp(prefix="specfast-fuzz-"))
(folder / "scene.img").write_bytes(bytes(range(12)))
header = folder / "scene.hdr"


def one(data: bytes) -> None:
    header.write_bytes(data)
    try:
        image = open_image(header, out_of_range="keep")
        values, good = image.read(), image.good_bands
    except DataError:
        return
    assert values.shape == image.shape
    assert len(good) == image.shape[0]
    assert image.wavelength is None or len(image.wavelength) == image.shape[0]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "start").write_bytes(START)
    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()

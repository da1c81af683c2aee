"""Label maps from files, and what is said of files that are none."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.errors import DataError
from specfast.evaluate import read_labels

LABELS = np.array([[0, 1, 2], [3, 0, 16]], dtype=np.uint8)


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", LABELS.astype(np.float32))
    assert np.array_equal(read_labels(tmp_path / "a.npy"), LABELS)
    assert read_labels(tmp_path / "a.npy").dtype == np.int64


def test_mat(tmp_path):
    import scipy.io

    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"gt": LABELS, "count": 16, "names": ["a", "b"]})
    assert np.array_equal(read_labels(path), LABELS)
    scipy.io.savemat(path, {"gt": LABELS, "train": LABELS * 2})
    assert np.array_equal(read_labels(path, "train"), LABELS * 2)
    with pytest.raises(DataError, match=r"a\.mat: expected one label map, found gt, train; name one"):
        read_labels(path)
    with pytest.raises(DataError, match="no label map named 'test'; it holds gt, train"):
        read_labels(path, "test")


def test_mat_of_version_7_3(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["gt"] = LABELS.T
    header = b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(header)
    assert np.array_equal(read_labels(path), LABELS)


def test_geotiff_nodata_is_unlabelled(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    options = {"driver": "GTiff", "height": 2, "width": 3, "dtype": "uint8", "nodata": 16}
    transform = rasterio.Affine(30, 0, 0, 0, -30, 0)
    with rasterio.open(path, "w", count=1, transform=transform, **options) as file:
        file.write(LABELS, 1)
    assert np.array_equal(read_labels(path), [[0, 1, 2], [3, 0, 0]])
    assert np.array_equal(read_labels(path, nodata_as=65535), [[0, 1, 2], [3, 0, 65535]])
    with rasterio.open(path, "w", count=2, transform=transform, **options) as file:
        file.write(np.stack([LABELS, LABELS]))
    with pytest.raises(DataError, match="expected one band of labels, got 2"):
        read_labels(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "no pixel has a class"),
        (LABELS / 2, "whole numbers"),
        (LABELS.astype(np.int16) - 1, "got -1 to 15"),
        (LABELS.ravel(), r"\[height, width\], got shape \[6\]"),
        (np.where(LABELS == 0, np.nan, LABELS), "NaN"),
        (LABELS.astype(str), "expected numbers of classes"),
    ],
)
def test_arrays_that_are_no_label_maps(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy: .*{message}"):
        read_labels(tmp_path / "a.npy")


def test_an_empty_map_among_several(tmp_path):
    np.save(tmp_path / "a.npy", LABELS * 0)
    assert not read_labels(tmp_path / "a.npy", allow_empty=True).any()


@pytest.mark.parametrize("suffix", [".npy", ".mat", ".tif"])
def test_broken_files(tmp_path, suffix):
    if suffix == ".tif":
        pytest.importorskip("rasterio")
    path = tmp_path / f"a{suffix}"
    with pytest.raises(FileNotFoundError, match="no such label file"):
        read_labels(path)
    path.write_bytes(b"neither this nor that" * 20)
    with pytest.raises(DataError, match=f"a\\{suffix}: not a readable"):
        read_labels(path)


def test_unknown_kind(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected one of \.npy, \.mat, \.tif, \.tiff"):
        read_labels(tmp_path / "a.png")

"""SpectralBatch: packing, padding, validity, metadata checks."""

from __future__ import annotations

import pytest
import torch

from specfast import SpectralBatch, SpectralSample


def arrays(samples=2, bands=3, size=8):
    return {
        "image": torch.rand(samples, bands, size, size),
        "wavelength": torch.linspace(400, 900, bands).expand(samples, -1),
        "fwhm": torch.full((samples, bands), 10.0),
        "gsd": torch.tensor([5.0, 30.0])[:samples],
        "sensor": ["avc", "AVIRIS-3"],
        "level": ["L1", "reflectance"],
    }


def test_from_arrays_packs_without_copying_meaning():
    values = arrays()
    batch = SpectralBatch.from_arrays(**values)
    assert batch.image.shape == (6, 8, 8)
    assert torch.equal(batch.image[3:], values["image"][1])
    assert batch.cu_bands.tolist() == [0, 3, 6]
    assert batch.cu_bands.dtype == torch.int32
    assert (batch.sensor, batch.level) == (("avc", "av3"), ("L1", "L2"))
    assert batch.valid is None
    assert batch.extent is None
    assert len(batch) == 2


def test_shared_metadata_are_expanded():
    values = arrays() | {"wavelength": [400, 500, 600], "fwhm": [9, 9, 9], "gsd": 4, "sensor": "avng", "level": "L1"}
    batch = SpectralBatch.from_arrays(**values)
    assert batch.wavelength.tolist() == [400, 500, 600] * 2
    assert batch.gsd.tolist() == [4, 4]
    assert torch.equal(batch.attributes[0], batch.attributes[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_pixels_become_invalid_in_every_band(bad):
    values = arrays()
    values["image"][1, 2, 4, 5] = bad
    batch = SpectralBatch.from_arrays(**values)
    assert (~batch.valid).nonzero().tolist() == [[1, 4, 5]]
    assert not batch.image[3:, 4, 5].any()
    assert torch.isfinite(batch.image).all()


def test_a_band_without_data_is_named_instead_of_making_all_pixels_invalid():
    values = arrays()
    values["image"][1, 2] = float("nan")
    with pytest.raises(ValueError, match="image: band 2 of sample 1 holds no finite value"):
        SpectralBatch.from_arrays(**values)
    values["image"][1] = float("nan")  # a sample that saw nothing at all is merely invalid
    assert not SpectralBatch.from_arrays(**values).valid[1].any()


def test_samples_of_different_size_are_padded_with_invalid_pixels():
    def sample(bands, height, width):
        return SpectralSample(
            torch.rand(bands, height, width) + 1, torch.linspace(500, 600, bands), torch.ones(bands), 1.0, "avc", "L1"
        )

    samples = [sample(4, 10, 10), sample(2, 16, 20)]
    batch = SpectralBatch.from_samples(samples)
    assert batch.image.shape == (6, 16, 24)
    assert batch.extent.tolist() == [[10, 10], [16, 20]]
    assert batch.valid[0, :10, :10].all()
    assert batch.valid.sum() == 100 + 320
    assert not batch.image[:4, 10:].any()
    assert torch.equal(batch.image[4:, :16, :20], samples[1].image)
    assert SpectralBatch.from_samples([sample(3, 8, 16)]).valid is None
    assert SpectralBatch.from_samples([sample(3, 9, 16)], patch_size=4).image.shape == (3, 12, 16)


def test_to_keeps_metadata_in_float32():
    batch = SpectralBatch.from_arrays(**arrays()).to("cpu", torch.bfloat16)
    assert batch.image.dtype == torch.bfloat16
    assert batch.wavelength.dtype == batch.gsd.dtype == torch.float32
    assert batch.cu_bands.dtype == torch.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"wavelength": torch.tensor([0.4, 0.5, 0.6])},
            r"wavelength: sample 0, band 0 is 0\.4; expected 350 to 2550 nm \(micromet",
        ),
        ({"wavelength": torch.tensor([400.0, 3000.0, 500.0])}, r"wavelength: sample 0, band 1 is 3000"),
        ({"fwhm": torch.tensor([9.0, 9.0, 0.0])}, r"fwhm: sample 0, band 2 is 0; expected a positive number of nm"),
        ({"fwhm": torch.tensor([9.0, float("nan"), 9.0])}, r"fwhm: sample 0, band 1 is nan"),
        ({"wavelength": torch.linspace(400, 500, 4)}, r"wavelength: expected shape \[2, 3\] or \[3\] .*; got \[4\]"),
        ({"gsd": torch.tensor([1.0, -2.0])}, r"gsd: expected positive numbers of m, got \[1\.0, -2\.0\]"),
        ({"gsd": torch.ones(3)}, r"gsd: expected one number or \[2\], got shape \[3\]"),
        ({"level": "L3"}, r"level: unknown processing level 'L3'; expected one of L1"),
        ({"sensor": ["avc"]}, r"sensor: expected one name or 2 names, got 1"),
        ({"sensor": ""}, r"sensor: expected a sensor's name, got ''"),
        ({"image": torch.rand(3, 8, 8)}, r"image: expected 4 dimensions, got shape \[3, 8, 8\]"),
        ({"image": torch.rand(0, 3, 8, 8)}, r"image: expected at least one sample and one band"),
        ({"valid": torch.ones(2, 8, 7, dtype=torch.bool)}, r"valid: expected \[2, 8, 8\] to match image"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        SpectralBatch.from_arrays(**arrays() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"band_counts": (0, 6)}, r"band_counts: expected at least one band in each sample, got \(0, 6\)"),
        ({"band_counts": (3, 2)}, r"image: expected shape \[5, 8, 8\] for band_counts \(3, 2\); got \[6, 8, 8\]"),
        ({"fwhm": torch.ones(5)}, r"fwhm: expected shape \[6\]"),
        ({"gsd": torch.ones(1)}, r"gsd: expected shape \[2\]"),
        ({"sensor": ["avc"]}, "sensor: expected 2 names, got 1"),
        ({"valid": torch.ones(2, 8, 7, dtype=torch.bool)}, r"valid: expected shape \[2, 8, 8\]"),
        ({"extent": torch.ones(3, 2)}, r"extent: expected shape \[2, 2\]"),
        ({"wavelength": torch.tensor([400.0, 500, 600, 400, 9000, 600])}, r"wavelength: sample 1, band 1 is 9000"),
    ],
)
def test_packed_arguments_must_fit_each_other(change, message):
    values = {
        "image": torch.rand(6, 8, 8),
        "wavelength": torch.linspace(400, 900, 6),
        "fwhm": torch.ones(6),
        "band_counts": (3, 3),
        "gsd": torch.ones(2),
        "sensor": ["avc", "avc"],
        "level": ["L1", "L1"],
        "valid": None,
        "extent": None,
    }
    assert SpectralBatch.from_packed(**values).max_bands == 3
    with pytest.raises(ValueError, match=message):
        SpectralBatch.from_packed(**values | change)


def test_errors_of_samples_name_the_sample():
    good = SpectralSample(torch.rand(2, 8, 8), torch.tensor([400.0, 500]), torch.ones(2), 1.0, "avc", "L1")
    bad = SpectralSample(torch.rand(2, 8, 8), torch.tensor([0.4, 0.5]), torch.ones(2), 1.0, "avc", "L1")
    with pytest.raises(ValueError, match=r"samples\[1\]: wavelength: band 0"):
        SpectralBatch.from_samples([good, bad])
    with pytest.raises(ValueError, match="at least one sample"):
        SpectralBatch.from_samples([])

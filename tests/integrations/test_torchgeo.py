"""TorchGeo's samples, which are plain dictionaries, as SpectralBatch."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from specfast.data import band_table, find_sensor
from specfast.integrations.torchgeo import SpectralDataset, SpectralTransform, bands_of_dataset, collate
from tests.models.conftest import make_model

TABLE = band_table("enmap", "L2", bands=range(40, 46))


def sample(height: int = 16, width: int = 16, seed: int = 0, **changes) -> dict:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(100, 6000, (6, height, width), generator=generator, dtype=torch.int16)
    mask = torch.randint(1, 4, (height, width), generator=generator)
    return {"image": image, "mask": mask, "crs": "EPSG:32633", **changes}


class Samples(Dataset):
    bands, wavelengths = None, None

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return dict(self.samples[index])


def test_a_loader_yields_batches_a_model_takes():
    dataset = SpectralDataset(Samples(sample(), sample(seed=1)), SpectralTransform(TABLE, scale=10000))
    assert len(dataset) == 2
    (batch,) = DataLoader(dataset, batch_size=2, collate_fn=collate)
    assert set(batch) == {"spectral", "mask", "crs"}
    assert batch["crs"] == ["EPSG:32633"] * 2
    assert torch.equal(batch["mask"], torch.stack([sample()["mask"], sample(seed=1)["mask"]]))
    spectral = batch["spectral"]
    assert torch.equal(spectral.wavelength[6:], TABLE.wavelength)
    torch.testing.assert_close(spectral.image[:6], sample()["image"].float() / 10000)
    with torch.no_grad():
        assert make_model("encoder").eval()(spectral).tokens.shape == (2, 4, 32)


def test_samples_of_other_sizes_are_padded_with_invalid_pixels_and_masks_with_0():
    transform = SpectralTransform(TABLE, scale=10000)
    samples = [
        transform(sample(height, width, mask=torch.ones(1, height, width), label=torch.tensor(label)))
        for label, height, width in ((1, 16, 20), (2, 10, 16))
    ]
    batch = collate(samples, patch_size=8)
    assert batch["spectral"].image.shape == (12, 16, 24)
    assert batch["mask"].shape == (2, 1, 16, 24)
    assert torch.equal(batch["mask"][:, 0].bool(), batch["spectral"].valid)
    assert batch["label"].tolist() == [1, 2]
    filled = collate(samples, mask_fill=255)["mask"]
    assert set(filled.unique().tolist()) == {1.0, 255.0}


def test_sensors_mix_in_one_batch():
    other = SpectralTransform(band_table("emit", "L2", bands=range(50)), scale=1.0)
    unlabelled = {"image": torch.rand(50, 16, 16), "mask": 0, "crs": ""}
    batch = collate([SpectralTransform(TABLE, scale=10000)(sample()), other(unlabelled)])
    assert batch["spectral"].band_counts == (6, 50)
    assert isinstance(batch["mask"], list)


def test_nodata_and_offset():
    stored = sample()["image"]
    stored[2, 3, 4] = -32768
    spectral = SpectralTransform(TABLE, scale=500.0, offset=-2.0, nodata=-32768)({"image": stored})["spectral"]
    assert spectral.image[2, 3, 4].isnan()
    assert float(spectral.image[0, 0, 0]) == pytest.approx(float(stored[0, 0, 0]) / 500 - 2)
    valid = collate([{"spectral": spectral}])["spectral"].valid
    assert valid.sum() == 255
    assert not valid[0, 3, 4]


def test_values_that_cannot_be_physical_are_refused_at_the_first_sample():
    transform = SpectralTransform(TABLE)
    with pytest.raises(ValueError, match=r"image: scale: none given, but values up to .* pass scale=10000"):
        transform(sample())
    assert SpectralTransform(TABLE, scale=1)(sample())["spectral"].image.max() > 1000
    transform({"image": torch.rand(6, 8, 8)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpectralTransform(TABLE, scale=0), "scale: expected a positive number; got 0"),
        (lambda: SpectralTransform(TABLE)({"mask": 1}), "sample: expected the key 'image'; got mask"),
        (lambda: SpectralTransform(TABLE)({"image": torch.rand(5, 8, 8)}), r"with C=6 bands; got \[5, 8, 8\]"),
        (lambda: collate([{"image": torch.rand(6, 8, 8)}]), r"samples\[0\]: expected the keys image, spectral"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_keys_and_shapes_must_agree():
    transform = SpectralTransform(TABLE, scale=10000)
    one, other = transform(sample()), transform(sample())
    del other["crs"]
    with pytest.raises(ValueError, match=r"samples\[1\]: expected the keys crs, mask, spectral"):
        collate([one, other])
    other |= {"crs": "", "mask": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"mask: expected tensors of one shape.*got \[16, 16\], \[3\]"):
        collate([one, other])


def test_bands_by_name_in_micrometers():
    sensor = find_sensor("enmap")
    wavelengths = {f"B{n + 1}": value / 1000 for n, value in enumerate(sensor.wavelength)}
    table = bands_of_dataset(types.SimpleNamespace(bands=("B10", "B3"), wavelengths=wavelengths), "enmap", "L2")
    np.testing.assert_allclose(table.wavelength, sensor.wavelength[[9, 2]], rtol=1e-6)
    np.testing.assert_allclose(table.fwhm, sensor.fwhm[[9, 2]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"dataset\.wavelengths: has none for B300"):
        bands_of_dataset(types.SimpleNamespace(bands=("B300",), wavelengths=wavelengths), "enmap", "L2")


def test_bands_by_number_from_1():
    table = bands_of_dataset(types.SimpleNamespace(bands=[1, 224]), "enmap", "L2")
    np.testing.assert_allclose(table.wavelength, find_sensor("enmap").wavelength[[0, 223]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected bands with wavelengths .* Samples has neither"):
        bands_of_dataset(Samples(), "enmap", "L2")


def test_torchgeo_s_own_datasets(require):
    datasets = require("torchgeo.datasets")
    dataset = types.SimpleNamespace(bands=datasets.EnMAP.default_bands, wavelengths=datasets.EnMAP.wavelengths)
    assert len(bands_of_dataset(dataset, "enmap", "L2")) == len(dataset.bands)
    numbered = types.SimpleNamespace(bands=datasets.HySpecNet11k.all_bands)
    assert len(bands_of_dataset(numbered, "enmap", "L2")) == 202

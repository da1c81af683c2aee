"""The loader: the same batches whatever runs beside it, every tile once a pass, and only what was asked for."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from specfast.batch import SpectralBatch, SpectralSample
from specfast.data import SpectralImage
from specfast.data.loader import SpectralLoader
from specfast.data.preparation import prepare
from specfast.data.sampling import draw_sample, tile_order
from specfast.errors import DataError


def make_scene(bands, height, width, *, name, seed=0, sensor="others", level="L2", holes=0.0, gsd=4.0) -> SpectralImage:
    rng = np.random.default_rng(seed)
    values = rng.random((bands, height, width), dtype=np.float32)
    values[:, rng.random((height, width)) < holes] = np.nan
    return SpectralImage.from_array(
        values,
        wavelength=np.linspace(450, 2300, bands),
        fwhm=np.full(bands, 8.0),
        gsd=gsd,
        sensor=sensor,
        level=level,
        name=name,
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two sensors: 12 tiles of 24 x 24 with 20 bands, some holes; 4 tiles of 10 x 24 with 7 bands."""
    disk = tmp_path_factory.mktemp("loader") / "store"
    first = prepare([make_scene(20, 72, 96, name="large", holes=0.02)], disk, tile=24)
    second = prepare([make_scene(7, 10, 96, name="small", sensor="avng", level="L1", gsd=2.0)], tile=24)
    return [first, second]


def make_loader(stores, **kwargs) -> SpectralLoader:
    return SpectralLoader(stores, **({"batch_size": 3, "crop": 16, "bands": 6, "seed": 5} | kwargs))


def take(loader, count) -> list[SpectralBatch]:
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == count:
            return batches
    raise AssertionError("the loader ended")


def assert_same(first: SpectralBatch, second: SpectralBatch) -> None:
    for name in ("image", "wavelength", "fwhm", "cu_bands", "gsd", "attributes"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in ("valid", "extent"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name
    for name in ("band_counts", "sensor", "level"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_do_not_depend_on_workers(stores, workers, prefetch):
    expected = take(make_loader(stores, workers=0), 8)
    for batch, other in zip(expected, take(make_loader(stores, workers=workers, prefetch=prefetch), 8), strict=True):
        assert_same(batch, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_goes_on_with_the_same_batches(stores, workers):
    expected = take(make_loader(stores), 9)
    loader = make_loader(stores, workers=workers)
    take(loader, 4)
    state = loader.state_dict()
    resumed = make_loader(stores, workers=workers)
    resumed.load_state_dict(state)
    assert resumed.step == 4
    for batch, other in zip(expected[4:], take(resumed, 5), strict=True):
        assert_same(batch, other)
    assert_same(make_loader(stores).batch(7), expected[7])


def test_other_seeds_and_ranks_draw_other_samples(stores):
    first = make_loader(stores).batch(0)
    for change in ({"seed": 6}, {"rank": 1, "world_size": 2}):
        other = make_loader(stores, **change).batch(0)
        assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_two_ranks_see_what_one_sees_with_a_batch_of_twice_the_size(stores):
    whole = make_loader(stores, batch_size=4)
    halves = [make_loader(stores, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for step in range(6):
        expected = samples_of(whole.batch(step))
        found = [sample for half in halves for sample in samples_of(half.batch(step))]
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    state = whole.state_dict() | {"samples": 12}
    halves[0].load_state_dict(state)
    assert halves[0].step == 3


def samples_of(batch: SpectralBatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (image without padding, wavelength) of each sample."""
    samples = []
    for number in range(len(batch)):
        bands = slice(int(batch.cu_bands[number]), int(batch.cu_bands[number + 1]))
        height, width = batch.image.shape[1:] if batch.extent is None else batch.extent[number].tolist()
        samples.append((batch.image[bands, :height, :width], batch.wavelength[bands]))
    return samples


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_pass_takes_every_tile_once_over_all_ranks(stores, world_size):
    loaders = [make_loader(stores, batch_size=4, rank=r, world_size=world_size) for r in range(world_size)]
    assert loaders[0].tiles == 16
    for epoch in range(3):
        seen = []
        for loader in loaders:
            for step in range(loader.steps_per_epoch * epoch, loader.steps_per_epoch * (epoch + 1)):
                first = (step * world_size + loader.rank) * 4
                seen += [(stores.index(s), t) for s, t in (loader._locate(n) for n in range(first, first + 4))]
        assert sorted(seen) == [(0, n) for n in range(12)] + [(1, n) for n in range(4)]
    assert not np.array_equal(tile_order(5, 0, 16), tile_order(5, 1, 16))


def test_epoch_ends_at_the_end_of_the_pass(stores):
    loader = make_loader(stores)
    assert loader.steps_per_epoch == 6
    assert len(list(loader.epoch())) == 6
    assert len(list(loader.epoch())) == 6
    take(loader, 2)
    assert len(list(loader.epoch())) == 4
    assert loader.step == 18


@pytest.mark.parametrize("flips", [True, False])
def test_a_batch_is_what_its_samples_give(stores, flips):
    """The packed fast path against SpectralBatch.from_samples, for mixed sensors, sizes and masks."""
    loader = make_loader(stores, batch_size=6, flips=flips)
    flipped = set()
    for step in range(6):
        samples = []
        for number in range(step * 6, step * 6 + 6):
            store, tile = loader._locate(number)
            draw = draw_sample(
                5,
                number,
                store.tile(tile).shape,
                crop=16,
                bands=(6, 6),
                flips=flips,
                valid=lambda store=store, tile=tile: store.read_valid(tile),
            )
            sample = store.sample(tile, draw.window, draw.bands)
            axes = [axis - 2 for axis, wanted in enumerate(draw.flip) if wanted]
            flipped.add(draw.flip)
            mask = None if sample.valid is None else sample.valid.flip(axes)
            samples.append(
                SpectralSample(
                    sample.image.flip(axes),
                    sample.wavelength,
                    sample.fwhm,
                    sample.gsd,
                    sample.sensor,
                    sample.level,
                    mask,
                )
            )
        batch = loader.batch(step)
        assert_same(batch, SpectralBatch.from_samples(samples, patch_size=8))
        assert set(batch.sensor) == {"others", "avng"} or len(set(batch.sensor)) == 1
    assert len(flipped) == (4 if flips else 1)


def test_sensors_mix_in_one_batch(stores):
    batches = [make_loader(stores, batch_size=8, bands=None).batch(step) for step in range(4)]
    mixed = [batch for batch in batches if len(set(batch.sensor)) == 2]
    assert mixed
    assert {count for batch in mixed for count in batch.band_counts} == {20, 7}
    assert all(size in ((16, 16), (10, 16)) for batch in mixed for size in map(tuple, batch.extent.tolist()))


def test_band_subsets_keep_file_order_and_cover_all_bands():
    sizes, seen = set(), np.zeros(30, dtype=int)
    for number in range(400):
        draw = draw_sample(1, number, (30, 8, 8), crop=8, bands=(4, 7), flips=True)
        assert (np.diff(draw.bands) > 0).all()
        sizes.add(len(draw.bands))
        seen[draw.bands] += 1
    assert sizes == {4, 5, 6, 7}
    expected = 400 * 5.5 / 30
    assert (np.abs(seen - expected) < 5 * np.sqrt(expected)).all()


def test_unsorted_wavelengths_stay_in_file_order():
    wavelength = np.array([700.0, 500.0, 600.0, 900.0, 800.0])
    values = np.broadcast_to((wavelength / 1024).astype(np.float32)[:, None, None], (5, 8, 8))
    image = SpectralImage.from_array(
        np.array(values),
        wavelength=wavelength,
        fwhm=np.full(5, 5.0),
        gsd=1.0,
        sensor="others",
        level="L2",
        name="order",
    )
    batch = make_loader(prepare([image]), crop=8, bands=(2, 5)).batch(0)
    np.testing.assert_allclose(batch.image[:, 0, 0] * 1024, batch.wavelength, rtol=1e-3)
    for number, count in enumerate(batch.band_counts):
        places = [wavelength.tolist().index(w) for w in samples_of(batch)[number][1].tolist()]
        assert places == sorted(places)
        assert len(places) == count


def test_windows_cover_the_tile_evenly():
    rows = [draw_sample(3, n, (2, 20, 24), crop=16, bands=None, flips=False).window[0] for n in range(500)]
    assert np.bincount(rows).min() > 60
    assert len(np.bincount(rows)) == 5


def test_crops_avoid_windows_without_measurements():
    valid = np.zeros((64, 64), dtype=bool)
    valid[:, 40:] = True
    shares = []
    for number in range(200):
        row, col, height, width = draw_sample(
            0, number, (2, 64, 64), crop=16, bands=None, flips=True, valid=lambda: valid
        ).window
        shares.append(valid[row : row + height, col : col + width].mean())
    assert np.mean(np.array(shares) >= 0.5) > 0.98


def test_draws_are_pinned():
    """A change here changes every training run: resumed runs would see other data."""
    draw = draw_sample(7, 11, (9, 40, 50), crop=16, bands=(3, 5), flips=True)
    assert tile_order(7, 2, 8).tolist() == [1, 3, 0, 6, 4, 7, 5, 2]
    assert (draw.window, draw.bands.tolist(), draw.flip) == ((17, 12, 16, 16), [1, 2, 6, 8], (False, True))


def test_the_global_generators_are_left_alone(stores):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    first = (random.random(), np.random.random(), torch.rand(1).item())  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    loader = make_loader(stores)
    batch = take(loader, 3)[2]
    assert (random.random(), np.random.random(), torch.rand(1).item()) == first  # noqa: NPY002
    assert_same(batch, make_loader(stores).batch(2))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("specfast-loader")]


def test_threads_end_with_the_iterator(stores):
    iterator = iter(make_loader(stores, workers=3))
    next(iterator)
    assert loader_threads()
    iterator.close()
    assert not loader_threads()


def test_an_error_names_the_tile_and_ends_the_threads(stores, monkeypatch):
    def broken(self, index, *args, **kwargs):
        raise OSError("input/output error")

    monkeypatch.setattr(type(stores[0]), "read", broken)
    with pytest.raises(DataError, match=r"tile (large|small)\[row \d+, col \d+\]: input/output error"):
        next(iter(make_loader(stores)))
    assert not loader_threads()


def test_a_bug_stays_what_it_is_and_names_the_tile(stores, monkeypatch):
    def broken(self, index, *args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(type(stores[0]), "read", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        next(iter(make_loader(stores)))
    assert "while reading tile" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"crop": 12}, "crop: expected a multiple of patch_size 8, got 12"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"bands": 0}, "bands: expected"),
        ({"bands": (5, 4)}, "bands: expected"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1, got 2"),
        ({"seed": -1}, "seed: expected"),
        ({"workers": -1}, "workers: expected"),
    ],
)
def test_arguments_out_of_range(stores, change, match):
    with pytest.raises(ValueError, match=match):
        make_loader(stores, **change)


def test_no_stores():
    with pytest.raises(ValueError, match="stores: expected at least one"):
        make_loader([])


def test_a_state_that_does_not_fit_is_refused(stores):
    loader = make_loader(stores)
    take(loader, 2)
    state = loader.state_dict()
    for change, match in (
        ({"seed": 6}, "made with seed 5, this loader has 6"),
        ({"batch_size": 4}, "6 samples drawn are no whole number of steps of 4 x 1"),
    ):
        with pytest.raises(ValueError, match=match):
            make_loader(stores, **change).load_state_dict(state)
    with pytest.raises(ValueError, match="made with other data"):
        make_loader(stores[:1]).load_state_dict(state)
    with pytest.raises(ValueError, match="samples, seed missing"):
        loader.load_state_dict({"data": ""})

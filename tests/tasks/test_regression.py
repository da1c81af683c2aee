"""Regression: abundances of synthetic mixtures of real spectra, and numbers for whole scenes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specfast import load_model
from specfast.tasks import FitOptions, RegressionOptions, finetune_regression, predict_scenes, train_regressor
from specfast.tasks.regression_table import score_targets
from specfast.tasks.scene_inputs import SceneInputs
from tests.tasks.scenes import BANDS, make_encoder, make_sample

OPTIONS = RegressionOptions(head_options={"hidden": 16}, fit=FitOptions(steps=60, lr=1e-2))
NAMES = ("soil", "water", "leaves")


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def mixtures(spectra: np.ndarray, height=24, width=30, noise=0.02, seed=0):
    """Smooth abundances of some spectra [K, C], and the image they make."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    raw = np.stack([gaussian_filter(rng.normal(size=(height, width)), 2) for _ in spectra])
    shares = np.exp(12 * raw)
    shares /= shares.sum(axis=0)
    image = np.einsum("kc,khw->chw", spectra, shares)
    return image + noise * rng.normal(size=image.shape) * spectra.std(), shares.astype(np.float32)


@pytest.fixture(scope="module")
def synthetic():
    image, shares = mixtures(np.random.default_rng(1).random((3, BANDS)))
    return make_sample(image), shares


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_recovers_abundances(encoder, synthetic, head):
    sample, shares = synthetic
    options = replace(OPTIONS, head=head, head_options={} if head == "linear" else {"hidden": 16})
    rng = np.random.default_rng(0)
    train, test = np.split(rng.permutation(shares[0].size), [200])
    model, _ = train_regressor(encoder, [sample], [shares], NAMES, options, members=np.sort(train))
    predicted = predict_scenes(model, [sample])[0].reshape(3, -1).T[test]
    found = score_targets(shares.reshape(3, -1).T[test], predicted, NAMES)
    assert found["r2"] > 0.8
    assert found["rmse"] < 0.1


def test_mixtures_of_measured_spectra(encoder, shared):
    """Lawn, walk and track of AVIRIS-NG radiance, mixed: the abundances of pixels that were not trained on."""
    folder = shared / "data" / "isofit_spectra"
    names = ("BeckmanLawn", "BeckmanWalk", "NorthSideSouthTrack")
    tables = [np.loadtxt(folder / f"avng_ang20171108t184227_rdn_v2p11_{name}.txt")[::9] for name in names]
    wavelength = tables[0][:, 0]
    image, shares = mixtures(np.stack([table[:, 1] for table in tables]), noise=0.05)
    about = {"wavelength": torch.as_tensor(wavelength), "fwhm": torch.full((len(wavelength),), 5.6), "gsd": 3.0}
    sample = make_sample(image, **about, sensor="avng", level="L1")
    options = replace(OPTIONS, head_options={"hidden": 32, "constraint": "abundance"})
    train, test = np.split(np.random.default_rng(0).permutation(shares[0].size), [100])
    model, _ = train_regressor(encoder, [sample], [shares], names, options, members=np.sort(train))
    predicted = predict_scenes(model, [sample])[0].reshape(3, -1).T[test]
    found = score_targets(shares.reshape(3, -1).T[test], predicted, names)
    assert found["r2"] > 0.8
    assert found["rmse"] < 0.1


def test_shares_stay_shares(encoder, synthetic, tmp_path):
    sample, shares = synthetic
    options = replace(OPTIONS, head_options={"hidden": 16, "constraint": "abundance"})
    model, _ = train_regressor(encoder, [sample], [shares], NAMES, options)
    (predicted,) = predict_scenes(model, [sample])
    assert predicted.min() >= 0
    np.testing.assert_allclose(predicted.sum(axis=0), 1, atol=1e-5)
    (again,) = predict_scenes(load_model(model.save_pretrained(tmp_path)), [sample])
    assert np.array_equal(predicted, again)


def test_units_do_not_matter(encoder, synthetic):
    """The same targets in other units give the same predictions in those units."""
    sample, shares = synthetic
    one, _ = train_regressor(encoder, [sample], [shares], NAMES, OPTIONS)
    other, _ = train_regressor(encoder, [sample], [shares * 1000 + 5], NAMES, OPTIONS)
    first, second = (predict_scenes(model, [sample])[0] for model in (one, other))
    np.testing.assert_allclose(second, first * 1000 + 5, atol=10)


def test_unknown_targets_play_no_part(encoder, synthetic):
    sample, shares = synthetic
    holed = shares.copy()
    holed[1, :, 15:] = np.nan
    model, result = train_regressor(encoder, [sample], [holed], NAMES, OPTIONS)
    assert all(np.isfinite(row["loss"]) for row in result.history)
    (predicted,) = predict_scenes(model, [sample])
    assert np.corrcoef(predicted[1].ravel(), shares[1].ravel())[0, 1] > 0.8
    holed[:, 0] = np.nan
    with pytest.raises(ValueError, match="members: expected at least one, all with a target; got 3, 3 without"):
        train_regressor(encoder, [sample], [holed], NAMES, OPTIONS, members=np.arange(3))


def test_numbers_of_whole_scenes(encoder):
    rng = np.random.default_rng(0)
    values = rng.uniform(10, 50, size=(24, 1)).astype(np.float32)
    images = [np.full((BANDS, 16, 16), v[0] / 50) + 0.01 * rng.normal(size=(BANDS, 16, 16)) for v in values]
    samples = [make_sample(image) for image in images]
    options = replace(OPTIONS, head="scene", targets_per_step=16, fit=FitOptions(steps=150, lr=1e-2))
    model, _ = train_regressor(encoder, samples, values, ("nitrogen in %",), options, members=np.arange(16))
    predicted = SceneInputs(model, samples, frozen=False).predict().numpy()
    assert score_targets(values[16:], predicted[16:], ("nitrogen in %",))["r2"] > 0.8
    with pytest.raises(ValueError, match=r"targets: expected \[24, 1\], got \[24\]"):
        train_regressor(encoder, samples, values[:, 0], ("nitrogen in %",), options)


@pytest.mark.parametrize("head", ["scene", "linear"])
def test_a_scene_that_is_only_tested_plays_no_part(encoder, head):
    image, shares = mixtures(np.random.default_rng(1).random((3, BANDS)))
    scenes, others = ([make_sample(image), make_sample(image * factor)] for factor in (1, 5))
    options = replace(OPTIONS, head=head, head_options={}, fit=FitOptions(steps=2))
    targets = shares[:, :2, 0].T if head == "scene" else [shares, shares]
    members = np.arange(1) if head == "scene" else np.arange(50)
    one, two = (train_regressor(encoder, s, targets, NAMES, options, members=members)[0] for s in (scenes, others))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_table(encoder, synthetic):
    sample, shares = synthetic
    table = finetune_regression(
        encoder,
        sample,
        shares,
        NAMES,
        training_pixels=(60,),
        seeds=2,
        options=OPTIONS,
        recipe={"method": "shift", "stride": 4, "overlap": 0.0},
    )
    settings = list(dict.fromkeys(row.setting for row in table.rows))
    assert settings == ["random pixels, 60 pixels", "block-disjoint, 60 pixels"]
    kinds = [row.kind for row in table.rows if row.setting == settings[0]]
    assert (kinds.count("fine-tuned"), kinds.count("features"), kinds.count("baseline")) == (1, 1, 3)
    ridge = next(row for row in table.rows if row.method == "ridge, raw spectrum")
    assert ridge.summary("r2")[0] > 0.9  # mixtures are linear
    assert ridge.summary("rmse soil")[0] < 0.1
    assert "R²" in table.to_markdown()
    assert "0.9" in table.verdict()  # not percent


def test_table_says_where_fewer_pixels_were_left(encoder, synthetic):
    sample, shares = synthetic
    holed = np.full_like(shares, np.nan)
    holed[:, 10:16, 10:20] = shares[:, 10:16, 10:20]
    holed[0, 0], holed[1:, 1] = 0.5, 0.5  # some targets, never all
    options = replace(OPTIONS, head="linear", head_options={"upsample": 1}, fit=FitOptions(steps=2))
    settings = {"splits": ("random",), "seeds": 2, "options": options, "control": False}
    table = finetune_regression(encoder, sample, holed, NAMES, training_pixels=(30, 50, 200), **settings)
    assert table.notes[1:] == [
        f"random pixels, {count} pixels: only 30 were available to train on" for count in (50, 200)
    ]
    holed[0, 10:16] = np.nan
    with pytest.raises(ValueError, match="targets: no pixel holds all 3 targets and a measurement"):
        finetune_regression(encoder, sample, holed, NAMES, **settings)


def test_scores_by_hand():
    targets, predicted = np.array([[0.0, 1], [2, 1], [4, 4]]), np.array([[1.0, 1], [2, 1], [3, 1]])
    found = score_targets(targets, predicted, ("a", "b"))
    assert found["rmse a"] == pytest.approx((2 / 3) ** 0.5)
    assert found["rmse b"] == pytest.approx(3**0.5)
    assert found["r2"] == pytest.approx(((1 - 2 / 8) + (1 - 9 / 6)) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": []}, "one array for each of the 1 scenes, got 0"),
        ({"targets": [np.zeros((2, 24, 30))]}, r"targets\[0\]: expected \[3, 24, 30\], got \[2, 24, 30\]"),
        ({"options": replace(OPTIONS, head="upernet")}, "head: expected one of"),
    ],
)
def test_bad_arguments(encoder, synthetic, arguments, message):
    sample, shares = synthetic
    with pytest.raises(ValueError, match=message):
        train_regressor(encoder, [sample], **{"targets": [shares], "outputs": NAMES, "options": OPTIONS, **arguments})

"""RX scores against the textbook formula with numpy's inverse in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast import SpectralSample
from specfast.tasks.anomaly import METHODS, anomaly_scorer, as_rows, score_image
from specfast.tasks.anomaly_local import LocalRX
from specfast.tasks.anomaly_rx import LOADING, PCARX, GlobalRX, oas_shrinkage, spectra
from specfast.tasks.moments import Moments, moments_of


def correlated(pixels=500, bands=30, seed=0, offset=50.0):
    """Spectra of a few mixed materials with a little noise, far from 0; bands nearly determine their neighbors."""
    rng = np.random.default_rng(seed)
    materials = np.cumsum(rng.normal(size=(4, bands)), axis=1)
    return offset + rng.dirichlet(np.ones(4), pixels) @ materials + 0.02 * rng.normal(size=(pixels, bands))


def mahalanobis(rows, background):
    away = rows - background.mean(axis=0)
    return np.einsum("ij,jk,ik->i", away, np.linalg.inv(np.atleast_2d(np.cov(background.T))), away)


def cube_of(rows, height):
    return rows.T.reshape(rows.shape[1], height, -1)


@pytest.mark.parametrize("sizes", [(500,), (1, 2, 300, 197), (250, 250)], ids=str)
def test_moments_of_blocks_are_those_of_all_rows(sizes):
    rows = correlated(offset=1e4)
    moments = moments_of(np.split(rows, np.cumsum(sizes)[:-1]))
    assert moments.count == 500
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-9, atol=1e-10)


def test_moments_leave_out_rows_that_are_not_finite(monkeypatch):
    monkeypatch.setattr("specfast.tasks.moments.ROWS_AT_ONCE", 64)  # so that a block is taken in parts
    rows = correlated()
    broken = rows.copy()
    broken[::7, 3] = np.nan
    broken[3, 1] = np.inf
    kept = np.isfinite(broken).all(axis=1)
    moments = moments_of([broken, np.full((5, 30), np.nan)])
    np.testing.assert_allclose(moments.covariance, np.cov(rows[kept].T), rtol=1e-9, atol=1e-12)


def test_moments_refuse_other_bands_and_too_few_pixels():
    moments = Moments()
    moments.add(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"pixels by bands \[n, 3\], got shape \[4, 2\]"):
        moments.add(np.ones((4, 2)))
    with pytest.raises(ValueError, match="at least two pixels with finite values, got 1"):
        _ = moments.covariance


def test_global_rx_is_the_mahalanobis_distance():
    rows = correlated()
    scorer = GlobalRX().fit([rows[:100], rows[100:]])
    assert scorer.shrinkage_ == 0
    scores = scorer.score(cube_of(rows, 20))
    assert scores.shape == (20, 25)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.ravel(), mahalanobis(rows, rows), rtol=1e-6)


def test_global_rx_does_not_change_under_linear_maps_of_the_bands():
    rows = correlated()
    rng = np.random.default_rng(3)
    mapped = rows @ rng.normal(size=(30, 30)) + 1000 * rng.normal(size=30)
    plain, other = (GlobalRX().fit([r]).score(cube_of(r, 20)) for r in (rows, mapped))
    np.testing.assert_allclose(plain, other, rtol=1e-5)


def test_global_rx_with_shrinkage_on_standardized_bands():
    rows = correlated()
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)
    matrix = 0.7 * np.corrcoef(rows.T) + 0.3 * np.eye(30)
    expected = np.einsum("ij,jk,ik->i", standard, np.linalg.inv(matrix), standard)
    scores = GlobalRX(shrinkage=0.3).fit([rows]).score(cube_of(rows, 20))
    np.testing.assert_allclose(scores.ravel(), expected, rtol=1e-6)


def test_rank_deficient_bands():
    """A duplicate and a constant band, or fewer pixels than bands, neither fail nor drown the score."""
    rows = correlated()
    spoiled = np.concatenate([rows, rows[:, :1], np.full((500, 1), 7.0)], axis=1)
    scorer = GlobalRX().fit([spoiled])
    assert scorer.shrinkage_ == LOADING
    np.testing.assert_allclose(scorer.score(cube_of(spoiled, 20)).ravel(), mahalanobis(rows, rows), rtol=1e-3)
    with pytest.raises(ValueError, match="correlation matrix singular"):
        GlobalRX(shrinkage=0).fit([rows[:20]])
    few = GlobalRX().fit([rows[:20]])
    assert few.shrinkage_ == pytest.approx(oas_shrinkage(np.corrcoef(rows[:20].T), 20))
    assert np.isfinite(few.score(cube_of(rows, 20))).all()
    with pytest.raises(ValueError, match="all pixels are alike"):
        GlobalRX().fit([np.ones((9, 4))])


@pytest.mark.parametrize("bands", [1, 2, 3, 7])
@pytest.mark.parametrize("constant", [(), (0,), (1, 2), (4,)], ids=str)
def test_global_rx_with_few_bands_and_constant_ones_among_them(bands, constant):
    rows = correlated(300, bands)
    at = [min(place, bands) for place in constant]
    spoiled = np.insert(rows, at, 7.0, axis=1)
    scores = GlobalRX().fit([spoiled]).score(cube_of(spoiled, 20))
    np.testing.assert_allclose(scores.ravel(), mahalanobis(rows, rows), rtol=1e-5)


def test_global_rx_of_bands_that_nearly_determine_each_other():
    """Against the same distances in 80-bit floats, by forward substitution."""
    rng = np.random.default_rng(1)
    rows = (5 + 1e-4 * np.cumsum(rng.normal(size=(800, 60)), axis=1) + rng.normal(size=(800, 1))).astype(np.float32)
    scorer = GlobalRX().fit([rows])
    assert scorer.shrinkage_ == 0
    moments = moments_of([rows])
    spread = np.sqrt(moments.covariance.diagonal())
    factor = np.linalg.cholesky(moments.covariance / np.outer(spread, spread)).astype(np.longdouble)
    assert factor.diagonal().min() < 1e-3
    away = ((rows - moments.mean) / spread).T.astype(np.longdouble)
    for band in range(60):
        away[band] = (away[band] - factor[band, :band] @ away[:band]) / factor[band, band]
    np.testing.assert_allclose(scorer.score(cube_of(rows, 20)).ravel(), (away**2).sum(axis=0), rtol=1e-6)


def test_spectra_are_copied_only_where_a_pixel_is_invalid():
    image = torch.rand(3, 4, 5)
    sample = SpectralSample(image, torch.linspace(500, 900, 3), torch.full((3,), 9.0), 4.0, "av3", "L1")
    assert np.shares_memory(spectra(sample), image.numpy())
    sample.valid = torch.ones(4, 5, dtype=torch.bool)
    sample.valid[1, 2] = False
    image[0, 3, 4] = torch.inf
    found = spectra(sample)
    assert np.argwhere(np.isnan(found).all(axis=0)).tolist() == [[1, 2], [3, 4]]
    assert np.isnan(found).sum() == 6
    assert torch.isfinite(image[:, 1, 2]).all()


def test_oas_is_near_scikit_learns():
    """Theirs leaves out a term of order 1 / bands, on the same covariance."""
    covariance = pytest.importorskip("sklearn.covariance")
    rows = correlated(200, 60)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    _, theirs = covariance.oas(standard, assume_centered=True)
    ours = oas_shrinkage(np.corrcoef(rows.T), 200)
    assert 0 < ours < 1
    assert ours == pytest.approx(theirs, rel=0.05)


def test_pca_rx_is_rx_on_the_leading_components():
    rows = correlated()
    axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:5].T
    scores = PCARX(5).fit([rows]).score(cube_of(rows, 20))
    np.testing.assert_allclose(scores.ravel(), mahalanobis(rows @ axes, rows @ axes), rtol=1e-6)
    everything = PCARX(30).fit([rows]).score(cube_of(rows, 20))
    np.testing.assert_allclose(everything.ravel(), mahalanobis(rows, rows), rtol=1e-5)


def test_pca_rx_keeps_no_more_components_than_there_are():
    rows = correlated() @ np.eye(30)[:, :3] @ np.ones((3, 8))  # rank 1
    scores = PCARX(10).fit([rows]).score(cube_of(rows, 20))
    assert scores.mean() == pytest.approx(499 / 500, rel=1e-4)  # one component


def rings(cube, inner, outer):
    """Each pixel's background by looking at every other pixel."""
    rows, columns = np.indices(cube.shape[1:])
    for r, c in zip(rows.ravel(), columns.ravel(), strict=True):
        away = np.maximum(abs(rows - r), abs(columns - c))
        yield r, c, (away > inner // 2) & (away <= outer // 2)


@pytest.mark.parametrize("holes", [False, True])
def test_local_rx_against_its_definition(holes):
    cube = cube_of(correlated(12 * 15, 6, seed=5), 12).copy()
    if holes:
        cube[:, 3:6, 2:9] = np.nan
    valid = np.isfinite(cube).all(axis=0)
    background = cube[:, valid].T
    standard = (cube - background.mean(axis=0)[:, None, None]) / background.std(axis=0, ddof=1)[:, None, None]
    scores = LocalRX(3, 7).fit([as_rows(cube)]).score(cube)
    for r, c, ring in rings(cube, 3, 7):
        if not valid[r, c]:
            assert np.isnan(scores[r, c])
            continue
        own = standard[:, ring & valid].T
        covariance = np.cov(own.T)
        share = oas_shrinkage(covariance, len(own))
        matrix = (1 - share) * covariance + share * covariance.trace() / 6 * np.eye(6)
        away = standard[:, r, c] - own.mean(axis=0)
        assert scores[r, c] == pytest.approx(away @ np.linalg.solve(matrix, away), rel=1e-5)


def test_local_rx_finds_what_is_unusual_here_but_not_elsewhere():
    """Bright pixels are nothing special in a scene that is half bright; one amid the dark half is."""
    rng = np.random.default_rng(0)
    cube = rng.normal(size=(5, 24, 24)) * 0.1
    cube[:, :, 12:] += 3
    cube[:, 12, 4] += 3
    local, whole = (score_of(scorer, cube) for scorer in (LocalRX(3, 9), GlobalRX()))
    assert np.unravel_index(local.argmax(), local.shape) == (12, 4)
    assert np.unravel_index(whole.argmax(), whole.shape) != (12, 4)


def score_of(scorer, cube):
    return scorer.fit([as_rows(cube)]).score(cube)


@pytest.mark.parametrize("scorer", [GlobalRX(), PCARX(3), LocalRX(3, 5)], ids=lambda s: type(s).__name__)
def test_scorers_leave_invalid_pixels_out(scorer):
    rows = correlated(12 * 10, 6)
    cube = cube_of(rows, 12).astype(np.float32).copy()
    reference = score_of(scorer, cube)
    assert np.isfinite(reference).all()
    sample = SpectralSample(
        torch.from_numpy(cube.copy()), torch.linspace(500, 900, 6), torch.full((6,), 9.0), 4.0, "av3", "L1"
    )
    sample.valid = torch.ones(12, 10, dtype=torch.bool)
    sample.valid[5, 5] = False
    sample.image[2, 7, 1] = torch.nan
    scores = score_image(scorer, sample)
    assert set(zip(*np.nonzero(np.isnan(scores)), strict=True)) == {(5, 5), (7, 1)}
    with pytest.raises(ValueError, match=r"cube: expected \[6, h, w\] as fitted, got shape \[5, 12, 10\]"):
        scorer.score(cube[:5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalRX(shrinkage=1.5), "shrinkage: expected None, 'oas' or a number from 0 to 1; got 1.5"),
        (lambda: GlobalRX(shrinkage="lw"), "got 'lw'"),
        (lambda: PCARX(0), "components: expected at least 1, got 0"),
        (lambda: LocalRX(5, 5), "inner < outer; got 5 and 5"),
        (lambda: LocalRX(2, 5), "odd numbers"),
        (lambda: anomaly_scorer("rxd"), "method: expected one of rx, pca-rx, local-rx, features, reconstruction"),
        (lambda: anomaly_scorer("features"), r"model: method 'features' needs a model \(encoder\)"),
        (lambda: anomaly_scorer("rx", torch.nn.Linear(1, 1)), "method 'rx' takes no model"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_method_of_spectra_can_be_made_by_name():
    for method, scorer in METHODS.items():
        if not scorer.needs_model:
            assert isinstance(anomaly_scorer(method), scorer)

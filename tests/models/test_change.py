"""The change detector: symmetric, one batch for both dates, uncertainty beside, saved and loaded."""

from __future__ import annotations

import copy

import pytest
import torch

import specfast
from specfast import SpectralBatch
from specfast.models import load_model
from specfast.models.change import SpecAwareChangeDetector, both_dates, expected_error_logit
from specfast.models.spectral_difference import SpectralDifference
from specfast.models.spectral_grid import SpectralGrid
from tests.models.conftest import TINY, make_sample

HEADS = list(SpecAwareChangeDetector.HEADS)


def make_detector(head="conv", **options) -> SpecAwareChangeDetector:
    torch.manual_seed(0)
    detector = specfast.create_model(
        "specaware_tiny_patch8", task="change", outputs=("change",), head=head, head_options=options, **TINY
    )
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return detector.eval()


def make_pairs(same_sensor=False, height=29, width=30):
    """Two places at two dates, of other sensors, bands and levels unless ``same_sensor``; with invalid pixels."""
    hole = torch.ones(height, width, dtype=torch.bool)
    hole[3:20, :11] = False
    before = [make_sample(12, height, width), make_sample(12, height, width, seed=1, valid=hole)]
    after = [make_sample(12, height, width, seed=2, valid=hole.flip(1)), make_sample(12, height, width, seed=3)]
    if not same_sensor:
        after[1] = make_sample(30, height, width, seed=4, sensor="avng", level="L1", gsd=7.0)
    return before, after


@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_swapping_the_dates_changes_nothing(head, upsample):
    detector = make_detector(head, upsample=upsample)
    before, after = make_pairs()
    detector.spectra.fit(zip(before, after, strict=True))
    with torch.no_grad():
        there, back = (
            detector(detector.batch_of(one), detector.batch_of(other))
            for one, other in ((before, after), (after, before))
        )
    assert there.logits.shape == there.uncertainty.shape == (2, 1, 29, 30)
    assert there.logits.std() > 1e-3
    torch.testing.assert_close(there.logits, back.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(there.uncertainty, back.uncertainty, rtol=0, atol=1e-6)
    assert 0 < there.uncertainty.min() <= there.uncertainty.max() < 1
    p = there.logits.sigmoid()
    torch.testing.assert_close(expected_error_logit(there.logits).sigmoid(), 2 * p * (1 - p))


def test_both_dates_go_through_the_encoder_as_one_batch():
    detector = make_detector()
    calls = []
    detector.encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    before, after = make_pairs()
    with torch.no_grad():
        detector(detector.batch_of(before), detector.batch_of(after))
    assert calls == [4]


def test_a_pair_gets_what_it_gets_alone():
    detector = make_detector()
    before, after = make_pairs()
    detector.spectra.fit(zip(before, after, strict=True))
    with torch.no_grad():
        together = detector(detector.batch_of(before), detector.batch_of(after))
        for number, pair in enumerate(zip(before, after, strict=True)):
            alone = detector(*(detector.batch_of([one]) for one in pair))
            torch.testing.assert_close(together.logits[number], alone.logits[0], rtol=0, atol=2e-5)


def test_both_dates_packs_what_from_samples_would():
    before, after = make_pairs()
    expected = SpectralBatch.from_samples(before + after, patch_size=1)
    packed = both_dates(*(SpectralBatch.from_samples(part, patch_size=1) for part in (before, after)))
    for name in ("image", "wavelength", "fwhm", "cu_bands", "gsd", "attributes", "valid"):
        torch.testing.assert_close(getattr(packed, name), getattr(expected, name), rtol=0, atol=0)
    for name in ("band_counts", "max_bands", "sensor", "level"):
        assert getattr(packed, name) == getattr(expected, name)
    assert packed.extent is expected.extent is None
    padded = SpectralBatch.from_samples([make_sample(5, 20, 24)], patch_size=8)
    whole = SpectralBatch.from_samples([make_sample(5, 24, 24)], patch_size=8)
    assert both_dates(padded, whole).extent.tolist() == [[20, 24], [24, 24]]


def test_what_is_invalid_in_one_date_has_no_say():
    """Whatever stands in an invalid pixel of one date changes nothing, and the head sees no spectrum there."""
    detector = make_detector("mlp")
    before, after = make_pairs(same_sensor=True)
    detector.spectra.fit(zip(before, after, strict=True))
    with torch.no_grad():
        reference = detector.compare(detector.batch_of(before), detector.batch_of(after))
        other = copy.deepcopy(before)
        other[1].image[:, 3:20, :11] = 99.0
        again = detector.compare(detector.batch_of(other), detector.batch_of(after))
    assert torch.equal(reference.spectra, again.spectra)
    assert not reference.spectra[1, :, 3:20, :11].any()
    for one, two in zip(reference.levels, again.levels, strict=True):
        assert torch.equal(one, two)
    # patches of 8: rows 8-15, columns 0-7 of the second pair hold nothing before
    assert reference.present[1].int().tolist()[1] == [0, 1, 1, 1]


def test_uncertainty_trains_only_its_own_head():
    detector = make_detector().train()
    before, after = make_pairs()
    output = detector(detector.batch_of(before), detector.batch_of(after))
    output.uncertainty_logits.sum().backward()
    touched = {name.split(".")[0] for name, p in detector.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"uncertainty_head"}
    output = detector(detector.batch_of(before), detector.batch_of(after))
    output.logits.sum().backward()
    touched = {name.split(".")[0] for name, p in detector.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"uncertainty_head", "head", "encoder"}


def test_saved_and_loaded(tmp_path):
    detector = make_detector(spectral_points=20, window=30)
    before, after = make_pairs()
    detector.spectra.fit(zip(before, after, strict=True))
    detector.save_pretrained(tmp_path)
    loaded = load_model(tmp_path).eval()
    assert isinstance(loaded, SpecAwareChangeDetector)
    assert loaded.config == detector.config
    assert loaded.config.options["window"] == 30
    batches = [detector.batch_of(before), detector.batch_of(after)]
    with torch.no_grad():
        assert torch.equal(loaded(*batches).logits, detector(*batches).logits)


def test_from_encoder_copies_the_encoder_and_names_the_output():
    encoder = specfast.create_model("specaware_tiny_patch8", task="encoder", **TINY)
    detector = SpecAwareChangeDetector.from_encoder(encoder, head="mlp", spectral_points=0)
    assert detector.config.outputs == ("change",)
    assert detector.spectra is None
    for name, value in encoder.state_dict().items():
        assert torch.equal(detector.encoder.state_dict()[name], value)
    before, after = make_pairs()
    assert detector(detector.batch_of(before), detector.batch_of(after)).logits.shape == (2, 1, 29, 30)


def test_bad_arguments():
    detector = make_detector()
    before, after = make_pairs()
    with pytest.raises(ValueError, match=r"after: expected 2 samples of 29 x 30 pixels, .* got 1 of 29 x 30"):
        detector(detector.batch_of(before), detector.batch_of(after[:1]))
    with pytest.raises(ValueError, match="got 2 of 8 x 8"):
        detector(detector.batch_of(before), detector.batch_of([make_sample(12, 8, 8)] * 2))
    with pytest.raises(ValueError, match="outputs: expected one name"):
        specfast.create_model("specaware_tiny_patch8", task="change", outputs=("a", "b"), **TINY)
    with pytest.raises(ValueError, match="spectral_points: expected at least 2, got 1"):
        make_detector(spectral_points=1)


def test_whitening_takes_out_what_differs_everywhere():
    """Differences of unchanged pixels share a few directions; one pixel that moves another way stands out."""
    generator = torch.Generator().manual_seed(0)
    before, after = make_sample(12, 32, 32), make_sample(12, 32, 32)
    light = torch.linspace(-1, 1, 12)[:, None, None] * torch.randn(32, 32, generator=generator)
    after.image = before.image + light + 0.01 * torch.randn(12, 32, 32, generator=generator)
    after.image[::2, 7, 9] += 0.2  # a fifth of the light's spread
    difference = SpectralDifference(24)
    difference.fit([(before, after)])
    batches = [SpectralBatch.from_samples([one], patch_size=1) for one in (before, after)]
    features = difference(both_dates(*batches))
    assert features.shape == (1, difference.channels, 32, 32)
    torch.testing.assert_close(features, difference(both_dates(*batches[::-1])), rtol=0, atol=1e-5)
    length = features[0, 48]
    assert int(length.argmax()) == 7 * 32 + 9
    assert length[7, 9] > 3 * length.median()
    known = difference.grid(batches[0])[1][0]
    unchanged = features[0, :24][known].square().mean()
    assert 0.4 < unchanged < 1.1  # 1 for each direction of differences; neighboring points share some
    difference.whitening.copy_(torch.eye(24))
    assert int(difference(both_dates(*batches))[0, 48].argmax()) != 7 * 32 + 9
    empty = make_sample(12, 32, 32, valid=torch.zeros(32, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="pairs: no pixel is valid in both dates"):
        difference.fit([(before, empty)])


def test_grid_reads_a_spectrum_whatever_the_bands():
    """A spectrum linear in wavelength has the same values on the grid, seen through few, many or unsorted bands."""
    grid = SpectralGrid(45)  # every 50 nm
    found = []
    for wavelength in (torch.linspace(400, 2400, 41), torch.linspace(405, 2395, 300).flip(0)):
        image = (wavelength / 1000)[:, None, None].expand(-1, 8, 8).contiguous()
        batch = SpectralBatch.from_arrays(image[None], wavelength, torch.full_like(wavelength, 10.0), 4.0, "av3", "L2")
        values, covered = grid(batch)
        assert covered[0].tolist() == [380 <= w <= 2420 for w in grid.wavelength.tolist()]
        inner = (grid.wavelength > 450) & (grid.wavelength < 2350)
        torch.testing.assert_close(values[0, inner, 3, 4], grid.wavelength[inner] / 1000, rtol=1e-2, atol=0)
        assert not values[0, ~covered[0]].any()
        found.append(values[0, inner, 0, 0])
    torch.testing.assert_close(*found, rtol=1e-2, atol=0)


def test_grid_standardizes_by_all_samples_it_was_fitted_to():
    grid = SpectralGrid(12)
    before, after = make_pairs()
    grid.fit(before + after[:1])
    batch = SpectralBatch.from_samples(before + after[:1], patch_size=1)
    values, covered = grid(batch)
    standard = grid.standardized(values)
    known = torch.stack(
        [s.valid if s.valid is not None else torch.ones(29, 30, dtype=torch.bool) for s in before + after[:1]]
    )
    pixels = standard.movedim(1, -1)[known]
    point = int(covered[0].nonzero()[2])
    assert covered[:, point].all()
    assert pixels[:, point].mean().abs() < 1e-4
    assert pixels[:, point].std(correction=0) == pytest.approx(1, abs=1e-4)
    grid.mean.zero_()
    assert grid.standardized(values * 1e6).abs().max() == 8
    with pytest.raises(ValueError, match="at least one valid pixel"):
        grid.fit([make_sample(5, 8, 8, valid=torch.zeros(8, 8, dtype=torch.bool))])

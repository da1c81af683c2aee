"""Fine-tuning for change: what is learned, from which pixels, and the maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specfast.evaluate.detection import auc
from specfast.models.change import ChangeOutput
from specfast.tasks import usable_labels
from specfast.tasks.change import (
    PairFeatures,
    build_detector,
    change_loss,
    estimated_prior,
    predict_change,
    train_change,
)
from specfast.tasks.change_data import ScenePair
from tests.tasks.change_scenes import QUICK, drawn, make_encoder, make_scenes


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def scenes():
    return make_scenes()


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_a_few_labels_teach_the_rest(encoder, scenes, head):
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    options = replace(QUICK, head=head)
    detector = build_detector(options, encoder, pair)
    pixels = drawn(labels, 20)
    untrained = predict_change(detector, pair)[0]
    result = train_change(detector, pair, labels, pixels, options)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    probability, uncertainty = predict_change(detector, pair)
    assert probability.shape == uncertainty.shape == labels.shape
    assert probability.dtype == np.float32
    rest = np.setdiff1d(np.arange(labels.size), pixels)
    truth = labels.ravel()[rest] == 2
    assert auc(truth, probability.ravel()[rest]) > max(0.9, auc(truth, untrained.ravel()[rest]))
    swapped = predict_change(detector, ScenePair.of(*scenes[1::-1]))[0]
    np.testing.assert_allclose(probability, swapped, atol=1e-5)


def test_loss_teaches_the_probability_and_its_expected_error():
    """Pixels alike of which a quarter has changed: p = 1/4, and the mean of |y - p| is 2 p (1 - p) = 3/8."""
    changed = torch.tensor([1.0, 0.0, 0.0, 0.0])
    numbers = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([numbers], lr=0.5)
    for _ in range(300):
        loss = change_loss(ChangeOutput(numbers[0].expand(4), numbers[1].expand(4)), changed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(numbers.detach().sigmoid(), torch.tensor([0.25, 0.375]), atol=1e-4, rtol=0)
    logits = torch.zeros(2, requires_grad=True)
    change_loss(ChangeOutput(torch.ones(2) * logits[0], torch.ones(2) * logits[1]), changed[:2], 0.0).backward()
    assert logits.grad[1] == 0


@pytest.mark.parametrize("prior", [0.05, 0.3, 0.5, 0.9])
def test_prior_is_estimated_without_labels(prior):
    """Two unit normals at -1 and 1: learned on as many of both, p is the sigmoid of 2 x."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=40000) + np.where(rng.random(40000) < prior, 1, -1)
    probability = 1 / (1 + np.exp(-2 * x))
    probability[:100] = np.nan
    assert estimated_prior(probability) == pytest.approx(prior, abs=0.015)


def test_prior_of_a_scene_where_nothing_or_everything_changed():
    assert estimated_prior(np.zeros(50)) == 1e-3
    assert estimated_prior(np.ones(50)) == 1 - 1e-3


def test_probabilities_are_made_for_the_prior(encoder, scenes):
    """The shift of the logits is that of the prior, whether told or estimated; the order of pixels stays."""
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    features, logits, shifts = PairFeatures(pair), [], []
    for prior in (0.5, 0.2, None):
        options = replace(QUICK, prior=prior)
        detector = build_detector(options, encoder, pair)
        train_change(detector, pair, labels, drawn(labels, 10), options, features=features)
        probability = predict_change(detector, pair, features=features)[0].astype(np.float64)
        logits.append(np.log(probability / (1 - probability)))
        shifts.append(float(detector.shift))
    assert shifts[0] == 0
    sure = np.abs(logits[0]) < 10  # beyond, float32 keeps too few digits of 1 - p
    np.testing.assert_allclose((logits[1] - logits[0])[sure], np.log(0.25), atol=5e-3)
    balanced = 1 / (1 + np.exp(-logits[0]))
    assert shifts[2] == pytest.approx(np.log(estimated_prior(balanced) / (1 - estimated_prior(balanced))), abs=1e-3)


def test_only_the_pixels_given_are_learned_from(encoder, scenes):
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    pixels = drawn(labels, 10)
    hidden = np.zeros_like(labels)
    hidden.ravel()[pixels] = labels.ravel()[pixels]
    maps = []
    for known in (labels, hidden):
        detector = build_detector(QUICK, encoder, pair)
        train_change(detector, pair, known, pixels, QUICK)
        maps.append(predict_change(detector, pair)[0])
    np.testing.assert_array_equal(*maps)
    for one_sided in (pixels[labels.ravel()[pixels] == 1], pixels[labels.ravel()[pixels] == 2]):
        with pytest.raises(ValueError, match="pixels: expected changed and unchanged ones"):
            train_change(build_detector(QUICK, encoder, pair), pair, labels, one_sided, QUICK)


def test_turned_scenes_are_read_at_the_labelled_pixels(encoder, scenes, monkeypatch):
    """Whatever the turn, the loss sees what the heads say of the labelled pixels, beside their labels."""
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    detector = build_detector(QUICK, encoder, pair)
    seen = []

    def decide(compared):
        return ChangeOutput(compared.spectra[:, -2:-1], compared.spectra[:, -2:-1])

    def loss(output, changed, weight):
        seen.append(set(zip(output.logits.tolist(), changed.tolist(), strict=True)))
        return detector.head.output.bias.sum()  # a loss with a gradient

    first, second = (detector.batch_of([date]) for date in (pair.before, pair.after))
    length = detector.compare(first, second).spectra[0, -2].flatten()
    pixels = drawn(labels, 4)
    expected = set(zip(length[pixels].tolist(), (labels.ravel()[pixels] == 2).astype(float).tolist(), strict=True))
    monkeypatch.setattr(detector, "decide", decide)
    monkeypatch.setattr("specfast.tasks.change.change_loss", loss)
    options = replace(QUICK, prior=0.5, pixels_per_class=4, fit=replace(QUICK.fit, steps=16))
    train_change(detector, pair, labels, pixels, options)
    assert len(seen) == 16
    for found in seen:
        for (value, changed), (other, truth) in zip(sorted(found), sorted(expected), strict=True):
            assert (value, changed) == (pytest.approx(other, rel=1e-5), truth)


def test_kept_features_change_nothing(encoder, scenes):
    """What a frozen encoder saw once serves every later run, in training and prediction."""
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    features, maps = PairFeatures(pair), []
    for kept in (None, features, features):
        detector = build_detector(QUICK, encoder, pair)
        train_change(detector, pair, labels, drawn(labels, 10), QUICK, features=kept)
        maps.append(predict_change(detector, pair, features=kept)[0])
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)
    np.testing.assert_array_equal(maps[1], maps[2])
    calls = []
    hook = detector.encoder.register_forward_hook(lambda *args: calls.append(1))
    predict_change(detector, pair, features=features)
    hook.remove()
    assert not calls


def test_views_of_a_larger_scene_and_a_tuned_encoder(encoder, scenes):
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    options = replace(QUICK, view=24, fit=replace(QUICK.fit, steps=6, tuned_blocks=-1, encoder_lr=1e-3))
    detector = build_detector(options, encoder, pair)
    assert detector.config.options["window"] == 24
    sizes = []
    detector.encoder.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].image.shape[1:])))
    train_change(detector, pair, labels, drawn(labels, 30), options)
    assert set(sizes) == {(24, 24)}
    moved = [not torch.equal(p, q) for p, q in zip(detector.encoder.parameters(), encoder.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    probability, _ = predict_change(detector, pair)
    assert np.isfinite(probability).all()


def test_invalid_pixels_of_either_date_are_nan(encoder):
    before, after, _ = make_scenes()
    before.valid = torch.ones(40, 48, dtype=torch.bool)
    before.valid[:9, :20] = False
    after.image[2, 30, 30] = torch.nan
    pair = ScenePair.of(before, after)
    detector = build_detector(QUICK, encoder, pair)
    for values in predict_change(detector, pair):
        assert np.array_equal(np.isnan(values), ~pair.valid.numpy())


def test_pixels_without_a_measurement_are_no_training_pixels(encoder):
    before, after, labels = make_scenes()
    pixels = drawn(labels, 10)
    after.image[0].view(-1)[pixels[3]] = torch.nan
    pair = ScenePair.of(before, after)
    with pytest.raises(ValueError, match="pixels: some hold no measurement in one of the dates; see usable_labels"):
        train_change(build_detector(QUICK, encoder, pair), pair, labels, pixels, QUICK)
    usable = np.flatnonzero(usable_labels(labels, pair))
    assert pixels[3] not in usable
    train_change(build_detector(QUICK, encoder, pair), pair, labels, usable, QUICK)


def test_resumed_training_gives_the_same_model(encoder, scenes, tmp_path):
    pair, labels = ScenePair.of(*scenes[:2]), scenes[2]
    options = replace(QUICK, fit=replace(QUICK.fit, steps=12, checkpoint_every=5))
    whole = build_detector(options, encoder, pair)
    train_change(whole, pair, labels, drawn(labels, 10), options, out=tmp_path / "a")

    calls = []

    def stop(module, args, output):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    broken = build_detector(options, encoder, pair)
    hook = broken.head.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train_change(broken, pair, labels, drawn(labels, 10), options, out=tmp_path / "b")
    hook.remove()
    again = build_detector(options, encoder, pair, seed=1)
    train_change(again, pair, labels, drawn(labels, 10), options, out=tmp_path / "b")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name

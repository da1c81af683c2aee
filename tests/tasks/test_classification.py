"""Scene classification: few labelled tiles, probes and baselines beside the trained head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specfast.evaluate import Split
from specfast.tasks import ClassificationOptions, FitOptions, embeddings, finetune_classification, train_classifier
from specfast.tasks.classification import NearestNeighbors
from specfast.tasks.scene_inputs import SceneInputs, mean_spectra
from tests.tasks.scenes import BANDS, make_encoder, make_sample

OPTIONS = ClassificationOptions(fit=FitOptions(steps=40, lr=1e-2))


def tiles(count=18, classes=3, seed=0):
    """Tiles whose mean spectrum tells the class, each at a brightness of its own."""
    rng = np.random.default_rng(seed)
    spectra = np.random.default_rng(5).random((classes, BANDS))
    labels = np.arange(count) % classes + 1
    images = [
        spectra[label - 1][:, None, None] * rng.uniform(0.9, 1.1) + 0.1 * rng.normal(size=(BANDS, 16, 16))
        for label in labels
    ]
    return [make_sample(image) for image in images], labels


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("tuned", [0, -1])
def test_learns_the_tiles(encoder, head, tuned):
    samples, labels = tiles()
    options = replace(OPTIONS, head=head, fit=replace(OPTIONS.fit, tuned_blocks=tuned))
    model, result = train_classifier(encoder, samples, labels, options, members=np.arange(9))
    predicted = SceneInputs(model, samples, frozen=False).predict().argmax(dim=1).numpy() + 1
    assert (predicted[9:] == labels[9:]).mean() > 0.8
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_a_scene_that_is_only_tested_plays_no_part(encoder):
    samples, labels = tiles(6)
    other = [*samples[:3], *(replace(sample, image=5 * sample.image) for sample in samples[3:])]
    options = replace(OPTIONS, fit=replace(OPTIONS.fit, steps=2))
    one, two = (train_classifier(encoder, s, labels, options, members=np.arange(3))[0] for s in (samples, other))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_kept_features_are_the_models_own(encoder):
    samples, labels = tiles(6)
    samples[2].valid = torch.ones(16, 16, dtype=torch.bool)
    samples[2].valid[:9] = False
    model, _ = train_classifier(encoder, samples, labels, OPTIONS)
    kept, fresh = (SceneInputs(model, samples, frozen=frozen).predict() for frozen in (True, False))
    torch.testing.assert_close(kept, fresh, atol=1e-5, rtol=1e-5)


def test_what_is_made_of_a_scene_does_not_depend_on_the_others(encoder):
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (13, 19), (24, 30), (16, 16), (11, 11), (13, 19)]  # the patch is 8
    samples = [make_sample(rng.random((BANDS, *size))) for size in sizes]
    options = replace(OPTIONS, fit=FitOptions(steps=2))
    model, _ = train_classifier(encoder, samples, np.arange(6) % 3 + 1, options)
    alone = torch.cat([SceneInputs(model, [sample], frozen=False).predict() for sample in samples])
    for frozen in (True, False):
        together = SceneInputs(model, samples, frozen=frozen)
        torch.testing.assert_close(together.predict(), alone, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            some = together.outputs([4, 1, 4, 0])
        torch.testing.assert_close(some, alone[[4, 1, 4, 0]], atol=1e-5, rtol=1e-5)
    vectors = np.concatenate([embeddings(encoder, [sample]) for sample in samples])
    np.testing.assert_allclose(embeddings(encoder, samples), vectors, atol=1e-5)


def test_table(encoder):
    samples, labels = tiles(24)
    table = finetune_classification(encoder, samples, labels, labels_per_class=(3,), seeds=2, options=OPTIONS)
    (setting,) = table.settings_of_rows()
    assert setting == ("random scenes", 3)
    kinds = [row.kind for row in table.rows]
    assert (kinds.count("fine-tuned"), kinds.count("features"), kinds.count("control")) == (1, 3, 4)
    rows = {(row.inputs, row.classifier): row for row in table.rows}
    assert ("features", "knn") in rows
    for key in (("fine-tuned", "linear"), ("lda", "lda")):
        assert rows[key].summary()[0] > 0.8, key
    assert all(score.confusion.sum() == 15 for row in table.rows for score in row.scores)


def test_a_given_division(encoder):
    samples, labels = tiles(12)
    fixed = Split("given division", np.arange(6), np.arange(6, 12))
    table = finetune_classification(
        encoder, samples, labels, labels_per_class=(), seeds=1, options=OPTIONS, control=False, fixed=fixed
    )
    assert table.settings_of_rows() == [("given division", 0)]
    assert {row.kind for row in table.rows} == {"fine-tuned", "features", "baseline"}
    with pytest.raises(ValueError, match="labels_per_class: expected at least one number"):
        finetune_classification(encoder, samples, labels, labels_per_class=(), options=OPTIONS)


def test_neighbors_by_angle():
    inputs = np.array([[1.0, 0.0], [10.0, 0.5], [0.0, 1.0], [0.1, 7.0]])
    model = NearestNeighbors().fit(inputs, np.array([1, 1, 2, 2]))
    assert model.predict(np.array([[0.01, 0.0], [0.0, 0.2]])).tolist() == [1, 2]


def test_embeddings_and_mean_spectra(encoder):
    samples, _ = tiles(5)
    vectors = embeddings(encoder, samples)
    assert vectors.shape == (5, 64)
    assert np.allclose(vectors[3], embeddings(encoder, samples[3:4])[0], atol=1e-5)
    spectra = mean_spectra(samples)
    assert np.allclose(spectra[1], samples[1].image.mean(dim=(1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match=r"samples\[1\]: no pixel is valid"):
        mean_spectra([samples[0], replace(samples[1], valid=torch.zeros(16, 16, dtype=torch.bool))])
    with pytest.raises(ValueError, match="expected equal bands"):
        mean_spectra([samples[0], replace(samples[1], image=samples[1].image[:4])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.array([1, 2])}, "one for each of the 6 scenes, got 2"),
        ({"labels": np.zeros(6, int)}, "no pixel has a class"),
        ({"members": np.array([], int)}, "members: expected numbers of labelled scenes"),
        ({"outputs": ["one"]}, "the labels hold class 3; got 1 names"),
        ({"options": replace(OPTIONS, head="conv")}, "head: expected one of linear, mlp"),
    ],
)
def test_bad_arguments(encoder, arguments, message):
    samples, labels = tiles(6)
    with pytest.raises(ValueError, match=message):
        train_classifier(encoder, samples, **{"labels": labels, "options": OPTIONS, **arguments})

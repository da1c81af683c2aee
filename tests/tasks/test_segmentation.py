"""Segmentation of whole scenes from few labels, and its table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from specfast import load_model
from specfast.evaluate import Split, random_pixels
from specfast.tasks import FitOptions, SegmentationOptions, finetune_segmentation, segment_scenes, train_segmenter
from specfast.tasks.options import SEGMENTATION_HEADS
from specfast.tasks.segmentation import class_map
from specfast.tasks.views import SceneViews
from tests.tasks.scenes import make_encoder, make_scene

FIT = FitOptions(steps=40, lr=5e-3, precision="float32")
FAST = SegmentationOptions(head="conv", head_options={"hidden": 16, "depth": 1, "upsample": 1}, orientations=1, fit=FIT)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def test_the_command_line_knows_all_heads():
    from specfast import SpecAwareSegmenter

    assert set(SEGMENTATION_HEADS) == set(SpecAwareSegmenter.HEADS)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "upernet"])
def test_every_head_learns_the_fields(encoder, head):
    small = {"upernet": {"pyramid_channels": 16, "segmentation_channels": 8}, "linear": {}}
    sample, labels = make_scene()
    options = replace(FAST, head=head, head_options=small.get(head, {"hidden": 16}), fit=replace(FIT, steps=40))
    if head == "upernet":
        options = replace(options, fit=replace(options.fit, tuned_blocks=-1, encoder_lr=5e-3, lr=5e-3))
    division = random_pixels(labels, 20, seed=0)
    model, result = train_segmenter(encoder, [sample], [labels], options, pixels=division.train)
    (probabilities,) = segment_scenes(model, [sample])
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    right = class_map(probabilities).ravel()[division.test] == labels.ravel()[division.test]
    assert right.mean() > (0.5 if head == "upernet" else 0.8)  # by chance: a third; fields are smaller than its patches
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert model.config.window == 30


def test_tiles_of_a_scene_serve_as_the_scene_does(encoder):
    """Views smaller than the scene still reach all labels, and their predictions cover the scene."""
    sample, labels = make_scene(24, 60)
    model, _ = train_segmenter(encoder, [sample], [labels], replace(FAST, view=24))
    (probabilities,) = segment_scenes(model, [sample], view=24)
    assert (class_map(probabilities) == labels).mean() > 0.8


def test_a_scene_without_training_pixels_plays_no_part(encoder):
    """Neither the spectra's spread nor the tokens' whitening is taken from a scene that is only tested."""
    scenes = [make_scene(seed=seed) for seed in (0, 1)]
    samples, labels = [sample for sample, _ in scenes], [one for _, one in scenes]
    other = [samples[0], replace(samples[1], image=3 * samples[1].image.flip(0))]
    options = SegmentationOptions(orientations=1, fit=replace(FIT, steps=2))
    pixels = random_pixels(labels[0], 10, seed=0).train
    one, two = (train_segmenter(encoder, images, labels, options, pixels=pixels)[0] for images in (samples, other))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    moved, _ = train_segmenter(encoder, other, labels, options, pixels=pixels + labels[0].size)
    assert not torch.equal(moved.skip.mean, one.skip.mean)


def test_shared_views_keep_nothing_of_another_whitening(encoder):
    """What a model sees is whitened by its own training scenes, whatever the views were used for before."""
    scenes = [make_scene(seed=seed) for seed in (0, 1)]
    samples, labels = [sample for sample, _ in scenes], [one for _, one in scenes]
    options = SegmentationOptions(head_options={"spectral_shape": True}, orientations=1, fit=replace(FIT, steps=2))
    pixels = random_pixels(labels[0], 10, seed=0).train
    views = SceneViews(samples, options.view)
    train_segmenter(encoder, views, labels, options, pixels=pixels)
    second = pixels + labels[0].size
    shared, fresh = (train_segmenter(encoder, images, labels, options, pixels=second)[0] for images in (views, samples))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in shared.state_dict().items())
    kept, plain = (segment_scenes(shared, views, frozen=frozen) for frozen in (True, False))
    for one, other in zip(kept, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("reach", ["near", "far"])
def test_a_head_on_the_spectrum_alone_is_that(encoder, reach):
    """Its discriminants are those of the spectra, whatever the encoder says."""
    from specfast.evaluate.baselines import lda

    sample, labels = make_scene()
    head = {"tokens": False, "spectral_sides": [1], "spectral_shape": False}
    options = SegmentationOptions(reach=reach, head_options=head, augment=False, fit=FitOptions(steps=0))
    pixels = random_pixels(labels, 15, seed=0).train
    model, _ = train_segmenter(encoder, [sample], [labels], options, pixels=pixels)
    spectra = sample.image.flatten(1).T.numpy().astype(np.float64)
    wanted = lda().fit(spectra[pixels], labels.ravel()[pixels]).predict(spectra)
    assert (class_map(segment_scenes(model, [sample])[0]).ravel() == wanted).all()
    with pytest.raises(ValueError, match="tokens: expected true for a head without spectra"):
        train_segmenter(encoder, [sample], [labels], replace(options, spectral_skip=False), pixels=pixels)


def test_one_class_teaches_nothing(encoder):
    sample, labels = make_scene()
    with pytest.raises(ValueError, match="labels: expected training pixels of at least two classes, got only class 2"):
        train_segmenter(encoder, [sample], [labels], FAST, pixels=np.flatnonzero(labels == 2))


def test_another_run_without_steps_is_not_gone_on_with(encoder, tmp_path):
    """Of a head that stays as it starts a checkpoint is left, too; a page of its folder can be made."""
    from specfast.report import pages

    sample, labels = make_scene()
    options = SegmentationOptions(reach="far", augment=False, orientations=1)
    model, _ = train_segmenter(encoder, [sample], [labels], options, out=tmp_path)
    model.save_pretrained(tmp_path / "model")
    assert "specaware" in pages.finetune(tmp_path).read_text(encoding="utf-8").lower()
    train_segmenter(encoder, [sample], [labels], options, out=tmp_path)
    with pytest.raises(ValueError, match=r"out: the run in .* was made with other inputs"):
        train_segmenter(encoder, [sample], [labels % 3 + 1], options, out=tmp_path)


def test_a_linear_head_starts_from_discriminants(encoder):
    """Before its first update it classifies as discriminant analysis of its inputs does; unseen classes never."""
    from specfast.evaluate.baselines import lda

    sample, labels = make_scene()
    labels = np.where(labels == 3, 5, labels)
    options = SegmentationOptions(augment=False, orientations=1, fit=replace(FIT, steps=1, lr=0.0))
    division = random_pixels(labels, 15, seed=0)
    model, _ = train_segmenter(encoder, [sample], [labels], options, pixels=division.train)
    classes = class_map(segment_scenes(model, [sample])[0])
    assert set(np.unique(classes)) == {1, 2, 5}
    views = SceneViews([sample], 256)
    with torch.no_grad():
        inputs = views.inputs(model, 0, 0, frozen=False)[0].flatten(1).T.numpy()
    inputs = inputs[:, inputs[division.train].std(axis=0) > 0]  # there are more components than tokens differ in
    expected = lda().fit(inputs[division.train], labels.ravel()[division.train]).predict(inputs)
    assert (classes.ravel() == expected).mean() > 0.995
    two = np.where(labels == 5, 0, labels)
    model, _ = train_segmenter(encoder, [sample], [two], options)
    assert (class_map(segment_scenes(model, [sample])[0])[two > 0] == two[two > 0]).mean() > 0.9


def test_what_a_frozen_encoder_made_is_kept_and_changes_nothing(encoder):
    sample, labels = make_scene()
    views = SceneViews([sample], 256)
    first, _ = train_segmenter(encoder, views, [labels], FAST, seed=1)
    again, _ = train_segmenter(encoder, views, [labels], FAST, seed=1)
    fresh, _ = train_segmenter(encoder, [sample], [labels], FAST, seed=1)
    kept = segment_scenes(first, views, orientations=8, frozen=True)[0]
    for model in (again, fresh):
        assert all(torch.equal(v, model.state_dict()[n]) for n, v in first.state_dict().items())
    np.testing.assert_allclose(kept, segment_scenes(first, [sample], orientations=8)[0], atol=1e-6)


def test_what_is_kept_of_a_frozen_encoder_is_not_taken_for_a_tuned_one(encoder):
    sample, labels = make_scene()
    views = SceneViews([sample], 256)
    options = SegmentationOptions(orientations=1, augment=False, fit=replace(FIT, steps=2))
    train_segmenter(encoder, views, [labels], options)
    tuned = replace(options, fit=replace(options.fit, tuned_blocks=-1, encoder_lr=1e-2))
    (shared, _), (fresh, _) = (train_segmenter(encoder, scenes, [labels], tuned) for scenes in (views, [sample]))
    assert not torch.equal(shared.encoder.norm.weight, encoder.norm.weight)
    assert all(torch.equal(v, fresh.state_dict()[n]) for n, v in shared.state_dict().items())


def test_unlabelled_and_invalid_pixels(encoder):
    sample, labels = make_scene()
    valid = torch.ones(labels.shape, dtype=torch.bool)
    valid[:5] = False
    holed = replace(sample, valid=valid)
    labels = np.where(valid.numpy(), labels, 0)
    model, _ = train_segmenter(encoder, [holed], [labels], FAST)
    classes = class_map(segment_scenes(model, [holed])[0])
    assert (classes[:5] == 0).all()
    assert (classes[5:] > 0).all()
    with pytest.raises(ValueError, match="training pixels hold no measurement"):
        train_segmenter(encoder, [holed], [np.ones_like(labels)], FAST)
    with pytest.raises(ValueError, match=r"got 3, 3 of them without a label"):
        train_segmenter(encoder, [holed], [labels], FAST, pixels=np.arange(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [np.ones((3, 3), int)]}, r"labels\[0\]: expected 24 x 30 pixels"),
        ({"labels": []}, "one map for each of the 1 scenes"),
        ({"outputs": ["a"]}, "the labels hold class 3; got 1 names"),
        ({"options": replace(FAST, head="unet")}, "head: expected one of"),
        ({"options": replace(FAST, head_options={"upsample": 3})}, "upsample"),
    ],
)
def test_bad_arguments(encoder, arguments, message):
    sample, labels = make_scene()
    with pytest.raises(ValueError, match=message):
        train_segmenter(encoder, [sample], **{"labels": [labels], "options": FAST, **arguments})


def test_orientations_are_one_or_all():
    with pytest.raises(ValueError, match="orientations: expected 1 or 8, got 4"):
        SegmentationOptions(orientations=4)


def test_reach_sets_what_is_not_said(encoder):
    """A division sets the reach only where none is set, and the reach only options that are not set."""
    near, far = SegmentationOptions(), SegmentationOptions(reach="far", head_options={"components": 7})
    assert near.for_split("tile").settings == SegmentationOptions(reach="far").settings != near.settings
    assert near.for_split("a map of my own").settings == near.settings
    assert far.for_split("random") == far
    assert far.settings == {**SegmentationOptions(reach="far").settings, "components": 7}
    assert SegmentationOptions(head="upernet").for_split("tile") == SegmentationOptions(head="upernet")
    with pytest.raises(ValueError, match="reach: the head upernet looks as far as it does; expected None, got 'far'"):
        SegmentationOptions(head="upernet", reach="far")
    with pytest.raises(ValueError, match="reach: expected near or far, or None; got 'wide'"):
        SegmentationOptions(reach="wide")
    assert (near.training.steps, far.training.steps, replace(far, fit=FIT).training.steps) == (100, 0, 40)
    assert replace(far, fit=FitOptions(steps=None, tuned_blocks=1)).training.steps == 100


def test_far_discriminants_are_the_mean_of_those_of_each_part(encoder):
    """Tokens and the spectra of each side are judged on their own, so none leans on how they go together here."""
    from specfast.evaluate.baselines import lda

    sample, labels = make_scene()
    options = SegmentationOptions(reach="far", head_options={"components": 7}, augment=False, orientations=1)
    division = random_pixels(labels, 15, seed=0)
    model, result = train_segmenter(encoder, [sample], [labels], options, pixels=division.train)
    assert result.history == []
    assert not model.training
    assert (model.skip.shape, model.skip.sides, model.head.components) == (True, (1, 3), 7)
    views = SceneViews([sample], options.view)
    inputs = views.inputs(model, 0, 0, frozen=True)[0].flatten(1).T.numpy().astype(np.float64)
    known, wanted = labels.ravel()[division.train], 0.0
    for part in (slice(0, 7), slice(7, 31), slice(31, 55)):  # 12 bands, and their shapes
        one = lda().fit(inputs[division.train, part], known)
        log = np.log(one.predict_proba(inputs[:, part]))
        wanted = wanted + (log - log.mean(axis=1, keepdims=True)) / 3
    with torch.no_grad():
        logits = model(model.batch_of([sample]))[0].flatten(1).T.numpy()
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True), wanted, atol=2e-3)


@pytest.fixture(scope="module")
def table(encoder):
    sample, labels = make_scene()
    fixed = Split("given map", np.flatnonzero(labels.ravel())[::9], np.flatnonzero(labels.ravel())[1::9])
    return finetune_segmentation(
        encoder,
        sample,
        labels,
        splits=("random", "field"),
        labels_per_class=(5,),
        seeds=2,
        options=replace(FAST, fit=replace(FIT, steps=15)),
        baselines=("svm",),
        recipe={"method": "shift", "stride": 4, "overlap": 0.0},
        fixed=fixed,
    )


def test_table_holds_all_methods_on_the_same_pixels(table):
    assert table.settings_of_rows() == [("random pixels", 5), ("field-disjoint", 5), ("given map", 0)]
    for setting in table.settings_of_rows():
        rows = table.select(*setting)
        assert [row.kind for row in rows].count("fine-tuned") == 1
        assert [row.method for row in rows].count("conv head on the spectrum alone") == 1
        assert {row.inputs for row in rows} >= {"fine-tuned", "fine-tuned random encoder", "features", "svm"}
        tested = {tuple(score.confusion.sum() for score in row.scores) for row in rows}
        assert len(tested) == 1  # as many test pixels for all
    assert table.select("given map", 0)[0].scores[0].confusion.sum() == 80
    assert set(table.class_maps) == {"random", "field", "given map"}
    assert table.class_maps["random"][0].shape == (24, 30)


def test_table_in_words_and_files(table, tmp_path):
    words = table.verdict()
    assert "The trained model" in words
    assert "Given map: best is" in words
    assert "| given map all, mIoU |" in table.to_markdown()
    paths = table.save(tmp_path, "segment")
    assert [path.name for path in paths] == ["segment.json", "segment.csv", "segment.md"]
    stored = json.loads(paths[0].read_text())
    row = next(row for row in stored["rows"] if row["kind"] == "fine-tuned")
    assert row["method"] == "conv head on pre-trained encoder (frozen) and spectrum"
    assert np.array(row["confusion"][0]).shape == (3, 3)
    assert set(row) >= {"overall_accuracy", "average_accuracy", "kappa", "mean_iou", "mean_f1"}
    training = stored["settings"]["training"]
    assert {one["fit"]["steps"] for one in training.values()} == {15}
    assert {split: one["reach"] for split, one in training.items()} == {
        "random": "near",
        "field": "far",
        "given map": None,
    }
    assert training["field"]["head_options"]["spectral_shape"] is True
    assert training["field"]["head_options"]["hidden"] == 16
    assert "spectral_shape" not in training["random"]["head_options"]


def test_training_on_all_labels_saves_a_model(encoder, tmp_path):
    sample, labels = make_scene()
    model, _ = train_segmenter(encoder, [sample], [labels], FAST, outputs=("a", "b", "c"), out=tmp_path)
    again = load_model(model.save_pretrained(tmp_path / "model"))
    assert again.config.outputs == ("a", "b", "c")
    one, other = (segment_scenes(each, [sample])[0] for each in (model, again))
    assert np.array_equal(one, other)

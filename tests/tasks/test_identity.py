"""A run in a folder belongs to its labels, scenes, encoder and options; another one there is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from specfast.tasks import (
    ChangeOptions,
    ClassificationOptions,
    FitOptions,
    RegressionOptions,
    ScenePair,
    SegmentationOptions,
    build_detector,
    train_change,
    train_classifier,
    train_regressor,
    train_segmenter,
)
from tests.tasks import change_scenes
from tests.tasks.scenes import make_encoder, make_scene

FIT = FitOptions(steps=1)
SEGMENT = SegmentationOptions(head="mlp", head_options={"upsample": 1}, fit=FIT)
CLASSIFY = ClassificationOptions(fit=FIT)
REGRESS = RegressionOptions(head_options={"upsample": 1}, fit=FIT)
CHANGE = ChangeOptions(head="linear", head_options={"upsample": 1}, prior=0.5, fit=FIT)


def segment(encoder, brighter, relabelled, other_options, out):
    sample, labels = make_scene()
    labels = np.where(labels == 3, 1, labels) if relabelled else labels
    options = replace(SEGMENT, pixels_per_class=3) if other_options else SEGMENT
    outputs = ("a", "b", "c")
    return train_segmenter(encoder, [changed(sample, brighter)], [labels], options, outputs=outputs, out=out)[0]


def classify(encoder, brighter, relabelled, other_options, out):
    samples = [changed(make_scene(seed=seed)[0], brighter) for seed in range(4)]
    labels = np.array([2, 1, 2, 1] if relabelled else [1, 2, 1, 2])
    options = replace(CLASSIFY, scenes_per_class=1) if other_options else CLASSIFY
    return train_classifier(encoder, samples, labels, options, out=out)[0]


def regress(encoder, brighter, relabelled, other_options, out):
    sample, labels = make_scene()
    options = replace(REGRESS, augment=False) if other_options else REGRESS
    targets = [labels[None] + float(relabelled)]
    return train_regressor(encoder, [changed(sample, brighter)], targets, ("t",), options, out=out)[0]


def regress_scenes(encoder, brighter, relabelled, other_options, out):
    samples = [changed(make_scene(seed=seed)[0], brighter) for seed in range(4)]
    options = replace(REGRESS, head="scene", head_options={}, targets_per_step=2 if other_options else 4)
    return train_regressor(encoder, samples, np.arange(4.0)[:, None] + relabelled, ("t",), options, out=out)[0]


def change(encoder, brighter, relabelled, other_options, out):
    before, after, labels = change_scenes.make_scenes()
    pair = ScenePair.of(changed(before, brighter), after)
    options = replace(CHANGE, augment=False) if other_options else CHANGE
    detector = build_detector(options, encoder, pair)
    train_change(detector, pair, 3 - labels if relabelled else labels, np.arange(labels.size), options, out=out)
    return detector


def changed(sample, brighter):
    """Let a single value differ, which no statistic would show."""
    if brighter:
        sample.image[0, 0, 0] += 1
    return sample


@pytest.mark.parametrize("train", [segment, classify, regress, regress_scenes, change])
def test_another_run_in_the_folder_is_refused(train, tmp_path):
    encoder = change_scenes.make_encoder() if train is change else make_encoder()
    first = train(encoder, False, False, False, tmp_path)
    again = train(encoder, False, False, False, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    for place in range(3):
        with pytest.raises(ValueError, match="was made with other inputs; give the same"):
            train(encoder, *(number == place for number in range(3)), tmp_path)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.norm.weight[0] += 1
    with pytest.raises(ValueError, match="was made with other inputs"):
        train(other, False, False, False, tmp_path)

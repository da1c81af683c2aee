"""Classification of whole scenes: one label each, trained heads beside linear and nearest-neighbor probes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from specfast.batch import SpectralSample
from specfast.evaluate.baselines import BASELINES, lda, logistic_regression, require_sklearn
from specfast.evaluate.metrics import score
from specfast.evaluate.probing import random_weights
from specfast.evaluate.splits import Split, check_labels, random_pixels
from specfast.evaluate.table import FIXED, ProbeRow, ProbeTable
from specfast.models.classifier import SpecAwareClassifier
from specfast.tasks.drawn_pixels import build_model
from specfast.tasks.identity import inputs_digest
from specfast.tasks.options import ClassificationOptions
from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.scene_inputs import SceneInputs, embeddings, mean_spectra, train_on_scenes
from specfast.tasks.training import FitResult

NEIGHBORS = 5
SPECTRUM_BASELINES = ("lda", "svm", "random_forest")


def train_classifier(
    encoder,
    samples: Sequence[SpectralSample],
    labels: np.ndarray,
    options: ClassificationOptions | None = None,
    *,
    members: np.ndarray | None = None,
    outputs: Sequence[str] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> tuple[SpecAwareClassifier, FitResult]:
    """Train a scene classifier.

    Args:
        encoder: a SpecAwareEncoder, a SpecAwareMAE, or a saved model's folder; its weights are copied.
        samples: scenes; of one sensor if ``options.spectral_skip``.
        labels: int [n] from 1, 0 is unlabelled; class k of the model is label k + 1.
        options: see :class:`ClassificationOptions`.
        members: numbers of the scenes to train on; None takes every labelled one.
        outputs: names of the classes 1, 2, ...; by default their numbers.
        seed: of the head's weights and of what is drawn in training.
        out, resume, progress: as in :func:`specfast.tasks.fit`.

    Returns:
        the model in evaluation mode, and what :func:`specfast.tasks.fit` returned.

    Raises:
        ValueError: labels do not fit the scenes, an option is wrong, or the run in ``out`` was made with something
            else.
    """
    options = options or ClassificationOptions()
    labels = _labels_of(samples, labels)
    members = np.flatnonzero(labels) if members is None else np.asarray(members)
    if not len(members) or (labels[members] == 0).any():
        raise ValueError(f"members: expected numbers of labelled scenes, at least one; got {members.tolist()}")
    names = [str(k) for k in range(1, int(labels.max()) + 1)] if outputs is None else list(outputs)
    if len(names) < labels.max():
        raise ValueError(f"outputs: the labels hold class {int(labels.max())}; got {len(names)} names")
    used = [samples[number] for number in members]  # scenes that are only tested play no part in the statistics
    model = build_model(SpecAwareClassifier, encoder, names, used, options, seed)
    inputs = SceneInputs(model, samples, frozen=options.fit.tuned_blocks == 0)
    target = torch.as_tensor(labels - 1, device=model.encoder.cls_token.device)
    result = train_on_scenes(
        inputs,
        lambda logits, numbers: F.cross_entropy(logits.float(), target[torch.as_tensor(numbers, device=target.device)]),
        StratifiedSampler(labels[members], options.scenes_per_class, seed),
        members,
        options,
        seed=seed,
        out=out,
        resume=resume,
        progress=progress,
        name=f"classify, {options.head}",
        inputs=inputs_digest(out, model, used, options, labels[members], members),
    )
    return model, result


def finetune_classification(
    encoder,
    samples: Sequence[SpectralSample],
    labels: np.ndarray,
    *,
    labels_per_class: Sequence[int] = (5, 10),
    seeds: int = 5,
    options: ClassificationOptions | None = None,
    baselines: Sequence[str] = SPECTRUM_BASELINES,
    control: bool = True,
    fixed: Split | None = None,
    progress: bool = False,
) -> ProbeTable:
    """Train scene classifiers on few labels, and measure them beside probes, controls and baselines.

    Rows: the trained head on the pre-trained encoder and on one with random weights; linear discriminant analysis,
    logistic regression and the 5 nearest neighbors (cosine) on frozen features of both; and classifiers of the mean
    spectrum. All get the same scenes; nothing is chosen by looking at test scenes.

    Args:
        encoder: a SpecAwareEncoder, pre-trained.
        samples: scenes with equal bands.
        labels: int [n] from 1, 0 is unlabelled.
        labels_per_class: scenes of each class to train on, drawn at random; the others are tested. May be empty with
            ``fixed``.
        seeds: divisions, 0 to ``seeds - 1``.
        options: how the head is trained.
        baselines: keys of :data:`specfast.evaluate.BASELINES` that take spectra.
        control: with the rows of an encoder with random weights.
        fixed: a division of its own, of numbers of scenes.
        progress: show a bar.

    Raises:
        ValueError: labels do not fit the scenes, scenes have different bands, or an option is wrong.
        ImportError: scikit-learn is missing.
    """
    require_sklearn()
    options = options or ClassificationOptions()
    labels = _labels_of(samples, labels)
    if unknown := sorted(set(baselines) - set(SPECTRUM_BASELINES) - {"logistic"}):
        raise ValueError(f"baselines: expected some of {', '.join(SPECTRUM_BASELINES)}; got {', '.join(unknown)}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    divisions = {count: [random_pixels(labels, count, seed) for seed in range(seeds)] for count in labels_per_class}
    if fixed is not None:
        divisions[FIXED] = [fixed] * seeds
    if not divisions:
        raise ValueError("labels_per_class: expected at least one number, or a fixed division")
    methods = _methods(encoder, samples, labels, options, baselines, control)
    notes = _notes(divisions)
    rows = []
    with _bar(len(methods) * sum(map(len, divisions.values())), progress) as bar:
        for count, parts in divisions.items():
            name = fixed.name if count == FIXED else "random scenes"
            for method, kind, inputs, classifier, predict in methods:
                start, scores = time.perf_counter(), []
                for seed, part in enumerate(parts):
                    scores.append(score(labels[part.test], predict(part, seed)))
                    bar.update()
                seconds = time.perf_counter() - start
                rows.append(ProbeRow(method, kind, inputs, classifier, name, count, tuple(scores), seconds))
    settings = {
        "labels_per_class": [int(count) for count in labels_per_class],
        "seeds": int(seeds),
        "training": {**vars(options), "head_options": dict(options.head_options), "fit": dict(vars(options.fit))},
    }
    return ProbeTable(rows, notes, settings)


class NearestNeighbors:
    """The 5 training scenes nearest by cosine (all, where there are fewer), their votes weighted by it."""

    def __init__(self, seed: int = 0):
        """``seed`` plays no part; all classifiers of a table are built with one."""

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> NearestNeighbors:
        """Keep inputs [T, F] and labels [T]."""
        from sklearn.neighbors import KNeighborsClassifier

        count = min(NEIGHBORS, len(inputs))
        self.model = KNeighborsClassifier(count, metric="cosine", weights=lambda distance: 1 / (distance + 1e-6))
        self.model.fit(inputs, labels)
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the class of each row."""
        return self.model.predict(inputs)


PROBES = {
    "lda": ("LDA", lda),
    "logistic": ("logistic regression", logistic_regression),
    "knn": (f"{NEIGHBORS} nearest neighbors", NearestNeighbors),
}


def _methods(encoder, samples, labels, options, baselines, control) -> list[tuple]:
    """List (method, kind, inputs, classifier, function of a division and a seed that predicts its test scenes)."""
    networks = [("features", "fine-tuned", "pre-trained encoder", encoder)]
    if control:
        networks.append(("random encoder", "fine-tuned random encoder", "random encoder", random_weights(encoder)))
    trained, probed = [], []
    for inputs, tuned, title, network in networks:
        predict = _trained(network, samples, labels, options)
        kind = "fine-tuned" if tuned == "fine-tuned" else "control"
        trained.append((f"{options.head} head on {title}", kind, tuned, options.head, predict))
        features = embeddings(network, samples)
        for key, (name, build) in PROBES.items():
            kind = "features" if inputs == "features" else "control"
            predict = _fitted(build, features, labels)
            title_of = "frozen features" if inputs == "features" else "random encoder"
            probed.append((f"{name}, {title_of}", kind, inputs, key, predict))
    spectra = mean_spectra(samples)
    plain = [
        (
            BASELINES[key].name.replace("raw", "mean"),
            "baseline",
            key,
            key,
            _fitted(BASELINES[key].build, spectra, labels),
        )
        for key in baselines
    ]
    return [*trained, *probed, *plain]


def _trained(network, samples, labels, options):
    def predict(part: Split, seed: int) -> np.ndarray:
        model, _ = train_classifier(network, samples, labels, options, members=part.train, seed=seed)
        tested = SceneInputs(model, [samples[number] for number in part.test], frozen=False)
        return tested.predict().argmax(dim=1).numpy() + 1

    return predict


def _fitted(build, inputs: np.ndarray, labels: np.ndarray):
    return lambda part, seed: build(seed).fit(inputs[part.train], labels[part.train]).predict(inputs[part.test])


def _labels_of(samples, labels) -> np.ndarray:
    labels = check_labels(labels, ndim=1)
    if len(labels) != len(samples):
        raise ValueError(f"labels: expected one for each of the {len(samples)} scenes, got {len(labels)}")
    return labels


def _notes(divisions) -> list[str]:
    notes = []
    for count, parts in divisions.items():
        if fewer := sorted({c for part in parts for c in part.shortfall}):
            notes.append(f"{count} labels a class: fewer scenes were available of classes {fewer}")
        if untested := sorted({c for part in parts for c in part.untested}):
            notes.append(f"{count} labels a class: classes {untested} have a single scene and are left out")
    return notes


def _bar(total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="classifiers", unit="fit", disable=not progress)

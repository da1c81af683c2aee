"""The probe: what frozen features know about classes, beside what the spectrum and an untrained encoder know."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from specfast.batch import SpectralSample
from specfast.evaluate import splits as splitting
from specfast.evaluate.baselines import BASELINES, Method, lda, logistic_regression, require_sklearn, spectra
from specfast.evaluate.features import dense_features, whiten
from specfast.evaluate.metrics import score
from specfast.evaluate.table import FIXED, ProbeRow, ProbeTable

if TYPE_CHECKING:
    from specfast.data import SpectralImage

CLASSIFIERS = {"lda": ("LDA", lda), "logistic": ("logistic regression", logistic_regression)}
DEFAULT_BASELINES = ("svm", "pca_svm", "random_forest", "mean_svm")
SPLITS = ("random", "field", "tile")
RANDOM_WEIGHTS_SEED = 0
COMPONENTS = 100  # chosen on Indian Pines, on divisions of seeds 100 to 104: the pixels of seeds 0 to 4 are not unseen


def probe(
    encoder: nn.Module,
    images: SpectralImage | SpectralSample | Sequence,
    labels: np.ndarray | Sequence[np.ndarray],
    *,
    splits: Sequence[str] = ("random", "field"),
    labels_per_class: Sequence[int] = (10, 50),
    seeds: int = 5,
    classifiers: Sequence[str] = ("lda", "logistic"),
    baselines: Sequence[str] = DEFAULT_BASELINES,
    recipe: Mapping | None = None,
    components: int = COMPONENTS,
    fixed: splitting.Split | None = None,
    progress: bool = False,
) -> ProbeTable:
    """Classify pixels from frozen features, beside controls and baselines.

    Every input is classified by the same simple classifiers: the frozen features, the raw spectrum, both together, and
    the features of the same encoder with random weights, alone and beside the spectrum. Features are whitened (without
    labels); all inputs are standardized with the training pixels' mean and spread, hyper-parameters are fixed, and all
    methods get the same pixels.

    Args:
        encoder: a SpecAwareEncoder.
        images: one scene, or several with equal bands.
        labels: integers [H, W] of each scene, 0 is unlabelled.
        splits: ``"random"``, ``"field"``, ``"tile"`` (several scenes: whole ones are trained on or tested).
        labels_per_class: how many training pixels of each class, one table part each.
        seeds: divisions into train and test pixels, 0 to ``seeds - 1``.
        classifiers: ``"lda"``, ``"logistic"``.
        baselines: keys of :data:`specfast.evaluate.BASELINES`.
        recipe: options of :func:`specfast.evaluate.dense_features`.
        components: whitened principal components that are kept of the features, pre-trained and random alike (see
            :func:`specfast.evaluate.whiten`).
        fixed: a division of its own, such as of :func:`specfast.evaluate.published_maps`: one more table part, after
            those of ``splits``, which may then be empty.
        progress: show bars.

    Returns:
        the table; ``class_maps`` holds, for each split, every scene classified from frozen features by the first
        classifier, trained with the most labels and seed 0.

    Raises:
        ValueError: labels do not fit the scenes, scenes have different bands, or an option is unknown.
        ImportError: scikit-learn is missing.
    """
    require_sklearn()
    _check_options(splits, labels_per_class, seeds, classifiers, baselines, fixed)
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    labels = [np.asarray(one) for one in (labels if isinstance(labels, (list, tuple)) else [labels])]
    if len(labels) != len(images):
        raise ValueError(f"labels: expected one array for each of the {len(images)} scenes, got {len(labels)}")
    if "tile" in splits and len(images) < 2:
        raise ValueError("splits: 'tile' needs several scenes, got one")
    notes: list[str] = []
    cubes = read_cubes(images)
    labels = usable_labels(labels, cubes, notes)
    recipe = dict(recipe or {})

    inputs = {"raw spectrum": _rows(cubes)}
    for name, network in (("features", encoder), ("random encoder", random_weights(encoder))):
        made = [dense_features(network, image, progress=progress, **recipe) for image in images]
        inputs[name] = whiten(_rows(made), components)
    flat = np.concatenate([one.ravel() for one in labels])
    divisions = divide(labels, splits, labels_per_class, seeds, notes, fixed)

    plan = _plan(inputs, cubes, classifiers, baselines)
    rows: list[ProbeRow] = []
    with _bar(len(plan) * len(divisions) * seeds, progress) as bar, _one_thread():
        for method, kind, name, classifier, make in plan:
            pixels = make()
            for (_, count), parts in divisions.items():
                start = time.perf_counter()
                scores = []
                for seed, part in enumerate(parts):
                    model = method.build(seed).fit(pixels[part.train], flat[part.train])
                    scores.append(score(flat[part.test], model.predict(pixels[part.test])))
                    bar.update()
                seconds = time.perf_counter() - start
                rows.append(ProbeRow(method.name, kind, name, classifier, parts[0].name, count, tuple(scores), seconds))
            del pixels
        maps = _class_maps(inputs["features"], flat, labels, divisions, classifiers[0])
    order = {key: number for number, key in enumerate(dict.fromkeys((r.split, r.labels_per_class) for r in rows))}
    rows.sort(key=lambda row: order[row.split, row.labels_per_class])
    settings = {
        "splits": list(splits),
        "labels_per_class": [int(count) for count in labels_per_class],
        "seeds": int(seeds),
        "features": {**recipe, "components": int(components)},
        "random_encoder": f"one draw of weights, seed {RANDOM_WEIGHTS_SEED}",
        "class_map": f"{CLASSIFIERS[classifiers[0]][0]}, frozen features, {max(labels_per_class)} labels, seed 0",
    }
    return ProbeTable(rows, notes, settings, maps)


def _check_options(splits, labels_per_class, seeds, classifiers, baselines, fixed) -> None:
    for name, given, known in (
        ("splits", splits, SPLITS),
        ("classifiers", classifiers, CLASSIFIERS),
        ("baselines", baselines, BASELINES),
    ):
        if isinstance(given, str) or (unknown := [one for one in given if one not in known]):
            raise ValueError(
                f"{name}: expected a list out of {', '.join(known)}; got {given if isinstance(given, str) else unknown}"
            )
    for name, given in (("splits", splits), ("classifiers", classifiers), ("labels_per_class", labels_per_class)):
        if not given and not (fixed is not None and name == "splits"):
            raise ValueError(f"{name}: expected at least one, got none")
    if min(labels_per_class) < 1:
        raise ValueError(f"labels_per_class: expected numbers of at least 1, got {list(labels_per_class)}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")


def read_cubes(images) -> list[np.ndarray]:
    """Read every scene whole: [H, W, C] physical units, NaN at invalid pixels."""
    cubes = []
    for image in images:
        sample = image if isinstance(image, SpectralSample) else image.sample()
        pixels = torch.as_tensor(sample.image).float()
        valid = torch.isfinite(pixels).all(dim=0)
        if sample.valid is not None:
            valid = valid & torch.as_tensor(sample.valid).bool()
        cubes.append(torch.where(valid, pixels, torch.nan).permute(1, 2, 0).numpy())
    bands = {cube.shape[2] for cube in cubes}
    if len(bands) > 1:
        raise ValueError(f"images: scenes must have the same bands, got {sorted(bands)} bands")
    return cubes


def usable_labels(labels, cubes, notes) -> list[np.ndarray]:
    """Check labels against scenes and take them away where a pixel holds no measurement."""
    for number, (one, cube) in enumerate(zip(labels, cubes, strict=True)):
        if one.shape != cube.shape[:2]:
            raise ValueError(
                f"labels[{number}]: expected {cube.shape[0]} x {cube.shape[1]} to match the scene, "
                f"got {' x '.join(map(str, one.shape))}"
            )
    flat = splitting.check_labels(np.concatenate([one.ravel() for one in labels]))
    valid = np.concatenate([np.isfinite(cube).all(axis=2).ravel() for cube in cubes])
    lost = int(((flat > 0) & ~valid).sum())
    if lost:
        notes.append(f"{lost} labelled pixels hold no measurement and are left out")
        flat = splitting.check_labels(np.where(valid, flat, 0))
    ends = np.cumsum([one.size for one in labels])[:-1]
    return [part.reshape(one.shape) for part, one in zip(np.split(flat, ends), labels, strict=True)]


def _rows(scenes: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([scene.reshape(-1, scene.shape[2]) for scene in scenes])


def random_weights(encoder: nn.Module) -> nn.Module:
    """The same encoder as it is before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        fresh = type(encoder)(encoder.config)
    parameter = next(encoder.parameters(), None)
    return fresh if parameter is None else fresh.to(parameter.device)


def divide(labels, splits, labels_per_class, seeds, notes, fixed=None) -> dict[tuple[str, int], list[splitting.Split]]:
    """Divide labelled pixels: (split, labels a class) -> a division for each seed; what is odd goes to ``notes``.

    A fixed division is the same for all seeds and stands under its name and 0 labels a class.
    """
    flat = np.concatenate([one.ravel() for one in labels])
    tiles = np.concatenate([np.full(one.size, number) for number, one in enumerate(labels)])
    make = {
        "random": lambda count, seed: splitting.random_pixels(flat, count, seed),
        "field": lambda count, seed: splitting.field_disjoint(labels, count, seed),
        "tile": lambda count, seed: splitting.by_tile(flat, tiles, count, seed),
    }
    divisions = {}
    for split in splits:
        for count in labels_per_class:
            parts = [make[split](count, seed) for seed in range(seeds)]
            divisions[split, count] = parts
            fewer = {c: min(p.shortfall[c] for p in parts if c in p.shortfall) for p in parts for c in p.shortfall}
            if fewer:
                listed = ", ".join(f"class {c}: {taken}" for c, taken in sorted(fewer.items()))
                notes.append(f"{parts[0].name}, {count} labels a class: fewer were available ({listed}, at the least)")
            if untested := sorted({c for part in parts for c in part.untested}):
                notes.append(f"{parts[0].name}, {count} labels a class: some seeds leave out classes {untested}")
    if fixed is not None:
        usable = [pixels[flat[pixels] > 0] for pixels in (fixed.train, fixed.test)]
        if not all(map(len, usable)):
            raise ValueError("fixed: expected labelled pixels to train on and to test, got none of one")
        divisions[fixed.name, FIXED] = [replace(fixed, train=usable[0], test=usable[1])] * seeds
    return divisions


def _plan(inputs, cubes, classifiers, baselines) -> Iterator[tuple]:
    """List (method, kind, inputs, classifier, function that makes the input rows), in the order of the table."""
    raw = "raw spectrum"
    kinds = (
        ("features", "frozen features", "features", ("features",)),
        ("raw + features", "raw spectrum + frozen features", "features", (raw, "features")),
        (raw, raw, "control", (raw,)),
        ("random encoder", "random encoder", "control", ("random encoder",)),
        ("raw + random encoder", "raw spectrum + random encoder", "control", (raw, "random encoder")),
    )
    plan = []
    for name, title, kind, parts in kinds:
        for classifier in classifiers:
            short, build = CLASSIFIERS[classifier]
            make = lambda parts=parts: np.concatenate([inputs[part] for part in parts], axis=1)  # noqa: E731
            plan.append((Method(f"{short}, {title}", spectra, build), kind, name, classifier, make))
    for key in baselines:
        if key not in classifiers:
            method = BASELINES[key]
            make = lambda method=method: _rows(method.prepare(cubes))  # noqa: E731
            plan.append((method, "baseline", key, key, make))
    return plan


def _class_maps(pixels, flat, labels, divisions, classifier) -> dict[str, list[np.ndarray]]:
    usable = np.isfinite(pixels).all(axis=1)
    maps = {}
    most = max((count for _, count in divisions), default=0)
    for (split, labels_per_class), parts in divisions.items():
        if labels_per_class in (most, FIXED):
            train = parts[0].train
            model = CLASSIFIERS[classifier][1](0).fit(pixels[train], flat[train])
            classes = np.zeros(len(flat), dtype=np.int16)
            classes[usable] = model.predict(pixels[usable])
            ends = np.cumsum([one.size for one in labels])[:-1]
            maps[split] = [p.reshape(one.shape) for p, one in zip(np.split(classes, ends), labels, strict=True)]
    return maps


@contextmanager
def _one_thread():
    """Keep linear algebra to one thread: the matrices are small, and threads that wait for each other cost 10x."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def _bar(total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="probe", unit="fit", disable=not progress)

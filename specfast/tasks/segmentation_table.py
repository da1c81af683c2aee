"""finetune_segmentation: trained segmenters beside frozen-feature probes, controls and baselines, in one table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from specfast.batch import SpectralSample
from specfast.evaluate.metrics import score
from specfast.evaluate.probing import DEFAULT_BASELINES, divide, probe, random_weights, read_cubes, usable_labels
from specfast.evaluate.splits import Split
from specfast.evaluate.table import FIXED, ProbeRow, ProbeTable
from specfast.models.encoder import SpecAwareEncoder
from specfast.models.segmenter import SpecAwareSegmenter
from specfast.tasks.drawn_pixels import build_model
from specfast.tasks.options import SegmentationOptions
from specfast.tasks.segmentation import class_map, segment_scenes, train_segmenter
from specfast.tasks.views import SceneViews

if TYPE_CHECKING:
    from specfast.data import SpectralImage


def finetune_segmentation(
    encoder: SpecAwareEncoder,
    images: SpectralImage | SpectralSample | Sequence,
    labels: np.ndarray | Sequence[np.ndarray],
    *,
    splits: Sequence[str] = ("random", "field"),
    labels_per_class: Sequence[int] = (10, 50),
    seeds: int = 5,
    options: SegmentationOptions | None = None,
    classifiers: Sequence[str] = ("lda",),
    baselines: Sequence[str] = (*DEFAULT_BASELINES, "cnn"),
    recipe: dict | None = None,
    control: bool = True,
    fixed: Split | None = None,
    progress: bool = False,
) -> ProbeTable:
    """Train a segmenter for every division of the labels, and measure it beside what it has to beat.

    All methods get the same training and test pixels. Nothing is chosen by looking at test pixels: options are fixed
    before, there is no early stopping, and the weights after the last step are tested. The unlabelled pixels of a scene
    are seen by the encoder and by the head's convolutions in training, as they are in use.

    Args:
        encoder: pre-trained.
        images: one scene, or several with equal bands.
        labels: integers [H, W] of each scene, 0 is unlabelled.
        splits, labels_per_class, seeds, classifiers, baselines, recipe, fixed: as in :func:`specfast.evaluate.probe`,
            which makes all rows but the trained ones.
        options: how segmenters are trained. With no ``reach`` set, that of random pixels is near, that of fields and
            tiles far. Unless ``recipe`` says otherwise, the probes' features are made of the same views, enlarged
            alike.
        control: train the same model from an encoder with random weights, too, and, if its head sees spectra, with the
            tokens left out.
        progress: show bars.

    Returns:
        the table; kind ``"fine-tuned"`` marks the trained rows. ``class_maps`` holds, for each split, all scenes as the
        segmenter of seed 0 with the most labels classifies it.

    Raises:
        ValueError: labels do not fit the scenes, scenes have different bands, or an option is unknown.
        ImportError: scikit-learn is missing.
    """
    options = options or SegmentationOptions()
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    labels = [np.asarray(one) for one in (labels if isinstance(labels, (list, tuple)) else [labels])]
    views = SceneViews(images, options.view)
    build_model(SpecAwareSegmenter, encoder, ("any",), views, options, 0)  # a wrong option shows at once
    protocol = {"splits": splits, "labels_per_class": labels_per_class, "seeds": seeds}
    table = probe(
        encoder,
        images,
        labels,
        **protocol,
        classifiers=classifiers,
        baselines=baselines,
        recipe={"factor": options.settings.get("upsample", 1), "window": options.view, **(recipe or {})},
        fixed=fixed,
        progress=progress,
    )
    labels = usable_labels(labels, read_cubes(images), [])
    divisions = divide(labels, splits, labels_per_class, seeds, [], fixed)
    names = [("fine-tuned", "fine-tuned", encoder, options)]
    if control:
        names.append(("fine-tuned random encoder", "control", random_weights(encoder), options))
        if sees_spectra(options):
            alone = replace(options, head_options={**options.head_options, "tokens": False})
            names.append(("fine-tuned spectra", "control", encoder, alone))
    rows, maps = [], {}
    with _bar(len(names) * sum(map(len, divisions.values())), progress) as bar:
        for inputs, kind, network, trained in names:
            views.forget_encoded()
            for (split, count), parts in divisions.items():
                start, scores = time.perf_counter(), []
                for seed, part in enumerate(parts):
                    classes = _classify(network, views, labels, part, trained.for_split(split), seed)
                    flat = np.concatenate([one.ravel() for one in classes])
                    truth = np.concatenate([one.ravel() for one in labels])
                    scores.append(score(truth[part.test], flat[part.test]))
                    if kind == "fine-tuned" and seed == 0 and count in (max(labels_per_class), FIXED):
                        maps[split] = classes
                    bar.update()
                seconds = time.perf_counter() - start
                method = _method(options, inputs)
                rows.append(ProbeRow(method, kind, inputs, options.head, parts[0].name, count, tuple(scores), seconds))
    order = {setting: number for number, setting in enumerate(table.settings_of_rows())}
    table.rows = sorted([*rows, *table.rows], key=lambda row: order[row.split, row.labels_per_class])
    table.class_maps = maps
    table.settings |= {
        "training": {split: _plain(options.for_split(split)) for split, _ in divisions},
        "class_map": f"{_method(options, 'fine-tuned')}, seed 0, the most labels",
    }
    return table


def _classify(encoder, views: SceneViews, labels, part: Split, options: SegmentationOptions, seed: int):
    """Train on a division's training pixels, and classify every scene."""
    model, _ = train_segmenter(encoder, views, labels, options, pixels=part.train, seed=seed)
    frozen = options.fit.tuned_blocks == 0
    return [
        class_map(probabilities)
        for probabilities in segment_scenes(model, views, orientations=options.orientations, frozen=frozen)
    ]


def sees_spectra(options: SegmentationOptions) -> bool:
    """Tell whether the head sees the pixels' own spectra."""
    return options.spectral_skip and options.head != "upernet"


def _method(options: SegmentationOptions, inputs: str) -> str:
    if inputs == "fine-tuned spectra":
        return f"{options.head} head on the spectrum alone"
    encoder = "random encoder" if inputs != "fine-tuned" else "pre-trained encoder"
    tuned = options.fit.tuned_blocks
    how = "frozen" if tuned == 0 else "tuned" if tuned < 0 else f"last {tuned} blocks tuned"
    skip = " and spectrum" if sees_spectra(options) else ""
    return f"{options.head} head on {encoder} ({how}){skip}"


def _plain(options: SegmentationOptions) -> dict:
    return {**vars(options), "head_options": options.settings, "fit": dict(vars(options.training))}


def _bar(total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="segmenters", unit="fit", disable=not progress)

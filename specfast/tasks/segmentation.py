"""Segmentation of whole scenes with few labels: every step sees the scenes whole and a balanced draw of their labels.

Source: Zheng et al. 2020 (patch-free global learning), with SpecAware's encoder in place of their network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.batch import SpectralSample
from specfast.evaluate.splits import check_labels
from specfast.models.segmenter import SpecAwareSegmenter
from specfast.tasks.drawn_pixels import DrawnPixels, build_model
from specfast.tasks.identity import inputs_digest
from specfast.tasks.options import SegmentationOptions
from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.training import FitResult, fit
from specfast.tasks.views import SceneViews

DISCRIMINANT_PIXELS = 500  # of a class, at most, are looked at for discriminants
UNSEEN = 20.0  # by how much the logit of a class without training pixels starts below the others' biases

if TYPE_CHECKING:
    from specfast.data import SpectralImage


def train_segmenter(
    encoder,
    images: SceneViews | Sequence[SpectralImage | SpectralSample],
    labels: Sequence[np.ndarray],
    options: SegmentationOptions | None = None,
    *,
    pixels: np.ndarray | None = None,
    outputs: Sequence[str] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> tuple[SpecAwareSegmenter, FitResult]:
    """Train a segmenter on labelled pixels of whole scenes.

    Args:
        encoder: a SpecAwareEncoder, a SpecAwareMAE, or a saved model's folder; its weights are copied.
        images: the scenes; a :class:`SceneViews` of them keeps what a frozen encoder made of them for the next call.
        labels: integers [H, W] of each scene, 0 is unlabelled; class k of the model is label k + 1.
        options: see :class:`SegmentationOptions`.
        pixels: flat indices over all scenes of the pixels to train on; None takes every labelled one.
        outputs: names of the classes 1, 2, ...; by default their numbers.
        seed: of the head's weights and of what is drawn in training.
        out, resume, progress: as in :func:`specfast.tasks.fit`.

    Returns:
        the model in evaluation mode, and what :func:`specfast.tasks.fit` returned.

    Raises:
        ValueError: labels do not fit the scenes, a training pixel is unlabelled or invalid, an option is wrong, or
            the run in ``out`` was made with something else.
    """
    options = options or SegmentationOptions()
    views = images if isinstance(images, SceneViews) else SceneViews(images, options.view)
    flat = _flat_labels(labels, views)
    pixels = np.flatnonzero(flat) if pixels is None else np.asarray(pixels)
    if not len(pixels) or (flat[pixels] == 0).any():
        raise ValueError(
            f"pixels: expected at least one, all labelled; got {len(pixels)}, "
            f"{int((flat[pixels] == 0).sum())} of them without a label"
        )
    names = [str(k) for k in range(1, int(flat.max()) + 1)] if outputs is None else list(outputs)
    if len(names) < flat.max():
        raise ValueError(f"outputs: the labels hold class {int(flat.max())}; got {len(names)} names")
    model = build_model(SpecAwareSegmenter, encoder, names, views, options, seed, views.scenes_of(pixels))
    sampler = StratifiedSampler(flat[pixels], options.pixels_per_class, seed)
    training = DrawnPixels(views, pixels, sampler, augment=options.augment, seed=seed)
    target = torch.as_tensor(flat[pixels] - 1, device=model.encoder.cls_token.device)
    frozen = options.fit.tuned_blocks == 0
    if len(np.unique(flat[pixels])) < 2:
        raise ValueError(f"labels: expected training pixels of at least two classes, got only class {flat[pixels[0]]}")
    if options.head == "linear":
        chosen = StratifiedSampler(flat[pixels], DISCRIMINANT_PIXELS, seed).few()
        inputs = training.inputs(model.eval(), chosen, frozen)
        start_from_discriminants(model, *inputs, flat[pixels], apart=options.reach == "far")

    def loss_of_step(step: int) -> Iterator[Tensor]:
        for positions, logits in training.outputs(model, step, frozen):
            wanted = target[torch.as_tensor(positions, device=target.device)]
            yield F.cross_entropy(logits, wanted, reduction="sum") / sampler.draws

    settings = {"seed": seed, "out": out, "resume": resume, "progress": progress, "name": f"segment, {options.head}"}
    inputs = inputs_digest(out, model, views.samples, options, flat[pixels], pixels)
    return model, fit(
        model, loss_of_step, options.training, **settings, inputs=inputs, started=options.head == "linear"
    )


def start_from_discriminants(
    model: SpecAwareSegmenter, inputs: Tensor, positions: np.ndarray, labels: np.ndarray, *, apart: bool = False
) -> None:
    """Set a linear head to the linear discriminants of the training pixels: from few labels, a better start than none.

    Classes without a training pixel are given a logit far below the others'.

    Args:
        model: with the head ``"linear"``.
        inputs: [rows, inputs] as :meth:`DrawnPixels.inputs` returns them.
        positions: [rows], the pixel of each row.
        labels: int [T], the class of each pixel, from 1.
        apart: find the discriminants of the levels and of the spectra of each side on their own, and take their mean:
            none can then lean on how the others go together in these pixels, which other fields need not share.
    """
    classes = np.unique(labels)
    values, known = inputs.double().numpy(), labels[positions]
    parts = model.head.parts(len(model.config.options["spectral_sides"])) if apart else [slice(None)]
    found = [(part, _discriminants(values[:, part], known)) for part in parts if np.ptp(values[:, part], axis=0).any()]
    weight, bias = np.zeros((len(classes), values.shape[1])), np.zeros(len(classes))
    for part, (slope, offset) in found:
        weight[:, part] = slope / len(found)
        bias += offset / len(found)
    full = torch.zeros(len(model.config.outputs), values.shape[1])
    offset = torch.full((len(full),), float(bias.min()) - UNSEEN)
    full[classes - 1], offset[classes - 1] = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    model.head.set_linear(full, offset)


def _discriminants(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weight [classes, inputs] and bias [classes] of the linear discriminants, all classes equally likely.

    Constant inputs tell nothing, but would take part in what covariances are shrunk to: they are left out.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    varied = np.flatnonzero(values.std(axis=0))
    every, values = values.shape[1], values[:, varied]
    mean, spread = values.mean(axis=0), values.std(axis=0)
    count = len(np.unique(labels))
    found = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(count, 1 / count))
    found.fit((values - mean) / spread, labels)
    weight, bias = found.coef_ / spread, found.intercept_ - found.coef_ @ (mean / spread)
    if count == 2:  # one discriminant, of the second class against the first
        weight, bias = np.stack([-weight[0] / 2, weight[0] / 2]), np.stack([-bias[0] / 2, bias[0] / 2])
    full = np.zeros((count, every))
    full[:, varied] = weight
    return full, bias


def segment_scenes(
    model: SpecAwareSegmenter,
    images: SceneViews | Sequence[SpectralImage | SpectralSample],
    *,
    view: int = 256,
    orientations: int = 1,
    frozen: bool = False,
) -> list[np.ndarray]:
    """Classify scenes that fit in memory (for others: ``specfast.infer``).

    Args:
        model: in evaluation mode.
        images: scenes, or the views it was trained on.
        view: side in pixels of the tiles that larger scenes are cut into; where tiles overlap, probabilities blend.
        orientations: 8 averages the probabilities over all turns and flips of the scene.
        frozen: the model's encoder is the one that ``images`` keeps the features of.

    Returns:
        probabilities of each scene, float32 [K, H, W]; NaN at invalid pixels.
    """
    views = images if isinstance(images, SceneViews) else SceneViews(images, view)
    return views.predict(model, lambda logits: logits.softmax(dim=1), orientations=orientations, frozen=frozen)


def class_map(probabilities: np.ndarray) -> np.ndarray:
    """Turn probabilities [K, H, W] to classes int16 [H, W] from 1; 0 where they are NaN."""
    known = np.isfinite(probabilities).all(axis=0)
    return np.where(known, np.where(known, probabilities, 0).argmax(axis=0) + 1, 0).astype(np.int16)


def _flat_labels(labels: Sequence[np.ndarray], views: SceneViews) -> np.ndarray:
    if len(labels) != len(views.sizes):
        raise ValueError(f"labels: expected one map for each of the {len(views.sizes)} scenes, got {len(labels)}")
    for number, (one, size) in enumerate(zip(labels, views.sizes, strict=True)):
        if np.shape(one) != size:
            raise ValueError(f"labels[{number}]: expected {size[0]} x {size[1]} pixels, got {np.shape(one)}")
    return check_labels(np.concatenate([np.ravel(one) for one in labels]))

"""Training a change detector on labelled pixels of two dates, and the maps it gives.

Legend: H x W pixels of the scenes, T labelled pixels to train on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from specfast.evaluate.features import ramp
from specfast.models.change import ChangeOutput, Compared, SpecAwareChangeDetector
from specfast.tasks.change_data import CHANGED, ScenePair
from specfast.tasks.change_options import ChangeOptions
from specfast.tasks.identity import inputs_digest
from specfast.tasks.options import ORIENTATIONS
from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.training import FitResult, fit
from specfast.tasks.views import VIEW_OVERLAP, View, assign_pixels, cut_views, orient_back

CACHE_BYTES = 2**30  # of what a frozen encoder made of views; beyond that they are encoded anew
UNTURNED = 0
PRIOR_STEPS, PRIOR_TOLERANCE, SMALLEST_PRIOR = 1000, 1e-6, 1e-3


def build_detector(options: ChangeOptions, source, pair: ScenePair, seed: int = 0) -> SpecAwareChangeDetector:
    """Make a detector: the encoder's weights, fresh heads drawn with ``seed``, what is usual in a pair's spectra.

    Args:
        options: see :class:`ChangeOptions`.
        source: a SpecAwareEncoder or SpecAwareMAE, whose weights are copied, or a saved model's folder.
        pair: the dates that the detector will be trained on.
        seed: of the heads' weights.
    """
    window = min(options.view, max(pair.size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = SpecAwareChangeDetector.from_encoder(
            source, head=options.head, **{"window": window, **options.head_options}
        )
    if detector.spectra is not None:
        detector.spectra.fit([(pair.before, pair.after)])
    return detector


class PairFeatures:
    """What detectors with one frozen encoder see of a pair, encoded once for each view and orientation."""

    def __init__(self, pair: ScenePair):
        self.pair = pair
        self._kept: dict[tuple, Compared] = {}
        self._room = CACHE_BYTES

    def of(self, detector: SpecAwareChangeDetector, view: View, orientation: int, keep: bool) -> Compared:
        """Return a view's features, from before if ``keep`` (the encoder must be the same, and frozen)."""
        key = (view, orientation, detector.spacing)
        if keep and key in self._kept:
            return self._kept[key]
        samples = self.pair.read(view, orientation)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not keep):
            compared = detector.compare(*(detector.batch_of([sample]) for sample in samples))
        if keep:
            tensors = [*compared.levels, *(t for t in (compared.present, compared.spectra) if t is not None)]
            self._room -= sum(t.numel() * t.element_size() for t in tensors)
            if self._room >= 0:
                self._kept[key] = compared
        return compared


def change_loss(output: ChangeOutput, changed: Tensor, uncertainty_weight: float = 1.0) -> Tensor:
    """Return the sum over pixels of both heads' losses.

    The change is learned by cross-entropy. The uncertainty learns |y - p|, the error that the probability p makes (Li
    et al. 2023), by cross-entropy as well, whose minimum is the error's expected value; p is taken as it stands there.

    Args:
        output: logits of T pixels, [T] each.
        changed: y, float [T], 1 where a pixel has changed, else 0.
        uncertainty_weight: of the second loss.
    """
    logits = output.logits.float()
    error = (changed - logits.detach().sigmoid()).abs()
    loss = F.binary_cross_entropy_with_logits(logits, changed, reduction="sum")
    uncertainty = F.binary_cross_entropy_with_logits(output.uncertainty_logits.float(), error, reduction="sum")
    return loss + uncertainty_weight * uncertainty


def train_change(
    detector: SpecAwareChangeDetector,
    pair: ScenePair,
    labels: np.ndarray,
    pixels: np.ndarray,
    options: ChangeOptions,
    *,
    seed: int = 0,
    features: PairFeatures | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> FitResult:
    """Train a detector in place; afterwards it is in evaluation mode.

    Args:
        detector: as :func:`build_detector` makes it.
        pair: the two dates.
        labels: int [H, W], 1 unchanged, 2 changed.
        pixels: int [T], flat numbers of the labelled pixels to train on, some of both classes.
        options: see :class:`ChangeOptions`.
        seed: of the draws.
        features: those of other detectors with the same frozen encoder, to encode nothing twice.
        out, resume, progress: as of :func:`specfast.tasks.fit`.

    Raises:
        ValueError: the pixels are not of both classes, one of them is invalid in a date, or as
            :func:`specfast.tasks.fit`.
    """
    changed = np.asarray(labels).ravel()[pixels] == CHANGED
    if changed.all() or not changed.any():
        raise ValueError(f"pixels: expected changed and unchanged ones, got {changed.sum()} changed of {len(changed)}")
    if not pair.valid.numpy().ravel()[pixels].all():
        raise ValueError("pixels: some hold no measurement in one of the dates; see usable_labels")
    features = features or PairFeatures(pair)
    views = cut_views([pair.size], options.view)
    place = assign_pixels(pixels, [pair.size], views)
    sampler = StratifiedSampler(changed, options.pixels_per_class, seed)
    truth = torch.from_numpy(changed).float()
    frozen = options.fit.tuned_blocks == 0

    def loss_of_step(step: int) -> Iterator[Tensor]:
        drawn = sampler.draw(step)
        rng = np.random.default_rng([seed, step, 1])  # the sampler's generators have two words
        for number in np.unique(place[0][drawn]):
            own = drawn[place[0][drawn] == number]
            orientation = int(rng.integers(ORIENTATIONS)) if options.augment else UNTURNED
            output = detector.decide(features.of(detector, views[number], orientation, frozen))
            at = tuple(torch.from_numpy(part[own]).to(output.logits.device) for part in place[1:])
            logits, uncertainty = (
                orient_back(maps, orientation)[0, 0][at] for maps in (output.logits, output.uncertainty_logits)
            )
            there = truth[own].to(logits.device)
            yield change_loss(ChangeOutput(logits, uncertainty), there, options.uncertainty_weight) / len(drawn)

    detector.shift.zero_()
    result = fit(
        detector,
        loss_of_step,
        options.fit,
        seed=seed,
        out=out,
        resume=resume,
        progress=progress,
        name="change",
        inputs=inputs_digest(out, detector, (pair.before, pair.after), options, changed, pixels),
    )
    prior = options.prior
    if prior is None:
        probability, _ = predict_change(detector, pair, features=features if frozen else None)
        prior = estimated_prior(probability)
    detector.shift.fill_(math.log(prior / (1 - prior)))
    return result


def estimated_prior(probability: np.ndarray) -> float:
    """Estimate which share of pixels has changed from probabilities that were learned where half of them had.

    Expectation maximization over the prior alone (Saerens, Latinne & Decaestecker 2002): the mean of the probabilities
    is taken for the prior, which changes the probabilities, until it stays.

    Args:
        probability: any shape; NaN is left out.

    Returns:
        a share from 0.001 to 0.999.
    """
    p = np.asarray(probability, dtype=np.float64)
    p = p[np.isfinite(p)]
    prior = 0.5
    for _ in range(PRIOR_STEPS):
        before, weighted = prior, p * prior
        prior = float((weighted / (weighted + (1 - p) * (1 - prior))).mean())
        prior = min(max(prior, SMALLEST_PRIOR), 1 - SMALLEST_PRIOR)
        if abs(prior - before) < PRIOR_TOLERANCE:
            break
    return prior


def predict_change(
    detector: SpecAwareChangeDetector, pair: ScenePair, view: int | None = None, features: PairFeatures | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of change and the expected error of it, float32 [H, W] each, NaN where a date is invalid.

    Args:
        detector: a trained one; it is used in evaluation mode.
        pair: two dates in memory; scenes of any size are mapped by :mod:`specfast.infer`.
        view: side in pixels of what is seen at once; default as in training.
        features: as of :func:`train_change`, of the same frozen encoder.
    """
    total = np.zeros((2, *pair.size), dtype=np.float32)
    weight = np.zeros(pair.size, dtype=np.float32)
    cache, keep = features or PairFeatures(pair), features is not None
    was_training = detector.training
    detector.eval()
    try:
        with torch.no_grad():
            for part in cut_views([pair.size], view or detector.config.options["window"] or ChangeOptions.view):
                output = detector.decide(cache.of(detector, part, UNTURNED, keep))
                row, column, height, width = part.box
                rows, columns = slice(row, row + height), slice(column, column + width)
                maps = torch.cat([output.logits.float().sigmoid(), output.uncertainty.float()], dim=1)
                share = ramp(height, VIEW_OVERLAP)[:, None] * ramp(width, VIEW_OVERLAP)
                total[:, rows, columns] += maps[0].cpu().numpy() * share
                weight[rows, columns] += share
    finally:
        detector.train(was_training)
    probability, uncertainty = np.where(pair.valid.numpy(), total / weight, np.nan).astype(np.float32)
    return probability, uncertainty

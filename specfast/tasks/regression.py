"""Regression: numbers with a unit for every pixel (abundances, biochemistry) or for whole scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from specfast.batch import SpectralSample
from specfast.models.regressor import SpecAwareRegressor
from specfast.tasks.drawn_pixels import DrawnPixels, build_model
from specfast.tasks.identity import inputs_digest
from specfast.tasks.options import RegressionOptions
from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.scene_inputs import SceneInputs, train_on_scenes
from specfast.tasks.training import FitResult, fit
from specfast.tasks.views import SceneViews

if TYPE_CHECKING:
    from specfast.data import SpectralImage


def train_regressor(
    encoder,
    images: SceneViews | Sequence[SpectralImage | SpectralSample],
    targets: Sequence[np.ndarray] | np.ndarray,
    outputs: Sequence[str],
    options: RegressionOptions | None = None,
    *,
    members: np.ndarray | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> tuple[SpecAwareRegressor, FitResult]:
    """Train a regressor for pixels, or for scenes with ``options.head == "scene"``.

    The loss is the mean squared error of standardized targets; values that are NaN are left out.

    Args:
        encoder: a SpecAwareEncoder, a SpecAwareMAE, or a saved model's folder; its weights are copied.
        images: the scenes.
        targets: float [K, H, W] of each scene; with the head ``"scene"`` [n, K]. In their own units, NaN if unknown.
        outputs: names of the K targets, with units.
        options: see :class:`RegressionOptions`.
        members: flat indices over all scenes of the pixels (numbers of the scenes) to train on; None takes all with at
            least one target.
        seed: of the head's weights and of what is drawn in training.
        out, resume, progress: as in :func:`specfast.tasks.fit`.

    Returns:
        the model in evaluation mode, and what :func:`specfast.tasks.fit` returned.

    Raises:
        ValueError: targets do not fit the scenes, nothing is known of a member, an option is wrong, or the run in
            ``out`` was made with something else.
    """
    options = options or RegressionOptions()
    settings = {"seed": seed, "out": out, "resume": resume, "progress": progress, "name": f"regress, {options.head}"}
    if options.head == "scene":
        return _train_on_scenes(encoder, images, targets, outputs, options, members, settings)
    views = images if isinstance(images, SceneViews) else SceneViews(images, options.view)
    flat = flat_targets(targets, views.sizes, len(outputs))
    members = _members(flat, members)
    model = build_model(SpecAwareRegressor, encoder, outputs, views, options, seed, views.scenes_of(members))
    model.fit_targets(torch.from_numpy(flat[members]))
    sampler = _sampler(members, options, seed)
    training = DrawnPixels(views, members, sampler, augment=options.augment, seed=seed)
    target = torch.as_tensor(flat[members], device=model.target_scale.device)
    frozen = options.fit.tuned_blocks == 0

    def loss_of_step(step: int) -> Iterator[Tensor]:
        drawn = torch.as_tensor(sampler.draw(step), device=target.device)
        count = torch.isfinite(target[drawn]).sum().clamp_min(1)
        for positions, values in training.outputs(model, step, frozen):
            yield _squared(values, target[torch.as_tensor(positions, device=target.device)], model) / count

    settings["inputs"] = inputs_digest(out, model, views.samples, options, flat[members], members)
    return model, fit(model, loss_of_step, options.fit, **settings)


def _train_on_scenes(encoder, samples, targets, outputs, options, members, settings):
    flat = np.asarray(targets, dtype=np.float32)
    if flat.shape != (len(samples), len(outputs)):
        raise ValueError(f"targets: expected [{len(samples)}, {len(outputs)}], got {list(flat.shape)}")
    members = _members(flat, members)
    used = [samples[number] for number in members]
    model = build_model(SpecAwareRegressor, encoder, outputs, used, options, settings["seed"])
    model.fit_targets(torch.from_numpy(flat[members]))
    inputs = SceneInputs(model, samples, frozen=options.fit.tuned_blocks == 0)
    known = torch.as_tensor(flat, device=model.target_scale.device)
    settings["inputs"] = inputs_digest(settings["out"], model, used, options, flat[members], members)

    def loss(values: Tensor, numbers: np.ndarray) -> Tensor:
        wanted = known[torch.as_tensor(numbers, device=known.device)]
        return _squared(values, wanted, model) / torch.isfinite(wanted).sum().clamp_min(1)

    return model, train_on_scenes(
        inputs, loss, _sampler(members, options, settings["seed"]), members, options, **settings
    )


def _squared(values: Tensor, wanted: Tensor, model: SpecAwareRegressor) -> Tensor:
    """Sum the squared errors of [n, K] in units of the targets' spread, where targets are known."""
    known = torch.isfinite(wanted)
    error = (values.float() - torch.where(known, wanted, 0.0)) / model.target_scale
    return torch.where(known, error, 0.0).square().sum()


def _sampler(members: np.ndarray, options: RegressionOptions, seed: int) -> StratifiedSampler:
    """Draw from all members alike: one class."""
    return StratifiedSampler(np.zeros(len(members), dtype=int), min(options.targets_per_step, len(members)), seed)


def flat_targets(targets: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Ravel the targets [K, H, W] of all scenes, one after the other: float32 [pixels, K].

    Raises:
        ValueError: a scene's targets have another shape.
    """
    if len(targets) != len(sizes):
        raise ValueError(f"targets: expected one array for each of the {len(sizes)} scenes, got {len(targets)}")
    for number, (one, size) in enumerate(zip(targets, sizes, strict=True)):
        if np.shape(one) != (count, *size):
            raise ValueError(f"targets[{number}]: expected {[count, *size]}, got {list(np.shape(one))}")
    return np.concatenate([np.asarray(one, dtype=np.float32).reshape(count, -1).T for one in targets])


def _members(flat: np.ndarray, members: np.ndarray | None) -> np.ndarray:
    known = np.isfinite(flat).any(axis=1)
    members = np.flatnonzero(known) if members is None else np.asarray(members)
    if not len(members) or not known[members].all():
        unknown = int((~known[members]).sum())
        raise ValueError(f"members: expected at least one, all with a target; got {len(members)}, {unknown} without")
    return members


def predict_scenes(
    model: SpecAwareRegressor,
    images: SceneViews | Sequence[SpectralImage | SpectralSample],
    *,
    view: int = 256,
    orientations: int = 1,
    frozen: bool = False,
) -> list[np.ndarray]:
    """Return the targets of every pixel of scenes that fit in memory (for others: ``specfast.infer``).

    Args: as :func:`specfast.tasks.segment_scenes`.

    Returns:
        float32 [K, H, W] of each scene in the targets' units; NaN at invalid pixels.
    """
    views = images if isinstance(images, SceneViews) else SceneViews(images, view)
    return views.predict(model, lambda values: values, orientations=orientations, frozen=frozen)

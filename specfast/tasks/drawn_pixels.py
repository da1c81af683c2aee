"""What a model says of the pixels drawn in a step, and building the model for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from specfast.batch import SpectralSample
from specfast.models.downstream import DownstreamModel
from specfast.tasks.options import ORIENTATIONS, ClassificationOptions, RegressionOptions, SegmentationOptions
from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.views import SceneViews, orient_back


def build_model(
    cls: type[DownstreamModel],
    encoder,
    outputs: Sequence[str],
    scenes: SceneViews | Sequence[SpectralSample],
    options: SegmentationOptions | ClassificationOptions | RegressionOptions,
    seed: int,
    trained: np.ndarray | None = None,
) -> DownstreamModel:
    """Make a model with the encoder's weights, a head drawn with ``seed``, and the statistics of the scenes.

    ``trained``: numbers of the scenes to take these from, those with training pixels, so that a scene that is only
    tested plays no part; None takes them from all. Scenes that are no views are given as they are to be used.
    """
    if isinstance(scenes, SceneViews):
        used = [trained is None or view.scene in trained for view in scenes.views]
        samples = [sample for sample, taken in zip(scenes.samples, used, strict=True) if taken]
    else:
        samples = scenes
    settings = options.settings
    if options.spectral_skip and options.head != "upernet":
        settings["spectral_skip"] = len(samples[0].wavelength)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls.from_encoder(encoder, tuple(outputs), options.head, **settings)
    if model.skip is not None:
        model.skip.fit(samples)
    if settings.get("components"):
        frozen = options.fit.tuned_blocks == 0
        model.eval().head.fit_whitening(_features(model, scenes, used, frozen))
    model.config.window = max(max(torch.as_tensor(sample.image).shape[-2:]) for sample in samples)
    return model


def _features(model, views: SceneViews, used: Sequence[bool], frozen: bool) -> Iterator[tuple]:
    """Yield the encoder's levels of the used views, and which patches hold something."""
    for group, numbers in enumerate(views.groups):
        kept = [place for place, number in enumerate(numbers) if used[number]]
        if kept:
            levels, present = views.features(model, group, frozen)
            yield [level[kept] for level in levels], None if present is None else present[kept]


class DrawnPixels:
    """Training pixels of whole scenes, and a model's outputs for those that a step draws.

    Args:
        views: the scenes.
        pixels: flat indices over all scenes of the training pixels.
        sampler: draws positions in ``pixels``.
        augment: turn and flip the scenes at random.
        seed: of the turns.

    Raises:
        ValueError: a training pixel holds no measurement.
    """

    def __init__(self, views: SceneViews, pixels: np.ndarray, sampler: StratifiedSampler, *, augment: bool, seed: int):
        self.views, self.sampler, self.augment, self.seed = views, sampler, augment, seed
        self.group, self.member, self.row, self.column = views.locate(pixels)
        if not views.valid_at(self.group, self.member, self.row, self.column).all():
            raise ValueError("pixels: some training pixels hold no measurement")

    def inputs(self, model: DownstreamModel, chosen: np.ndarray, frozen: bool) -> tuple[Tensor, np.ndarray]:
        """Return what the first layer of a light head sees of training pixels, in every turn that may be drawn.

        Args:
            model: with a light head.
            chosen: positions in ``pixels``.
            frozen: the encoder does not change.

        Returns:
            float32 [rows, inputs] on the CPU, and the position in ``pixels`` of each row.
        """
        rows, positions = [], []
        with torch.no_grad():
            for turn in range(ORIENTATIONS if self.augment else 1):
                for group in np.unique(self.group[chosen]):
                    mine = chosen[self.group[chosen] == group]
                    maps = orient_back(self.views.inputs(model, group, turn, frozen), turn)
                    rows.append(self._at(maps, mine).float().cpu())
                    positions.append(mine)
        return torch.cat(rows), np.concatenate(positions)

    def outputs(self, model: DownstreamModel, step: int, frozen: bool) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield, for one group of views after the other, positions in ``pixels`` [n] and their outputs [n, K].

        All views that hold drawn pixels are seen whole; ``frozen``: the encoder does not change.
        """
        drawn = self.sampler.draw(step)
        # the sampler's generators are seeded with two words, so these are others
        turn = int(np.random.default_rng([self.seed, step, 1]).integers(ORIENTATIONS)) if self.augment else 0
        for group in np.unique(self.group[drawn]):
            mine = drawn[self.group[drawn] == group]
            maps = orient_back(self.views.outputs(model, group, turn, frozen), turn)
            yield mine, self._at(maps, mine).float()

    def _at(self, maps: Tensor, positions: np.ndarray) -> Tensor:
        """Pick [n, K] out of maps [B, K, h, w] of one group of views, at training pixels of it."""
        places = (self.member[positions], self.row[positions], self.column[positions])
        member, row, column = (torch.as_tensor(place, device=maps.device) for place in places)
        return maps[member, :, row, column]

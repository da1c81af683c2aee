"""Whole scenes as the views a model is trained on: the scene itself, or large overlapping tiles of it.

Every labelled pixel belongs to the view in which it lies farthest from an edge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from specfast.batch import SpectralBatch, SpectralSample
from specfast.evaluate.features import ramp, read_window, windows
from specfast.models.downstream import DownstreamModel, Encoded

if TYPE_CHECKING:
    from specfast.data import SpectralImage

VIEW_OVERLAP = 0.25
KEPT_BYTES = 2 * 2**30  # of batches and features that are kept between steps


@dataclass(frozen=True)
class View:
    """A window of a scene.

    Attributes:
        scene: number of the scene.
        box: row, column, height and width in pixels.
    """

    scene: int
    box: tuple[int, int, int, int]


def scene_size(image: SpectralImage | SpectralSample) -> tuple[int, int]:
    """Return height and width in pixels."""
    shape = image.image.shape if isinstance(image, SpectralSample) else image.shape
    return int(shape[-2]), int(shape[-1])


def cut_views(sizes: list[tuple[int, int]], side: int) -> list[View]:
    """Cover scenes of the given sizes with views of at most ``side`` pixels a side."""
    if side < 1:
        raise ValueError(f"view: expected at least 1 pixel, got {side}")
    return [
        View(scene, box)
        for scene, (height, width) in enumerate(sizes)
        for box in windows(height, width, side, VIEW_OVERLAP)
    ]


def assign_pixels(
    pixels: np.ndarray, sizes: list[tuple[int, int]], views: list[View]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the view of each pixel.

    Args:
        pixels: int [T] flat numbers over all scenes, raveled one after the other.
        sizes: height and width of each scene.
        views: they cover the scenes.

    Returns:
        view number, row and column within the view, int64 [T] each.
    """
    pixels = np.asarray(pixels)
    ends = np.cumsum([height * width for height, width in sizes])
    scene = np.searchsorted(ends, pixels, side="right")
    local = pixels - (ends - [height * width for height, width in sizes])[scene]
    row, column = np.divmod(local, np.array([width for _, width in sizes])[scene])
    best, chosen = np.full(len(pixels), -1), np.zeros(len(pixels), dtype=np.int64)
    for number, view in enumerate(views):
        top, left, height, width = view.box
        lines = np.minimum(row - top, top + height - 1 - row)
        away = np.minimum(lines, np.minimum(column - left, left + width - 1 - column))
        nearer = (scene == view.scene) & (away > best)
        best[nearer], chosen[nearer] = away[nearer], number
    corners = np.array([view.box[:2] for view in views])[chosen]
    return chosen, row - corners[:, 0], column - corners[:, 1]


def orient(maps: Tensor, orientation: int) -> Tensor:
    """Turn the last two dimensions by ``orientation % 4`` quarters, then flip them if it is 4 or more."""
    turned = torch.rot90(maps, orientation % 4, dims=(-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned


def orient_back(maps: Tensor, orientation: int) -> Tensor:
    """Undo :func:`orient`."""
    if orientation >= 4:
        maps = maps.flip(-1)
    return torch.rot90(maps, -(orientation % 4), dims=(-2, -1))


def orient_sample(sample: SpectralSample, orientation: int) -> SpectralSample:
    """Turn and flip a sample's image and validity."""
    valid = None if sample.valid is None else orient(torch.as_tensor(sample.valid), orientation)
    return replace(sample, image=orient(torch.as_tensor(sample.image), orientation).contiguous(), valid=valid)


class SceneViews:
    """Scenes in memory, cut into views, and what a frozen encoder made of them.

    Views of equal size are encoded together, in groups of at most a full view's pixels. What is kept belongs to one
    encoder: call :meth:`forget_encoded` before another one is used.

    Args:
        images: scenes with equal bands.
        side: of the largest view, in pixels.

    Attributes:
        sizes: height and width of each scene.
        groups: lists of view numbers.
        samples: one a view.

    Raises:
        ValueError: there is no scene.
    """

    def __init__(self, images: Sequence[SpectralImage | SpectralSample], side: int):
        if not images:
            raise ValueError("images: expected at least one scene, got none")
        self.sizes = [scene_size(image) for image in images]
        self.views = cut_views(self.sizes, side)
        self.samples = [read_window(images[view.scene], view.box) for view in self.views]
        self.groups = _equal_sizes(self.views, side * side)
        self._batches: dict[tuple, SpectralBatch] = {}
        self._encoded: dict[tuple, Encoded] = {}
        self._inputs: dict[tuple, Tensor] = {}
        self._inputs_of = b""  # what the kept inputs were made with
        self._bytes = 0

    def members(self, group: int) -> list[View]:
        """Return the views of a group."""
        return [self.views[number] for number in self.groups[group]]

    def locate(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return group, place in the group, row and column in the view of flat pixel numbers over all scenes."""
        view, row, column = assign_pixels(pixels, self.sizes, self.views)
        place = {number: (g, m) for g, numbers in enumerate(self.groups) for m, number in enumerate(numbers)}
        group, member = np.array([place[number] for number in range(len(self.views))])[view].T
        return group, member, row, column

    def scenes_of(self, pixels: np.ndarray) -> np.ndarray:
        """Return the numbers of the scenes that hold some of these flat pixel numbers, each once."""
        ends = np.cumsum([height * width for height, width in self.sizes])
        return np.unique(np.searchsorted(ends, pixels, side="right"))

    def valid_at(self, group, member, row, column) -> np.ndarray:
        """Tell which of the located pixels hold a measurement."""
        found = np.zeros(len(row), dtype=bool)
        for g, numbers in enumerate(self.groups):
            for m, number in enumerate(numbers):
                here = (group == g) & (member == m)
                found[here] = self.samples[number].valid.numpy()[row[here], column[here]]
        return found

    def weights(self, group: int) -> list[np.ndarray]:
        """Return a weight for each pixel of a group's views: falling toward the edges, 0 where a pixel is invalid."""
        shares = []
        for number in self.groups[group]:
            _, _, height, width = self.views[number].box
            profile = ramp(height, VIEW_OVERLAP)[:, None] * ramp(width, VIEW_OVERLAP)
            shares.append(profile * self.samples[number].valid.numpy())
        return shares

    def batch(self, model: DownstreamModel, group: int, orientation: int) -> SpectralBatch:
        """Return a group of views, turned, on the model's device."""
        key = (group, orientation, str(model.encoder.cls_token.device))
        if key not in self._batches:
            turned = [orient_sample(self.samples[number], orientation) for number in self.groups[group]]
            made = model.batch_of(turned)
            return self._keep(self._batches, key, made, made.image.nbytes)
        return self._batches[key]

    @torch.no_grad()
    def encoded(self, model: DownstreamModel, group: int, orientation: int) -> Encoded:
        """Return what the model's encoder makes of a group; it is kept, so all models must have the same encoder."""
        key = (group, orientation, model.config.options["upsample"])
        if key not in self._encoded:
            with torch.autocast(model.encoder.cls_token.device.type, enabled=False):  # once, so float32 costs little
                made = model.encode(self.batch(model, group, orientation))
            return self._keep(self._encoded, key, made, sum(level.nbytes for level in made.levels))
        return self._encoded[key]

    def features(self, model, group: int, frozen: bool) -> tuple[list[Tensor], Tensor | None]:
        """Return the encoder's levels of a group as it lies, and which patches hold something."""
        with torch.no_grad():
            encoded = self.encoded(model, group, 0) if frozen else model.encode(self.batch(model, group, 0))
        return encoded.levels, encoded.present

    def inputs(self, model, group: int, orientation: int, frozen: bool) -> Tensor:
        """Return what a light head sees of a group of turned views, [B, inputs, h, w].

        With a frozen encoder and whitened tokens it depends on no weight that is trained, and is kept until a model
        with another whitening or other spectra asks.
        """
        kept = frozen and model.config.options["components"] > 0
        key = (group, orientation)
        if kept and (made_with := _made_with(model)) != self._inputs_of:
            self._forget_inputs()
            self._inputs_of = made_with
        if kept and key in self._inputs:
            return self._inputs[key]
        batch = self.batch(model, group, orientation)
        encoded = self.encoded(model, group, orientation) if frozen else model.encode(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            size = tuple(batch.image.shape[-2:])
            made = model.head.inputs(encoded.levels, encoded.present, model.spectrum(batch), model.spacing, size)
        return self._keep(self._inputs, key, made, made.nbytes) if kept else made

    def outputs(self, model, group: int, orientation: int, frozen: bool) -> Tensor:
        """Return a model's outputs [B, K, h, w] for a group of turned views; ``frozen``: keep what its encoder made."""
        if frozen and model.config.options.get("components"):
            return model.decode_inputs(self.inputs(model, group, orientation, frozen))
        batch = self.batch(model, group, orientation)
        encoded = self.encoded(model, group, orientation) if frozen else model.encode(batch)
        return model.decode(encoded, batch)

    @torch.no_grad()  # not inference mode: what is kept here may serve in training
    def predict(
        self, model, activation: Callable[[Tensor], Tensor], *, orientations: int = 1, frozen: bool = False
    ) -> list[np.ndarray]:
        """Apply a model to all views, turned back and blended where they overlap.

        Args:
            model: in evaluation mode afterwards.
            activation: applied to the model's outputs [B, K, h, w] before they are averaged.
            orientations: over how many turns and flips to average.
            frozen: the model's encoder is the one whose features are kept here.

        Returns:
            float32 [K, H, W] of each scene, NaN at invalid pixels.
        """
        model.eval()
        sums = [np.zeros((len(model.config.outputs), *size), dtype=np.float32) for size in self.sizes]
        weights = [np.zeros(size, dtype=np.float32) for size in self.sizes]
        for group in range(len(self.groups)):
            values = 0
            for turn in range(orientations):
                one = orient_back(activation(self.outputs(model, group, turn, frozen).float()), turn)
                values = values + one.cpu().numpy() / orientations
            for view, maps, share in zip(self.members(group), values, self.weights(group), strict=True):
                row, column, height, width = view.box
                rows, columns = slice(row, row + height), slice(column, column + width)
                sums[view.scene][:, rows, columns] += maps * share
                weights[view.scene][rows, columns] += share
        return [total / np.where(weight > 0, weight, np.nan) for total, weight in zip(sums, weights, strict=True)]

    def forget_encoded(self) -> None:
        """Drop what is kept of an encoder, before another one is used."""
        self._bytes -= sum(level.nbytes for made in self._encoded.values() for level in made.levels)
        self._encoded.clear()
        self._forget_inputs()

    def _forget_inputs(self) -> None:
        self._bytes -= sum(made.nbytes for made in self._inputs.values())
        self._inputs.clear()

    def _keep(self, kept: dict, key: tuple, value, size: int):
        if self._bytes + size <= KEPT_BYTES:
            kept[key] = value
            self._bytes += size
        return value


def _equal_sizes(views: list[View], pixels: int) -> list[list[int]]:
    """Group the numbers of views of one size, each group of at most ``pixels`` pixels (but at least one view)."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, view in enumerate(views):
        by_size.setdefault(view.box[2:], []).append(number)
    groups = []
    for (height, width), numbers in by_size.items():
        count = max(1, pixels // (height * width))
        groups += [numbers[start : start + count] for start in range(0, len(numbers), count)]
    return groups


def _made_with(model: DownstreamModel) -> bytes:
    """Digest of the statistics and options that a light head's inputs depend on, apart from the encoder."""
    digest = hashlib.blake2b(repr(sorted(model.config.options.items())).encode())
    for part in (model.head, model.skip):
        for buffer in part.buffers() if part is not None else ():
            digest.update(buffer.cpu().numpy().tobytes())
    return digest.digest()

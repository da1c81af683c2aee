"""Anomaly scores that a pre-trained model gives: RX on features, and the error of reconstructing masked pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from specfast.batch import SpectralBatch, SpectralSample
from specfast.evaluate.features import dense_features, windows
from specfast.tasks.anomaly_rx import PCARX, scored, spectra
from specfast.tasks.moments import moments_of

ERRORS = ("rms", "angle")


class FeatureRX:
    """RX on the dense features of an encoder: what is unlike the scene in the encoder's eyes.

    Features are many (width times levels) and interpolated between tokens, so their covariance is far from full rank:
    RX works on their leading principal components.

    Args:
        encoder: a SpecAwareEncoder, used in eval mode.
        components: how many to keep.
        recipe: options of :func:`specfast.evaluate.dense_features`, such as ``{"factor": 2}``.
    """

    needs_model = "encoder"

    def __init__(self, encoder: nn.Module, components: int = 10, **recipe):
        self.encoder, self.recipe = encoder, recipe
        self._rx = PCARX(components)
        self.margin = int(encoder.config.patch_size)

    def prepare(self, sample: SpectralSample) -> np.ndarray:
        """Return the features of a window, float32 [F, h, w], NaN where a pixel is invalid (or no pixel is valid)."""
        valid = np.isfinite(spectra(sample)).all(axis=0)
        if not valid.any():
            levels = len(self.recipe.get("levels", (0, 1, 2, 3)))
            return np.full((levels * self.encoder.config.embed_dim, *valid.shape), np.nan, dtype=np.float32)
        return np.ascontiguousarray(dense_features(self.encoder, sample, **self.recipe).transpose(2, 0, 1))

    def fit(self, blocks: Iterable[np.ndarray]) -> FeatureRX:
        """Learn the background from blocks of features, each [n, F]; errors as of :meth:`GlobalRX.fit`."""
        self._rx.fit(blocks)
        return self

    def score(self, cube: np.ndarray) -> np.ndarray:
        """Return float32 [h, w] of features [F, h, w]."""
        return self._rx.score(cube)


class ReconstructionError:
    """How badly a masked autoencoder predicts a pixel from its surroundings.

    A window is encoded several times, each time with other patches removed, so that every patch is removed at least
    once; a pixel's error is averaged over the times it was removed. ``fit`` only learns the errors' mean and spread, in
    units of which ``score`` is given.

    Args:
        mae: a SpecAwareMAE, used in eval mode on the device of its parameters.
        passes: masks per window.
        mask_ratio: share of patches removed, above 1 / passes.
        error: ``"rms"``, the root of the mean square difference over bands; ``"angle"``, the spectral angle between
            pixel and prediction in radians, which brightness leaves as it is.
        window: side in pixels of what is encoded at once; default the model's image size.
        seed: of the masks.
    """

    needs_model = "mae"

    def __init__(
        self,
        mae: nn.Module,
        passes: int = 8,
        mask_ratio: float = 0.5,
        error: str = "rms",
        window: int | None = None,
        seed: int = 0,
    ):
        if error not in ERRORS:
            raise ValueError(f"error: expected one of {', '.join(ERRORS)}; got {error!r}")
        if passes < 2 or not 1 / passes < mask_ratio < 1:
            raise ValueError(
                f"passes, mask_ratio: expected at least 2 passes and a ratio between 1 / passes and 1, so that every "
                f"patch is removed and predicted; got {passes} and {mask_ratio}"
            )
        p = int(mae.config.patch_size)
        self.mae, self.passes, self.mask_ratio, self.error, self.seed = mae, passes, mask_ratio, error, seed
        self.side = -(-int(window or mae.config.image_size) // p) * p
        self.margin = p

    def prepare(self, sample: SpectralSample) -> np.ndarray:
        """Return the error of every pixel of a window, float32 [1, h, w], NaN where a pixel is invalid."""
        image = torch.from_numpy(spectra(sample))
        valid = torch.isfinite(image).all(dim=0)
        image = torch.where(valid, image, 0.0)
        height, width = valid.shape
        total = torch.zeros(height, width)
        count = torch.zeros(height, width)
        was_training = self.mae.training
        self.mae.eval()
        try:
            with torch.inference_mode():
                for row, column, h, w in windows(height, width, self.side, 0.0):
                    rows, columns = slice(row, row + h), slice(column, column + w)
                    if bool(valid[rows, columns].any()):
                        cut = replace(sample, image=image[:, rows, columns], valid=valid[rows, columns])
                        error = self._error(cut)
                        known = torch.isfinite(error)
                        total[rows, columns] += torch.where(known, error, 0.0)
                        count[rows, columns] += known
        finally:
            self.mae.train(was_training)
        return torch.where(valid & (count > 0), total / count, torch.nan).numpy()[None]

    def fit(self, blocks: Iterable[np.ndarray]) -> ReconstructionError:
        """Learn mean and spread of the errors from blocks [n, 1].

        Raises:
            ValueError: blocks are not [n, 1], or fewer than two pixels are finite.
        """
        moments = moments_of(blocks)
        self.mean, self._spread = moments.mean, float(moments.covariance[0, 0]) ** 0.5 or 1.0
        return self

    def score(self, cube: np.ndarray) -> np.ndarray:
        """Return float32 [h, w] of errors [1, h, w]: how many standard deviations above the mean."""
        return scored(cube, 1, lambda errors: (errors[0] - self.mean[0]) / self._spread)

    def _error(self, sample: SpectralSample) -> Tensor:
        """Mean error of each pixel [h, w] over the passes in which it was removed."""
        p = self.mae.config.patch_size
        height, width = sample.image.shape[1:]
        device = next(self.mae.parameters()).device
        batch = SpectralBatch.from_samples([sample], p).to(device)
        rows, columns = self.mae.patch_grid(batch)
        valid = self.mae.valid_pixels(batch)
        present = torch.ones(rows * columns, dtype=torch.bool) if valid is None else valid[0].any(dim=-1).cpu()
        total = batch.image.new_zeros(rows * p, columns * p)
        count = torch.zeros_like(total)
        for noise in _rotated_noise(present, self.passes, self.seed):
            output = self.mae(batch, self.mask_ratio, noise[None].to(device), return_prediction=True)
            prediction = output.prediction[0].float().view(rows, columns, p, p, -1)
            prediction = prediction.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)  # [C, rows p, columns p]
            removed = output.mask.view(rows, columns).repeat_interleave(p, 0).repeat_interleave(p, 1)
            total += removed * _spectral_error(prediction, batch.image, self.error)
            count += removed
        return torch.where(count > 0, total / count, torch.nan)[:height, :width].cpu()


def _rotated_noise(present: Tensor, passes: int, seed: int) -> Iterator[Tensor]:
    """Yield noise [N] that removes every present patch about equally often: one order, begun elsewhere each time."""
    count = int(present.sum())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for number in range(passes):
        noise = torch.zeros(len(present))
        noise[present] = ((order + number * count // passes) % count).float()
        yield noise


def _spectral_error(prediction: Tensor, image: Tensor, error: str) -> Tensor:
    """Compare [C, h, w] with [C, h, w] over bands: [h, w]."""
    if error == "rms":
        return (prediction - image).square().mean(dim=0).sqrt()
    return torch.cosine_similarity(prediction, image, dim=0).clamp(-1, 1).acos()

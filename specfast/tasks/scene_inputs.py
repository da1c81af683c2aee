"""Scenes with one answer each, as the heads of classifiers and regressors take them.

A frozen encoder sees every scene once; what the head needs of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from specfast.batch import SpectralSample
from specfast.models.classifier import SpecAwareClassifier
from specfast.models.downstream import Encoded, mean_spectrum
from specfast.models.regressor import SpecAwareRegressor
from specfast.tasks.options import ClassificationOptions, RegressionOptions
from specfast.tasks.sampling import StratifiedSampler
from specfast.tasks.training import FitResult, fit

AT_ONCE = 16  # scenes encoded together


class SceneInputs:
    """The scenes of a task; ``outputs(numbers)`` -> what the model says of them, [n, K].

    Args:
        model: a classifier, or a regressor with the head ``"scene"``.
        samples: the scenes.
        frozen: the encoder does not change: run it once.
    """

    def __init__(
        self, model: SpecAwareClassifier | SpecAwareRegressor, samples: Sequence[SpectralSample], frozen: bool
    ):
        self.model, self.samples, self.frozen = model, samples, frozen
        self._kept: tuple[Encoded, Tensor | None] | None = None

    def outputs(self, numbers: Sequence[int]) -> Tensor:
        """Return the model's outputs for some scenes."""
        if not self.frozen:
            samples = [self.samples[number] for number in numbers]
            groups = _equal_sizes(samples, len(samples))
            return _in_order([self.model(self.model.batch_of([samples[i] for i in group])) for group in groups], groups)
        encoded, spectrum = self._features()
        index = torch.as_tensor(np.asarray(numbers), device=encoded.cls.device)
        part = Encoded([encoded.levels[0][index]], encoded.cls[index], None)
        return self.model.decode_pooled(part, None if spectrum is None else spectrum[index])

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Return the outputs for all scenes, on the CPU."""
        self.model.eval()
        starts = range(0, len(self.samples), AT_ONCE)
        parts = [self.outputs(range(start, min(start + AT_ONCE, len(self.samples)))) for start in starts]
        return torch.cat(parts).float().cpu()

    def _features(self) -> tuple[Encoded, Tensor | None]:
        """Encode every scene; tokens are kept as their mean."""
        if self._kept is None:
            tokens, cls, spectra = [], [], []
            groups = _equal_sizes(self.samples, AT_ONCE)
            with torch.no_grad():
                for group in groups:
                    batch = self.model.batch_of([self.samples[number] for number in group])
                    encoded = self.model.encode(batch)
                    tokens.append(pooled_tokens(encoded))
                    cls.append(encoded.cls)
                    spectra.append(mean_spectrum(self.model.spectrum(batch), batch))
            spectrum = None if spectra[0] is None else _in_order(spectra, groups)
            self._kept = Encoded([_in_order(tokens, groups)[:, :, None, None]], _in_order(cls, groups), None), spectrum
        return self._kept


def _equal_sizes(samples: Sequence[SpectralSample], most: int) -> list[list[int]]:
    """Group the places of scenes of one size, at most ``most`` together.

    Beside a larger scene one would be padded with invalid pixels where alone its edges are repeated up to whole
    patches, so what is made of it would depend on its neighbors in the list.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        by_size.setdefault(tuple(sample.image.shape[-2:]), []).append(place)
    return [places[start : start + most] for places in by_size.values() for start in range(0, len(places), most)]


def _in_order(parts: list[Tensor], groups: list[list[int]]) -> Tensor:
    """Return the rows of the groups' parts in the order of the scenes."""
    index = torch.as_tensor(np.argsort(np.concatenate(groups)), device=parts[0].device)
    return torch.cat(parts)[index]


def pooled_tokens(encoded: Encoded) -> Tensor:
    """Average the last level over patches that hold something: [B, E]."""
    total = encoded.levels[-1].sum(dim=(2, 3))
    if encoded.present is None:
        return total / encoded.levels[-1][0, 0].numel()
    return total / encoded.present.sum(dim=(1, 2)).clamp_min(1)[:, None]


def train_on_scenes(
    scenes: SceneInputs,
    loss: Callable[[Tensor, np.ndarray], Tensor],
    sampler: StratifiedSampler,
    members: np.ndarray,
    options: ClassificationOptions | RegressionOptions,
    **settings,
) -> FitResult:
    """Fit a model: ``loss(outputs of the drawn scenes, their numbers)``, drawn by the sampler out of ``members``."""

    def loss_of_step(step: int) -> Tensor:
        numbers = members[sampler.draw(step)]
        return loss(scenes.outputs(numbers), numbers)

    return fit(scenes.model, loss_of_step, options.fit, **settings)


@torch.no_grad()
def embeddings(encoder, samples: Sequence[SpectralSample]) -> np.ndarray:
    """Return frozen features of scenes: mean token and cls token side by side, float32 [n, 2 * E]."""
    model = SpecAwareClassifier.from_encoder(encoder, ("any",)).eval()
    rows, groups = [], _equal_sizes(samples, AT_ONCE)
    for group in groups:
        encoded = model.encode(model.batch_of([samples[number] for number in group]))
        rows.append(torch.cat([pooled_tokens(encoded), encoded.cls], dim=1).float().cpu())
    return _in_order(rows, groups).numpy()


def mean_spectra(samples: Sequence[SpectralSample]) -> np.ndarray:
    """Return the mean spectrum of every scene's valid pixels, float32 [n, C].

    Raises:
        ValueError: scenes have different bands, or one has no valid pixel.
    """
    rows = []
    for number, sample in enumerate(samples):
        image = torch.as_tensor(sample.image).double().flatten(1)
        valid = torch.isfinite(image).all(dim=0)
        if sample.valid is not None:
            valid &= torch.as_tensor(sample.valid).flatten().bool()
        if not bool(valid.any()):
            raise ValueError(f"samples[{number}]: no pixel is valid")
        rows.append(image[:, valid].mean(dim=1))
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"samples: expected equal bands, got {sorted({len(row) for row in rows})}")
    return torch.stack(rows).float().numpy()

"""What all task models share: an encoder with its published names, a head, and a configuration that rebuilds both."""

from __future__ import annotations

import dataclasses
import numbers
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specfast.batch import SpectralBatch, SpectralSample
from specfast.models.config import SpecAwareConfig
from specfast.models.encoder import SpecAwareBackbone, SpecAwareEncoder
from specfast.models.enlarging import on_patch_grid
from specfast.models.mae import SpecAwareMAE
from specfast.models.pretrained import PretrainedMixin
from specfast.models.spectral_skip import SpectralSkip


@dataclass
class DownstreamConfig:
    """What fixes a task model's shape.

    Attributes:
        encoder: sizes of the encoder.
        head: which head, a key of the model class's ``HEADS``.
        outputs: names of the classes or targets, in the order of the output channels.
        options: the head's options; those not given take their defaults, an unknown one is an error.
        window: side in pixels of the largest image seen in training, 0 if not known: attention and content see all of
            an image, so scenes are best cut into windows of that size.
    """

    encoder: SpecAwareConfig
    head: str
    outputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    window: int = 0

    def __post_init__(self):
        if isinstance(self.outputs, str) or not self.outputs or not all(isinstance(name, str) for name in self.outputs):
            raise ValueError(f"outputs: expected the names of at least one class or target; got {self.outputs!r}")
        self.outputs = tuple(self.outputs)
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError(f"outputs: expected different names; got {self.outputs}")

    def to_dict(self) -> dict:
        """Return the fields as plain values, ``encoder`` as a dictionary."""
        return {**dataclasses.asdict(self), "outputs": list(self.outputs)}

    @classmethod
    def from_dict(cls, values: dict) -> DownstreamConfig:
        """Build a configuration from what :meth:`to_dict` returned; a missing or unknown key is an error."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) - names or names - {"options", "window"} - set(values):
            raise ValueError(f"expected the keys {', '.join(sorted(names))}; got {', '.join(sorted(values))}")
        return cls(**{**values, "encoder": SpecAwareConfig.from_dict(values["encoder"])})


@dataclass
class Encoded:
    """What a head takes of the encoder.

    Attributes:
        levels: four maps [B, E, h, w], see :class:`SpecAwareFeatures`.
        cls: [B, E].
        present: bool [B, h, w], False where a patch holds no valid pixel; None if all hold one.
    """

    levels: list[Tensor]
    cls: Tensor
    present: Tensor | None


class DownstreamModel(nn.Module, PretrainedMixin):
    """Base of the task models: ``encoder``, ``encode``, and loading.

    Images of any size are taken: they are enlarged by the option ``upsample`` (a divisor of the patch size, so that a
    token covers ``patch_size / upsample`` pixels), and their last rows and columns are repeated up to whole patches.
    With the option ``spectral_skip``, the number of bands of a fixed sensor, the standardized spectra of pixels join
    the features, once for each of ``spectral_sides``, averaged over squares of that side, and with ``spectral_shape``
    also scaled to the length 1; call ``model.skip.fit(samples)`` before training.
    """

    #: options of each head with their defaults
    HEADS: ClassVar[dict[str, dict[str, Any]]] = {}
    #: what a model is made with where nothing is said
    DEFAULT_HEAD: ClassVar[str] = "mlp"

    def __init__(self, config: DownstreamConfig):
        super().__init__()
        if config.head not in self.HEADS:
            raise ValueError(f"head: expected one of {', '.join(self.HEADS)}; got {config.head!r}")
        known = self.HEADS[config.head]
        if unknown := sorted(set(config.options) - set(known)):
            raise ValueError(
                f"options: {', '.join(unknown)} unknown to head {config.head!r}; it has {', '.join(sorted(known))}"
            )
        for name, value in config.options.items():
            _check_kind(name, value, known[name])
        config = dataclasses.replace(config, options={**known, **config.options})
        p, upsample = config.encoder.patch_size, config.options["upsample"]
        if not isinstance(upsample, int) or upsample < 1 or p % upsample:
            raise ValueError(f"upsample: expected a divisor of the patch size {p}; got {upsample}")
        self.config = config
        self.encoder = SpecAwareEncoder(config.encoder)
        bands = config.options.get("spectral_skip", 0)
        sides, shape = config.options.get("spectral_sides", (1,)), config.options.get("spectral_shape", False)
        self.skip = SpectralSkip(bands, sides, shape=shape) if bands else None

    @property
    def spacing(self) -> int:
        """Pixels between tokens."""
        return self.config.encoder.patch_size // self.config.options["upsample"]

    @classmethod
    def from_encoder(
        cls,
        source: SpecAwareBackbone | str | os.PathLike,
        outputs: tuple[str, ...],
        head: str | None = None,
        **options,
    ) -> DownstreamModel:
        """Build a model with fresh head and the encoder's weights of another model.

        Args:
            source: a SpecAwareEncoder or SpecAwareMAE (its weights are copied), or the folder of any saved model.
            outputs: names of classes or targets.
            head: a key of ``HEADS``; None takes the class's default.
            options: the head's options.

        Raises:
            ValueError: an option does not fit. FileNotFoundError, CheckpointError: as ``from_pretrained``.
        """
        if isinstance(source, SpecAwareMAE):
            source = source.encoder()
        elif isinstance(source, DownstreamModel):
            source = source.encoder
        elif not isinstance(source, SpecAwareEncoder):
            source = SpecAwareEncoder.from_pretrained(source)
        config = SpecAwareConfig.from_dict(source.config.to_dict())
        model = cls(DownstreamConfig(config, head or cls.DEFAULT_HEAD, tuple(outputs), options))
        model.encoder.load_state_dict(source.state_dict())
        return model.to(source.cls_token.device)

    @classmethod
    def build_config(cls, values: dict, overrides: dict) -> DownstreamConfig:
        """Build the configuration of a saved model; ``overrides`` are options of its encoder."""
        encoder = values.get("encoder")
        if not isinstance(encoder, dict):
            raise ValueError(f"expected the encoder's options under 'encoder'; got {encoder!r}")
        return DownstreamConfig.from_dict({**values, "encoder": {**encoder, **overrides}})

    def encode(self, batch: SpectralBatch) -> Encoded:
        """Run the encoder over a batch of any size."""
        batch = on_patch_grid(batch, self.config.encoder.patch_size, self.config.options["upsample"])
        valid = self.encoder.valid_pixels(batch)
        features = self.encoder(batch)
        present = None if valid is None else valid.any(dim=-1).unflatten(1, features.levels[0].shape[-2:])
        return Encoded(features.levels, features.cls, present)

    def spectrum(self, batch: SpectralBatch) -> Tensor | None:
        """Return the standardized spectra [B, C, H, W], or None in a model without ``spectral_skip``."""
        return None if self.skip is None else self.skip(batch)

    def batch_of(self, samples: list[SpectralSample]) -> SpectralBatch:
        """Pack samples for this model, on its device; none is padded unless their sizes differ."""
        batch = SpectralBatch.from_samples(samples, patch_size=1)
        return batch.to(self.encoder.cls_token.device)


def _check_kind(name: str, value: object, default: object) -> None:
    """Raise ValueError unless an option is of its default's kind: a slip would show first deep inside a layer."""
    kind = type(default).__name__
    if isinstance(default, list):
        fits = isinstance(value, (list, tuple)) and all(_is_like(one, default[0]) for one in value)
        kind = f"list of {type(default[0]).__name__}"
    else:
        fits = _is_like(value, default)
    if not fits:
        raise ValueError(f"{name}: expected {kind}, got {value!r}")


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    kinds = {int: numbers.Integral, float: numbers.Real}  # NumPy's numbers are such, too
    return isinstance(value, kinds.get(type(default), type(default)))


def mean_spectrum(spectrum: Tensor | None, batch: SpectralBatch) -> Tensor | None:
    """Average standardized spectra [B, C, H, W] over valid pixels: [B, C]; None stays None."""
    if spectrum is None or batch.valid is None:
        return None if spectrum is None else spectrum.mean(dim=(2, 3))
    return spectrum.sum(dim=(2, 3)) / torch.count_nonzero(batch.valid, dim=(1, 2)).clamp_min(1)[:, None]

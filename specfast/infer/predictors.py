"""Predictors: what turns windows of a scene into maps. Legend: B windows, K outputs, h x w pixels, p patch size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from specfast.batch import SpectralBatch, SpectralSample
from specfast.errors import DataError
from specfast.models import SpecAwareEncoder, SpecAwareRegressor, SpecAwareSegmenter, load_model
from specfast.models.enlarging import on_patch_grid, to_pixels

Pair = tuple[SpectralSample, SpectralSample]

MODEL_OVERLAP = 0.25  # of a window; what a model sees at a window's border is one-sided
GPU_BATCH = 8
MODEL_WINDOW = 64  # pixels; a smaller window would show a model with few patches too little


class Predictor:
    """Base of predictors: call it with windows, get maps.

    ``__call__(samples)`` takes a list of SpectralSample of equal sizes (pairs of them if ``dates`` is 2) and returns a
    CPU float32 Tensor [B, K, h / stride, w / stride]; what it returns beyond a window's size is cut off. Values where a
    sample is invalid are not looked at.

    Attributes:
        outputs: K names.
        kind: ``"classes"`` (outputs are probabilities; the largest one is mapped), ``"continuous"`` or ``"embedding"``.
        quantity: what the numbers are, with their unit.
        window: side in pixels of the windows it is best called with.
        align: windows start and end at multiples of this, unless the scene ends first.
        stride: side in pixels of an output's cell, a divisor of ``align``.
        overlap: the share of a window that its neighbor should cover too.
        margin: pixels at a window's border whose outputs should not be used.
        pixelwise: a pixel's output depends on no other pixel, so that windows may be cut anywhere.
        batch_size: windows it is best called with at once.
        dates: 1, or 2 for pairs.
        identity: text that changes when the outputs do; an interrupted run goes on only with the same.
    """

    outputs: tuple[str, ...] = ()
    kind: ClassVar[str] = "continuous"
    quantity: str = ""
    window: int = 256
    align: int = 1
    stride: int = 1
    overlap: float = 0.0
    margin: int = 0
    pixelwise: bool = False
    batch_size: int = 1
    dates: ClassVar[int] = 1
    identity: str = ""

    def __call__(self, samples: Sequence[SpectralSample] | Sequence[Pair]) -> Tensor:
        raise NotImplementedError


class ModelPredictor(Predictor):
    """A model in eval mode on the device of its parameters; subclasses say what is computed.

    Args:
        model: a SpecAware model.
        bf16: compute under autocast to bfloat16.
        compile: compile the encoder, see docs/scenes.md for when it pays.
    """

    overlap = MODEL_OVERLAP

    def __init__(self, model: nn.Module, *, bf16: bool = False, compile: bool = False):
        self.model, self.bf16 = model.eval(), bf16
        self.device = next(model.parameters()).device
        self.batch_size = 1 if self.device.type == "cpu" else GPU_BATCH  # a CPU is busy with one, in less memory
        self.identity = f"{type(self).__name__} {weights_digest(model)} bf16={bf16} compile={compile}"
        encoder = getattr(model, "encoder", model)
        if compile:
            encoder.compile()

    def __call__(self, samples):
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.compute(samples).float().cpu()

    def compute(self, samples) -> Tensor:
        """Return [B, K, h, w] on any device, in any precision."""
        raise NotImplementedError


class _PixelModel(ModelPredictor):
    """A task model that gives every pixel something."""

    def __init__(self, model: nn.Module, **options):
        super().__init__(model, **options)
        self.outputs = tuple(model.config.outputs)
        self.align = model.spacing
        trained = model.config.options.get("window") or getattr(model.config, "window", 0)
        side = trained or max(model.config.encoder.image_size // model.config.options["upsample"], MODEL_WINDOW)
        self.window = -(-side // self.align) * self.align


class SegmentPredictor(_PixelModel):
    """Class probabilities of a SpecAwareSegmenter."""

    kind = "classes"
    quantity = "class"

    def compute(self, samples: Sequence[SpectralSample]) -> Tensor:
        return self.model(self.model.batch_of(list(samples))).float().softmax(dim=1)


class RegressPredictor(_PixelModel):
    """Targets of a SpecAwareRegressor, in their units.

    Raises:
        DataError: the model has one vector for a scene, and none for a pixel.
    """

    def __init__(self, model: SpecAwareRegressor, **options):
        if model.config.head == "scene":
            raise DataError("the model's head 'scene' predicts one value for a scene; a map needs one for every pixel")
        super().__init__(model, **options)
        self.quantity = self.outputs[0] if len(self.outputs) == 1 else ""

    def compute(self, samples: Sequence[SpectralSample]) -> Tensor:
        return self.model(self.model.batch_of(list(samples)))


class ChangePredictor(_PixelModel):
    """Probability of change, and its uncertainty, of a SpecAwareChangeDetector; called with pairs (before, after)."""

    dates = 2

    def __init__(self, model: nn.Module, **options):
        super().__init__(model, **options)
        self.outputs = ("change probability", "uncertainty")
        self.quantity = "change probability"

    def compute(self, samples: Sequence[Pair]) -> Tensor:
        before, after = (self.model.batch_of([pair[date] for pair in samples]) for date in (0, 1))
        out = self.model(before, after)
        return torch.cat([out.logits.float().sigmoid(), out.uncertainty.float()], dim=1)


class EmbedPredictor(ModelPredictor):
    """Features of a SpecAwareEncoder.

    Args:
        encoder: the model.
        pixels: features of every pixel, interpolated between the patches' centers; default those of the patches.
        upsample: how much the scene is enlarged before it is encoded, a divisor of the patch size: a patch then covers
            ``p / upsample`` pixels, at ``upsample**2`` times the work.
        levels: which of the four feature levels to stack, -1 is the last.
        options: as of :class:`ModelPredictor`.

    Raises:
        ValueError: ``upsample`` or a level is out of range.
    """

    kind = "embedding"
    quantity = "embedding"

    def __init__(
        self,
        encoder: SpecAwareEncoder,
        *,
        pixels: bool = False,
        upsample: int = 1,
        levels: Sequence[int] = (-1,),
        **options,
    ):
        p = encoder.config.patch_size
        if upsample < 1 or p % upsample:
            raise ValueError(f"upsample: expected a divisor of the patch size {p}; got {upsample}")
        if not levels or not all(-4 <= level < 4 for level in levels):
            raise ValueError(f"levels: expected numbers from -4 to 3, at least one; got {list(levels)}")
        super().__init__(encoder, **options)
        self.pixels, self.upsample, self.levels = pixels, upsample, tuple(levels)
        self.align = p // upsample
        self.stride = 1 if pixels else self.align
        side = max(encoder.config.image_size // upsample, MODEL_WINDOW)
        self.window = -(-side // self.align) * self.align
        self.outputs = tuple(f"feature {number}" for number in range(encoder.config.embed_dim * len(self.levels)))
        self.identity += f" pixels={pixels} upsample={upsample} levels={self.levels}"

    def compute(self, samples: Sequence[SpectralSample]) -> Tensor:
        batch = SpectralBatch.from_samples(samples, patch_size=1).to(self.device)
        size = tuple(batch.image.shape[-2:])
        batch = on_patch_grid(batch, self.model.config.patch_size, self.upsample)
        levels = self.model(batch).levels
        maps = torch.cat([levels[level] for level in self.levels], dim=1)
        if not self.pixels:
            return maps
        valid = self.model.valid_pixels(batch)
        present = None if valid is None else valid.any(dim=-1).unflatten(1, maps.shape[-2:])
        return to_pixels(maps.float(), present, self.align, size)


class ScorePredictor(Predictor):
    """Anomaly scores of a scorer that has been fitted, see :func:`fit_scorer`.

    Args:
        scorer: offers ``prepare(sample) -> [F, h, w]``, ``score(cube [F, h, w]) -> [h, w]`` and ``margin``, as those of
            specfast.tasks.anomaly do.
        identity: text that tells this scorer and its options from others.
        window: side of windows in pixels.

    Raises:
        ValueError: the scorer's margins leave nothing of a window.
    """

    outputs = ("anomaly score",)
    quantity = "anomaly score"

    def __init__(self, scorer, *, identity: str, window: int = 256):
        self.scorer, self.identity = scorer, f"{type(scorer).__name__} {identity}"
        self.window, self.margin = window, int(scorer.margin)
        if window <= 2 * self.margin:
            raise ValueError(
                f"window: expected more than {2 * self.margin} pixels, since {type(scorer).__name__} needs "
                f"{self.margin} around each; got {window}"
            )
        self.pixelwise = not self.margin and not scorer.needs_model
        self.overlap = max(2 * self.margin / window, MODEL_OVERLAP if scorer.needs_model else 0.0)

    def __call__(self, samples: Sequence[SpectralSample]) -> Tensor:
        return torch.stack([torch.from_numpy(self.scorer.score(self.scorer.prepare(one)))[None] for one in samples])


def predictor_of(folder, *, device: str = "cpu", **options) -> ModelPredictor:
    """Load a saved model and return the predictor of its kind: classes, targets, change, or else its features.

    Args:
        folder: written by ``save_pretrained``, or a name on the Hugging Face hub.
        device: where it computes.
        options: as of :class:`ModelPredictor`.

    Raises:
        DataError: a model that gives no maps. FileNotFoundError, CheckpointError: as ``load_model``.
    """
    model = load_model(folder).to(device)
    if isinstance(model, SpecAwareSegmenter):
        return SegmentPredictor(model, **options)
    if isinstance(model, SpecAwareRegressor):
        return RegressPredictor(model, **options)
    if type(model).__name__ == "SpecAwareChangeDetector":
        return ChangePredictor(model, **options)
    raise DataError(
        f"{folder}: a {type(model).__name__} gives no maps of classes, targets or change; fine-tune it with specfast "
        "finetune, or map its features with specfast embed"
    )


def weights_digest(model: nn.Module) -> str:
    """A short text that tells a model's weights from others."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]

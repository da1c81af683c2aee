"""The whole training step, and encoder inference: published form and package, from the same weights.

A step is what specfast.train does for an update: forward, backward, gradient clipping, fused AdamW. The learning rate
is 0, so that all steps of all providers start from the same weights and give the same gradient; AdamW's time does not
depend on it. Dropout is off for the same reason. Providers share parameters and optimizer state, which are there before
peak memory is taken: it is what the step needs above them, its gradients included.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.measure import Provider, Work
from bench.memory import roomy
from bench.published import PublishedEncoder, PublishedMAE
from bench.shapes import MASK_RATIO, Shape
from specfast import SpectralBatch, create_model
from specfast.train.distributed import World
from specfast.train.gradients import UpdateLoss, compute_gradient
from specfast.train.optimizer import make_optimizer

PROVIDERS = ("reference", "reference-compile", "specfast", "specfast-compile")


def random_batch(shape: Shape, device: torch.device) -> SpectralBatch:
    generator = torch.Generator(device).manual_seed(0)
    image = torch.rand(shape.samples, shape.bands, shape.side, shape.side, generator=generator, device=device)
    wavelength = torch.linspace(400, 2450, shape.bands)
    fwhm = torch.full((shape.bands,), 9.0)
    return SpectralBatch.from_arrays(image, wavelength, fwhm, 5.0, "avng", "L2").to(device)


class StepBench:
    """The training step of one model; keep it for several batch shapes and dtypes, so that it is built once."""

    def __init__(self, model: str, device: torch.device, side: int):
        torch.manual_seed(0)
        self.device, self.world = device, World(0, 1, device)
        with device:
            self.model = create_model(model, image_size=side, generator_init="fan_in").train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.published = PublishedMAE.sharing(self.model)
        self.optimizer = make_optimizer(self.model, lr=0.0, weight_decay=0.05)
        self.expected: dict[Shape, dict[str, Tensor]] = {}
        small = Shape(1, 4, 4 * self.model.config.patch_size)  # makes the optimizer's state
        self._step(self.model, random_batch(small, device), self._noise(small), bf16=False)

    def work(self, shape: Shape, dtype: torch.dtype, providers=PROVIDERS) -> Work:
        batch, noise = random_batch(shape, self.device), self._noise(shape)
        bf16 = dtype == torch.bfloat16
        forms = {"reference": self.published, "specfast": self.model}

        def provider(name: str) -> Provider:
            form = forms[name.removesuffix("-compile")]
            forward = torch.compile(form) if name.endswith("-compile") else form

            def setup() -> Callable[[], UpdateLoss]:
                self.optimizer.zero_grad()  # as in training; and gradients that are freed would hide what is allocated
                return lambda: self._step(forward, batch, noise, bf16=bf16)

            return Provider(setup, self._outputs, compiled=forward is not form)

        def published_in_float32() -> dict[str, Tensor]:
            if shape not in self.expected:
                # the published form of 64 samples does not fit a GPU in float32; smaller shapes hold ours to it
                update = roomy(
                    lambda: self._step(self.published, batch, noise, bf16=False),
                    lambda: self._step(self.model, batch, noise, bf16=False),
                )
                self.expected[shape] = self._outputs(update)
            return self.expected[shape]

        first_is_expected = not bf16 and providers[0] == "reference" and shape not in self.expected
        return Work(
            "step",
            "training_step",
            "full",
            shape,
            dtype,
            {name: provider(name) for name in providers},
            expected=None if first_is_expected else published_in_float32,
            remember=lambda outputs: self.expected.__setitem__(shape, outputs),
        )

    def _noise(self, shape: Shape) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.rand(shape.samples, shape.patches, generator=generator).to(self.device)

    def _step(self, forward: nn.Module, batch: SpectralBatch, noise: Tensor, *, bf16: bool) -> UpdateLoss:
        update = compute_gradient(
            forward,
            self.model,
            [(batch, noise)],
            count=1,
            mask_ratio=MASK_RATIO,
            world=self.world,
            bf16=bf16,
            clip_norm=1.0,
        )
        self.optimizer.step()
        return update

    def _outputs(self, update: UpdateLoss) -> dict[str, Tensor]:
        """Loss, norm of the gradient before clipping, and the clipped gradient by part of the model."""
        parts = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            parts[".".join(name.split(".")[:2])].append(parameter.grad.flatten())
        gradients = {f"gradient of {part}": torch.cat(values) for part, values in parts.items()}
        return {"loss": torch.tensor(update.loss), "norm": torch.tensor(update.grad_norm), **gradients}


class EncoderBench:
    """Inference of the encoder: all patches of an image become tokens."""

    def __init__(self, model: str, device: torch.device, side: int):
        torch.manual_seed(0)
        self.device = device
        with device:
            self.model = create_model(model, task="encoder", image_size=side, generator_init="fan_in").eval()
        self.published = PublishedEncoder.sharing(self.model)

    def work(self, shape: Shape, dtype: torch.dtype, providers=PROVIDERS) -> Work:
        batch = random_batch(shape, self.device)
        forms = {"reference": self.published, "specfast": self.model}

        def call(forward, dtype):
            amp = torch.autocast(self.device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
            with torch.inference_mode(), amp:
                return forward(batch)

        def provider(name: str) -> Provider:
            form = forms[name.removesuffix("-compile")]
            forward = torch.compile(form) if name.endswith("-compile") else form
            return Provider(lambda: lambda: call(forward, dtype), self._outputs, compiled=forward is not form)

        return Work(
            "inference",
            "encoder",
            "forward",
            shape,
            dtype,
            {name: provider(name) for name in providers},
            expected=lambda: self._outputs(
                roomy(lambda: call(self.published, torch.float32), lambda: call(self.model, torch.float32))
            ),
        )

    @staticmethod
    def _outputs(features) -> dict[str, Tensor]:
        return {"tokens": features.tokens, "cls": features.cls}

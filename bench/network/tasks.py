"""Real training tasks, small enough for several workers a processor: both on the Indian Pines scene (CC BY 3.0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.network.messages import Trainee
from specfast import SpectralBatch, create_model

TRAIN_SHARE = 0.8
BAND_STEP = 10  # SpecAware sees every tenth band
CROP, HELD_OUT = 32, 48  # pixels; the scene's last columns are for evaluation
EVALUATION_CROPS = 24
GSD, SENSOR = 20.0, "avc"  # m; AVIRIS-Classic


def save_scene(path: Path) -> Path:
    """Write what the tasks train on to one file that every worker reads.

    Raises:
        ImportError: tensorly, which carries the scene, is not installed.
    """
    from specfast.cli.demo.scene import load_scene

    images, labels = load_scene()
    image = images["AVIRIS"]
    np.savez(path, cube=image.read(), labels=labels, wavelength=image.wavelength, fwhm=image.fwhm)
    return path


class Task:
    """What to train, on what, and how its result is judged.

    Attributes:
        batch_size: samples of one worker's step.
    """

    batch_size: int

    def model(self) -> Trainee:
        """A new model, drawn from torch's generator."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        raise NotImplementedError

    def batch(self, generator: torch.Generator) -> tuple:
        """Random training samples; workers draw from generators of their own."""
        raise NotImplementedError

    def evaluate(self, model: Trainee) -> float:
        """The loss on what nobody trained on."""
        raise NotImplementedError


class _Classifier(Trainee):
    def __init__(self, bands: int, classes: int, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(bands, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )

    def loss(self, spectra: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(spectra), labels)


class Spectra(Task):
    """Land cover of single pixels from their spectra: a multilayer perceptron, SGD with momentum."""

    batch_size = 32

    def __init__(self, scene):
        labels = scene["labels"].flatten().astype(np.int64)
        spectra = scene["cube"].reshape(len(scene["cube"]), -1).T[labels > 0]
        labels = labels[labels > 0] - 1
        order = np.random.default_rng(0).permutation(len(labels))
        train, test = np.split(order, [int(TRAIN_SHARE * len(order))])
        spectra = (spectra - spectra[train].mean(axis=0)) / spectra[train].std(axis=0)
        self.train, self.test = (
            (torch.from_numpy(spectra[part].astype(np.float32)), torch.from_numpy(labels[part]))
            for part in (train, test)
        )
        self.classes = int(labels.max()) + 1

    def model(self) -> Trainee:
        return _Classifier(self.train[0].shape[1], self.classes)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def batch(self, generator: torch.Generator) -> tuple:
        chosen = torch.randint(len(self.train[1]), (self.batch_size,), generator=generator)
        return self.train[0][chosen], self.train[1][chosen]

    def evaluate(self, model: Trainee) -> float:
        with torch.inference_mode():
            return model.loss(*self.test).item()


class _Reconstruction(Trainee):
    def __init__(self):
        super().__init__()
        self.mae = create_model(
            "specaware_tiny_patch8",
            image_size=CROP,
            embed_dim=64,
            depth=2,
            num_heads=2,
            decoder_embed_dim=64,
            decoder_depth=1,
            decoder_num_heads=2,
            condition_dim=32,
            rank=16,
            generator_init="fan_in",
        )

    def loss(self, batch: SpectralBatch, noise: Tensor) -> Tensor:
        return self.mae(batch, mask_noise=noise).loss


class SpecAware(Task):
    """Masked-autoencoder pre-training of a tiny SpecAware on crops of the scene, AdamW."""

    batch_size = 2

    def __init__(self, scene):
        self.cube = torch.from_numpy(np.ascontiguousarray(scene["cube"][::BAND_STEP]))
        self.wavelength, self.fwhm = (torch.from_numpy(scene[name][::BAND_STEP]) for name in ("wavelength", "fwhm"))
        self.edge = self.cube.shape[2] - HELD_OUT
        generator = torch.Generator().manual_seed(0)
        self.test = self._crops(generator, EVALUATION_CROPS, self.edge, self.cube.shape[2])

    def model(self) -> Trainee:
        return _Reconstruction()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)

    def batch(self, generator: torch.Generator) -> tuple:
        return self._crops(generator, self.batch_size, 0, self.edge)

    def evaluate(self, model: Trainee) -> float:
        model.eval()
        with torch.inference_mode():
            loss = model.loss(*self.test).item()
        model.train()
        return loss

    def _crops(self, generator: torch.Generator, count: int, left: int, right: int) -> tuple:
        rows = torch.randint(self.cube.shape[1] - CROP + 1, (count,), generator=generator).tolist()
        columns = torch.randint(left, right - CROP + 1, (count,), generator=generator).tolist()
        crops = [self.cube[:, r : r + CROP, c : c + CROP] for r, c in zip(rows, columns, strict=True)]
        noise = torch.rand(count, (CROP // 8) ** 2, generator=generator)
        batch = SpectralBatch.from_arrays(torch.stack(crops), self.wavelength, self.fwhm, GSD, SENSOR, "L1")
        return batch, noise


TASKS = {"spectra": Spectra, "specaware": SpecAware}


def load_task(name: str, path: str) -> Task:
    with np.load(path) as scene:
        return TASKS[name](scene)

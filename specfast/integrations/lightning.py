"""SpecAware with Lightning: modules for pre-training and segmentation.

    module = PretrainingModule(specfast.create_model("specaware_tiny_patch8"), lr=1e-3, warmup_steps=100)
    Trainer(max_steps=1000).fit(module, SpectralLoader("store", batch_size=8))

Lightning's checkpoints are its own; ``module.model.save_pretrained(folder)`` writes a folder for specfast. (``specfast
pretrain`` weights parts of a batch by their pixels and resumes bitwise; a Trainer does neither.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.batch import SpectralBatch
from specfast.integrations.torchgeo import SPECTRAL
from specfast.models import SpecAwareMAE, SpecAwareSegmenter
from specfast.train.optimizer import make_optimizer
from specfast.train.schedule import learning_rate

try:
    import lightning.pytorch as pl
except ImportError:
    raise ImportError('lightning: not installed; pip install "specfast[lightning]"') from None


class _Trained(pl.LightningModule):
    """AdamW and the learning rate of :func:`specfast.train.pretrain`, for a ``model``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 0,
        final_lr: float = 0.0,
    ):
        super().__init__()
        self.save_hyperparameters(ignore="model")
        self.model = model

    def configure_optimizers(self) -> dict[str, Any]:
        options = self.hparams
        optimizer = make_optimizer(
            self.model, lr=options.lr, weight_decay=options.weight_decay, betas=tuple(options.betas)
        )
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps < 1:
            raise ValueError("max_steps: the Trainer needs it, for the learning rate's schedule")

        def factor(step: int) -> float:
            rate = learning_rate(
                step, steps=int(steps), warmup_steps=options.warmup_steps, peak=options.lr, final=options.final_lr
            )
            return rate / options.lr

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class PretrainingModule(_Trained):
    """Masked-autoencoder pre-training; batches are :class:`specfast.SpectralBatch` or dictionaries of ``collate``.

    Args:
        model: what is trained.
        mask_ratio: share of patches removed.
        options: lr, weight_decay, betas, warmup_steps, final_lr.

    Logs ``loss``, ``loss_spectral``, ``loss_charbonnier``; in validation with ``val_`` in front.
    """

    def __init__(self, model: SpecAwareMAE, *, lr: float = 1e-3, mask_ratio: float = 0.75, **options):
        super().__init__(model, lr=lr, **options)
        self.mask_ratio = mask_ratio

    def training_step(self, batch: SpectralBatch | dict[str, Any], _) -> Tensor:
        return self._step(batch, "")

    def validation_step(self, batch: SpectralBatch | dict[str, Any], _) -> Tensor:
        return self._step(batch, "val_")

    def _step(self, batch: SpectralBatch | dict[str, Any], prefix: str) -> Tensor:
        batch = batch[SPECTRAL] if isinstance(batch, dict) else batch
        out = self.model(batch, mask_ratio=self.mask_ratio)
        names = ("loss", "loss_spectral", "loss_charbonnier")
        losses = {prefix + name: getattr(out, name).detach() for name in names}
        self.log_dict(losses, prog_bar=True, batch_size=len(batch))
        return out.loss


class SegmentationModule(_Trained):
    """Segmentation; batches are (SpectralBatch, labels) or dictionaries with ``"spectral"`` and ``"mask"``.

    Labels [B, H, W] hold k + 1 for class k of the model's outputs, and 0 where nothing is known.

    Args:
        model: what is trained.
        options: lr, weight_decay, betas, warmup_steps, final_lr.

    Logs ``loss`` (cross entropy over labelled pixels) and ``accuracy``; in validation with ``val_`` in front.
    """

    def __init__(self, model: SpecAwareSegmenter, *, lr: float = 1e-3, **options):
        super().__init__(model, lr=lr, **options)

    def training_step(self, batch: tuple[SpectralBatch, Tensor] | dict[str, Any], _) -> Tensor:
        return self._step(batch, "")

    def validation_step(self, batch: tuple[SpectralBatch, Tensor] | dict[str, Any], _) -> Tensor:
        return self._step(batch, "val_")

    def _step(self, batch: tuple[SpectralBatch, Tensor] | dict[str, Any], prefix: str) -> Tensor:
        images, labels = (batch[SPECTRAL], batch["mask"]) if isinstance(batch, dict) else batch
        logits = self.model(images)
        target = labels.reshape(len(images), *logits.shape[-2:]).long() - 1  # masks of TorchGeo may be [B, 1, H, W]
        labelled = target >= 0
        count = labelled.sum().clamp_min(1)
        loss = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / count
        right = ((logits.argmax(dim=1) == target) & labelled).sum()
        self.log_dict(
            {prefix + "loss": loss.detach(), prefix + "accuracy": right / count}, prog_bar=True, batch_size=len(images)
        )
        return loss

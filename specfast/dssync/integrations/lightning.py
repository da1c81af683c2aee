"""DS-Sync with Lightning: a callback for a Trainer whose processes DDP connects.

    trainer = Trainer(strategy="ddp", devices=8, callbacks=[DSSyncCallback(group_size=4)])

Lightning saves the main process's model only. The callback therefore brings all to their mean before a checkpoint is
written, before each validation and at the end of each epoch and of the fit; a run that goes on from a checkpoint starts
everywhere from that mean, with the main process's optimizer state. (``ModelCheckpoint(save_weights_only=True)`` in the
middle of an epoch calls no callback: it writes the main process's own parameters.)
"""

from __future__ import annotations

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from specfast.dssync.communicator import DSSync
from specfast.dssync.integrations.ddp import use_local_gradients
from specfast.dssync.optimizer import STATE, DSSyncOptimizer

try:
    import lightning.pytorch as pl
except ImportError:
    raise ImportError('lightning: not installed; pip install "specfast[lightning]"') from None


class DSSyncCallback(pl.Callback):
    """Average parameters in small groups instead of gradients over all processes.

    Args:
        options: of :class:`~specfast.dssync.DSSync`.

    Attributes:
        sync: the communicator, while a fit is under way.

    Raises:
        TypeError: at the start of a fit, if the Trainer has several processes that DDP does not connect, or the module
            more than one optimizer.
        ValueError: at the start of a fit, if the Trainer is to clip gradients that a GradScaler has scaled
            (``precision="16-mixed"``). A worker whose gradients overflow must not leave out its round, so they are
            unscaled within the step, and Lightning clips before it. ``"bf16-mixed"`` needs no scaler.
    """

    def __init__(self, **options):
        self.options = options
        self.sync: DSSync | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        strategy = trainer.strategy
        if isinstance(strategy.model, DistributedDataParallel):
            use_local_gradients(strategy.model)
        elif trainer.world_size > 1:
            raise TypeError(f'strategy: expected "ddp"; got {type(strategy).__name__}')
        if len(strategy.optimizers) != 1:
            raise TypeError(f"configure_optimizers: expected one optimizer; got {len(strategy.optimizers)}")
        scaled = getattr(strategy.precision_plugin, "scaler", None) is not None
        if scaled and trainer.gradient_clip_val:
            raise ValueError(
                f"gradient_clip_val: not with a GradScaler (precision {trainer.precision}), whose gradients are "
                f'unscaled within the step; got {trainer.gradient_clip_val}. Take precision="bf16-mixed"'
            )
        (optimizer,) = strategy.optimizers
        self.sync = DSSync(pl_module, optimizer, **self.options)
        strategy.optimizers = [DSSyncOptimizer(optimizer, self.sync, scaled=scaled)]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._consensus()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._consensus()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._consensus()  # in place: the checkpoint's tensors are the model's own
        for state in checkpoint.get("optimizer_states", ()):
            state.pop(STATE, None)  # the main process's alone: of no use to the others

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._consensus()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.sync is not None:
            self.sync.close()
            self.sync = None

    def _consensus(self) -> None:
        if self.sync is not None:
            self.sync.consensus_()

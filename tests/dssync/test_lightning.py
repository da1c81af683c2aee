"""The Lightning callback, where lightning is installed: same numbers as DSSync on the bare module."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from specfast.dssync import DSSync
from tests.dssync import processes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None,
    reason="lightning is not installed: pip install specfast[lightning]",
)
BATCHES, EPOCHS = 3, 2
CLIP = 0.1


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def data(rank: int) -> torch.Tensor:
    return torch.randn(6 * BATCHES, 4, generator=torch.Generator().manual_seed(rank))


def environment(rank: int) -> None:
    """What a launcher sets; the process group is there already."""
    world = str(dist.get_world_size())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": world}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}


def make_module():
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make_network()

        def training_step(self, batch, _):
            return self.network(batch[0]).square().mean()

        def validation_step(self, batch, _):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    return Module()


def make_trainer(folder: str, callback, **options):
    import lightning.pytorch as pl

    return pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[callback],
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _fit(rank: int, folder: str, overlap: bool) -> None:
    environment(rank)
    from specfast.dssync.integrations.lightning import DSSyncCallback

    module, callback = make_module(), DSSyncCallback(overlap=overlap)
    trainer = make_trainer(folder, callback, strategy="ddp", devices=2, gradient_clip_val=CLIP)
    trainer.fit(module, DataLoader(TensorDataset(data(rank)), batch_size=6))
    assert callback.sync is None  # the fit has ended, and everybody has the mean
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert list(saved["optimizer_states"][0]) == ["state", "param_groups"]

    reference = make_network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    sync = DSSync(reference, optimizer, overlap=overlap)
    for _ in range(EPOCHS):
        for x in data(rank).split(6):
            optimizer.zero_grad()
            reference(x).square().mean().backward()
            nn.utils.clip_grad_norm_(reference.parameters(), CLIP)
            sync.step()
        sync.consensus_()
    sync.close()
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), reference.parameters(), strict=True))
    for name, value in reference.state_dict().items():
        assert torch.equal(saved["state_dict"][f"network.{name}"], value), name


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_inside_lightning_bitwise(overlap, tmp_path):
    processes.run(2, _fit, str(tmp_path), overlap, tmp_path=tmp_path)


def test_gradients_are_clipped_in_mixed_precision_without_a_scaler(tmp_path):
    from lightning.pytorch.plugins.precision import MixedPrecision

    from specfast.dssync.integrations.lightning import DSSyncCallback

    loader = DataLoader(TensorDataset(data(0)), batch_size=6)

    def fit(plugin, callback):
        trainer = make_trainer(str(tmp_path), callback, devices=1, gradient_clip_val=CLIP, plugins=[plugin])
        module = make_module()
        trainer.fit(module, loader)
        return list(module.parameters())

    import lightning.pytorch as pl

    expected = fit(MixedPrecision("bf16-mixed", "cpu"), pl.Callback())
    actual = fit(MixedPrecision("bf16-mixed", "cpu"), DSSyncCallback())
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="gradient_clip_val: not with a GradScaler"):
        fit(scaled, DSSyncCallback())

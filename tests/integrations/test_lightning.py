"""Lightning modules, where lightning is installed: the same numbers as a plain loop."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from specfast import SpectralBatch, create_model
from specfast.train.optimizer import make_optimizer
from specfast.train.schedule import learning_rate
from tests.models.conftest import make_model, make_sample

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None,
    reason='lightning is not installed: pip install "specfast[lightning]"',
)
STEPS, OPTIONS = 4, {"lr": 0.01, "weight_decay": 0.1, "warmup_steps": 2, "final_lr": 0.001}


def trainer(folder, **options):
    import lightning.pytorch as pl

    class Seed(pl.Callback):
        """Masks and dropout of a step do not depend on what the Trainer and its loaders draw."""

        def on_train_batch_start(self, trainer, module, batch, number):
            torch.manual_seed(number)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"callbacks": [Seed()], "default_root_dir": folder, "enable_checkpointing": False} | quiet | options
    return pl.Trainer(accelerator="cpu", **options)


def batches() -> list[SpectralBatch]:
    pairs = ([make_sample(5 + n, seed=n), make_sample(9, seed=n, sensor="avc")] for n in range(STEPS))
    return [SpectralBatch.from_samples(pair) for pair in pairs]


def ready(given: list) -> DataLoader:
    """A loader of batches that are made already."""
    return DataLoader(given, batch_size=None)


def plain_loop(model, step_loss):
    optimizer = make_optimizer(model, lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=STEPS, warmup_steps=2, peak=0.01, final=0.001)
        torch.manual_seed(step)
        loss = step_loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def assert_same_parameters(one, other):
    for (name, parameter), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_pretraining_is_a_plain_loop_s(tmp_path):
    from specfast.integrations.lightning import PretrainingModule

    plain, module = make_model().train(), PretrainingModule(make_model(), mask_ratio=0.5, **OPTIONS)
    given = batches()
    plain_loop(plain, lambda step: plain(given[step], mask_ratio=0.5).loss)
    fit = trainer(tmp_path, max_steps=STEPS)
    fit.fit(module, ready(given))
    assert_same_parameters(module.model, plain)
    assert {"loss", "loss_spectral", "loss_charbonnier"} <= set(fit.logged_metrics)
    (validated,) = fit.validate(module, ready(given[:2]), verbose=False)
    assert validated["val_loss"] > 0
    assert "model" not in module.hparams
    folder = module.model.save_pretrained(tmp_path / "model")
    assert (folder / "config.json").is_file()


def labelled(step: int) -> tuple[SpectralBatch, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    batch = SpectralBatch.from_samples([make_sample(6, seed=step), make_sample(6, seed=step + 10)])
    return batch, torch.randint(0, 4, (2, 32, 32), generator=generator)


def make_segmenter():
    torch.manual_seed(1)
    sizes = {"embed_dim": 32, "depth": 4, "num_heads": 2, "image_size": 32}
    model = create_model("specaware_tiny_patch8", task="segmentation", outputs=["a", "b", "c"], head="linear", **sizes)
    return model


def test_segmentation_is_a_plain_loop_s(tmp_path):
    from specfast.integrations.lightning import SegmentationModule

    plain, module = make_segmenter().train(), SegmentationModule(make_segmenter(), **OPTIONS)

    def loss(step):
        batch, labels = labelled(step)
        return F.cross_entropy(plain(batch), labels - 1, ignore_index=-1)

    plain_loop(plain, loss)
    fit = trainer(tmp_path, max_steps=STEPS)
    fit.fit(module, ready([labelled(step) for step in range(STEPS)]))
    assert_same_parameters(module.model, plain)
    assert 0 <= float(fit.logged_metrics["accuracy"]) <= 1


def test_a_training_store_without_an_end(tmp_path):
    from specfast.data import SpectralImage, SpectralLoader, prepare
    from specfast.integrations.lightning import PretrainingModule

    sample = make_sample(6)
    described = {"wavelength": sample.wavelength, "fwhm": sample.fwhm, "gsd": 4.0, "sensor": "av3", "level": "L2"}
    prepare([SpectralImage.from_array(sample.image.numpy(), **described)], tmp_path / "store", tile=16, stride=16)
    loader = SpectralLoader(tmp_path / "store", batch_size=2, crop=16, bands=4)
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(PretrainingModule(make_model(image_size=16, content_grid=2)), loader)
    assert fit.global_step == 3


def test_batches_of_torchgeo_s_samples(tmp_path):
    from specfast.data import BandTable
    from specfast.integrations.lightning import SegmentationModule
    from specfast.integrations.torchgeo import SpectralTransform, collate

    transform = SpectralTransform(BandTable.of(make_sample(6)), scale=1.0)
    samples = [
        transform({"image": make_sample(6, seed=n).image, "mask": torch.full((1, 32, 32), n % 4)}) for n in range(4)
    ]
    loader = DataLoader(samples, batch_size=2, collate_fn=collate)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(SegmentationModule(make_segmenter()), loader, loader)
    assert float(fit.logged_metrics["val_loss"]) > 0


def test_pixels_without_a_label_do_not_count(tmp_path):
    from specfast.integrations.lightning import SegmentationModule

    batch, labels = labelled(0)
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(SegmentationModule(make_segmenter()), ready([(batch, torch.zeros_like(labels))]))
    assert float(fit.logged_metrics["loss"]) == 0.0


def test_a_schedule_needs_its_end(tmp_path):
    from specfast.integrations.lightning import PretrainingModule

    with pytest.raises(ValueError, match="max_steps: the Trainer needs it"):
        trainer(tmp_path, max_epochs=-1).fit(PretrainingModule(make_model()), ready(batches()))

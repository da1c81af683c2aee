"""What each stage of the demo does; everything here is a plain call of specfast's public parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

# Of dense features. As the probe's own default does for patches of 8 pixels: a token for 2 x 2 pixels, small windows.
RECIPE = {"factor": 2, "window": 16}
QUICK_RECIPE = {"method": "shift", "stride": 4, "overlap": 0.0}


@dataclass(frozen=True)
class Settings:
    """Everything that the demo's result depends on.

    Attributes:
        seed: fixes weights, samples, masks, dropout and the pixels shown.
        model, model_options: a registered model, and what differs from it.
        crop: side of the training crops in pixels; also the model's image size.
        bands: bands drawn of each sample; None for all.
        steps, batch_size, lr, warmup: of the pre-training.
        labels_per_class, probe_seeds: of the probe.
        quick: fewer baselines; everything so small that it shows that the parts work, and nothing else.
    """

    seed: int = 0
    model: str = "specaware_tiny_patch4"
    model_options: tuple[tuple[str, int | str], ...] = (
        ("depth", 4),
        ("decoder_depth", 2),
        ("rank", 16),
        ("generator_init", "fan_in"),
    )
    crop: int = 48
    bands: int | None = None
    steps: int = 1500
    batch_size: int = 8
    lr: float = 5e-4
    warmup: float = 0.1
    labels_per_class: tuple[int, ...] = (10, 50)
    probe_seeds: int = 5
    quick: bool = False

    def made_quick(self) -> Settings:
        """Return settings of a run of seconds."""
        options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "rank": 4, "condition_dim": 16}
        options |= {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
        return replace(
            self,
            model_options=tuple(options.items()),
            bands=16,
            steps=6,
            batch_size=4,
            labels_per_class=(10,),
            probe_seeds=1,
            quick=True,
        )

    def with_steps(self, steps: int) -> Settings:
        """Return settings with another number of pre-training steps.

        Raises:
            ValueError: it is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        return replace(self, steps=steps)

    def probing(self) -> dict:
        """Return the options of specfast.evaluate.probe."""
        return {
            "splits": ("random", "field"),
            "labels_per_class": self.labels_per_class,
            "seeds": self.probe_seeds,
            "classifiers": ("lda",) if self.quick else ("lda", "logistic"),
            "baselines": ("svm",) if self.quick else ("svm", "pca_svm", "random_forest", "mean_svm"),
            "recipe": QUICK_RECIPE if self.quick else RECIPE,
        }

    def pretraining(self) -> dict:
        """Return the options of PretrainConfig that define the result."""
        names = ("crop", "bands", "steps", "batch_size", "lr", "warmup", "seed")
        return {name: getattr(self, name) for name in names}


def prepare_store(images: dict, folder: Path) -> None:
    """Write both sensors' scenes into one training store."""
    from specfast.data import prepare

    store = folder / "store"
    if store.exists():
        shutil.rmtree(store)
    prepare(list(images.values()), store)


def write_initial_model(settings: Settings, folder: Path) -> None:
    """Save the weights that pre-training starts from."""
    import torch

    from specfast import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = create_model(settings.model, image_size=settings.crop, **dict(settings.model_options))
    model.save_pretrained(folder / "model")


def pretrain_model(settings: Settings, store: Path, initial: Path, folder: Path, *, progress: bool) -> None:
    """Pre-train, or go on where an interrupted run stopped."""
    from specfast.train import PretrainConfig, pretrain

    config = PretrainConfig(
        data=(str(store),),
        out=str(folder),
        model=str(initial),
        checkpoint_every=max(1, settings.steps // 10),
        keep=1,
        device="cpu",  # the same numbers with and without a GPU
        **settings.pretraining(),
    )
    pretrain(config, progress=progress)
    shutil.rmtree(folder / "checkpoints")  # only a run that is not finished needs them


def fill_scenes(settings: Settings, images: dict, model_folder: Path, folder: Path) -> None:
    """Remove three quarters of both scenes' patches, fill them in, and measure the error."""
    from specfast import SpecAwareMAE
    from specfast.report.reconstruction import fill

    model = SpecAwareMAE.from_pretrained(model_folder)
    errors = {}
    for number, (sensor, image) in enumerate(images.items()):
        filled = fill(model, image.sample(), mask_ratio=0.75, seed=settings.seed)
        np.savez(folder / f"filled_{number}.npz", removed=filled.removed, **_named(filled))
        errors[sensor] = {
            way: {"relative_error": filled.relative_error(way), "spectral_angle_deg": filled.spectral_angle(way)}
            for way in filled.ways
        }
    (folder / "errors.json").write_text(json.dumps(errors, indent=2) + "\n", encoding="utf-8")


def read_filled(folder: Path, sensors: list[str]) -> dict:
    """Return sensor -> Filled, as :func:`fill_scenes` left them."""
    from specfast.report.reconstruction import Filled

    result = {}
    for number, sensor in enumerate(sensors):
        with np.load(folder / f"filled_{number}.npz") as arrays:
            ways = {name.removeprefix("way/"): arrays[name] for name in arrays.files if name.startswith("way/")}
            result[sensor] = Filled(arrays["original"], arrays["removed"], ways)
    return result


def probe_model(
    settings: Settings, image, labels: np.ndarray, model_folder: Path, folder: Path, *, progress: bool
) -> None:
    """Probe the frozen encoder, and classify the whole scene from its features."""
    from specfast import SpecAwareEncoder
    from specfast.evaluate import field_disjoint, probe

    options = settings.probing()
    table = probe(SpecAwareEncoder.from_pretrained(model_folder), image, labels, progress=progress, **options)
    table.save(folder)
    division = field_disjoint([labels], max(options["labels_per_class"]), 0)
    tested = np.zeros(labels.size, dtype=bool)
    tested[division.test] = True
    np.savez(folder / "map.npz", classes=table.class_maps["field"][0], tested=tested.reshape(labels.shape))


def read_results(pretrain_folder: Path, fill_folder: Path, probe_folder: Path) -> dict:
    """Return what the stages found, as :class:`specfast.cli.demo.page.Results` takes it."""
    from specfast.train import read_log

    log = read_log(pretrain_folder / "log.csv")
    probed = json.loads((probe_folder / "probe.json").read_text(encoding="utf-8"))
    with np.load(probe_folder / "map.npz") as arrays:
        class_map, tested = arrays["classes"], arrays["tested"]
    return {
        "history": {name: [row[name] for row in log] for name in log[0]},
        "errors": json.loads((fill_folder / "errors.json").read_text(encoding="utf-8")),
        "probe": [_chart_row(row) for row in probed["rows"]],
        "verdict": probed["verdict"],
        "notes": probed["notes"],
        "class_map": class_map,
        "map_test": tested,
        "map_how": probed["settings"]["class_map"],
    }


def _chart_row(row: dict) -> dict:
    """Turn a row of probe.json into what charts and tables show, in percent."""

    def percent(metric):
        return [100 * value for value in row[metric]["values"]]

    return {
        "method": row["method"],
        "kind": row["kind"],
        "classifier": row["classifier"],
        "split": row["split"],
        "labels": row["labels_per_class"],
        "group": f"{row['split']}, {row['labels_per_class']} labels a class",
        "values": percent("overall_accuracy"),
        "aa": percent("average_accuracy"),
        "kappa": percent("kappa"),
    }


def _named(filled) -> dict[str, np.ndarray]:
    return {"original": filled.original} | {f"way/{way}": cube for way, cube in filled.ways.items()}


def settings_dict(settings: Settings) -> dict:
    """Return the settings as plain values, the same before and after JSON."""
    return json.loads(json.dumps(asdict(settings)))

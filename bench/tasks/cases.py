"""The cases: a scene, its labels and how they are divided, and the table that is made of them."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from specfast import SpecAwareEncoder, SpecAwareMAE, data
from specfast.evaluate import Split, published_maps, read_labels
from specfast.evaluate.probing import DEFAULT_BASELINES
from specfast.evaluate.splits import INDIAN_PINES_DISJOINT_ORDER, INDIAN_PINES_TR_TE_ORDER
from specfast.tasks import ChangeOptions, FitOptions, SegmentationOptions, finetune_change, finetune_segmentation
from specfast.tasks.anomaly_table import anomaly_table

LABELS = (10, 50)
SEEDS = 5
BASELINES = (*DEFAULT_BASELINES, "cnn")


@dataclass(frozen=True)
class Effort:
    """How much is done: everything, or what shows that the parts work."""

    labels: tuple[int, ...] = LABELS
    seeds: int = SEEDS
    baselines: tuple[str, ...] = BASELINES
    fit: FitOptions | None = None

    def segmentation(self, reach: str | None = None) -> SegmentationOptions:
        options = SegmentationOptions(reach=reach)
        return options if self.fit is None else replace(options, fit=self.fit)


QUICK = Effort((5,), 1, ("svm",), FitOptions(steps=2))


def indian_pines(folder: Path, model: Path, effort: Effort):
    """Random pixels, and field-disjoint."""
    return _segment(
        model,
        [_indian_pines(folder)],
        [np.load(folder / "indian_pines" / "Indian_pines_gt.npy")],
        effort,
        splits=("random", "field"),
    )


def indian_pines_tr_te(folder: Path, model: Path, effort: Effort):
    """The fixed maps of 695 training and 9671 test pixels (Hong et al. 2021), which lie in the same fields."""
    maps = [read_labels(folder / "indian_pines" / f"Indian{name}123_temp123.tif") for name in ("TR", "TE")]
    labels, split = published_maps(*maps, INDIAN_PINES_TR_TE_ORDER, INDIAN_PINES_TR_TE_ORDER)
    return _segment(model, [_indian_pines(folder)], [labels], effort, fixed=split, reach="near")


def indian_pines_disjoint(folder: Path, model: Path, effort: Effort):
    """The published disjoint training map; it cuts fields: 98% of its test pixels lie in fields that it trains on."""
    training = read_labels(folder / "indian_pines" / "indianpines_disjoint_dset.mat")
    truth = np.load(folder / "indian_pines" / "Indian_pines_gt.npy")
    labels, split = published_maps(training, truth, INDIAN_PINES_DISJOINT_ORDER)
    return _segment(model, [_indian_pines(folder)], [labels], effort, fixed=split, reach="near")


def enmap(folder: Path, model: Path, effort: Effort):
    """Half of the tiles are trained on, the others tested."""
    paths = sorted((folder / "enmap_potsdam" / "images").glob("*.tif"))
    images, labels = _tiles(paths)
    return _segment(model, images, labels, effort, splits=("tile",))


def enmap_csv(folder: Path, model: Path, effort: Effort):
    """The division that comes with the tiles: 14 to train on, 2 to test; the 2 for validation are not used."""
    paths, tested = [], []
    for name in ("train", "test"):
        with (folder / "enmap_potsdam" / f"{name}_files.csv").open(newline="", encoding="utf-8") as file:
            rows = [folder / "enmap_potsdam" / row["image"] for row in csv.DictReader(file)]
        paths += rows
        tested += [name == "test"] * len(rows)
    images, labels = _tiles(paths)
    flat = np.concatenate([one.ravel() for one in labels])
    in_test = np.repeat(tested, [one.size for one in labels])
    split = Split("csv split", np.flatnonzero((flat > 0) & ~in_test), np.flatnonzero((flat > 0) & in_test))
    return _segment(model, images, labels, effort, fixed=split, reach="far")


def change(folder: Path, model: Path, effort: Effort):
    """A made-up second date of Indian Pines: a smoke test."""
    with np.load(folder / "cd_semisynthetic" / "indian_pines_pseudo_t2.npz") as made:
        second, changed = made["T2"], made["change"]
    options = ChangeOptions() if effort.fit is None else ChangeOptions(fit=effort.fit)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "second.npy")
        np.save(path, second)
        return finetune_change(
            SpecAwareEncoder.from_pretrained(model),
            _indian_pines(folder),
            data.open(path, sensor="indian_pines"),
            changed.astype(np.int64) + 1,
            labels_per_class=effort.labels,
            seeds=effort.seeds,
            options=options,
        ).table


def anomaly(folder: Path, model: Path, effort: Effort):
    """Three target pixels of a CASI scene: a smoke test."""
    path = folder / "casi_muufl" / "an_hsi_img_for_tgt_det_demo.mat"
    image = data.open(path, sensor="casi", level="L2", gsd=1.0, variable="hsi_sub")
    targets = read_labels(path, "gtImg_sub")
    return anomaly_table(image, targets, mae=SpecAwareMAE.from_pretrained(model).eval())


#: name -> function of the data's folder, the model's folder and the effort that returns the table
CASES: dict[str, Callable] = {
    "indian-pines": indian_pines,
    "indian-pines-tr-te": indian_pines_tr_te,
    "indian-pines-disjoint": indian_pines_disjoint,
    "enmap": enmap,
    "enmap-csv": enmap_csv,
    "change": change,
    "anomaly": anomaly,
}


def _segment(model: Path, images, labels, effort: Effort, *, splits=(), fixed=None, reach=None):
    return finetune_segmentation(
        SpecAwareEncoder.from_pretrained(model).eval(),
        images,
        labels,
        splits=splits,
        labels_per_class=effort.labels,
        seeds=effort.seeds,
        options=effort.segmentation(reach),
        baselines=effort.baselines,
        fixed=fixed,
    )


def _indian_pines(folder: Path):
    return data.open(folder / "indian_pines" / "Indian_pines_corrected.npy", sensor="indian_pines")


def _tiles(paths):
    labels = [read_labels(path.parents[1] / "labels" / path.name, allow_empty=True) for path in paths]
    return [data.open(path) for path in paths], labels

"""Files of every kind that can be shown, small, and runs as the commands leave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

HEIGHT, WIDTH, BANDS = 12, 16, 30


def scene_values(offset: float = 0.0) -> np.ndarray:
    """Reflectance [C, H, W] of two materials, side by side."""
    wavelength = np.linspace(450, 900, BANDS)
    left, right = 0.1 + 0.3 * (wavelength > 700), 0.4 - 0.0004 * (wavelength - 450)
    cube = np.empty((BANDS, HEIGHT, WIDTH), np.float32)
    cube[:, :, : WIDTH // 2], cube[:, :, WIDTH // 2 :] = left[:, None, None], right[:, None, None]
    return cube + offset + 0.001 * np.arange(HEIGHT, dtype=np.float32)[:, None]


def write_envi(path: Path, cube: np.ndarray, **fields) -> Path:
    """Write path.img and path.hdr (bsq), and return the header's path."""
    codes = {"float32": 4, "uint8": 1}
    bands, lines, samples = cube.shape
    header = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "header offset": 0,
        "data type": codes[cube.dtype.name],
        "interleave": "bsq",
        "byte order": 0,
        **fields,
    }
    cube.tofile(path.with_suffix(".img"))
    lines = "".join(f"{key} = {value}\n" for key, value in header.items())
    path.with_suffix(".hdr").write_text(f"ENVI\n{lines}")
    return path.with_suffix(".hdr")


def first_figure(exhibit):
    """The figure that stands for the whole."""
    return exhibit.sections[0].pictures[0].figure


def tables(exhibit):
    """All tables by caption."""
    return {table.caption: table for section in exhibit.sections for table in section.tables}


def images(exhibit):
    """The pictures in the first figure, [h, w, 3]."""
    return [ax.images[0].get_array() for ax in first_figure(exhibit).axes if ax.images]


@pytest.fixture
def scene(tmp_path) -> Path:
    """An ENVI scene of an unknown sensor; band 3 is bad, pixel 0,0 has no data."""
    cube = scene_values()
    cube[:, 0, 0] = -9999
    good = np.ones(BANDS, int)
    good[3] = 0
    fields = {
        "wavelength": "{" + ", ".join(f"{w:.1f}" for w in np.linspace(450, 900, BANDS)) + "}",
        "wavelength units": "Nanometers",
        "bbl": "{" + ", ".join(map(str, good)) + "}",
        "data ignore value": -9999,
        "sensor type": "Handheld",
        "reflectance scale factor": 1,
    }
    return write_envi(tmp_path / "field", cube, **fields)


@pytest.fixture
def class_map(tmp_path) -> Path:
    """Classes 1 and 3 and unlabeled pixels, as an ENVI classification with names and colors."""
    classes = np.ones((1, HEIGHT, WIDTH), np.uint8)
    classes[0, :, WIDTH // 2 :] = 3
    classes[0, 0] = 0
    fields = {
        "file type": "ENVI Classification",
        "classes": 4,
        "class names": "{unlabeled, soil, water, wood}",
        "class lookup": "{0, 0, 0, 200, 100, 0, 0, 0, 255, 0, 128, 0}",
    }
    return write_envi(tmp_path / "classes", classes, **fields)


def score_table(task: str = "segment") -> dict:
    """A table of two settings, three methods and two seeds, as fine-tuning writes it."""

    def entry(mean):
        return {"mean": mean, "std": 0.01, "values": [mean - 0.01, mean + 0.01]}

    rows = []
    for labels in (10, 50):
        for method, kind, base in (
            ("fine-tuned", "fine-tuned", 0.8),
            ("LDA, features", "features", 0.7),
            ("SVM", "baseline", 0.6),
        ):
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "inputs": "features",
                    "classifier": "head",
                    "split": "field-disjoint",
                    "labels_per_class": labels,
                    "overall_accuracy": entry(base + labels / 1000),
                    "average_accuracy": entry(base - 0.1),
                    "kappa": entry(base - 0.2),
                    "per_class": [{"1": base, "3": base - 0.3}, {"1": base, "3": base - 0.1}],
                    "confusion": [[[8, 2], [1, 9]], [[7, 3], [0, 10]]],
                    "classes": [[1, 3], [1, 3]],
                    "seconds": 1.5,
                }
            )
    settings = {"task": task, "labels": ["/nowhere/labels.npy"], "class_names": {"1": "soil", "3": "wood"}}
    return {
        "settings": settings,
        "notes": ["one class has few pixels"],
        "verdict": "It won.\nIt also lost.",
        "rows": rows,
    }


@pytest.fixture
def finetune_run(tmp_path) -> Path:
    """A folder as ``specfast finetune segment`` leaves it: table, log, class map."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    content = score_table()
    labels = np.ones((HEIGHT, WIDTH), np.int16)
    labels[:, WIDTH // 2 :] = 3
    np.save(folder.parent / "labels.npy", labels)
    content["settings"]["labels"] = [str(folder.parent / "labels.npy")]
    content["settings"]["class_map"] = "the fine-tuned model, 50 labels a class, seed 0"
    (folder / "segment.json").write_text(json.dumps(content))
    rows = "".join(f"{step},{2 / step:.4f},0.001,1.0,{step}\n" for step in range(1, 31))
    (folder / "log.csv").write_text(f"step,loss,lr,grad_norm,seconds\n{rows}")
    np.save(folder / "class_map_field-disjoint.npy", np.roll(labels, 1, axis=1))
    return folder


@pytest.fixture(scope="session")
def pretrain_run(tmp_path_factory) -> Path:
    """The folder of a real, tiny pre-training run on two sensors, the store beside it."""
    from specfast.data import SpectralImage, prepare
    from specfast.train import PretrainConfig, pretrain

    folder = tmp_path_factory.mktemp("pretrained")
    images = [
        SpectralImage.from_array(
            np.tile(scene_values(0.1)[:bands], (1, 3, 3)),
            wavelength=np.linspace(450, 900, bands),
            fwhm=np.full(bands, 8.0),
            gsd=5.0,
            sensor=sensor,
            level="L2",
            name=sensor,
        )
        for sensor, bands in (("avng", BANDS), ("avc", 20))
    ]
    prepare(images, folder / "store", tile=36)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "rank": 4, "decoder_embed_dim": 32}
    config = PretrainConfig(
        data=(str(folder / "store"),),
        out=str(folder / "run"),
        model="specaware_tiny_patch4",
        model_options={**sizes, "decoder_depth": 1, "decoder_num_heads": 2},
        crop=16,
        bands=8,
        batch_size=2,
        steps=6,
        workers=1,
        device="cpu",
    )
    pretrain(config, progress=False)
    return folder / "run"

"""``specfast probe`` from the command line, on a crop of the real Indian Pines scene."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import specfast
from specfast.cli import probe as command
from specfast.errors import DataError


@pytest.fixture(scope="module")
def files(shared, tmp_path_factory):
    """Folder with a saved model, a crop of the scene and its labels."""
    folder = tmp_path_factory.mktemp("probe")
    data = shared / "data" / "indian_pines"
    crop = (slice(20, 70), slice(20, 90))
    np.save(folder / "scene.npy", np.load(data / "Indian_pines_corrected.npy")[crop])
    np.save(folder / "labels.npy", np.load(data / "Indian_pines_gt.npy")[crop])
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 4, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1}
    model = specfast.create_model("specaware_tiny_patch8", image_size=32, rank=4, decoder_num_heads=2, **sizes)
    model.save_pretrained(folder / "model")
    return folder


def arguments(files, *extra: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    quick = ["--labels-per-class", "10", "--seeds", "1", "--classifiers", "lda", "--factor", "1", "--quiet"]
    given = [str(files / "model"), str(files / "scene.npy"), "--sensor", "indian_pines"]
    return parser.parse_args([*given, *quick, "--labels", str(files / "labels.npy"), *extra])


def test_prints_a_table_and_writes_files(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.run(arguments(files, "--baselines", "svm", "--out", str(out))) == 0
    printed = capsys.readouterr().out
    assert "| LDA, frozen features |" in printed
    assert "| SVM-RBF, raw spectrum |" in printed
    assert "one seed cannot say more" in printed
    names = {"probe.json", "probe.csv", "probe.md", "class_map_random.npy", "class_map_field.npy"}
    assert {path.name for path in out.iterdir()} == names
    labels, classes = np.load(files / "labels.npy"), np.load(out / "class_map_random.npy")
    assert classes.shape == labels.shape
    assert set(np.unique(classes)) <= set(np.unique(labels[labels > 0]))
    stored = json.loads((out / "probe.json").read_text())
    assert stored["settings"]["features"] == {"factor": 1, "components": 100}
    by_method = {(row["method"], row["split"]): row["overall_accuracy"]["mean"] for row in stored["rows"]}
    assert by_method["LDA, raw spectrum", "random pixels"] > 0.5


def test_json_is_all_that_is_printed(files, capsys):
    assert command.run(arguments(files, "--baselines", "none", "--splits", "random", "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in printed["rows"]} == {"features", "control"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--baselines", "xgboost"], "--baselines: expected all, none or names out of"),
        (["--labels", "{files}/labels.npy", "{files}/labels.npy"], "one file for each of the 1 scenes, got 2"),
        (["--labels", "{files}/small.npy"], r"small\.npy: the map has 5 x 6 pixels; expected 50 x 70"),
        (["--labels", "{files}/empty.npy"], r"empty\.npy: no pixel has a class"),
    ],
)
def test_errors_name_what_is_wrong(files, extra, message):
    np.save(files / "small.npy", np.ones((5, 6), int))
    np.save(files / "empty.npy", np.zeros((50, 70), int))
    with pytest.raises(DataError, match=message):
        command.run(arguments(files, *(one.format(files=files) for one in extra)))


def test_model_folder_must_exist(files):
    args = arguments(files)
    args.model = files / "nowhere"
    with pytest.raises(DataError, match="nowhere: expected the folder of a saved model"):
        command.run(args)


def test_enmap_tiles(files, shared, capsys):
    pytest.importorskip("rasterio")
    folder = shared / "data" / "enmap_potsdam"
    names = [f"enmap_potsdam_tile_{place}.tif" for place in ("128_0", "96_0", "128_32", "96_96")]
    args = arguments(files, "--baselines", "none", "--json")
    args.sensor = None
    args.scenes = [folder / "images" / name for name in names]
    args.labels = [folder / "labels" / name for name in names]
    assert command.run(args) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert list(dict.fromkeys(row["split"] for row in rows)) == ["random pixels", "by tile"]
    of_random = {row["inputs"]: row["overall_accuracy"]["mean"] for row in rows if row["split"] == "random pixels"}
    assert of_random["raw spectrum"] > 0.4

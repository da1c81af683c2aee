"""``specfast finetune``: tables, models that specfast segment takes, and mistakes in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import specfast
from specfast import cli
from specfast.cli.finetune.classify import read_list
from specfast.data.sensors import sensors
from specfast.errors import DataError
from tests.tasks.scenes import make_encoder

SMALL = ["--steps", "8", "--quiet"]
HEAD = ["--head", "conv", "--head-options", "hidden=8", "upsample=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two ENVI scenes of three classes, their labels and targets, and a model."""
    folder = tmp_path_factory.mktemp("finetune")
    make_encoder().save_pretrained(folder / "model")
    sensor = sensors()["casi_1500"]
    rng = np.random.default_rng(0)
    spectra = rng.random((4, len(sensor.wavelength)))
    for name in ("one", "two"):
        labels = rng.permutation(np.arange(16) % 3 + 1).reshape(4, 4).repeat(6, axis=0).repeat(6, axis=1)
        image = spectra[labels] + 0.2 * rng.normal(size=(24, 24, len(sensor.wavelength)))
        write_envi(folder / name, image.astype(np.float32), sensor.wavelength)
        np.save(folder / f"{name}_labels.npy", labels)
        shares = np.stack([labels == 1, labels == 2]).astype(np.float32)
        np.save(folder / f"{name}_targets.npy", shares)
    return folder


def write_envi(path, image, wavelength):
    listed = ", ".join(f"{value:.3f}" for value in wavelength)
    path.with_suffix(".hdr").write_text(
        f"ENVI\nsamples = {image.shape[1]}\nlines = {image.shape[0]}\nbands = {image.shape[2]}\nheader offset = 0\n"
        f"data type = 4\ninterleave = bip\nbyte order = 0\nwavelength units = Nanometers\nwavelength = {{{listed}}}\n"
    )
    path.with_suffix(".img").write_bytes(image.tobytes())


def told(folder):
    return ["--model", str(folder / "model"), "--sensor", "casi_1500", "--level", "L2", "--gsd", "1"]


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main(["finetune", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_segment_table(folder, tmp_path, capsys):
    code, out, err = run(
        capsys,
        "segment",
        folder / "one.hdr",
        *("--labels", folder / "one_labels.npy", "--out", tmp_path, "--labels-per-class", 4, "--seeds", 1),
        *("--splits", "random", "--baselines", "svm", "--class-names", "a", "b", "c", "--json"),
        *(*HEAD, *SMALL, *told(folder)),
    )
    assert code == 0, err
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "segment.json").read_text())
    assert printed["settings"]["class_names"] == ["a", "b", "c"]
    assert [row["kind"] for row in printed["rows"]].count("fine-tuned") == 1
    assert np.load(tmp_path / "class_map_random.npy").shape == (24, 24)
    assert (tmp_path / "segment.csv").is_file()


def test_segment_with_a_given_division_of_two_scenes(folder, tmp_path, capsys):
    maps = []
    for name in ("one", "two"):
        labels = np.load(folder / f"{name}_labels.npy")
        labels[:, 12:] = 0
        np.save(tmp_path / f"{name}.npy", labels)
        maps.append(tmp_path / f"{name}.npy")
    code, out, err = run(
        capsys,
        *("segment", folder / "one.hdr", folder / "two.hdr", "--train-map", *maps, "--seeds", 1, "--no-control"),
        *("--labels", folder / "one_labels.npy", folder / "two_labels.npy", "--out", tmp_path / "out"),
        *("--baselines", "none", *HEAD, *SMALL, *told(folder)),
    )
    assert code == 0, err
    assert "published maps all, OA" in out
    assert "written to" in out
    table = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert {row["split"] for row in table["rows"]} == {"published maps"}
    assert sum(map(sum, table["rows"][0]["confusion"][0])) == 2 * 24 * 12


@pytest.mark.parametrize("head", ["conv", "upernet", "linear"])
def test_segment_on_all_labels(folder, tmp_path, capsys, head):
    small = ["--head-options", "pyramid_channels=8", "segmentation_channels=4"]
    options = HEAD if head == "conv" else ["--head", head, *(small if head == "upernet" else [])]
    arguments = [
        *("segment", folder / "one.hdr", "--labels", folder / "one_labels.npy", "--out", tmp_path, "--all-labels"),
        *("--class-names", "a", "b", "c", "--json", *options, *SMALL, *told(folder)),
    ]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert found["outputs"] == ["a", "b", "c"]
    assert found["labelled_pixels"] == 576
    model = specfast.load_model(found["model"])
    assert type(model).__name__ == "SpecAwareSegmenter"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    code, _, _ = run(capsys, *arguments)  # complete already: the same model again
    assert code == 0
    assert all(torch.equal(v, before[n]) for n, v in specfast.load_model(found["model"]).state_dict().items())


def test_a_scene_that_is_only_tested(folder, tmp_path, capsys):
    """Its map of training pixels is empty; maps that are all empty are refused."""
    labels = np.load(folder / "one_labels.npy")
    np.save(tmp_path / "one.npy", labels)
    np.save(tmp_path / "two.npy", 0 * labels)
    arguments = [
        *("segment", folder / "one.hdr", folder / "two.hdr", "--seeds", 1, "--no-control", "--baselines", "none"),
        *("--labels", folder / "one_labels.npy", folder / "two_labels.npy", "--out", tmp_path / "out"),
        *(*HEAD, *SMALL, *told(folder), "--train-map"),
    ]
    code, _, err = run(capsys, *arguments, tmp_path / "one.npy", tmp_path / "two.npy")
    assert code == 0, err
    table = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert sum(map(sum, table["rows"][0]["confusion"][0])) == labels.size
    code, _, err = run(capsys, *arguments, tmp_path / "two.npy", tmp_path / "two.npy")
    assert code == 2
    assert "no pixel has a class" in err


@pytest.fixture
def holed(folder, tmp_path):
    """Scene one with two lines that hold no measurement."""
    wavelength = sensors()["casi_1500"].wavelength
    image = np.fromfile(folder / "one.img", dtype=np.float32).reshape(24, 24, len(wavelength))
    image[:2] = np.nan
    write_envi(tmp_path / "holed", image, wavelength)
    return tmp_path / "holed.hdr"


@pytest.mark.parametrize(
    ("task", "maps", "everything", "count"),
    [
        ("segment", "--labels", "--all-labels", "labelled_pixels"),
        ("regress", "--targets", "--all-targets", "pixels_with_targets"),
    ],
)
def test_maps_that_reach_into_nodata(folder, tmp_path, capsys, holed, task, maps, everything, count):
    given = folder / f"one_{maps.strip('-')}.npy"
    code, out, err = run(
        capsys, task, holed, maps, given, "--out", tmp_path, everything, "--json", *HEAD, *SMALL, *told(folder)
    )
    assert code == 0, err
    found = json.loads(out)
    assert found[count] == 22 * 24
    (note,) = found["notes"]
    assert note.startswith("48 ")
    assert f"note: {note}" in err


def write_list(folder, path, split=False):
    """Tiles of 8 x 8 pixels as scenes of their own."""
    sensor = sensors()["casi_1500"]
    rng = np.random.default_rng(1)
    spectra = rng.random((2, len(sensor.wavelength)))
    lines = ["scene,label,split" if split else "scene,label"]
    for number in range(8):
        image = spectra[number % 2] + 0.1 * rng.normal(size=(8, 8, len(sensor.wavelength)))
        write_envi(path.parent / f"tile{number}", image.astype(np.float32), sensor.wavelength)
        words = [f"tile{number}.hdr", ("wood", "field")[number % 2], ("train", "test")[number // 4]]
        lines.append(",".join(words if split else words[:2]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("split", [False, True])
def test_classify(folder, tmp_path, capsys, split):
    path = write_list(folder, tmp_path / "tiles.csv", split)
    counts = [] if split else ["--labels-per-class", 2]
    code, out, err = run(
        capsys,
        *("classify", path, "--out", tmp_path / "out", "--seeds", 1, *counts, "--no-control", "--json"),
        *(*SMALL, *told(folder)),
    )
    assert code == 0, err
    table = json.loads(out)
    assert {row["split"] for row in table["rows"]} == {"given division" if split else "random scenes"}
    assert table["settings"]["class_names"] == ["field", "wood"]
    assert table == json.loads((tmp_path / "out" / "classify.json").read_text())


def test_a_list_as_excel_writes_it(tmp_path):
    path = tmp_path / "list.csv"
    lines = ["scene, label, split", "one.hdr, wood , train", " two.hdr ,wood,test ", ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    scenes, labels, split = read_list(path)
    assert scenes == [tmp_path / "one.hdr", tmp_path / "two.hdr"]
    assert labels == ["wood", "wood"]
    assert split.tolist() == ["train", "test"]
    path.write_text("scene,label\none.hdr, \n")
    with pytest.raises(DataError, match="line 2 lacks a scene or a label"):
        read_list(path)
    path.write_text("scene,label,split\none.hdr,wood\n")
    with pytest.raises(DataError, match="column split: expected train or test, got ''"):
        read_list(path)


def test_head_options_that_are_no_yaml(capsys):
    code, _, err = run(capsys, "segment", "one.hdr", "--head-options", "spectral_sides=[1,3")
    assert code == 2
    assert "argument --head-options: spectral_sides: expected a value in YAML, got '[1,3'\n" in err


def test_classify_on_all_labels(folder, tmp_path, capsys):
    path = write_list(folder, tmp_path / "tiles.csv")
    code, out, _ = run(capsys, "classify", path, "--out", tmp_path / "out", "--all-labels", *SMALL, *told(folder))
    assert code == 0
    assert "labelled scenes: 8" in out
    assert specfast.load_model(tmp_path / "out" / "model").config.outputs == ("field", "wood")


def test_regress(folder, tmp_path, capsys):
    arguments = [
        *("regress", folder / "one.hdr", "--targets", folder / "one_targets.npy", "--target-names", "a", "b"),
        *("--seeds", 1, "--training-pixels", 40, "--splits", "random", "--no-control", *SMALL, *told(folder)),
    ]
    code, out, err = run(capsys, *arguments, "--out", tmp_path / "table", "--json")
    assert code == 0, err
    assert json.loads(out)["settings"]["outputs"] == ["a", "b"]
    assert (tmp_path / "table" / "regress.md").is_file()
    code, out, err = run(capsys, *arguments, "--out", tmp_path / "model", "--all-targets", "--abundance")
    assert code == 0, err
    model = specfast.load_model(tmp_path / "model" / "model")
    assert model.config.options["constraint"] == "abundance"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["segment", "one.hdr", "--labels", "one_labels.npy", "two_labels.npy"], "one file for each of the 1 scenes"),
        (["segment", "one.hdr", "--labels", "small.npy"], "has 3 x 3 pixels; expected 24 x 24"),
        (["segment", "one.hdr", "--labels", "one_labels.npy", "--baselines", "xgb"], "--baselines: expected all, none"),
        (["segment", "one.hdr", "--labels", "one_labels.npy", "--head-options", "hiden=3"], "hiden unknown to head"),
        (
            ["segment", "one.hdr", "--labels", "one_labels.npy", "--head-options", "spectral_sides=3"],
            "list of int, got",
        ),
        (["segment", "one.hdr", "--labels", "one_labels.npy", "--head-options", "upsample=x"], "expected int, got 'x'"),
        (["segment", "one.hdr", "--labels", "one_labels.npy", "--head-options", "components="], "int, got None"),
        (["segment", "one.hdr", "--labels", "one_labels.npy", "--steps", "-1"], "steps: expected at least 0"),
        (
            ["segment", "one.hdr", "--labels", "one_labels.npy", "--all-labels", "--head", "mlp", "--steps", "0"],
            "steps: expected at least 1, got 0",
        ),
        (
            ["segment", "one.hdr", "--labels", "one_labels.npy", "--head", "upernet", "--reach", "far"],
            "reach: the head upernet looks as far as it does",
        ),
        *(
            (["segment", "one.hdr", "--labels", "one_labels.npy", "--head", "conv", "--head-options", option], message)
            for option, message in {
                "hidden=-1": "hidden: expected at least 1, got -1",
                "hidden=0": "hidden: expected at least 1, got 0",
                "depth=-2": "depth: expected at least 0, got -2",
                "dropout=2.0": "dropout: expected a share of at least 0 and below 1, got 2.0",
                "components=-1": "components: expected at least 0, got -1",
                "upsample=0": "upsample: expected a divisor of the patch size 8; got 0",
                "spectral_sides=[2]": "spectral_sides: expected odd numbers of pixels, at least one; got [2]",
            }.items()
        ),
        (["regress", "one.hdr", "--targets", "one_targets.npy", "--target-names", "a"], "expected 2 names, got 1"),
        (["regress", "one.hdr", "--targets", "small.npy"], "has 3 x 3 pixels; expected 24 x 24"),
        (["classify", "tiles.csv", "--head", "mlp", "--head-options", "hidden=-1"], "hidden: expected at least 1"),
        (["classify", "no.csv"], "No such file"),
        (["classify", "bad.csv"], "expected a line with the columns scene,label"),
    ],
)
def test_mistakes(folder, tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(folder)
    np.save("small.npy", np.ones((3, 3), int))
    write_list(folder, folder / "tiles.csv")
    (folder / "bad.csv").write_text("file,class\na,b\n")
    code, _, err = run(capsys, *argv, "--out", tmp_path, "--quiet", *told(folder))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1

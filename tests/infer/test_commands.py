"""``specfast segment | embed | change | detect`` on small files: what they write, print and refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from specfast import cli
from specfast.cli import detect, scenes
from specfast.models import create_model
from specfast.tasks.anomaly import METHODS

BANDS = 6
TOLD = ["--sensor", "others", "--level", "L2", "--gsd", "30"]
HEADER = f"""ENVI
samples = 30
lines = 40
bands = {BANDS}
header offset = 0
data type = 4
interleave = bsq
byte order = 0
data ignore value = -9999
map info = {{UTM, 1, 1, 400000, 5800000, 30, 30, 33, North, WGS-84, units=Meters}}
wavelength units = Nanometers
wavelength = {{450, 600, 850, 1250, 1650, 2200}}
fwhm = {{10, 10, 10, 10, 10, 10}}
"""


def write_scene(folder, name: str, seed: int = 0):
    cube = np.random.default_rng(seed).random((BANDS, 40, 30), dtype=np.float32)
    cube[:, :4, :4] = -9999
    (folder / f"{name}.hdr").write_text(HEADER)
    (folder / f"{name}.img").write_bytes(cube.tobytes())
    return folder / f"{name}.img"


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path, "scene")


@pytest.fixture
def save_model(tmp_path):
    def save(task, **options):
        torch.manual_seed(0)
        net = create_model(
            "specaware_tiny_patch4", task=task, image_size=32, embed_dim=32, num_heads=2, depth=2, rank=8,
            condition_dim=16, decoder_embed_dim=16, decoder_num_heads=2, decoder_depth=1, **options,
        )  # fmt: skip
        return net.save_pretrained(tmp_path / task)

    return save


def run(*arguments) -> int:
    return cli.main([*map(str, arguments), "--quiet", *TOLD])


def read(path):
    with pytest.importorskip("rasterio").open(path) as file:
        return file.read(), file.tags(), file.crs


def test_segment_writes_a_map_probabilities_and_a_preview(scene, save_model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder, out = save_model("segmentation", outputs=("corn", "bare soil")), tmp_path / "map.tif"
    preview = tmp_path / "map.png"
    assert run("segment", scene, "--model", folder, "--out", out, "--probabilities", "--preview", preview, "--cog") == 0
    text = capsys.readouterr().out
    values, tags, crs = read(out)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert (values[0, :4, :4] == 0).all()
    assert (values > 0).sum() == 1200 - 16
    assert crs.to_epsg() == 32633
    assert tags["SPECFAST_MODEL"] == str(folder)
    shares, _, _ = read(tmp_path / "map_probabilities.tif")
    assert np.array_equal(shares.argmax(axis=0)[values[0] > 0] + 1, values[0][values[0] > 0])
    assert "40 x 30 cells, 98.7% with data" in text
    assert f"  {preview}" in text
    assert "bare soil" in text
    assert preview.read_bytes().startswith(b"\x89PNG")


def test_json_is_all_there_is_on_stdout(scene, save_model, tmp_path, capsys):
    folder, out = save_model("segmentation", outputs=("corn", "soil")), tmp_path / "map.npy"
    assert run("segment", scene, "--model", folder, "--out", out, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    values = np.load(out)
    assert found["files"] == [str(out), str(out.with_suffix(".json"))]
    assert found["class_cells"] == {"corn": int((values == 1).sum()), "soil": int((values == 2).sum())}
    assert found["cells_with_data"] == 1200 - 16
    assert found["megapixels_per_second"] > 0
    assert found["precision"] in ("float32", "bf16")


def test_several_scenes_go_to_a_folder(tmp_path, save_model):
    files = [write_scene(tmp_path, "first", 1), write_scene(tmp_path, "second", 2)]
    folder = save_model("regression", outputs=("nitrogen",))
    assert run("segment", *files, "--model", folder, "--out", tmp_path / "maps", "--format", "img") == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "first_targets.hdr", "first_targets.img", "second_targets.hdr", "second_targets.img",
    ]  # fmt: skip


def test_embed_on_the_patch_grid_and_by_pixels(scene, save_model, tmp_path):
    pytest.importorskip("matplotlib")
    folder = save_model("pretrain")
    out, preview = tmp_path / "features.tif", tmp_path / "features.png"
    assert run("embed", scene, "--model", folder, "--out", out, "--preview", preview) == 0
    values, tags, _ = read(out)
    assert values.shape == (32, 10, 8)
    assert np.isnan(values[:, 0, 0]).all()
    assert (tags["SPECFAST_KIND"], tags["SPECFAST_CELL_IN_PIXELS"]) == ("embedding", "4")
    assert preview.read_bytes().startswith(b"\x89PNG")
    assert run("embed", scene, "--model", folder, "--out", tmp_path / "p.npy", "--pixels", "--levels", "0", "3") == 0
    assert np.load(tmp_path / "p.npy").shape == (64, 40, 30)


def test_change_maps_probability_and_uncertainty(tmp_path, save_model, capsys):
    before, after = write_scene(tmp_path, "before", 1), write_scene(tmp_path, "after", 2)
    folder, out = save_model("change", outputs=("change",)), tmp_path / "change.tif"
    assert run("change", before, after, "--model", folder, "--out", out) == 0
    values, tags, _ = read(out)
    assert tags["SPECFAST_QUANTITY"] == "change probability"
    assert np.isnan(values[:, :4, :4]).all()
    inside = values[:, np.isfinite(values[0])]
    assert ((inside >= 0) & (inside <= 1)).all()
    assert "98.7% with data" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_detect_by_every_method(scene, save_model, tmp_path, method):
    out = tmp_path / "scores.npy"
    needs = METHODS[method].needs_model
    model = ["--model", save_model("pretrain")] if needs else []
    assert run("detect", scene, "--method", method, *model, "--out", out, "--window", "24") == 0
    scores = np.load(out)[0]
    assert np.isnan(scores[:4, :4]).all()
    assert np.isfinite(scores).sum() == 1200 - 16


def test_rx_by_windows_is_rx_of_the_scene(scene, tmp_path):
    assert run("detect", scene, "--out", tmp_path / "scores.npy", "--window", "16") == 0
    cube = np.fromfile(scene, dtype="<f4").reshape(BANDS, 40, 30).astype(np.float64)
    valid = cube[0] != -9999
    pixels = cube[:, valid]
    centered = pixels - pixels.mean(axis=1, keepdims=True)
    distance = (centered * np.linalg.solve(np.cov(pixels), centered)).sum(axis=0)
    ratio = np.load(tmp_path / "scores.npy")[0][valid] / distance
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-5)  # whether n or n - 1 divides is the scorer's choice


def test_detect_with_labels_prints_the_table(scene, save_model, tmp_path, capsys):
    targets = np.zeros((40, 30), dtype=np.uint8)
    targets[10:12, 10:12] = 1
    np.save(tmp_path / "targets.npy", targets)
    assert run("detect", scene, "--labels", tmp_path / "targets.npy", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["maps"] == []
    assert {row["method"] for row in found["table"]["rows"]} >= {"RX, all bands", "local RX"}
    assert "AUC" in captured.err


def test_a_map_names_the_model_only_if_it_was_used(scene, save_model, tmp_path):
    np.save(tmp_path / "targets.npy", np.eye(40, 30, dtype=np.uint8))
    model = ["--labels", tmp_path / "targets.npy", "--model", save_model("pretrain"), "--window", "24"]
    for method in ("rx", "features"):
        assert run("detect", scene, "--method", method, *model, "--out", tmp_path / f"{method}.npy") == 0
        described = json.loads((tmp_path / f"{method}.json").read_text())
        assert ("model" in described) == (method == "features")


@pytest.mark.parametrize("value", ["-3.4e38", "-1e34", "-9999", "-.5E-3", "-9999."])
def test_a_negative_value_of_pixels_without_data_may_have_an_exponent(value):
    from specfast.cli import load

    parsed = load("segment")[1].parse_args(["a.img", "--model", "m", "--out", "a.tif", "--nodata", value])
    assert parsed.nodata == float(value)


def test_methods_of_the_parser_are_those_there_are():
    assert tuple(METHODS) == detect.METHODS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "SCENE"], "--out: expected a file for the scores"),
        (["detect", "SCENE", "--out", "a.npy", "--method", "features"], "--method features: needs --model"),
        (["detect", "SCENE", "--out", "a.npy", "--model", "x"], "--model: method rx uses none"),
        (["detect", "SCENE", "--out", "a.npy", "--components", "3"], "--components: only for the methods"),
        (["detect", "SCENE", "SCENE", "--labels", "x.npy"], "--labels: one map belongs to one scene, got 2 scenes"),
        (["detect", "SCENE", "--labels", "x.npy", "--preview", "p.png"], "--preview: is made of the scores"),
        (["segment", "SCENE", "--model", "nowhere", "--out", "a.npy"], "nowhere: no such model folder"),
        (["segment", "SCENE", "--model", "MAE", "--out", "a.npy"], "gives no maps of classes, targets or change"),
        (["change", "SCENE", "SCENE", "--model", "SEGMENTER", "--out", "a.npy"], "use specfast segment SCENE"),
        (["segment", "SCENE", "--model", "SEGMENTER", "--out", "a.jpg"], "its ending tells no format"),
        (["segment", "SCENE", "SCENE", "--model", "SEGMENTER", "--out", "a.npy"], "2 scenes need a folder"),
        (["segment", "SCENE", "SCENE", "--model", "SEGMENTER", "--out", "maps"], "two scenes of one name"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(scene, save_model, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("SPECFAST_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    known = {"SCENE": lambda: scene, "MAE": lambda: save_model("pretrain"),
             "SEGMENTER": lambda: save_model("segmentation", outputs=("a", "b"))}  # fmt: skip
    assert run(*[known[word]() if word in known else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_targets_of_one_scene_and_of_several(tmp_path):
    first, second = tmp_path / "a" / "one.img", tmp_path / "a" / "two.img"
    assert scenes.targets([first], tmp_path / "map.tif", ".tif", "classes") == [tmp_path / "map.tif"]
    assert scenes.targets([first], tmp_path / "maps", ".tif", "classes") == [tmp_path / "maps" / "one_classes.tif"]
    assert scenes.targets([first, second], tmp_path, ".img", "x") == [tmp_path / "one_x.img", tmp_path / "two_x.img"]


def test_classes_have_the_colors_of_the_pictures():
    from specfast.report.style import CLASS_COLORS

    assert scenes.class_rgb(2)[1] == tuple(int(CLASS_COLORS[1][at : at + 2], 16) for at in (1, 3, 5))


def test_an_interrupted_command_says_how_to_go_on(scene, save_model, tmp_path, capsys, monkeypatch):
    from specfast.infer import predictors

    def stop(self, samples):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictors.SegmentPredictor, "compute", stop)
    out = tmp_path / "map.npy"
    assert run("segment", scene, "--model", save_model("segmentation", outputs=("a", "b")), "--out", out) == 130
    assert f"finished rows are kept in {out}.partial; the same command goes on from there" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("segment", scene, "--model", tmp_path / "segmentation", "--out", out) == 0
    assert out.exists()

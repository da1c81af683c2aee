"""The table of change detectors beside their baselines, and the command that makes it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from specfast import cli
from specfast.data import open as open_image
from specfast.models import load_model
from specfast.tasks.change import predict_change
from specfast.tasks.change_data import ScenePair, change_labels
from specfast.tasks.change_options import ChangeOptions
from specfast.tasks.change_table import finetune_change
from specfast.tasks.options import FitOptions
from tests.tasks.change_scenes import QUICK, make_encoder, make_scenes


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def scenes():
    return make_scenes()


def test_table_with_control_and_baselines(encoder, scenes):
    pytest.importorskip("sklearn")
    result = finetune_change(encoder, *scenes, labels_per_class=(5, 20), seeds=2, options=QUICK)
    table = result.table
    assert len(table.rows) == 6 * 2 * 2
    settings = list(dict.fromkeys(row.setting for row in table.rows))
    assert settings == [
        f"{name}, {count} labels a class" for name in ("Random pixels", "Block-disjoint pixels") for count in (5, 20)
    ]
    for row in table.rows:
        assert set(row.scores) == {"f1", "iou", "kappa", "auc", "error_auc"}
        assert all(len(values) == 2 for values in row.scores.values())
        assert np.isfinite([row.scores[m] for m in ("f1", "iou", "kappa", "auc")]).all()
    best = {row.method: row for row in table.rows if row.setting == "Random pixels, 20 labels a class"}
    assert best["fine-tuned detector"].kind == "fine-tuned"
    assert best["fine-tuned detector, random encoder"].kind == "control"
    assert best["fine-tuned detector"].summary("auc")[0] > 0.85
    assert best["MAD + Otsu"].summary("auc")[0] > 0.9
    assert best["PCA + SVM, stacked dates and difference"].summary("auc")[0] > 0.7
    assert np.isnan(best["MAD + Otsu"].scores["error_auc"]).all()
    assert set(result.maps) == {"random", "block"}
    plain = json.loads(table.to_json())
    assert plain["settings"]["pixels"] == {
        "unchanged": int((scenes[2] == 1).sum()),
        "changed": int((scenes[2] == 2).sum()),
    }
    assert "Random pixels, 5 labels a class: best is" in plain["verdict"]


def test_mad_is_left_out_where_a_scene_has_too_few_pixels(encoder):
    pytest.importorskip("sklearn")
    before, after, labels = make_scenes(16, 16, bands=140)
    given = {"splits": ("random",), "labels_per_class": (5,), "seeds": 1, "control": False}
    options = replace(QUICK, fit=FitOptions(steps=2))
    table = finetune_change(encoder, before, after, labels, baselines=("mad", "cva"), options=options, **given).table
    assert [row.kind for row in table.rows] == ["fine-tuned", "baseline"]
    assert any("MAD + Otsu is left out" in note and "more than 280 valid pixels" in note for note in table.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("field",)}, "splits: expected a list out of random, block"),
        ({"splits": ()}, "at least one of each"),
        ({"labels_per_class": (0,)}, "at least one label"),
        ({"seeds": 0}, "at least one of each"),
        ({"baselines": "mad"}, "baselines: expected a list"),
    ],
)
def test_bad_options_of_the_table(encoder, scenes, options, message):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=message):
        finetune_change(encoder, *scenes, options=QUICK, **options)
    for wrong in ({"view": 0}, {"uncertainty_weight": -1.0}, {"prior": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ChangeOptions(**wrong)


@pytest.fixture
def files(encoder, scenes, tmp_path):
    """Both dates as ENVI files, the change map in the usual convention, a saved model."""
    for name, sample in zip(("before", "after"), scenes[:2], strict=True):
        bands, height, width = sample.image.shape
        header = [
            "ENVI", f"samples = {width}", f"lines = {height}", f"bands = {bands}", "header offset = 0",
            "data type = 4", "interleave = bsq", "byte order = 0", "wavelength units = Nanometers",
            "wavelength = {" + ", ".join(f"{w:.1f}" for w in sample.wavelength.tolist()) + "}",
            "fwhm = {" + ", ".join(["20"] * bands) + "}",
        ]  # fmt: skip
        (tmp_path / f"{name}.hdr").write_text("\n".join(header) + "\n")
        sample.image.numpy().astype("<f4").tofile(tmp_path / f"{name}.img")
    np.save(tmp_path / "map.npy", (scenes[2] - 1).astype(np.uint8))
    encoder.save_pretrained(tmp_path / "model")
    return tmp_path


def command(folder, *more):
    paths = [str(folder / name) for name in ("before.img", "after.img", "map.npy", "model", "out")]
    given = ["--labels", paths[2], "--model", paths[3], "--out", paths[4]]
    told = ["--sensor", "others", "--level", "L2", "--gsd", "4"]
    quick = ["--quiet", "--head", "mlp", "--head-options", "upsample=1", "--steps", "10"]
    return cli.main(["finetune", "change", *paths[:2], *given, *told, *quick, *more])


def test_command_measures(files, capsys):
    pytest.importorskip("sklearn")
    assert command(files, "--seeds", "2", "--labels-per-class", "10", "--json", "--baselines", "mad", "cva") == 0
    printed = capsys.readouterr()
    table = json.loads(printed.out)
    assert table == json.loads((files / "out" / "change.json").read_text())
    assert {row["method"] for row in table["rows"]} == {
        "fine-tuned detector", "fine-tuned detector, random encoder", "MAD + Otsu", "change vector analysis + Otsu",
    }  # fmt: skip
    assert "| MAD + Otsu |" in (files / "out" / "change.md").read_text()
    for split in ("random", "block"):
        for name in ("change_map", "uncertainty_map"):
            values = np.load(files / "out" / f"{name}_{split}.npy")
            assert values.shape == (40, 48)
            assert 0 <= values.min() <= values.max() <= 1


def test_command_trains_a_model_on_all_labels(files, scenes, capsys):
    assert command(files, "--all-labels") == 0
    assert "10 steps on 1920 labels" in capsys.readouterr().out
    detector = load_model(files / "out" / "model")
    assert (files / "out" / "log.csv").is_file()
    saved = np.load(files / "out" / "change_map.npy")
    pair = ScenePair.of(*(replace(one, sensor="others") for one in scenes[:2]))
    np.testing.assert_allclose(saved, predict_change(detector, pair)[0], atol=1e-4)
    paths = [str(files / name) for name in ("before.img", "after.img")]
    told = ["--sensor", "others", "--level", "L2", "--gsd", "4", "--precision", "float32", "--quiet"]
    mapped = files / "mapped.npy"
    assert cli.main(["change", *paths, "--model", str(files / "out" / "model"), "--out", str(mapped), *told]) == 0
    for values, name in zip(np.load(mapped), ("change_map", "uncertainty_map"), strict=True):
        np.testing.assert_allclose(values, np.load(files / "out" / f"{name}.npy"), atol=1e-4)


def test_command_refuses_a_map_of_another_size_or_meaning(files, capsys):
    np.save(files / "map.npy", np.ones((5, 5), dtype=np.uint8))
    assert command(files) == 2
    assert "map.npy: the map has 5 x 5 pixels; expected 40 x 48" in capsys.readouterr().err
    np.save(files / "map.npy", np.full((40, 48), 1, dtype=np.uint8))
    assert command(files) == 2
    assert "unchanged: no pixel of the map is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_semi_synthetic_pair(shared, tmp_path):
    """A smoke test on a real scene: its second date was made by swapping pixels, and plain MAD nearly solves it."""
    pytest.importorskip("sklearn")
    made = np.load(shared / "data" / "cd_semisynthetic" / "indian_pines_pseudo_t2.npz")
    np.save(tmp_path / "after.npy", made["T2"])
    paths = (shared / "data" / "indian_pines" / "Indian_pines_corrected.npy", tmp_path / "after.npy")
    images = [open_image(path, sensor="indian_pines") for path in paths]
    options = replace(QUICK, fit=FitOptions(steps=100, precision="float32"))
    protocol = {"splits": ("random",), "labels_per_class": (50,), "seeds": 1, "baselines": ("mad",), "control": False}
    result = finetune_change(make_encoder(), *images, change_labels(made["change"]), options=options, **protocol)
    ours, mad = result.table.rows
    assert mad.scores["auc"][0] > 0.998
    assert ours.scores["auc"][0] > 0.9

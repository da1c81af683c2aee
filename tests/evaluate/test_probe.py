"""The probe: its table on a small scene, what it says in words for each outcome, and its errors."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import specfast
from specfast.batch import SpectralSample
from specfast.evaluate import ProbeRow, ProbeTable, Scores, probe, whiten

BANDS = 12


def scene(height=24, width=30, seed=0) -> tuple[SpectralSample, np.ndarray]:
    """Three classes in stripes, two fields each, with spectra of their own and noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.tile([1, 2, 3], 2), width // 6)[None].repeat(height, 0)
    labels[:, :: width // 6] = 0
    spectra = np.random.default_rng(9).normal(size=(4, BANDS)) + 5
    cube = spectra[labels] + rng.normal(scale=0.8, size=(height, width, BANDS))
    image = torch.from_numpy(cube.transpose(2, 0, 1)).float()
    return SpectralSample(image, torch.linspace(450, 900, BANDS), torch.full((BANDS,), 10.0), 20.0, "avc", "L1"), labels


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return specfast.create_model(
        "specaware_tiny_patch8", task="encoder", image_size=16, embed_dim=16, depth=4, num_heads=2, rank=4
    )


@pytest.fixture(scope="module")
def table(encoder) -> ProbeTable:
    image, labels = scene()
    return probe(
        encoder,
        image,
        labels,
        labels_per_class=(5, 60),
        seeds=2,
        baselines=("svm",),
        recipe={"factor": 2},
        components=8,
    )


def test_rows_cover_every_method_and_setting(table):
    inputs = ("features", "raw + features", "raw spectrum", "random encoder", "raw + random encoder")
    expected = [(name, classifier) for name in inputs for classifier in ("lda", "logistic")] + [("svm", "svm")]
    settings = [(s, n) for s in ("random pixels", "field-disjoint") for n in (5, 60)]
    assert table.settings_of_rows() == settings
    for setting in settings:
        assert [(row.inputs, row.classifier) for row in table.select(*setting)] == expected
    assert all(len(row.scores) == 2 for row in table.rows)
    assert {row.kind for row in table.rows} == {"features", "control", "baseline"}


def test_spectra_of_separable_classes_are_told_apart(table):
    best = max(row.summary()[0] for row in table.rows if row.inputs == "raw spectrum")
    assert best > 0.9


def test_class_maps_and_notes(table):
    assert set(table.class_maps) == {"random", "field"}
    (classes,) = table.class_maps["field"]
    assert classes.shape == (24, 30)
    assert set(np.unique(classes)) <= {1, 2, 3}
    assert any("60 labels a class: fewer were available" in note for note in table.notes) == any(
        "class" in note for note in table.notes
    )
    assert table.settings["features"]["components"] == 8


def test_same_seeds_same_table(encoder, table):
    image, labels = scene()
    again = probe(
        encoder, image, labels, labels_per_class=(5,), seeds=1, baselines=(), recipe={"factor": 2}, components=8
    )
    first = {(row.method, row.split): row.values()[0] for row in table.rows if row.labels_per_class == 5}
    assert {(row.method, row.split): row.values()[0] for row in again.rows}.items() <= first.items()


def test_invalid_pixels_lose_their_labels(encoder):
    image, labels = scene()
    image.valid = torch.ones(24, 30, dtype=torch.bool)
    image.valid[:, :4] = False
    table = probe(
        encoder, image, labels, splits=("random",), labels_per_class=(5,), seeds=1, classifiers=("lda",), baselines=()
    )
    assert any("72 labelled pixels hold no measurement" in note for note in table.notes)
    (classes,) = table.class_maps["random"]
    assert (classes[:, :4] == 0).all()
    assert (classes[:, 4:] > 0).all()


def test_several_scenes_by_tile(encoder):
    images, labels = zip(*(scene(16, 30, seed) for seed in range(3)), strict=True)
    table = probe(
        encoder,
        list(images),
        list(labels),
        splits=("random", "field", "tile"),
        labels_per_class=(5,),
        seeds=1,
        classifiers=("lda",),
        baselines=("pca_svm",),
    )
    assert [split for split, _ in table.settings_of_rows()] == ["random pixels", "field-disjoint", "by tile"]
    assert [one.shape for one in table.class_maps["tile"]] == [(16, 30)] * 3


def test_whiten():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 10)) * np.logspace(0, 3, 10)).astype(np.float32)
    features[7] = np.nan
    out = whiten(features, 2)
    assert np.isnan(out[7]).all()
    np.testing.assert_allclose(np.cov(np.delete(out, 7, axis=0).T, ddof=0), np.eye(2), atol=1e-3)
    assert whiten(np.eye(4, dtype=np.float32)[[0, 1, 0, 1]], 4).shape == (4, 1)  # no direction without variance
    with pytest.raises(ValueError, match="components"):
        whiten(features, 0)
    with pytest.raises(ValueError, match="no pixel is valid"):
        whiten(np.full((3, 2), np.nan, np.float32), 1)


def row(inputs, values, *, classifier="lda", split="field-disjoint", count=10, kind="control") -> ProbeRow:
    scores = tuple(Scores(*[v / 100] * 5, {1: v / 100}, np.ones((1, 1)), (1,)) for v in values)
    return ProbeRow(f"LDA, {inputs}", kind, inputs, classifier, split, count, scores, 0.0)


LOW, MIDDLE, HIGH = (40.0, 42, 41), (50.0, 52, 51.5), (60.0, 61, 62)
NOISY = (30.0, 70, 52)


@pytest.mark.parametrize(
    ("features", "raw", "random", "phrases"),
    [
        (HIGH, MIDDLE, LOW, ["alone beat the raw spectrum (+", "alone beat the same encoder", "best is LDA, features"]),
        (
            LOW,
            HIGH,
            MIDDLE,
            ["alone lost to the raw spectrum (-", "lost to the same encoder", "LDA, raw spectrum, OA 61"],
        ),
        (MIDDLE, HIGH, LOW, ["alone lost to the raw spectrum", "alone beat the same encoder with random weights"]),
        (NOISY, MIDDLE, LOW, ["did not beat the raw spectrum: no clear difference"]),
    ],
)
def test_verdict_for_each_outcome(features, raw, random, phrases):
    table = ProbeTable([row("features", features), row("raw spectrum", raw), row("random encoder", random)])
    for phrase in phrases:
        assert phrase in table.verdict()


def test_verdict_in_part_names_where():
    rows = [
        row("features", HIGH, split="random pixels"),
        row("raw spectrum", LOW, split="random pixels"),
        row("features", LOW),
        row("raw spectrum", HIGH),
        row("features", NOISY, count=50),
        row("raw spectrum", MIDDLE, count=50),
    ]
    words = ProbeTable(rows).verdict()
    assert "beat the raw spectrum only in part" in words
    assert "clearly better in 1 of 3: random pixels 10 (lda)" in words
    assert "clearly worse in 1 of 3: field-disjoint 10 (lda)" in words
    assert "no clear difference in 1 of 3: field-disjoint 50 (lda)" in words
    words = ProbeTable(rows[2:]).verdict()
    assert "did not beat the raw spectrum (" in words


def test_verdict_of_one_seed_claims_nothing():
    words = ProbeTable([row("features", (60,)), row("raw spectrum", (50,))]).verdict()
    assert "scored higher than the raw spectrum in 1 of 1 comparisons (+10.0 points); one seed cannot say more" in words
    assert "±" not in words


def test_verdict_names_a_winner_without_features():
    words = ProbeTable([row("features", LOW, kind="features"), row("svm", HIGH, kind="baseline")]).verdict()
    assert "Field-disjoint, 10 labels a class: best is LDA, svm, OA 61.0 ± 1.0%, without pre-trained features" in words
    assert "best with them: LDA, features, OA 41.0" in words
    assert ProbeTable([]).verdict() == "Nothing was measured."


def test_differences_are_paired():
    """A constant gain is clear even where the seeds themselves spread widely."""
    values = np.array([30.0, 70, 50])
    (one,) = ProbeTable([row("features", values + 1), row("raw spectrum", values)]).comparisons()
    assert one.outcome == "better"
    assert one.difference == pytest.approx(1)
    (one,) = ProbeTable([row("features", NOISY), row("raw spectrum", MIDDLE)]).comparisons()
    assert one.outcome == "unclear"
    assert one.margin > abs(one.difference)


def test_files_hold_every_seed(table, tmp_path):
    paths = table.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["probe.json", "probe.csv", "probe.md"]
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in paths}
    stored = json.loads(paths[0].read_text())
    assert stored["verdict"] == table.verdict()
    assert [one["overall_accuracy"]["values"] for one in stored["rows"]] == [r.values().tolist() for r in table.rows]
    lines = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert len(lines) == len(table.rows) * 4  # two seeds, mean, spread
    first = [float(line["kappa"]) for line in lines[:4]]
    assert first[2] == pytest.approx(np.mean(first[:2]), abs=1e-5)
    assert first[3] == pytest.approx(np.std(first[:2], ddof=1), abs=1e-5)
    assert paths[2].read_text().count("\n| ") == len({row.method for row in table.rows})


def test_markdown_and_chart_rows():
    table = ProbeTable([row("features", (50.0, 52)), row("svm", (40.0, 40), kind="baseline", count=50)])
    assert "| LDA, features | 51.0 ± 1.4 |  |" in table.to_markdown(("overall_accuracy",))
    assert table.chart_rows()[1] == {
        "method": "LDA, svm",
        "kind": "baseline",
        "group": "field-disjoint, 50 labels a class",
        "values": pytest.approx([40.0, 40.0]),
    }
    with pytest.raises(ValueError, match="metric"):
        table.rows[0].values("accuracy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros((24, 30), int)}, "no pixel has a class"),
        ({"labels": np.ones((20, 30), int)}, r"labels\[0\]: expected 24 x 30 to match the scene, got 20 x 30"),
        ({"labels": [np.ones((24, 30), int)] * 2}, "one array for each of the 1 scenes, got 2"),
        ({"splits": ("tile",)}, "needs several scenes"),
        ({"splits": ("fields",)}, "splits: expected a list out of random, field, tile; got .'fields'"),
        ({"splits": "random"}, "splits: expected a list"),
        ({"splits": ()}, "splits: expected at least one"),
        ({"baselines": ("xgboost",)}, "baselines"),
        ({"seeds": 0}, "seeds"),
        ({"labels_per_class": (0,)}, "labels_per_class"),
    ],
)
def test_bad_arguments(encoder, change, message):
    image, labels = scene()
    arguments = {"images": image, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        probe(encoder, **arguments)


def test_scenes_with_other_bands(encoder):
    (image, labels), (other, _) = scene(), scene()
    other = replace(other, image=other.image[:5], wavelength=other.wavelength[:5], fwhm=other.fwhm[:5])
    with pytest.raises(ValueError, match=r"same bands, got \[5, 12\]"):
        probe(encoder, [image, other], [labels, labels])

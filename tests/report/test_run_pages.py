"""Pages of runs: tables of scores, fine-tuning and pre-training, also unfinished or moved."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from specfast.errors import DataError
from specfast.report import pages
from specfast.report.pages.pretraining import read_log
from tests.report.conftest import first_figure, score_table, tables
from tests.report.test_html import Page


def test_table_page_shows_every_score_and_marks_the_best(tmp_path):
    (tmp_path / "probe.json").write_text(json.dumps(score_table()))
    shown = pages.show(tmp_path / "probe.json")
    assert shown.kind == "table"
    assert shown.callout == "It won.\n\nIt also lost."
    scores = tables(shown)["Mean ± standard deviation over seeds; the best of each setting stands out."]
    assert scores.columns == ["setting", "method", "what it is", "OA (%)", "AA (%)", "kappa x 100"]
    assert scores.rows[0] == [
        "field-disjoint, 10 labels a class",
        "fine-tuned",
        "fine-tuned",
        "81.0 ± 1.4",
        "70.0 ± 1.4",
        "60.0 ± 1.4",
    ]
    assert list(scores.marked) == [0, 3]
    charted = [text.get_text() for text in first_figure(shown).axes[0].texts]
    assert charted == ["81.0", "71.0", "61.0"]
    per_class = tables(shown)["Share of each class's test pixels that is right (%)"]
    assert per_class.columns == ["class", "fine-tuned", "LDA, features", "SVM"]
    assert per_class.rows == [["soil", "80.0", "70.0", "60.0"], ["wood", "60.0", "50.0", "40.0"]]
    matrix = next(section for section in shown.sections if section.title == "Confusion").pictures[0].figure
    np.testing.assert_allclose(matrix.axes[0].images[0].get_array(), [[75, 25], [5, 95]])
    assert [label.get_text() for label in matrix.axes[0].get_yticklabels()] == ["soil", "wood"]
    assert shown.summary["rows"][0]["overall_accuracy"] == pytest.approx(0.81)


def test_tables_of_errors_mark_the_smallest_and_leave_undefined_scores_out(tmp_path):
    rows = [
        {"method": name, "kind": kind, "setting": "random", "rmse": {"values": values}, "seconds": 1.0}
        for name, kind, values in (
            ("a", "fine-tuned", [0.2, 0.3]),
            ("b", "baseline", [0.1, None]),
            ("c", "control", [None]),
        )
    ]
    (tmp_path / "regress.json").write_text(json.dumps({"rows": rows}))
    (scores,) = tables(pages.show(tmp_path / "regress.json")).values()
    assert scores.rows[1][3] == "0.1000"
    assert scores.rows[2][3] == "-"
    assert list(scores.marked) == [1]
    (tmp_path / "regress.json").write_text(json.dumps({"rows": rows[2:]}))
    with pytest.raises(DataError, match="holds no scores"):
        pages.show(tmp_path / "regress.json")
    (tmp_path / "regress.json").write_text(json.dumps({"rows": [{"method": "a"}]}))
    with pytest.raises(DataError, match="is no table of scores: KeyError 'kind'"):
        pages.show(tmp_path / "regress.json")


def test_finetune_page_has_scores_log_map_beside_labels_and_settings(finetune_run):
    path = pages.finetune(finetune_run)
    assert path == finetune_run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    headings = [
        section
        for section in page.texts
        if section in ("Scores", "Training", "Map class_map_field-disjoint", "Settings")
    ]
    assert set(headings) == {"Scores", "Training", "Map class_map_field-disjoint", "Settings"}
    text = " ".join(page.texts)
    assert "Made by the fine-tuned model, 50 labels a class, seed 0." in text
    assert "wood" in text
    section = next(s for s in pages.show(finetune_run).sections if s.title.startswith("Map"))
    assert sum(bool(ax.images) for ax in section.pictures[0].figure.axes) == 2, "the labels stand beside the map"


def test_run_on_all_labels_has_no_table_but_its_log_maps_and_model(finetune_run):
    (finetune_run / "segment.json").unlink()
    (finetune_run / "model").mkdir()
    with pytest.raises(DataError, match="is no saved task model"):
        pages.show(finetune_run)
    config = {"architecture": "SpecAwareSegmenter", "head": "mlp", "outputs": ["soil", "wood"]}
    (finetune_run / "model" / "config.json").write_text(json.dumps(config))
    shown = pages.show(finetune_run)
    assert [section.title for section in shown.sections] == ["Training", "Map class_map_field-disjoint", "Model"]
    assert shown.sections[-1].facts["outputs"] == "soil, wood"


def test_given_divisions_have_no_number_of_labels(tmp_path):
    content = score_table()
    for row in content["rows"]:
        row |= {"split": "TR/TE", "labels_per_class": 0}
    (tmp_path / "probe.json").write_text(json.dumps(content))
    assert pages.show(tmp_path / "probe.json").summary["groups"] == ["TR/TE"]


def test_pretrain_page_shows_the_curve_and_what_the_model_fills_in(pretrain_run):
    shown = pages.show(pretrain_run)
    assert (shown.kind, shown.callout) == ("pretrain", "")
    history = read_log(pretrain_run / "log.csv")
    assert shown.summary == {"step": 6, "loss": pytest.approx(history["loss"][-1]), "steps": 6, "finished": True}
    filled = next(section for section in shown.sections if section.title == "Reconstruction")
    (table,) = filled.tables
    assert {row[0] for row in table.rows} == {"avng, L2", "avc, L2"} or len({row[0] for row in table.rows}) == 2
    assert [row[1] for row in table.rows[:3]] == ["SpecAware", "nearest kept pixel", "mean of the kept pixels"]
    assert len(filled.pictures) == 3
    rows = filled.pictures[0].figure.axes
    assert len(rows) == 6, "input, masked and reconstruction of two sensors"
    path = pages.pretrain(pretrain_run)
    Page(path.read_text(encoding="utf-8"))


def test_unfinished_or_moved_runs_say_what_is_missing(pretrain_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrain_run, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(pretrain_run.parent / "store"), str(tmp_path / "gone")))
    texts = [section.text for section in pages.show(run).sections]
    assert any("stores it was trained on are not here" in text and "gone" in text for text in texts)
    shutil.rmtree(run / "model")
    log = (run / "log.csv").read_text().splitlines(keepends=True)
    (run / "log.csv").write_text("".join(log[:4]) + "4,0.1")
    shown = pages.show(run)
    assert shown.callout == "The run is not finished: 3 of 6 steps are done."
    assert any("There is no model yet" in section.text for section in shown.sections)
    (run / "log.csv").write_text(log[0])
    with pytest.raises(DataError, match="holds no step yet"):
        pages.show(run)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"config\.yaml: cannot be read"):
        pages.show(run)

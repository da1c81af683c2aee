"""The table of scores: mean and spread, what is not defined, who won."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from specfast.tasks.score_table import ScoreRow, ScoreTable

NAN = float("nan")


@pytest.fixture
def table() -> ScoreTable:
    rows = [
        ScoreRow("ours", "fine-tuned", "Random pixels", {"f1": (0.5, 0.7), "kappa": (0.25, NAN)}, 1.0),
        ScoreRow("MAD", "baseline", "Random pixels", {"f1": (0.8, 0.8), "kappa": (NAN, NAN)}, 2.0),
        ScoreRow("random weights", "control", "Random pixels", {"f1": (0.9, 0.9), "kappa": (0.1, 0.1)}, 2.0),
        ScoreRow("ours", "fine-tuned", "Blocks", {"f1": (0.4,), "kappa": (0.3,)}, 1.0),
        ScoreRow("MAD", "baseline", "Blocks", {"f1": (0.3,), "kappa": (0.2,)}, 1.0),
    ]
    return ScoreTable(rows, {"f1": "F1", "kappa": "kappa"}, ["few targets"], {"seeds": 2})


def test_markdown_shows_mean_and_spread_in_percent(table):
    text = table.to_markdown()
    spread = 100 * np.std([0.5, 0.7], ddof=1)
    assert f"| ours | 60.0 ± {spread:.1f} | - |" in text
    assert "| MAD | 80.0 ± 0.0 | - |" in text
    assert "| ours | 40.0 | 30.0 |" in text
    assert text.index("**Random pixels**") < text.index("**Blocks**")


def test_verdict_names_the_best_and_the_best_of_the_other_side(table):
    first, second = table.verdict().splitlines()
    assert first.startswith("Random pixels: best is random weights, F1 90.0 ± 0.0; ")
    assert "best with the pre-trained model: ours, 60.0 ± 14.1" in first
    assert second == "Blocks: best is ours, F1 40.0; best without a pre-trained model: MAD, 30.0."


def test_files_keep_every_seed(table, tmp_path):
    paths = table.save(tmp_path / "new", "change")
    assert [path.name for path in paths] == ["change.json", "change.csv", "change.md"]
    plain = json.loads(paths[0].read_text())
    assert plain["rows"][0]["kappa"] == {"mean": None, "std": None, "values": [0.25, None]}
    assert plain["rows"][1]["f1"]["values"] == [0.8, 0.8]
    assert plain["settings"] == {"seeds": 2}
    lines = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert len(lines) == 8
    assert [line["f1"] for line in lines if line["method"] == "ours"] == ["0.500000", "0.700000", "0.400000"]
    assert lines[1]["kappa"] == ""
    assert "- few targets" in paths[2].read_text()

"""python -m bench.scenes: its rows, and the table that is made of them."""

from __future__ import annotations

from bench import scenes
from bench.results import read_rows


def test_rows_are_complete(tmp_path, capsys):
    assert scenes.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "cpu.json")
    assert [row["kernel"] for row in rows] == ["copy", "segment"]
    for row in rows:
        assert row["megapixels_per_s"] > 0
        assert row["peak_memory"] > 0
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert {"device", "torch", "commit", "shape", "dtype", "provider", "window", "overlap"} <= set(row)
    assert capsys.readouterr().out.count("megapixels/s") == 2
    text = scenes.details(tmp_path)
    assert "| 12 classes and their probabilities, specaware_tiny_patch8, float32 | 64 |" in text


def test_the_document_holds_what_was_measured():
    for path, text in scenes.document().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m bench.scenes --docs"

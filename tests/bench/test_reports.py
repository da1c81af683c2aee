"""Comparison, tables and figures say what the rows hold; the committed documents are what the script makes."""

from __future__ import annotations

import json

import pytest

from bench import compare, plot, summary, table
from bench.network.report import DOCUMENT, document
from bench.results import ResultFile, read_rows, write_rows
from tests.bench.rows import record, row


def test_committed_documents_are_what_the_script_makes():
    for path, text in table.documents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m bench.table"
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "dssync.md: run python -m bench.network.report --write"


def test_headline_holds_times_ratios_and_memory():
    text = table.headline({"cpu": record()})
    line = next(line for line in text.splitlines() if "`hyper_embed`" in line)
    assert "202 ms (20.0x)" in line
    assert "425 ms (20.0x)" in line
    assert "12% at C 202" in line  # 50 of 400 MB
    assert "Test CPU, 2 threads" in text
    assert "C 64" not in text.splitlines()[0]  # the scaling runs are no column
    assert table.headline({}).startswith("Nothing has been measured")


def test_details_name_what_is_slower_and_what_failed():
    rows = [*record(), row("reassociated", 100.0), row("reassociated", bands=425, failed="out of memory")]
    del rows[-1]["p50_ms"]
    text = table.details({"cpu": rows})
    lost = text.split("### Where specfast loses")[1].split("### ")[0]
    assert "re-associated, plain PyTorch is 2.02 times as fast" in lost
    assert "published form" not in lost
    assert "out of memory" in text.split("### Not measured")[1]
    assert "0.50" in text.split("### Growth")[1]
    assert "commit abc1234" in text


def test_text_goes_between_the_markers_only(tmp_path):
    path, begin = tmp_path / "x.md", table.BEGIN.format("bench.table")
    path.write_text(f"before\n{begin}\nold\n{table.END}\nafter")
    assert table.replaced(path, "new", "bench.table") == f"before\n{begin}\nnew\n{table.END}\nafter"
    with pytest.raises(ValueError, match=r"x\.md: expected .*bench\.other"):
        table.replaced(path, "new", "bench.other")


def test_slopes_of_each_axis():
    found = {(line.provider, line.axis): line for line in summary.lines(record()) if line.kernel == "hyper_embed"}
    assert set(found) == {(p, axis) for p in ("reference", "specfast") for axis in summary.AXES}
    for (provider, _), line in found.items():
        assert line.slope == pytest.approx(1.0 if provider == "reference" else 0.5, abs=1e-6)
    assert found["specfast", "batch"].values == (1, 2, 4, 8, 16)


def test_devices_are_gathered_over_their_files(tmp_path):
    write_rows(tmp_path / "cpu-operators.json", [row(bands=100)])
    write_rows(tmp_path / "cpu-step.json", [row(unit="step", kernel="training_step")])
    write_rows(tmp_path / "nvidia-h200.json", [row(dtype="bfloat16")])
    assert {name: len(rows) for name, rows in summary.devices(tmp_path).items()} == {"cpu": 2, "nvidia-h200": 1}


@pytest.mark.parametrize(
    ("after", "worse"),
    [
        (row(milliseconds=10.9), 0),
        (row(milliseconds=11.5), 1),
        (row(milliseconds=5.0), 0),
        (row(milliseconds=11.5, p20_ms=9.0, p80_ms=14.0), 0),  # within the spread
        (row(peak_memory=70_000_000), 1),
        (row(peak_memory=50_100_000), 0),
        ({key: value for key, value in row(failed="relative error 1").items() if key != "p50_ms"}, 1),
        (row(bands=425, milliseconds=99.0), 0),  # another row
    ],
)
def test_regressions_are_flagged(tmp_path, capsys, after, worse):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    write_rows(paths[0], [row(), row("reference", 100.0)])
    write_rows(paths[1], [after, row("reference", 100.0)])
    assert compare.main([str(path) for path in paths]) == (1 if worse else 0)
    assert f": {worse} worse" in capsys.readouterr().out


def test_a_larger_threshold_lets_more_pass(tmp_path):
    write_rows(tmp_path / "a.json", [row()])
    write_rows(tmp_path / "b.json", [row(milliseconds=11.5)])
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert compare.main([*files, "--threshold", "0.2"]) == 0


def test_another_machine_is_named():
    lines = compare.differences_of_machine([row()], [row(device="Other", peak_tflops=0.09)])
    assert lines[0] == "device: Test CPU -> Other"
    assert "peak_tflops: 0.18 -> 0.09" in lines[1]


def test_files_without_a_common_row_are_refused(tmp_path, capsys):
    write_rows(tmp_path / "a.json", [row()])
    write_rows(tmp_path / "b.json", [row(bands=1)])
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "no row in common" in capsys.readouterr().err


def test_every_added_row_is_on_disk_and_replaces_its_older_self(tmp_path):
    path = tmp_path / "cpu-step.json"
    ResultFile(path).add([row(), row("reference")])
    results = ResultFile(path)
    results.add([row(milliseconds=3.0)])
    assert sorted(found["p50_ms"] for found in read_rows(path)) == [3.0, 10.0]
    assert results.has("abc1234", provider="reference", bands=202)
    assert not results.has("another", provider="reference", bands=202)
    assert len(json.loads(path.read_text())["rows"]) == len(path.read_text().splitlines()) - 2  # one row a line


def test_figures_show_providers_and_slopes():
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    def texts(fig):
        return " ".join(text.get_text() for text in fig.findobj(Text))

    rows = record()
    assert set(plot.figures_of(rows)) == {"bars", "roofline", "scaling", "memory", "throughput"}
    drawn = texts(plot.bars(rows))
    assert "20.0x" in drawn
    assert "Conv2d for fixed bands" in drawn
    assert "Test CPU" in drawn
    assert {"slope 0.50", "slope 1.00"} <= {
        text.get_text() for text in plot.scaling(rows).findobj(Text) if text.get_text().startswith("slope")
    }
    assert "0.18 TFLOP/s, 49 GB/s" in texts(plot.roofline(rows))
    images = plot.draw(rows)
    assert all(image.startswith(b"\x89PNG") for image in images.values())
    assert images == plot.draw(rows)  # the same rows give the same files
    assert plot.figures_of([]) == {}

"""The tutorials and the quick start run as they stand: their code, commands and files, in order, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("tensorly")  # brings the scene

from specfast import cli
from tests.docs.markdown import ROOT, Block, blocks, commands

TUTORIALS = [*sorted(ROOT.glob("docs/tutorials/*.md")), ROOT / "docs" / "quickstart.md"]


def run(block: Block, names: dict, capsys) -> str:
    """Run a block; return what it printed on stdout."""
    if block.language == "python":
        exec(compile(block.text, block.where, "exec"), names)
    else:
        for words in commands(block):
            assert words[0] == "specfast", f"{block.where}: only specfast runs here; got {words[0]}"
            code = cli.main(words[1:])
            assert code == 0, f"{block.where}: {' '.join(words)} gave {code}: {capsys.readouterr().err}"
    return capsys.readouterr().out


def matches(expected: str, printed: str) -> bool:
    """Whether a page's text block shows what was printed; ``...`` stands for anything, as in doctest."""
    parts = [re.escape(part) for part in expected.split("...")]
    return re.fullmatch(".*".join(parts), printed, re.DOTALL) is not None


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_as_written(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    printed = ""
    for block in blocks(path):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language in ("python", "sh"):
            printed = run(block, names, capsys)
        elif block.language == "text":
            assert matches(block.text, printed), f"{block.where} shows\n{block.text}\nbut this was printed:\n{printed}"


def test_every_block_is_run_or_compared():
    used = {"python", "sh", "text"}
    idle = [b.where for path in TUTORIALS for b in blocks(path) if not b.title and b.language not in used]
    assert TUTORIALS
    assert not idle

"""What the documentation shows can be called: command lines parse, names that are imported exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util

import pytest

from specfast import cli
from specfast.cli import config_file
from tests.docs.markdown import PAGES, ROOT, blocks, commands

WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def specfast_words(words: list[str]) -> list[str] | None:
    """What follows ``specfast`` in a command line, also under torchrun; None if the line runs something else."""
    for runs in (["specfast"], ["-m", "specfast"]):
        for start in range(len(words) - len(runs) + 1):
            if words[start : start + len(runs)] == runs and (start == 0 or runs[0] == "-m"):
                return words[start + len(runs) :]
    return None


LINES = [
    pytest.param(words, id=f"{block.where} {' '.join(words)[:60]}")
    for path in WRITTEN
    for block in blocks(path, "sh", "bash", "shell", "console")
    for line in commands(block)
    if (words := specfast_words(line)) is not None
]


@pytest.mark.parametrize("words", LINES)
def test_command_lines_parse(words, capsys, monkeypatch):
    for end in (">", "|", ";", "&&"):
        words = words[: words.index(end)] if end in words else words
    if not words or words[0].startswith("-"):
        assert cli.main(words) == (0 if words else 2)
        return
    assert words[0] in cli.COMMANDS
    if "--config" in words:  # the file is the reader's, and gives what is required
        monkeypatch.setattr(config_file, "read", lambda *_: {})
        words = [*words, "--print-config"]
    complaints = []
    try:
        cli.load(words[0])[1].parse_args(words[1:])
    except SystemExit as stop:  # --help and --print-config stop, too
        complaints = [capsys.readouterr().err] if stop.code else []
    assert not complaints


def test_there_are_command_lines():
    assert {words.values[0][0] for words in LINES if words.values[0]} >= set(cli.COMMANDS)


PYTHON = [pytest.param(block, id=block.where) for path in WRITTEN for block in blocks(path, "python", "py")]


@pytest.mark.parametrize("block", PYTHON)
def test_python_examples_import_what_exists(block):
    if "lightning" in block.text:
        pytest.importorskip("lightning")
    missing = []
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "specfast":
            module = importlib.import_module(node.module)
            missing += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if not hasattr(module, alias.name) and not _is_module(f"{node.module}.{alias.name}")
            ]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "specfast":
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.Attribute) and (dotted := _dotted(node)) and dotted.startswith("specfast."):
            missing += [] if _resolves(dotted) else [dotted]
    assert not missing, f"{block.where}: {', '.join(missing)} do not exist"


def _dotted(node: ast.expr) -> str | None:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _resolves(dotted: str) -> bool:
    thing = importlib.import_module("specfast")
    path = "specfast"
    for name in dotted.split(".")[1:]:
        path += f".{name}"
        if hasattr(thing, name):
            thing = getattr(thing, name)
        elif _is_module(path):
            thing = importlib.import_module(path)
        else:
            return False
    return True


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False

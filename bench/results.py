"""Rows of results in a JSON file that is complete after each measurement, and resumed after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

from specfast.files import write_atomic

FOLDER = Path(__file__).parent / "results"
# what names a row; measuring it again replaces it
KEY = ("unit", "kernel", "mode", "shape", "dtype", "provider")


def key(row: dict) -> tuple:
    return tuple(row[name] for name in KEY)


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; none if it is not there."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a file with one row a line, whole or not at all."""
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    write_atomic(path, f'{{"rows": [\n{lines}\n]}}\n'.encode())


class ResultFile:
    """Rows of one file; every ``add`` is on disk when it returns.

    Rows that are not measured this time are kept, so that a part can be measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = {key(row): row for row in read_rows(path)}

    def add(self, rows: list[dict]) -> None:
        self.rows.update((key(row), row) for row in rows)
        write_rows(self.path, list(self.rows.values()))

    def has(self, commit: str, **named: str) -> bool:
        """Whether a row with these names was measured at this commit."""
        return any(
            row["commit"] == commit and all(row[name] == value for name, value in named.items())
            for row in self.rows.values()
        )

"""Finished rows on disk while a scene is being mapped, so that a killed run goes on and the old result stays whole.

Beside OUT lies the folder OUT.partial with the rows of each layer, appended band by band, and a journal: what the run
is, then a line for every band once its rows are safely written. Files of any format are made of it at the end, within
the folder, and then renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specfast.errors import DataError
from specfast.files import write_atomic
from specfast.infer.raster import Grid, Layer

PARTIAL = ".partial"
_JOURNAL = "journal.jsonl"


class Spool:
    """The rows of a run; a context that holds the lock on OUT.partial.

    Args:
        out: what the folder is named after.
        layers, grid: of the result.
        settings: plain values that fix the result; rows of other settings are thrown away.
        copies: how many files as large as the rows are made of them before they are thrown away.

    Attributes:
        folder: OUT.partial.
        rows: finished ones; after entering, those of an interrupted run.
        discarded: whether rows of other settings were found and thrown away.

    Raises:
        DataError: another process maps to the same OUT, or the disk has no room for the rows and what is made of them.
    """

    def __init__(self, out: Path, layers: Sequence[Layer], grid: Grid, settings: dict, copies: int = 0):
        self.folder = out.with_name(out.name + PARTIAL)
        self.layers, self.grid, self._copies = tuple(layers), grid, copies
        self.rows, self.discarded = 0, False
        described = json.dumps(settings, sort_keys=True, default=str)
        self._settings = hashlib.sha256(described.encode()).hexdigest()
        self._files, self._journal = [], None

    def path(self, number: int) -> Path:
        """The file of a layer's rows."""
        return self.folder / f"layer{number}.rows"

    def __enter__(self) -> Spool:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DataError(f"{self.folder}: another process is writing this result") from None
        try:
            self.rows = self._resumable_rows()
            self._remove_unfinished()
            self._check_room()
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self._close()

    def append(self, arrays: Sequence[np.ndarray]) -> None:
        """Add rows [bands, n, width] to each layer; they are on disk, and in the journal, when this returns."""
        count = arrays[0].shape[1]
        for file, layer, array in zip(self._files, self.layers, arrays, strict=True):
            file.write(np.ascontiguousarray(array.transpose(1, 0, 2), dtype=layer.dtype).data)
            file.flush()
            os.fsync(file.fileno())
        self.rows += count
        self._note({"rows": self.rows})

    def remove(self) -> None:
        """Throw the folder away; the result has been made."""
        self._close()
        shutil.rmtree(self.folder)

    def _resumable_rows(self) -> int:
        try:
            lines = (self.folder / _JOURNAL).read_text().splitlines()
        except FileNotFoundError:
            return 0
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:  # the line that was being written
                break
        if not entries or entries[0].get("settings") != self._settings:
            self.discarded = bool(entries) and entries[-1].get("rows", 0) > 0
            return 0
        rows = entries[-1].get("rows", 0)
        for number, size in enumerate(self._row_bytes()):
            path = self.path(number)
            rows = min(rows, path.stat().st_size // size if path.exists() else 0)
        return rows

    def _open(self) -> None:
        for number, size in enumerate(self._row_bytes()):
            if not self.rows:  # an ENVI result of an earlier run may be a link to the same file
                self.path(number).unlink(missing_ok=True)
            file = self.path(number).open("r+b" if self.rows else "wb")
            self._files.append(file)
            file.truncate(self.rows * size)
            file.seek(0, os.SEEK_END)
        # written anew, since a kill may have cut off the last line
        write_atomic(self.folder / _JOURNAL, _line({"settings": self._settings}) + _line({"rows": self.rows}))
        self._journal = (self.folder / _JOURNAL).open("ab")

    def _note(self, entry: dict) -> None:
        self._journal.write(_line(entry))
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _row_bytes(self) -> list[int]:
        return [layer.row_bytes(self.grid.width) for layer in self.layers]

    def _remove_unfinished(self) -> None:
        """Remove what a writer did not finish; it is made anew, and its room counts as free."""
        for path in self.folder.glob("result*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_room(self) -> None:
        needed = (self.grid.height * (1 + self._copies) - self.rows) * sum(self._row_bytes())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"{self.folder}: {self.grid.height} x {self.grid.width} cells still take {needed / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free; free some, or choose another --out"
            )

    def _close(self) -> None:
        for file in [*self._files, self._journal, self._lock]:
            if file is not None:
                file.close()
        self._files, self._journal = [], None


def _line(entry: dict) -> bytes:
    return (json.dumps(entry) + "\n").encode()

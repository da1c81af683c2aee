"""Stages of a long command: what is finished with the same configuration is reused, the rest is done again.

Each stage owns one folder, and says in its ``stage.json`` what it was made from. A stage that was interrupted finds its
folder as it left it, so it can resume; one whose configuration changed finds it empty.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import specfast
from specfast.errors import DataError
from specfast.files import write_atomic

MARKER = "stage.json"


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: as given to :meth:`Stages.run`.
        folder: what it made.
        seconds: time it took when it was done; parts that were killed do not count.
        reused: True if it was found finished.
        key: changes whenever its configuration, or that of a stage before it, does.
    """

    name: str
    folder: Path
    seconds: float
    reused: bool
    key: str


class Stages:
    """Runs stages in ``out``; ``fresh`` starts all of them over; ``announce`` is told in words what is going on."""

    def __init__(
        self, out: str | os.PathLike, *, fresh: bool = False, announce: Callable[[str], object] = lambda _: None
    ):
        self.out = Path(out)
        self.fresh = fresh
        self.announce = announce
        self.done: list[Stage] = []

    def run(self, name: str, config: dict, work: Callable[[Path], object], after: tuple[Stage, ...] = ()) -> Stage:
        """Do ``work(folder)``, unless it is finished with this configuration.

        Args:
            name: name of the stage and of its folder.
            config: everything that the result depends on, as plain values.
            work: makes the stage's files in the folder it is given; may find there what it left when interrupted.
            after: stages whose results it uses.

        Raises:
            DataError: the folder holds files of something else; they are not touched.
        """
        folder = self.out / name
        key = _key(config, after)
        record = _read(folder)
        if record is not None and (self.fresh or record["key"] != key):
            shutil.rmtree(folder)
            record = None
        if record is None:
            folder.mkdir(parents=True, exist_ok=True)
            record = {"stage": name, "key": key, "config": config, "seconds": 0.0, "done": False}
            _write(folder, record)
        reused = record["done"]
        if reused:
            self.announce(f"{name}: finished before, reused ({folder})")
        else:
            self.announce(f"{name} ...")
            start = time.perf_counter()
            try:
                work(folder)
                record["done"] = True
            finally:
                record["seconds"] += time.perf_counter() - start
                _write(folder, record)
            self.announce(f"{name}: {record['seconds']:.1f} s")
        stage = Stage(name, folder, record["seconds"], reused, key)
        self.done.append(stage)
        return stage


def _key(config: dict, after: tuple[Stage, ...]) -> str:
    content = {"version": specfast.__version__, "config": config, "after": [stage.key for stage in after]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> dict | None:
    """Return the folder's record, or None if it is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {name: record[name] for name in ("stage", "key", "config", "seconds", "done")}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder}: holds no {MARKER}, so it is not ours to replace; move it, or give another --out"
        ) from None


def _write(folder: Path, record: dict) -> None:
    write_atomic(folder / MARKER, (json.dumps(record, indent=2) + "\n").encode())

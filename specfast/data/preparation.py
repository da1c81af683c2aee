"""The tiling job: scenes in, a :class:`SpectralStore` out; on disk it can be stopped and run again at any point.

A scene is part of the store from the moment its record is put in place, after its tiles are safely written. A later run
skips scenes that are there, and prepares again those whose file, metadata or reading changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from specfast.data import tiling
from specfast.data.image import SpectralImage
from specfast.data.scene_plan import ScenePlan
from specfast.data.store import SpectralStore
from specfast.data.store_format import (
    FORMAT,
    INDEX_NAME,
    SCENES_FOLDER,
    VERSION,
    SceneRecord,
    check_size,
    check_version,
    read_json,
    read_scenes,
    write_json,
)
from specfast.errors import DataError

DONE, NEW, CHANGED, DAMAGED = "already done", "prepared", "changed, prepared again", "damaged, prepared again"


def prepare(
    scenes: Iterable[str | os.PathLike | SpectralImage],
    out: str | os.PathLike | None = None,
    *,
    tile: int = 256,
    stride: int | None = None,
    max_invalid: float = 0.2,
    max_value: float | None = None,
    progress: bool = False,
    on_scene: Callable[[SceneRecord, str], None] | None = None,
    **open_options,
) -> SpectralStore:
    """Cut scenes into tiles and return the store that holds them.

    Bad bands, and the sensor's water bands at the scene's level, are dropped (Hyper-400K sets them to zero). Tiles are
    judged as :mod:`specfast.data.tiling` says. At the lower and right edge the last tile is shifted back to fit, so it
    overlaps its neighbor; a scene smaller than the tile becomes one tile of its own size. Reads one tile at a time.

    Args:
        scenes: paths of files that :func:`specfast.data.open` reads, and :class:`SpectralImage` objects, mixed at will.
        out: folder of the store; scenes it holds already stay. None builds the store in memory.
        tile, stride, max_invalid, max_value: see :class:`~specfast.data.tiling.TilingOptions`; no stride: ``tile``.
        progress: show a progress bar.
        on_scene: called after each scene with its record and ``"prepared"``, ``"already done"``, ``"changed, prepared
            again"`` or ``"damaged, prepared again"``.
        open_options: passed to :func:`specfast.data.open` for every path (``sensor``, ``level``, ``gsd``, ...).

    Raises:
        DataError: a scene lacks metadata or holds values no measurement has, the store was made with other options or
            by another version, it is in use by another process, the disk is full, or no tile was kept. Scenes already
            prepared stay in the store in every case.
        ValueError: an option is out of range.
    """
    options = tiling.TilingOptions(tile, tile if stride is None else stride, max_invalid, max_value)
    scenes = [scenes] if isinstance(scenes, (str, os.PathLike)) else list(scenes)
    if not scenes:
        raise ValueError("scenes: expected at least one, got none")
    # All scenes are opened before the first is read, so that what one lacks is said at once, not hours later.
    opening = tqdm(scenes, "open", unit="scene", leave=False, disable=not progress)
    plans = _distinct(ScenePlan(scene, options, open_options) for scene in opening)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(_Folder(Path(out), options)) if out is not None else _Memory()
        tiles = sum(len(plan.places) for plan in plans if target.status(plan) != DONE)
        bar = stack.enter_context(tqdm(total=tiles, desc="prepare", unit="tile", disable=not progress))
        for plan in plans:
            status = target.status(plan)
            if status != DONE:
                bar.set_postfix_str(plan.name)
                target.add(plan, bar.update)
            if on_scene is not None:
                on_scene(target.records[plan.key], status)
        store = target.store()
    if len(store) == 0:
        raise DataError(_nothing_kept(store.scenes, options))
    return store


def _distinct(plans: Iterable[ScenePlan]) -> list[ScenePlan]:
    """Return the plans without repeats; two different scenes of one name are an error."""
    by_key: dict[str, ScenePlan] = {}
    for plan in plans:
        first = by_key.setdefault(plan.key, plan)
        if first.fingerprint != plan.fingerprint:
            raise DataError(f"{plan.source or plan.name}: two different scenes have this name; name each differently")
    return list(by_key.values())


def _write_tiles(plan: ScenePlan, file: BinaryIO, advance: Callable[[int], object]) -> SceneRecord:
    """Read, judge and append every tile of a scene; return its complete record."""
    image, record = plan.open(), plan.record()
    layout, limit = record.layout, plan.options.max_invalid
    no_data = np.zeros(len(plan.bands), dtype=np.int64)
    peak = 0.0
    for row, col in plan.places:
        window = (row, col, *plan.tile)
        values = np.asarray(image.read(window, plan.bands), dtype=np.float32)
        verdict = tiling.examine(values, plan.maximum)
        no_data += verdict.no_data
        cause = verdict.rejected(limit)
        if cause:
            record.rejected[cause] = record.rejected.get(cause, 0) + 1
        else:
            if verdict.peak > tiling.LARGEST_VALUE:
                raise DataError(_too_large(plan, values, verdict))
            peak = max(peak, verdict.peak)
            exponent = tiling.float16_exponent(verdict.peak)
            packed = layout.pack(tiling.to_float16(values, verdict.valid, exponent), verdict.valid)
            file.write(packed)
            record.row.append(row)
            record.col.append(col)
            record.masked.append(int((~verdict.valid).sum()))
            record.exponent.append(exponent)
            record.crc32.append(zlib.crc32(memoryview(packed)[: layout.payload]))
        advance(1)
    record.notes += _warnings(plan, no_data, peak)
    return record


def _warnings(plan: ScenePlan, no_data: np.ndarray, peak: float) -> list[str]:
    """Return what a reader of the summary should know of the values seen."""
    notes = []
    pixels = len(plan.places) * plan.tile[0] * plan.tile[1]
    empty = np.flatnonzero(no_data == pixels)
    if 0 < len(empty) < len(no_data):
        listed = ", ".join(str(plan.bands[band]) for band in empty[:10]) + (", ..." if len(empty) > 10 else "")
        notes.append(f"WARNING: bands {listed} (counted from 0) hold no data anywhere; mark them bad in the file")
    if plan.level == "L2" and peak > 10:
        notes.append(f"WARNING: values up to {peak:g}, but reflectance is 0 to 1; was --scale forgotten?")
    return notes


def _too_large(plan: ScenePlan, values: np.ndarray, verdict: tiling.Verdict) -> str:
    masked = np.where(verdict.valid, np.abs(values), 0)
    band = int(np.unravel_index(masked.argmax(), masked.shape)[0])
    return (
        f"{plan.source or plan.name}: band {plan.bands[band]} (counted from 0) holds the value {verdict.peak:g}, "
        f"which is no measurement; declare it with --nodata, or pass --max-value"
    )


class _Memory:
    """Where scenes go when the store is built in memory."""

    def __init__(self):
        self.records: dict[str, SceneRecord] = {}
        self.buffers: dict[str, bytes | bytearray] = {}

    def status(self, plan: ScenePlan) -> str:
        held = self.records.get(plan.key)
        if held is None:
            return NEW
        return DONE if held.fingerprint == plan.fingerprint else CHANGED

    def add(self, plan: ScenePlan, advance: Callable[[int], object]) -> None:
        file = io.BytesIO()
        self.records[plan.key] = _write_tiles(plan, file, advance)
        self.buffers[plan.key] = file.getbuffer()

    def store(self) -> SpectralStore:
        return SpectralStore(list(self.records.values()), buffers=list(self.buffers.values()))


class _Folder(_Memory):
    """Where scenes go when the store lies on disk; a context that holds the store's lock."""

    def __init__(self, path: Path, options: tiling.TilingOptions):
        super().__init__()
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: a file is in the way; the store must be a new folder or an existing store")
        self.path, self.options = path, options
        self.scenes = path / SCENES_FOLDER

    def __enter__(self) -> _Folder:
        index = self.path / INDEX_NAME
        if self.path.is_dir() and not index.is_file() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise DataError(f"{self.path}: neither empty nor a specfast store; choose another folder")
        self.scenes.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DataError(f"{self.path}: another specfast prepare is writing here") from None
        try:
            self._load(index)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self._lock.close()

    def _load(self, index: Path) -> None:
        paths = sorted(self.scenes.glob("*.json"))
        self.records = {path.stem: record for path, record in zip(paths, read_scenes(self.path), strict=True)}
        if index.is_file():
            content = read_json(index)
            check_version(content, index)
            given = asdict(self.options)
            differing = [key for key in given if content["options"].get(key) != given[key]]
            if differing and any(len(record) for record in self.records.values()):
                listed = "; ".join(f"{key} was {content['options'].get(key)}, now {given[key]}" for key in differing)
                raise DataError(f"{self.path}: prepared with other options ({listed}); use those, or another folder")
            if differing:
                for path in paths:
                    path.unlink()
                self.records = {}
        write_json(index, {"format": FORMAT, "version": VERSION, "options": asdict(self.options)})
        wanted = {record.data_file for record in self.records.values()}
        for path in self.scenes.iterdir():  # what a killed run, or one that replaced a scene, left behind
            if path.suffix in (".f16", ".partial", ".tmp") and path.name not in wanted:
                path.unlink()

    def status(self, plan: ScenePlan) -> str:
        status = super().status(plan)
        if status == DONE:
            try:
                check_size(self.path, self.records[plan.key])
            except DataError:
                return DAMAGED
        return status

    def add(self, plan: ScenePlan, advance: Callable[[int], object]) -> None:
        previous = self.records.get(plan.key)
        name = f"{plan.key}-{plan.fingerprint[:8]}.f16"
        partial = self.scenes / f".{name}.partial"
        try:
            with partial.open("wb") as file:
                record = _write_tiles(plan, file, advance)
                file.flush()
                os.fsync(file.fileno())
            if len(record):
                record.data_file = name
                os.replace(partial, self.scenes / name)
            write_json(self.scenes / f"{plan.key}.json", record.to_json())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self.path}: no space left while writing scene {plan.name} ({len(plan.places)} tiles of "
                    f"{plan.record().layout.stride / 1e6:.1f} MB at most); free some and run the same command again"
                ) from error
            raise
        finally:
            partial.unlink(missing_ok=True)
        if previous is not None and previous.data_file not in ("", record.data_file):
            (self.scenes / previous.data_file).unlink(missing_ok=True)
        self.records[plan.key] = record

    def store(self) -> SpectralStore:
        return SpectralStore(list(self.records.values()), path=self.path)


def _nothing_kept(records: Iterable[SceneRecord], options: tiling.TilingOptions) -> str:
    lines = [f"no tile was kept: each has more than {options.max_invalid:.0%} invalid values or masked pixels"]
    for record in records:
        causes = ", ".join(f"{count} tiles mostly {cause}" for cause, count in record.rejected.items())
        lines.append(f"  {record.source or record.name}: {causes}")
        lines += [f"    {note}" for note in record.notes if note.startswith("WARNING")]
    lines.append("check --scale, --nodata and --max-value, or allow more with --max-invalid")
    return "\n".join(lines)

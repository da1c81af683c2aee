"""SpectralStore: tiles of many scenes in memory-mapped files, so that a crop of a few bands reads only those.

The files are described in :mod:`specfast.data.store_format`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from specfast.batch import SpectralSample
from specfast.data.sensors import model_name
from specfast.data.store_format import REDO, SCENES_FOLDER, SceneRecord, check_size, read_index, read_scenes
from specfast.errors import DataError

_READ_AHEAD = 128 * 1024  # the kernel serves at least this much of one read-ahead request
_SERIAL_COPY = 32768  # largest copy that torch does in the calling thread, without starting threads of its own
_OPEN_MAPS = 256  # memory maps kept open; each holds a file descriptor


@dataclass(frozen=True)
class Tile:
    """One tile of a store: its scene, its number in it, and its place there in pixels."""

    scene: SceneRecord
    number: int
    row: int
    col: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return (len(self.scene.bands), *self.scene.tile)

    @property
    def valid_share(self) -> float:
        """Share of its pixels that hold a measurement."""
        return 1.0 - self.scene.masked[self.number] / (self.scene.tile[0] * self.scene.tile[1])

    @property
    def name(self) -> str:
        return f"{self.scene.name}[row {self.row}, col {self.col}]"


class SpectralStore:
    """Tiles of one or more scenes, read by window and bands.

    Make one with :func:`specfast.data.prepare` (which also makes stores in memory), open one on disk with :meth:`open`.
    Reading is safe from several threads at once.
    """

    def __init__(self, scenes: Sequence[SceneRecord], *, path: Path | None = None, buffers: Sequence = ()):
        order = sorted(range(len(scenes)), key=lambda i: (scenes[i].name, scenes[i].source))
        self.path = path
        self.scenes: tuple[SceneRecord, ...] = tuple(scenes[i] for i in order)
        self._buffers = [buffers[i] for i in order] if path is None else None
        self._first = np.cumsum([0, *(len(scene) for scene in self.scenes)])
        self._map = functools.lru_cache(maxsize=_OPEN_MAPS)(self._open_map)

    @classmethod
    def open(cls, path: str | os.PathLike) -> SpectralStore:
        """Open the store in the folder ``path``; reads the indices and checks the size of every data file.

        Raises:
            DataError: it is not a store, is of another version, holds no tiles, or a data file is missing or truncated.
        """
        path = Path(path)
        read_index(path)
        scenes = read_scenes(path)
        for scene in scenes:
            check_size(path, scene)
        if not any(len(scene) for scene in scenes):
            raise DataError(f"{path}: this store holds no tiles; add scenes with specfast prepare SCENES... {path}")
        return cls(scenes, path=path)

    def __len__(self) -> int:
        """Number of tiles."""
        return int(self._first[-1])

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else str(self.path)
        return f"SpectralStore({place}: {len(self)} tiles, {len(self.scenes)} scenes, {self.nbytes / 1e6:.1f} MB)"

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles."""
        return sum(scene.nbytes for scene in self.scenes)

    @property
    def fingerprint(self) -> str:
        """Changes when the content or the order of the tiles changes."""
        parts = [(scene.name, scene.fingerprint, scene.tile, scene.row, scene.col) for scene in self.scenes]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def tile(self, index: int) -> Tile:
        """Return what is known of tile ``index`` (0-based) without reading its values."""
        scene, number = self._locate(index)
        record = self.scenes[scene]
        return Tile(record, number, record.row[number], record.col[number])

    def read(
        self,
        index: int,
        window: tuple[int, int, int, int] | None = None,
        bands: Sequence[int] | np.ndarray | slice | None = None,
        *,
        flip: tuple[bool, bool] = (False, False),
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return float32 [c, h, w] of a tile, in the scene's physical units; pixels without a measurement are 0.

        Touches only the rows of the window in the bands asked for.

        Args:
            index: the tile, 0-based.
            window: (row, col, height, width) in the tile; None for all.
            bands: 0-based numbers among the tile's bands, in any order; None for all.
            flip: reverse the rows, reverse the columns.
            out: where to write, float32 [c, h, w]; None for a new tensor.

        Raises:
            IndexError: there is no such tile or band. ValueError: the window does not lie in the tile, or ``out`` has
            the wrong shape or dtype.
        """
        scene, number = self._locate(index)
        record = self.scenes[scene]
        layout = record.layout
        row, col, height, width = _check_window(window, record.tile)
        bands = _check_bands(bands, layout.bands)
        if out is None:
            out = torch.empty(len(bands), height, width)
        elif out.shape != (len(bands), height, width) or out.dtype != torch.float32:
            raise ValueError(
                f"out: expected float32 [{len(bands)}, {height}, {width}], got {out.dtype} {list(out.shape)}"
            )
        data = self._map(scene)
        start = number * layout.stride
        if data.file is not None:
            for band in bands:
                first = start + band * layout.plane + row * layout.width * 2
                data.will_read(first, height * layout.width * 2)
        planes = (
            data.bytes[start : start + layout.mask_offset].view(torch.float16).view(-1, layout.height, layout.width)
        )
        flipped = [axis for axis, wanted in enumerate(flip) if wanted]
        step = max(1, _SERIAL_COPY // max(1, width))
        for target, band in zip(out, bands, strict=True):
            for top in range(0, height, step):
                rows = min(step, height - top)
                source_top = height - top - rows if flip[0] else top
                source = planes[band, row + source_top : row + source_top + rows, col : col + width]
                target[top : top + rows].copy_(source.flip(flipped) if flipped else source)
        if record.exponent[number]:
            out.mul_(2.0 ** -record.exponent[number])
        return out

    def read_valid(self, index: int, window: tuple[int, int, int, int] | None = None) -> np.ndarray | None:
        """Return bool [h, w], False where a pixel holds no measurement; None if the whole tile is valid."""
        scene, number = self._locate(index)
        record = self.scenes[scene]
        row, col, height, width = _check_window(window, record.tile)
        if record.masked[number] == 0:
            return None
        layout = record.layout
        start = number * layout.stride + layout.mask_offset + row * layout.mask_row
        packed = self._map(scene).bytes[start : start + height * layout.mask_row].numpy().reshape(height, -1)
        return np.unpackbits(packed, axis=1, count=layout.width)[:, col : col + width].astype(bool)

    def sample(
        self,
        index: int,
        window: tuple[int, int, int, int] | None = None,
        bands: Sequence[int] | np.ndarray | slice | None = None,
    ) -> SpectralSample:
        """Return the same part of a tile as :meth:`read`, with what a model must know about it."""
        record = self.tile(index).scene
        bands = _check_bands(bands, len(record.bands))
        valid = self.read_valid(index, window)
        return SpectralSample(
            image=self.read(index, window, bands),
            wavelength=torch.tensor(record.wavelength)[bands],
            fwhm=torch.tensor(record.fwhm)[bands],
            gsd=record.gsd,
            sensor=model_name(record.sensor),
            level=record.level,
            valid=None if valid is None else torch.from_numpy(valid),
        )

    def verify(self, *, progress: bool = False) -> None:
        """Read every tile and compare its checksum.

        Raises:
            DataError: a tile differs from what was written; names the file and the tile.
        """
        with tqdm(total=self.nbytes, unit="B", unit_scale=True, desc="verify", disable=not progress) as bar:
            for index in range(len(self)):
                scene, number = self._locate(index)
                record = self.scenes[scene]
                start = number * record.layout.stride
                stored = self._map(scene).bytes[start : start + record.layout.payload].numpy()
                if zlib.crc32(stored) != record.crc32[number]:
                    place = self.path / SCENES_FOLDER / record.data_file if self.path else "this store"
                    cure = f"delete that file and {REDO}" if self.path else "its memory was overwritten"
                    raise DataError(f"{place}: tile {self.tile(index).name} is damaged: checksum differs; {cure}")
                bar.update(record.layout.stride)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"tile: expected 0 to {len(self) - 1}, got {index}")
        scene = int(np.searchsorted(self._first, index, side="right")) - 1
        return scene, index - int(self._first[scene])

    def _open_map(self, scene: int) -> _Mapped:
        if self._buffers is not None:
            return _Mapped(torch.frombuffer(self._buffers[scene], dtype=torch.uint8), None)
        record = self.scenes[scene]
        check_size(self.path, record)
        with (self.path / SCENES_FOLDER / record.data_file).open("rb") as file:
            # Private and writable: torch accepts no read-only memory, and nothing written here would reach the file.
            mapped = mmap.mmap(
                file.fileno(), record.nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        return _Mapped(torch.frombuffer(mapped, dtype=torch.uint8), mapped)


@dataclass(frozen=True)
class _Mapped:
    """The bytes of one data file, and the mapping behind them if they lie on disk."""

    bytes: torch.Tensor
    file: mmap.mmap | None

    def will_read(self, start: int, length: int) -> None:
        """Ask for a run of bytes ahead of its use.

        All runs of a crop are then on their way at once, and the kernel's read-around, which would fetch 4.6 times as
        much for scattered bands, finds nothing left to guess.
        """
        end = start + length
        for first in range(start - start % mmap.PAGESIZE, end, _READ_AHEAD):
            self.file.madvise(mmap.MADV_WILLNEED, first, min(_READ_AHEAD, end - first))


def _check_window(window, tile: tuple[int, int]) -> tuple[int, int, int, int]:
    if window is None:
        return (0, 0, *tile)
    row, col, height, width = (int(value) for value in window)
    if row < 0 or col < 0 or height < 1 or width < 1 or row + height > tile[0] or col + width > tile[1]:
        raise ValueError(
            f"window: expected (row, col, height, width) inside the tile of {tile[0]} x {tile[1]} pixels, got "
            f"({row}, {col}, {height}, {width})"
        )
    return row, col, height, width


def _check_bands(bands, count: int) -> list[int]:
    if bands is None:
        return list(range(count))
    if isinstance(bands, slice):
        return list(range(count))[bands]
    bands = [int(band) for band in bands]
    for band in bands:
        if not 0 <= band < count:
            raise IndexError(f"bands: expected 0 to {count - 1}, got {band}")
    return bands

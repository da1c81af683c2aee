"""What a store looks like on disk: the layout of a tile, the record of a scene, and the checks on both.

A store is a folder::

    store.json                       format, version, and the options it was prepared with
    scenes/NAME-ID.json              one scene: bands, sensor, tiles, checksums; written last, it makes the scene exist
    scenes/NAME-ID-FINGERPRINT.f16   its tiles, one record after the other

A record holds one tile: float16 values [bands, rows, columns] (little-endian, so a band is one contiguous run and a row
window of it too), then its valid mask [rows, ceil(columns / 8)] as packed bits, then padding to 4096 bytes. Values are
physical ones times ``2 ** exponent`` of the tile; the exponent is 0 unless float16 could not hold them well. Pixels
without a measurement hold 0 and have their bit cleared.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from specfast.errors import DataError
from specfast.files import write_atomic

FORMAT = "specfast store"
VERSION = 1
INDEX_NAME = "store.json"
SCENES_FOLDER = "scenes"
REDO = "run specfast prepare again with this scene"

_PAGE = 4096


@dataclass(frozen=True)
class TileLayout:
    """Where the parts of a record lie, for tiles of ``bands`` x ``height`` x ``width``."""

    bands: int
    height: int
    width: int

    @property
    def plane(self) -> int:
        """Bytes of one band."""
        return self.height * self.width * 2

    @property
    def mask_row(self) -> int:
        """Bytes of one row of the packed valid mask."""
        return -(-self.width // 8)

    @property
    def mask_offset(self) -> int:
        return self.bands * self.plane

    @property
    def payload(self) -> int:
        """Bytes of a record before its padding."""
        return self.mask_offset + self.height * self.mask_row

    @property
    def stride(self) -> int:
        """Bytes from one record to the next."""
        return -(-self.payload // _PAGE) * _PAGE

    def pack(self, values: np.ndarray, valid: np.ndarray) -> bytes:
        """Return the record of float16 ``values`` [bands, height, width] and bool ``valid`` [height, width]."""
        payload = values.astype("<f2", copy=False).tobytes() + np.packbits(valid, axis=1).tobytes()
        return payload + bytes(self.stride - len(payload))


@dataclass
class SceneRecord:
    """What the store knows of one scene; the content of its JSON file.

    Attributes:
        name: the scene's name; source: its file, or "" if it came from memory.
        fingerprint: changes when the file, its metadata or how it is read changes.
        sensor, level, gsd: as in :class:`~specfast.data.SpectralImage`.
        wavelength, fwhm: [C] nm, of the bands kept, in file order.
        bands: [C] their 0-based numbers in the source.
        size: (height, width) of the scene in pixels; tile: (height, width) of each of its tiles.
        row, col: the upper left pixel of each tile; masked: its pixels without a measurement;
            exponent: stored value = physical value * 2 ** exponent; crc32: checksum of its record.
        rejected: number of tiles left out, by the cause that weighed most.
        notes: what was assumed or dropped, in words.
        data_file: name of the file beside that holds the tiles, or "" if none was kept.
    """

    name: str
    source: str
    fingerprint: str
    sensor: str
    level: str
    gsd: float
    wavelength: list[float]
    fwhm: list[float]
    bands: list[int]
    size: tuple[int, int]
    tile: tuple[int, int]
    row: list[int] = field(default_factory=list)
    col: list[int] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    exponent: list[int] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_file: str = ""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def layout(self) -> TileLayout:
        return TileLayout(len(self.bands), *self.tile)

    @property
    def nbytes(self) -> int:
        """Size of the data file in bytes."""
        return len(self) * self.layout.stride

    def to_json(self) -> dict:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict, path: Path) -> SceneRecord:
        check_version(content, path)
        try:
            record = cls(**{f.name: content[f.name] for f in fields(cls)})
            record.size, record.tile = tuple(record.size), tuple(record.tile)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not a complete scene record ({error!r}); run specfast prepare again") from None
        return record


def check_version(content: dict, path: Path) -> None:
    """Raise DataError unless ``content``, read from ``path``, was written by this version of the format."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not an index of a specfast store")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: written in version {content.get('version')} of the store format, this specfast reads version "
            f"{VERSION}; prepare the scenes again into a new folder"
        )


def read_index(path: Path) -> dict:
    """Return the content of a store's index, checked."""
    index = path / INDEX_NAME
    if not index.is_file():
        raise DataError(f"{path}: no specfast store here ({INDEX_NAME} is missing); make one with specfast prepare")
    content = read_json(index)
    check_version(content, index)
    return content


def read_scenes(path: Path) -> list[SceneRecord]:
    """Return the records of all complete scenes of the store in ``path``."""
    return [SceneRecord.from_json(read_json(p), p) for p in sorted((path / SCENES_FOLDER).glob("*.json"))]


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` so that ``path`` holds either what it held before or all of it, even after a crash."""
    write_atomic(path, json.dumps(content).encode())


def check_size(path: Path, scene: SceneRecord) -> None:
    """Raise DataError unless the data file of a scene is there and as long as its record says."""
    if not len(scene):
        return
    file = path / SCENES_FOLDER / scene.data_file
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{file}: the tiles of scene {scene.name} are missing; {REDO}") from None
    if size != scene.nbytes:
        what = "truncated" if size < scene.nbytes else "longer than written"
        raise DataError(
            f"{file}: {what}: {size} bytes, expected {scene.nbytes} for the {len(scene)} tiles of {scene.name}; {REDO}"
        )

"""Whether a TIFF file is whole. GDAL opens one that was cut off, drops the tags it cannot read, and says nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from specfast.errors import DataError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {3: "u2", 4: "u4", 16: "u8"}
_OFFSETS_AND_SIZES = ((273, 279), (324, 325))  # tags of strips, of tiles


def check_complete(path: Path) -> None:
    """Raise DataError if a directory, a tag or a block of pixels lies beyond the end of the file."""
    with path.open("rb") as file:
        try:
            missing = _missing_part(file, path.stat().st_size)
        except struct.error:
            missing = "its directory"
    if missing:
        raise DataError(f"{path}: the file was cut off, {missing} is missing")


def _missing_part(file: BinaryIO, size: int) -> str | None:
    order = "<" if file.read(2) == b"II" else ">"
    big = struct.unpack(f"{order}H", file.read(2))[0] == 43
    if big:
        file.read(4)
    count_code, value_code, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)

    def number(code: str) -> int:
        return struct.unpack(order + code, file.read(struct.calcsize(code)))[0]

    seen, directory = set(), number(value_code)
    while directory and directory not in seen:
        seen.add(directory)
        file.seek(directory)
        entries = file.read(entry_size * number(count_code))
        following = number(value_code)
        arrays = {}
        for start in range(0, len(entries), entry_size):
            tag, kind, count = struct.unpack_from(f"{order}HH{value_code}", entries, start)
            length, value = count * _SIZES.get(kind, 1), start + entry_size - struct.calcsize(value_code)
            if length <= struct.calcsize(value_code):
                content = entries[value : value + length]
            else:
                position = struct.unpack_from(order + value_code, entries, value)[0]
                if position + length > size:
                    return f"its tag {tag}"
                file.seek(position)
                content = file.read(length) if tag in sum(_OFFSETS_AND_SIZES, ()) else b""
            if kind in _INTEGERS and content:
                arrays[tag] = np.frombuffer(content, np.dtype(order + _INTEGERS[kind])).astype(np.int64)
        for offsets, sizes in _OFFSETS_AND_SIZES:
            if offsets in arrays and sizes in arrays and (arrays[offsets] + arrays[sizes]).max() > size:
                return "the last of its pixels"
        directory = following
    return None

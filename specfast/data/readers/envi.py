"""ENVI: a text header (.hdr) and a plain binary file, in any interleave, type and byte order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from specfast.data.cubes import MappedCube
from specfast.data.readers.header import scene_fields, text_of, with_spelling_mended
from specfast.data.readers.stored import Request, StoredScene
from specfast.errors import DataError

TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = (6, 9)
_AXES = {"bsq": ("band", "row", "column"), "bil": ("row", "band", "column"), "bip": ("row", "column", "band")}
_ENDINGS = (".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".bin", ".rfl", ".rdn", ".cube")


def read(path: Path, request: Request) -> StoredScene:
    """Read a header, given itself or by its data file."""
    with path.open("rb") as file:
        header_path = path if is_header(file.read(64)) else find_header(path)
    header, notes = with_spelling_mended(parse_header(header_path))
    _check_file_type(header, header_path)
    data_path = path if header_path != path else _find_data(header_path)
    cube = _cube(header, header_path, data_path, notes)
    fields = scene_fields(header, str(header_path))
    fields["notes"] = notes + fields["notes"]
    return StoredScene(cube, **fields)


def is_header(head: bytes) -> bool:
    """Whether a file that begins so is a header."""
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"ENVI")


def find_header(path: Path) -> Path | None:
    """Return the header that lies beside a data file (``x.img.hdr`` or ``x.hdr``), or None."""
    for ending in (".hdr", ".HDR"):
        for candidate in (path.with_name(path.name + ending), path.with_suffix(ending)):
            if candidate != path and candidate.is_file():
                return candidate
    return None


def parse_header(path: Path) -> dict[str, str]:
    """Return the header's keys and values as text; lists lose their braces.

    Raises:
        DataError: the file does not begin with ENVI, or a brace is never closed.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    first, *lines = text.lstrip("\ufeff \r\n\t").splitlines() or [""]
    if first.strip() != "ENVI":
        raise DataError(f"{path}: is no ENVI header, which begins with a line 'ENVI'")
    header: dict[str, str] = {}
    rest = iter(lines)
    for line in rest:
        if line.lstrip().startswith(";") or "=" not in line:
            continue
        key, value = (part.strip() for part in line.split("=", 1))
        if value.startswith("{"):
            parts = [value]
            while "}" not in parts[-1]:
                following = next(rest, None)
                if following is None:
                    raise DataError(f"{path}: the list of {key!r} is never closed; the header is cut off")
                parts.append(following)
            value = " ".join(parts)
            value = value[1 : value.rindex("}")].strip()
        header[key] = value
    return header


def _check_file_type(header: dict, path: Path) -> None:
    kind = (text_of(header.get("file type")) or "").lower()
    if "spectral library" in kind:
        raise DataError(f"{path}: is an ENVI spectral library, not an image")
    if (text_of(header.get("file compression")) or "0") != "0":
        raise DataError(f"{path}: the data file is compressed (file compression = 1); save it without compression")


def _cube(header: dict, header_path: Path, data_path: Path, notes: list[str]) -> MappedCube:
    samples, lines, bands = (_whole(header, key, header_path, least=1) for key in ("samples", "lines", "bands"))
    code = _whole(header, "data type", header_path)
    if code in _COMPLEX:
        raise DataError(f"{header_path}: holds complex numbers (data type = {code}), which are not supported")
    if code not in TYPES:
        raise DataError(f"{header_path}: data type = {code}; expected one of {', '.join(map(str, TYPES))}")
    interleave = (text_of(header.get("interleave")) or "").lower()
    if not interleave:
        interleave = "bsq"
        notes.append("interleave: not given, taken as bsq")
    if interleave not in _AXES:
        raise DataError(f"{header_path}: interleave = {interleave}; expected bsq, bil or bip")
    order = "<>"[_byte_order(header, header_path, code, notes)]
    offset = _whole(header, "header offset", header_path, default=0)
    dtype, axes = np.dtype(TYPES[code]).newbyteorder(order), _AXES[interleave]
    size = {"row": lines, "column": samples, "band": bands}
    needed = offset + lines * samples * bands * dtype.itemsize
    found = data_path.stat().st_size
    if found != needed:
        cause = "the file was cut off, or" if found < needed else "the file is another one, or"
        raise DataError(
            f"{data_path}: holds {found} bytes, but its header {header_path.name} asks for {needed} ({bands} bands of "
            f"{lines} x {samples} pixels of {dtype.name}, offset {offset}); {cause} the header is wrong"
        )
    return MappedCube(str(data_path), dtype, tuple(size[axis] for axis in axes), axes, offset)


def _byte_order(header: dict, path: Path, code: int, notes: list[str]) -> int:
    if "byte order" not in header and code != 1:
        notes.append("byte order: not given, taken as little-endian")
    order = _whole(header, "byte order", path, default=0)
    if order > 1:
        raise DataError(f"{path}: byte order = {order}; expected 0 (little-endian) or 1 (big-endian)")
    return order


def _whole(header: dict, key: str, path: Path, *, default: int | None = None, least: int = 0) -> int:
    text = text_of(header.get(key))
    if text is None:
        if default is None:
            raise DataError(f"{path}: the header lacks {key!r}")
        return default
    if not re.fullmatch(r"[+-]?\d+(\.0*)?", text) or int(float(text)) < least:
        raise DataError(f"{path}: {key} = {text[:40]}; expected a whole number, at least {least}")
    return int(float(text))


def _find_data(header_path: Path) -> Path:
    base = header_path.with_suffix("")
    names = [base.name, *(base.name + e for ending in _ENDINGS for e in (ending, ending.upper()))]
    tried = [header_path.with_name(name) for name in names]
    for candidate in tried:
        if candidate.is_file() and candidate != header_path:
            return candidate
    raise DataError(
        f"{header_path}: its data file is not beside it; looked for {base.name} without ending and with "
        f"{', '.join(_ENDINGS)}"
    )

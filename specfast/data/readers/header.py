"""The vocabulary of ENVI headers, which .mat structs and GeoTIFF tags borrow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import numpy as np

from specfast.data.readers.georeference import from_map_info
from specfast.errors import DataError

# Keys that are read; others of these letters are taken for misspelt ones.
READ_KEYS = (
    "wavelength",
    "wavelength units",
    "fwhm",
    "bbl",
    "data ignore value",
    "reflectance scale factor",
    "data gain values",
    "data offset values",
    "data reflectance gain values",
    "data reflectance offset values",
    "map info",
    "coordinate system string",
    "sensor type",
    "description",
    "samples",
    "lines",
    "bands",
    "header offset",
    "data type",
    "interleave",
    "byte order",
    "file type",
    "file compression",
)
_OTHER_KEYS = (
    "band names",
    "default bands",
    "x start",
    "y start",
    "z plot titles",
    "z plot range",
    "data reflectance",
    "pixel size",
    "projection info",
    "rpc info",
    "acquisition time",
    "wavelength std",
    "fwhm std",
)


def normalized_key(key: str) -> str:
    """Return a key in lower case with single spaces, as ``"wavelength units"``."""
    return re.sub(r"[\s_\-]+", " ", key.strip().lower())


def with_spelling_mended(header: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Return the header, keys normalized and misspelt ones ("wavelength_unts", "wavelengths") mended, and say so."""
    mended = {normalized_key(key): value for key, value in header.items()}
    notes = []
    for key in [key for key in mended if key not in READ_KEYS and key not in _OTHER_KEYS]:
        near = difflib.get_close_matches(key, READ_KEYS, n=1, cutoff=0.88)
        if near and near[0] not in mended:
            mended[near[0]] = mended.pop(key)
            notes.append(f"header key {key!r} read as {near[0]!r}")
    return mended, notes


def text_of(value) -> str | None:
    """Return a header's value as text without its braces, or None if there is none."""
    if value is None:
        return None
    text = str(value).strip().strip("{}").strip()
    return text or None


def numbers_of(value, name: str, where: str) -> np.ndarray | None:
    """Return a header's list of numbers as float64 [n], or None if there is none.

    Raises:
        DataError: an item is not a number.
    """
    if value is None:
        return None
    if isinstance(value, str):
        items = [item for item in re.split(r"[,;\s]+", value.strip().strip("{}").strip()) if item]
        if not items:
            return None
        try:
            return np.array([float(item) for item in items])
        except ValueError:
            wrong = next(item for item in items if not _is_number(item))
            raise DataError(f"{where}: {name} in the header holds {wrong[:40]!r}, which is not a number") from None
    return np.asarray(value, dtype=np.float64).ravel()


def scene_fields(header: Mapping[str, object], where: str) -> dict[str, object]:
    """Return the fields of a StoredScene that a header with normalized keys tells.

    Raises:
        DataError: a value cannot be read.
    """

    def numbers(key: str) -> np.ndarray | None:
        return numbers_of(header.get(key), key, where)

    def number(key: str) -> float | None:
        values = numbers(key)
        return None if values is None else float(values[0])

    fields: dict[str, object] = {
        "wavelength": numbers("wavelength"),
        "fwhm": numbers("fwhm"),
        "unit": text_of(header.get("wavelength units")),
        "good_bands": numbers("bbl"),
        "nodata": number("data ignore value"),
        "sensor": text_of(header.get("sensor type")),
        "level": level_from_text(text_of(header.get("description")) or ""),
        "notes": [],
    }
    notes = fields["notes"]
    if fields["level"]:
        notes.append(f"level: {fields['level']}, from the header's description")
    fields |= _scaling(number("reflectance scale factor"), numbers, notes)
    map_info = text_of(header.get("map info"))
    if map_info:
        geo = from_map_info(map_info, text_of(header.get("coordinate system string")))
        fields |= {"gsd": geo.gsd, "crs": geo.crs, "transform": geo.transform}
        notes += geo.notes
    return fields


def _scaling(factor: float | None, numbers, notes: list[str]) -> dict[str, object]:
    """Return scale and offset (and the level that they imply), from whichever of the header's keys there are."""
    if factor is not None and factor > 0:
        return {"scale": factor, "level": "L2"}
    for prefix, level in (("data reflectance", "L2"), ("data", None)):
        gain, offset = numbers(f"{prefix} gain values"), numbers(f"{prefix} offset values")
        if gain is None and offset is None:
            continue
        fields: dict[str, object] = {} if level is None else {"level": level}
        if gain is not None:
            if (gain == 0).any():
                notes.append(f"{prefix} gain values hold zeros and are not used")
                return {}
            fields["scale"] = 1 / gain
        if offset is not None:
            fields["offset"] = offset
        if level is None:
            # The ENVI format defines these two keys in W / (m^2 um sr).
            fields["radiance_factor"] = 0.1
        return fields
    return {}


_LEVELS = {
    "L1": r"(?<![a-z])(rdn|radiance)(?![a-z])|(?<![a-z0-9])(rad|l1[abc]?)(?![a-z0-9])",
    "L2": r"(?<![a-z])(rfl|refl|reflectance)(?![a-z])|(?<![a-z0-9])l2[a-d]?(?![a-z0-9])",
}


def level_from_text(text: str) -> str | None:
    """Return the level that a title or file name tells ("..._rdn_v2.img"), or None if it tells none or both."""
    found = [level for level, pattern in _LEVELS.items() if re.search(pattern, text.lower())]
    return found[0] if len(found) == 1 else None


def _is_number(item: str) -> bool:
    try:
        float(item)
    except ValueError:
        return False
    return True

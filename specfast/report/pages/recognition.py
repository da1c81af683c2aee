"""What a file or folder is: told by what it says of itself, by its content, and where both leave it open by its name.

The kinds are listed in :mod:`specfast.report.kinds`.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specfast.errors import DataError
from specfast.report.kinds import KINDS, RASTERS
from specfast.report.sources import Source, is_zarr, open_source, step_for, thinned

TABLES = ("segment", "classify", "regress", "change", "anomaly", "probe")  # names of the tables that runs write

OF_SCENES = ("scale", "offset", "nodata")  # options that change numbers; a map's are final as its file has them

_MODEL_FILES = ("config.json", "model.safetensors")
_RASTER_ENDINGS = (".npy", ".tif", ".tiff", ".hdr")
_FEW_BANDS = 4
_NEGATIVE = 0.05  # share of negative numbers from which a nameless stack of bands is taken for an embedding
_LARGEST_CLASS = 65535
_MOST_CLASSES = 256  # distinct whole numbers, above which they are taken for measurements


@dataclass
class Found:
    """A recognized file or folder.

    Attributes:
        kind: one of :data:`KINDS`.
        path: the file or folder.
        why: how it was told, in words.
        source: the raster, if it is one.
        content: what was read of a JSON or CSV file, or None.
        stem: name of the table in a run's folder, without its ending; "" if it has none.
    """

    kind: str
    path: Path
    why: str
    source: Source | None = None
    content: object = None
    stem: str = ""


def recognize(path: Path, kind: str | None = None, **options) -> Found:
    """Return what ``path`` is; reads little.

    Args:
        path: a file or a folder.
        kind: one of :data:`KINDS`, where the caller knows better.
        options: of :func:`specfast.data.open`, for scenes; those that change numbers leave maps and embeddings alone.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is nothing that can be shown, or not of the kind asked for.
        ImportError: the format's library is not installed; names the extra.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}")
    if path.is_dir() and not is_zarr(path):
        return _recognize_folder(path, kind)
    if path.suffix.lower() == ".json":
        return _recognize_json(path, kind)
    if path.suffix.lower() == ".csv":
        return _recognize_csv(path, kind)
    if kind in (None, *RASTERS):
        return _recognize_raster(path, kind, options)
    if kind == "confusion" and path.suffix.lower() == ".npy":
        return Found(kind, path, "as asked", content=_square(open_source(path).image.read()[0], path))
    raise DataError(f"{path}: cannot be shown as {kind}")


def rasters_in(folder: Path) -> list[Path]:
    """Return the rasters in a folder by name: NumPy arrays, GeoTIFFs, ENVI headers and Zarr arrays."""
    return [path for path in sorted(folder.iterdir()) if is_zarr(path) or path.suffix.lower() in _RASTER_ENDINGS]


def _recognize_raster(path: Path, kind: str | None, options: dict) -> Found:
    source = open_source(path, kind, **options)
    # a sensor that the caller names brings a scale and offset for integers; its level may bring a radiance's unit
    plain = {name: value for name, value in options.items() if name not in (*OF_SCENES, "sensor", "level")}
    if options != plain and source.image.shape[0] == 1 and "scene" not in (kind, source.kind):
        source, options = open_source(path, kind, **plain), plain  # classes are told by their numbers
    found = Found(*((kind, path, "as asked") if kind else _raster_kind(source, path)), source)
    if options != plain and found.kind != "scene":
        found.source = open_source(path, kind, **plain)
    return found


def _recognize_folder(path: Path, kind: str | None) -> Found:
    has = {entry.name for entry in path.iterdir()}
    stem = next((stem for stem in TABLES if f"{stem}.json" in has and _is_table(path / f"{stem}.json")), None)
    if {"log.csv", "config.yaml"} <= has and kind in (None, "pretrain"):
        return Found("pretrain", path, "it holds log.csv and config.yaml")
    if stem is not None and kind in (None, "finetune", "probe"):
        found = kind or ("probe" if stem == "probe" else "finetune")
        return Found(found, path, f"it holds {stem}.json", content=_json(path / f"{stem}.json"), stem=stem)
    if {"log.csv", "model"} <= has and kind in (None, "finetune"):
        return Found("finetune", path, "it holds log.csv and model")
    if has.issuperset(_MODEL_FILES):
        raise DataError(
            f"{path}: is a saved model, which has no picture of its own; show the folder of its run, or what it makes "
            "of a scene (specfast segment, embed, change)"
        )
    if rasters_in(path) and kind in (None, "maps"):
        return Found("maps", path, "it holds rasters")
    raise DataError(
        f"{path}: is no folder that can be shown{'' if kind is None else f' as {kind}'}; expected that of a run of "
        "specfast pretrain (log.csv, config.yaml), finetune or probe (its table as JSON), a folder of maps, or a Zarr "
        "array"
    )


def _is_table(path: Path) -> bool:
    """Whether a JSON file holds a table; one that describes a map beside it may have the same name."""
    content = _json(path)
    return isinstance(content, dict) and isinstance(content.get("rows"), list)


def _recognize_json(path: Path, kind: str | None) -> Found:
    content = _json(path)
    if kind in (None, "table") and _is_table(path):
        return Found("table", path, "it holds rows of scores", content=content)
    matrix = content.get("confusion", content.get("matrix")) if isinstance(content, dict) else content
    if isinstance(matrix, list) and kind in (None, "confusion"):
        names = content.get("names", content.get("classes")) if isinstance(content, dict) else None
        return Found("confusion", path, "it holds a square matrix", content=_square(matrix, path, names))
    raise DataError(
        f"{path}: expected the table of a probe or fine-tuning (rows, verdict) or a confusion matrix "
        '({"confusion": [[...], ...], "names": [...]})'
    )


def _recognize_csv(path: Path, kind: str | None) -> Found:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    if rows and {"step", "loss"} <= set(rows[0]) and kind in (None, "losses"):
        return Found("losses", path, "it has columns step and loss", content=rows)
    if kind in (None, "confusion") and rows and len(rows) in (len(rows[0]), len(rows[0]) + 1):
        names = rows[0][1:] if rows[0][0] == "" else rows[0]
        body = [row[len(row) - len(names) :] for row in rows[1:]]
        if len(body) == len(names):
            return Found("confusion", path, "it holds a square matrix", content=_square(body, path, names))
    raise DataError(
        f"{path}: expected a log with columns step and loss, or a square matrix below a line of class names"
    )


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from error


def _square(matrix, path: Path, names=None) -> tuple[np.ndarray, list[str]]:
    """Return a checked confusion matrix [K, K] and K names."""
    try:
        values = np.array(matrix, dtype=float)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: expected a matrix of numbers ({error})") from None
    if values.ndim != 2 or len(set(values.shape)) != 1 or not (values >= 0).all() or values.size == 0:
        raise DataError(f"{path}: expected a square matrix of counts, got shape {list(values.shape)}")
    if names is not None and len(names) != len(values):
        raise DataError(f"{path}: expected {len(values)} class names to match the matrix, got {len(names)}")
    return values, [str(name) for name in names] if names is not None else [str(k + 1) for k in range(len(values))]


def _raster_kind(source: Source, path: Path) -> tuple[str, Path, str]:
    """Return kind, path and reason."""
    image = source.image
    if source.kind is not None:
        return source.kind, path, "as the file says"
    bands = image.shape[0]
    if bands > 1 and image.wavelength is not None:
        return "scene", path, "its bands have wavelengths"
    if bands == 1:
        if source.classes or source.colors:
            return "classes", path, "one band with class names or a color table"
        if _is_whole(image):
            return "classes", path, "one band of whole numbers from 0"
        return "continuous", path, "one band of numbers"
    if bands <= _FEW_BANDS:
        return "continuous", path, f"{bands} bands without wavelengths"
    values = thinned(image, step=step_for(image.shape[1:], 64))
    values = values[np.isfinite(values)]
    if values.size and (values < 0).mean() > _NEGATIVE:
        return "embedding", path, f"{bands} bands without wavelengths, of both signs"
    return "scene", path, f"{bands} bands of numbers from 0, though without wavelengths"


def _is_whole(image) -> bool:
    """Whether a map's numbers may be class numbers."""
    values = thinned(image, step=step_for(image.shape[1:], 256))
    values = values[np.isfinite(values)]
    if not values.size or (values != np.round(values)).any():
        return False
    return bool(values.min() >= 0 and values.max() <= _LARGEST_CLASS and len(np.unique(values)) <= _MOST_CLASSES)

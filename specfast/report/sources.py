"""Files that hold a raster, opened the same way whatever it is: a scene, a class map, a map of numbers, an embedding.

Reading is by strips of rows, so a file of any size can be shown. Legend: K bands, H x W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specfast.data.cubes import ArrayCube
from specfast.data.image import SpectralImage, Window
from specfast.data.opening import open as open_image
from specfast.data.readers.envi import find_header, is_header, parse_header
from specfast.data.readers.header import normalized_key
from specfast.errors import DataError
from specfast.report.kinds import RASTERS

MOST = 1600  # pixels of a picture's longer side
_LONG = 6  # times as long as wide: a flightline
_BUDGET = 64 << 20  # bytes read at once
_TAG = "SPECFAST_"  # how our tags in a GeoTIFF begin
_TAG_KINDS = {"probabilities": "continuous"} | {kind: kind for kind in RASTERS}

Step = tuple[int, int]


@dataclass
class Source:
    """A raster, and what its file says of its meaning.

    Attributes:
        image: the pixels; bands are the channels of a map or embedding.
        kind: one of :data:`RASTERS` if the file says so, or None.
        quantity: what the numbers are, with the unit, or "".
        names: of the bands, "" where there is none.
        classes: names of classes by id.
        colors: colors of classes by id, (r, g, b) from 0 to 1.
    """

    image: SpectralImage
    kind: str | None = None
    quantity: str = ""
    names: tuple[str, ...] = ()
    classes: dict[int, str] = field(default_factory=dict)
    colors: dict[int, tuple[float, float, float]] = field(default_factory=dict)


def open_source(path: Path, kind: str | None = None, **options) -> Source:
    """Open a raster file, or a Zarr folder.

    Args:
        path: GeoTIFF, ENVI, .npy, .mat, NetCDF, HDF5, or a Zarr array.
        kind: what the caller says it is; tells which axis of an array holds the channels.
        options: of :func:`specfast.data.open`, for scenes.

    Raises:
        FileNotFoundError, DataError, ImportError: as :func:`specfast.data.open`.
    """
    if is_zarr(path):
        return _zarr_source(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() == ".npy":
        source = _npy_source(path, kind, options)
    elif path.suffix.lower() == ".mat" and (array := _mat_map(path, options.get("variable"))) is not None:
        source = Source(_image_of(array[None], path, "mat"))
    else:
        source = Source(open_image(path, **{"out_of_range": "keep", **options}))
    if source.image.reader == "geotiff":
        _read_geotiff_tags(path, source)
    elif source.image.reader == "envi":
        _read_envi_header(path, source)
    return source


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group, of version 2 or 3."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def step_for(shape, most: int = MOST) -> Step:
    """Return the steps in rows and columns at which a map of ``shape`` [H, W] has no more than ``most`` on a side.

    Both are the same, but for long flightlines, of which little would be left across.
    """
    each = tuple(max(1, -(-length // most)) for length in shape)
    return each if max(shape) > _LONG * min(shape) else (max(each), max(each))


def thinning_note(step: Step) -> str:
    """Return a sentence, with a blank before it, that says what a picture leaves out; "" if it is nothing."""
    if step == (1, 1):
        return ""
    if step[0] == step[1]:
        return f" Shown is one of {step[0]} rows and columns."
    return f" Shown is one of {step[0]} rows and one of {step[1]} columns, so that distances differ."


def strips(
    image: SpectralImage, *, bands=None, window: Window | None = None, step: Step = (1, 1)
) -> Iterator[np.ndarray]:
    """Yield the rows from top to bottom, float32 [c, h, w], one of ``step`` rows and columns.

    Holds one strip in memory, about 64 MB of the file.
    """
    row, column, height, width = (0, 0, *image.shape[1:]) if window is None else window
    # all bands count: where they are interleaved, the system reads those beside the ones asked for, too
    rows = _BUDGET // (4 * image.shape[0] * width * step[0]) * step[0]
    for start in range(0, height, rows or step[0]):
        # where even the rows of one step are too many, only the one that is kept is read
        block = image.read((row + start, column, min(rows or 1, height - start), width), bands)
        # a view would keep the whole strip in memory, and a caller that gathers the strips the whole file
        yield block if step == (1, 1) else block[:, :: step[0], :: step[1]].copy()


def thinned(image: SpectralImage, *, bands=None, window: Window | None = None, step: Step = (1, 1)) -> np.ndarray:
    """Return one of ``step`` rows and columns, float32 [c, h, w], NaN where there is no data."""
    return np.concatenate(list(strips(image, bands=bands, window=window, step=step)), axis=1)


def check_same_size(image: SpectralImage, other: SpectralImage) -> None:
    """Raise DataError unless two rasters have equally many rows and columns."""
    if other.shape[1:] != image.shape[1:]:
        found, wanted = (" x ".join(map(str, one.shape[1:])) for one in (other, image))
        raise DataError(f"{other.path}: has {found} pixels; expected {wanted}, those of {image.path}")


def _image_of(array, path: Path, reader: str, notes=(), **metadata) -> SpectralImage:
    return SpectralImage(ArrayCube(array), name=path.stem, path=path, reader=reader, assumptions=notes, **metadata)


def _npy_source(path: Path, kind: str | None, options: dict) -> Source:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array ({error}); was the file cut off?") from error
    said = _sidecar(path)
    kind = kind or said.get("kind")
    metadata = _metadata(said)
    if array.ndim == 2:
        image = _image_of(array[None], path, "npy", **metadata)
    elif array.ndim == 3 and kind in ("classes", "continuous", "embedding", "probabilities"):
        image = _image_of(array, path, "npy", **metadata)
    elif array.ndim == 3:
        image = open_image(path, **{"out_of_range": "keep", **options})
    else:
        raise DataError(f"{path}: expected an array with 2 axes (a map) or 3 (a scene), got shape {array.shape}")
    return _described(image, said)


def _described(image: SpectralImage, said: dict) -> Source:
    """Return a source as a description in our words (kind, quantity, outputs) has it."""
    source = Source(image, _TAG_KINDS.get(said.get("kind")), str(said.get("quantity") or ""))
    names = tuple(str(name) for name in said.get("outputs") or ())
    if source.kind == "classes":
        source.classes = dict(enumerate(names, start=1))
    else:
        source.names = names
    return source


def _sidecar(path: Path) -> dict:
    """Return what NAME.json or NAME.npy.json beside an array says of it."""
    for beside in (path.with_suffix(".json"), path.with_name(path.name + ".json")):
        if beside.is_file():
            try:
                said = json.loads(beside.read_text(encoding="utf-8"))
            except ValueError:
                continue
            if isinstance(said, dict) and isinstance(said.get("kind"), str):
                return said
    return {}


def _metadata(said: dict) -> dict:
    """Return the metadata of an image that a description beside it holds; "nan" is how JSON files write NaN."""
    found = {name: said[name] for name in ("crs", "transform") if said.get(name) is not None}
    if said.get("nodata") is not None:
        found["nodata"] = float(said["nodata"])
    return found


def _mat_map(path: Path, variable: str | None) -> np.ndarray | None:
    """Return the one array with two axes of a .mat file that holds no cube; None if it may hold one."""
    import scipy.io

    try:
        described = scipy.io.whosmat(path)
    except (NotImplementedError, ValueError, TypeError, OSError, scipy.io.matlab.MatReadError):
        return None  # version 7.3, or damaged: the scene's reader says what is wrong
    numeric = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "double", "single", "logical")
    maps = [name for name, shape, kind in described if kind in numeric and len(shape) == 2 and min(shape) > 1]
    if variable in maps:
        maps = [variable]
    elif variable is not None or any(len(shape) > 2 or kind == "struct" for _, shape, kind in described):
        return None
    if len(maps) != 1:
        raise DataError(f"{path}: expected one map, found {', '.join(sorted(maps)) or 'none'}; name one with variable")
    return scipy.io.loadmat(path, variable_names=maps)[maps[0]]


def _zarr_source(path: Path) -> Source:
    try:
        import zarr
    except ImportError as error:
        raise ImportError('Zarr needs zarr: pip install "specfast[zarr]"') from error
    try:
        found = zarr.open(str(path), mode="r")
    except Exception as error:  # zarr's errors are of many types
        raise DataError(f"{path}: cannot be read as Zarr ({error})") from error
    attributes = dict(found.attrs)
    if not hasattr(found, "shape"):
        arrays = {name: array for name, array in found.arrays() if array.ndim in (2, 3)}
        if len(arrays) != 1:
            raise DataError(f"{path}: expected one array with 2 or 3 axes, found {', '.join(sorted(arrays)) or 'none'}")
        found = next(iter(arrays.values()))
        attributes |= dict(found.attrs)
    if found.ndim == 2:
        found = np.asarray(found)[None]
    said = {key.removeprefix("specfast_"): value for key, value in attributes.items()}
    return _described(_image_of(found, path, "zarr", **_metadata(said)), {"kind": "embedding"} | said)


def _read_geotiff_tags(path: Path, source: Source) -> None:
    from specfast.data.readers.geotiff import open_raster

    with open_raster(path) as raster:
        tags, band_tags = {key.removeprefix(_TAG): value for key, value in raster.tags().items()}, raster.tags(1)
        source.names = tuple(name or "" for name in raster.descriptions)
        try:
            table = raster.colormap(1)
        except ValueError:
            table = {}
    source.kind = _TAG_KINDS.get(tags.get("KIND", "").lower())
    source.quantity = tags.get("QUANTITY", "")
    source.classes = {int(key[6:]): name for key, name in band_tags.items() if re.fullmatch(r"class_\d+", key)}
    source.classes = source.classes or _category_names(path)
    # GDAL fills a table up to 256 with black
    used = [number for number, color in table.items() if color[:3] != (0, 0, 0)]
    source.colors = {number: tuple(part / 255 for part in table[number][:3]) for number in used}


def _category_names(path: Path) -> dict[int, str]:
    """Return the first band's category names, which GDAL keeps in a file beside the GeoTIFF."""
    from xml.etree import ElementTree

    beside = path.with_name(path.name + ".aux.xml")
    if not beside.is_file():
        return {}
    try:
        root = ElementTree.parse(beside).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{beside}: is not well-formed ({error}); remove it, or write it again") from error
    names = root.findall("./PAMRasterBand[@band='1']/CategoryNames/Category")
    return {number: name.text.strip() for number, name in enumerate(names) if name.text and name.text.strip()}


def _read_envi_header(path: Path, source: Source) -> None:
    with path.open("rb") as file:
        header_path = path if is_header(file.read(64)) else find_header(path)
    header = {normalized_key(key): value for key, value in parse_header(header_path).items()}

    def items(key: str) -> list[str]:
        return [item.strip() for item in header.get(key, "").split(",") if item.strip()]

    source.names = tuple(items("band names"))
    source.quantity = header.get("specfast quantity", "")
    source.kind = _TAG_KINDS.get(header.get("specfast kind", "").lower())
    if "classification" in header.get("file type", "").lower():
        source.kind = "classes"
    source.classes = dict(enumerate(items("class names")))
    lookup = [float(part) / 255 for part in items("class lookup") if part.replace(".", "", 1).isdigit()]
    source.colors = {n: tuple(lookup[3 * n : 3 * n + 3]) for n in range(len(lookup) // 3)}

"""A class map: its legend, how much of the scene each class covers, and how far it agrees with another map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specfast.errors import DataError
from specfast.report.maps import class_maps, confusion
from specfast.report.pages.exhibit import Exhibit, Picture, Section, Table
from specfast.report.pages.scene import composite
from specfast.report.sources import Source, check_same_size, step_for, strips, thinned, thinning_note
from specfast.report.style import class_colors

_MOST_IN_LEGEND = 40
_MOST_IN_MATRIX = 40


def exhibit(
    source: Source,
    *,
    stretch: Sequence[float] = (2.0, 98.0),
    window: tuple[int, int, int, int] | None = None,
    others: Sequence[tuple[str, Source]] = (),
) -> Exhibit:
    """Show a class map, beside scenes or other class maps of the same size.

    Args:
        source: the map; 0 and nodata are unlabeled.
        stretch: of scenes shown beside it.
        window: (row, column, height, width) to show; None for all.
        others: (kind, source) of what is shown beside it, "scene" or "classes".

    Raises:
        DataError: it holds no class, sizes differ, or something else is to be shown beside it.
    """
    image = source.image
    _check_others(source, others)
    step = step_for(image.shape[1:] if window is None else window[2:])
    maps = [source, *(other for kind, other in others if kind == "classes")]
    counted = [_counts(one, window) for one in maps]
    present = sorted(set().union(*counted) - {0})
    if not present:
        raise DataError(f"{image.path}: no pixel has a class (all are 0 or without data)")
    names = _names(maps, present)
    colors = _colors(source, present)
    compact = [_compact(thinned(one.image, bands=[0], window=window, step=step)[0], present) for one in maps]
    counts = np.array([counted[0].get(number, 0) for number in present])
    most = np.sort(np.argsort(-counts, kind="stable")[:_MOST_IN_LEGEND])
    figure = class_maps(
        [(one.image.name, classes) for one, classes in zip(maps, compact, strict=True)],
        names,
        colors=colors,
        pictures=[
            (other.image.name, composite(other.image, stretch=stretch, window=window)[0])
            for kind, other in others
            if kind == "scene"
        ],
        counts=counts,
        listed=most,
    )
    total = int(counts.sum())
    left = (
        f" The legend lists the {len(most)} most frequent of {len(present)} classes." if len(most) < len(names) else ""
    )
    again = " Beyond sixteen classes colors repeat." if not source.colors and len(present) > 16 else ""
    caption = f"Classes; in brackets the pixels of each in {image.name}. Pale pixels have none."
    caption += f"{left}{again}{thinning_note(step)}"
    picture = Picture(figure, caption, f"Class map of {image.name} with a legend of {len(most)} classes.")
    sections = [Section("Map", pictures=[picture], tables=[_table(source, names, counts)])]
    summary: dict[str, object] = {
        "shape": list(image.shape),
        "crs": image.crs,
        "gsd": image.gsd,
        "classes": {str(n): name for n, name in zip(present, names, strict=True)},
        "pixels": {str(n): int(count) for n, count in zip(present, counts, strict=True)},
    }
    if len(maps) == 2 and len(present) <= _MOST_IN_MATRIX:
        agreement = _agreement(maps, present, window)
        share = float(np.trace(agreement) / max(1, agreement.sum()))
        summary["agreement"] = share
        sections.append(
            Section(
                "Agreement",
                f"Of the {int(agreement.sum()):,} pixels that have a class in both maps, {100 * share:.1f}% have the "
                "same.",
                [
                    Picture(
                        confusion(agreement, names, f"rows {maps[1].image.name}, columns {image.name}"),
                        f"How the classes of {maps[1].image.name} (rows) appear in {image.name} (columns).",
                        f"Confusion matrix of {len(names)} classes.",
                    )
                ],
            )
        )
    subtitle = f"{image.shape[1]} x {image.shape[2]} pixels, {total:,} with one of {len(present)} classes"
    return Exhibit("classes", image.name, subtitle, sections, summary)


def _check_others(source: Source, others) -> None:
    for kind, other in others:
        if kind not in ("scene", "classes"):
            raise DataError(
                f"{other.image.path}: is of kind {kind}; beside a class map a scene or another class map can be shown"
            )
        check_same_size(source.image, other.image)


def _whole(values: np.ndarray, path) -> np.ndarray:
    """Return class numbers as int64, 0 where there is no data."""
    known = np.isfinite(values)
    if (values[known] != np.round(values[known])).any() or (values[known] < 0).any():
        raise DataError(f"{path}: expected whole class numbers from 0, got fractions or negative numbers")
    return np.where(known, values, 0).astype(np.int64)


def _counts(source: Source, window) -> dict[int, int]:
    """Return the pixels of each class, of every pixel of the map."""
    total: dict[int, int] = {}
    for strip in strips(source.image, bands=[0], window=window):
        for number, count in zip(*np.unique(_whole(strip[0], source.image.path), return_counts=True), strict=True):
            total[int(number)] = total.get(int(number), 0) + int(count)
    return total


def _compact(values: np.ndarray, present: list[int]) -> np.ndarray:
    """Renumber classes by their place in ``present``, from 1; 0 stays."""
    known = np.where(np.isfinite(values), values, 0).astype(np.int64)
    place = np.searchsorted(present, known)
    return np.where(known > 0, place + 1, 0)


def _names(maps: list[Source], present: list[int]) -> list[str]:
    """Return names from the first map that has one."""
    return [next((one.classes[n] for one in maps if one.classes.get(n)), f"class {n}") for n in present]


def _colors(source: Source, present: list[int]) -> list:
    """Return the file's own color of each class, the house's where it has none."""
    house = class_colors(max(present))
    return [source.colors.get(number, house[number - 1]) for number in present]


def _table(source: Source, names: list[str], counts: np.ndarray) -> Table:
    gsd, total = source.image.gsd, max(1, int(counts.sum()))
    columns = ["class", "pixels", "share (%)"] + (["area (ha)"] if gsd else [])
    rows = [
        [name, f"{count:,}", f"{100 * count / total:.1f}"] + ([f"{count * gsd**2 / 1e4:,.2f}"] if gsd else [])
        for name, count in zip(names, counts, strict=True)
    ]
    return Table(columns, rows, f"Classes of {source.image.name}, every pixel counted")


def _agreement(maps: list[Source], present: list[int], window) -> np.ndarray:
    """Return int64 [K, K]: rows the second map's class, columns the first's, pixels that have one in both."""
    size = len(present)
    matrix = np.zeros((size, size), dtype=np.int64)
    both = zip(*(strips(one.image, bands=[0], window=window) for one in maps), strict=True)
    for ours, theirs in both:
        columns, rows = _compact(ours[0], present), _compact(theirs[0], present)
        known = (rows > 0) & (columns > 0)
        index = (rows[known] - 1) * size + columns[known] - 1
        matrix += np.bincount(index, minlength=size**2).reshape(size, size)
    return matrix

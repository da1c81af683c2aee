"""Maps of numbers: change, uncertainty, anomaly scores, abundances, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specfast.data.image import SpectralImage
from specfast.errors import DataError
from specfast.report.change import change_overview
from specfast.report.continuous import NumberPanel, anomaly_map, continuous_maps, value_limits
from specfast.report.pages.exhibit import Exhibit, Picture, Section, Table, percentiles
from specfast.report.pages.scene import composite, same_values
from specfast.report.sources import Source, Step, check_same_size, step_for, thinned, thinning_note
from specfast.report.style import COLORMAPS

MOST_MAPS = 12
# What a name tells of the numbers; the first that fits.
_WORDS = (("uncertain", "uncertainty"), ("anomal", "anomaly"), ("score", "anomaly"), ("change", "change"))


@dataclass
class _Maps:
    """The bands that are shown, and how."""

    source: Source
    names: list[str]
    values: np.ndarray  # [K, h, w], some rows and columns of the window
    index: list[int]
    step: Step
    window: tuple[int, int, int, int] | None
    stretch: tuple[float, float]

    def panel(self, number: int, title: str | None = None, values=None, limits=None) -> NumberPanel:
        title, values = title or self.names[number], self.values[number] if values is None else values
        quantity, name = self.source.quantity, self.names[number]
        if not quantity or meaning(quantity) != meaning(name) != "value":  # as the uncertainty beside a change
            quantity = name
        return NumberPanel(title, values, quantity, COLORMAPS[self.meaning(number)], limits)

    def panels(self) -> list[NumberPanel]:
        return [self.panel(number) for number in range(len(self.names))]

    def meaning(self, number: int) -> str:
        return meaning(f"{self.names[number]} {self.source.quantity if len(self.names) == 1 else ''}")

    def of(self, other: Source, band: int = 0) -> np.ndarray:
        """The same pixels of another file, [h, w]."""
        return thinned(other.image, bands=[band], window=self.window, step=self.step)[0]


def exhibit(
    source: Source,
    *,
    bands: Sequence[int] | None = None,
    stretch: Sequence[float] = (2.0, 98.0),
    window: tuple[int, int, int, int] | None = None,
    others: Sequence[tuple[str, Source]] = (),
) -> Exhibit:
    """Show maps of numbers, each band on its own scale.

    Args:
        source: the maps.
        bands: which of them; None for the first twelve.
        stretch: percentiles at the ends of the color scales.
        window: (row, column, height, width) to show; None for all.
        others: (kind, source) of what is shown beside them: one map of numbers, whose difference is shown, too; the
            scene; the scenes before and after a change; a class map, above 0 where change or targets are known to be.

    Raises:
        DataError: a band does not exist, sizes differ, or something else is to be shown beside them.
    """
    image = source.image
    for _, other in others:
        check_same_size(image, other.image)
    maps = _read(source, bands, tuple(stretch), window)
    picture = _picture(maps, others)
    picture.caption += thinning_note(maps.step)
    if bands is None and image.shape[0] > MOST_MAPS:
        picture.caption += f" Shown are the first {MOST_MAPS} of {image.shape[0]} bands."
    numbers = {name: _numbers(one) for name, one in zip(maps.names, maps.values, strict=True)}
    summary = {"shape": list(image.shape), "crs": image.crs, "gsd": image.gsd, "quantity": source.quantity}
    section = Section("Map", pictures=[picture], tables=[_table(numbers, maps.step)])
    subtitle = f"{source.quantity or 'map of numbers'}, {image.shape[1]} x {image.shape[2]} pixels"
    return Exhibit("continuous", image.name, subtitle, [section], summary | {"maps": numbers})


def meaning(name: str) -> str:
    """Return the key in ``style.COLORMAPS`` of what a band's name or quantity tells."""
    return next((kind for word, kind in _WORDS if word in name.lower()), "value")


def _read(source: Source, bands, stretch, window) -> _Maps:
    image = source.image
    index = list(range(min(MOST_MAPS, image.shape[0]))) if bands is None else list(bands)
    if wrong := [band for band in index if not 0 <= band < image.shape[0]]:
        raise DataError(f"{image.path}: has no band {wrong[0]}; expected 0 to {image.shape[0] - 1}")
    step = step_for(image.shape[1:] if window is None else window[2:])
    values = thinned(image, bands=index, window=window, step=step)
    empty = [band for band, one in zip(index, values, strict=True) if not np.isfinite(one).any()]
    if empty:
        raise DataError(f"{image.path}: band {empty[0]} holds no number in what is shown (all is nodata)")
    return _Maps(source, [_name(source, band) for band in index], values, index, step, window, stretch)


def _name(source: Source, band: int) -> str:
    named = source.names[band] if band < len(source.names) else ""
    if named or source.image.shape[0] > 1:
        return named or f"band {band}"
    return source.quantity or source.image.name


def _picture(maps: _Maps, others: Sequence[tuple[str, Source]]) -> Picture:
    """Return the picture of the maps alone, or beside what fits them."""
    kinds = sorted(kind for kind, _ in others)
    scenes = [other.image for kind, other in others if kind == "scene"]
    known = next((other for kind, other in others if kind == "classes"), None)
    if kinds == ["continuous"]:
        return _beside(maps, others[0][1])
    if kinds in (["scene", "scene"], ["classes", "scene", "scene"]):
        return _change(maps, scenes, known)
    if kinds == ["scene"]:
        return _beside_scene(maps, scenes[0])
    if kinds == ["classes"] or (not kinds and len(maps.names) == 1 and maps.meaning(0) == "anomaly"):
        return _scores(maps, known)
    if kinds:
        raise DataError(
            f"{others[0][1].image.path}: beside a map of numbers can be shown another one, its scene, a map of what is "
            f"known, or two scenes with or without such a map; got {', '.join(kinds)}"
        )
    caption = f"Colors span {percentiles(maps.stretch)}; gray pixels hold no number."
    alt = f"{len(maps.names)} maps with color bars: {', '.join(maps.names)}."
    return Picture(continuous_maps(maps.panels(), percentiles=maps.stretch), caption, alt)


def _beside(maps: _Maps, other: Source) -> Picture:
    """Two maps of the same quantity on one scale, and their difference on a scale around zero."""
    ours, path = maps.source.image, other.image.path
    if maps.index[0] >= other.image.shape[0]:
        raise DataError(f"{path}: has no band {maps.index[0]}; expected as many bands as {ours.path}")
    theirs = maps.of(other, maps.index[0])
    difference = maps.values[0] - theirs
    if not np.isfinite(difference).any():
        raise DataError(f"{path}: no pixel has a number both in it and in {ours.path}")
    scale = value_limits(np.stack([maps.values[0], theirs]), maps.stretch)
    spread = float(np.nanpercentile(np.abs(difference), maps.stretch[1])) or 1.0
    panels = [
        maps.panel(0, ours.name, limits=scale),
        maps.panel(0, other.image.name, theirs, scale),
        NumberPanel("difference", difference, "difference", COLORMAPS["difference"], (-spread, spread)),
    ]
    caption = (
        f"{maps.names[0]} of {ours.name} and {other.image.name} on one scale, {percentiles(maps.stretch)} of both; on "
        "the right the first minus the second, pale where they agree."
    )
    alt = f"{maps.names[0]} of both files, and the difference, with color bars."
    return Picture(continuous_maps(panels), caption, alt)


def _beside_scene(maps: _Maps, scene: SpectralImage) -> Picture:
    view, _, _, colors = composite(scene, stretch=maps.stretch, window=maps.window)
    figure = continuous_maps(maps.panels(), pictures=[(scene.name, view)], percentiles=maps.stretch)
    return Picture(figure, f"The scene in {colors}, and its map.", f"The scene, and maps of {', '.join(maps.names)}.")


def _change(maps: _Maps, scenes: list[SpectralImage], known: Source | None) -> Picture:
    """A change map beside the two scenes it was made of, and what it got right where that is known."""
    before, _, limits, colors = composite(scenes[0], stretch=maps.stretch, window=maps.window)
    same = same_values(*scenes)
    after, *_ = composite(scenes[1], stretch=maps.stretch, window=maps.window, limits=limits if same else None)
    uncertain = [one for number, one in enumerate(maps.values) if maps.meaning(number) == "uncertainty"]
    truth = None if known is None else maps.of(known)
    figure = change_overview(
        before, after, maps.values[0], uncertain[0] if uncertain else None, truth, quantity=maps.names[0]
    )
    shared = " with one stretch" if same else ""
    caption = f"Both scenes in {colors}{shared}, and what changed between them; gray pixels hold no number."
    return Picture(figure, caption, "Both scenes, the map of change, and its uncertainty where it is known.")


def _scores(maps: _Maps, known: Source | None) -> Picture:
    """Scores beside their distribution; known targets are outlined, and told apart in it."""
    truth = None if known is None else np.nan_to_num(maps.of(known))
    title = maps.names[0]
    figure = anomaly_map(maps.values[0], truth, title=title, quantity=maps.source.quantity or title)
    outlined = "" if known is None else f" Outlined: the targets of {known.image.name}."
    caption = f"Colors span percentiles 1 to 99.9; gray pixels hold no number.{outlined}"
    return Picture(figure, caption, f"Map of {title}, and how its numbers are distributed.")


def _numbers(values: np.ndarray) -> dict:
    known = values[np.isfinite(values)].astype(float)
    low, middle, high = np.percentile(known, (2, 50, 98))
    return {
        "min": float(known.min()),
        "p2": float(low),
        "median": float(middle),
        "mean": float(known.mean()),
        "p98": float(high),
        "max": float(known.max()),
        "valid": float(np.isfinite(values).mean()),
    }


def _table(numbers: dict[str, dict], step: Step) -> Table:
    columns = ["map", "least", "2nd percentile", "median", "mean", "98th percentile", "largest", "valid (%)"]
    rows = []
    for name, one in numbers.items():
        shown = [f"{value:.4g}" for key, value in one.items() if key != "valid"]
        rows.append([name, *shown, f"{100 * one['valid']:.1f}"])
    return Table(columns, rows, f"Of the pixels shown.{thinning_note(step)}")

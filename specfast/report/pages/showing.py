"""show: whatever a file or folder is, what there is to see of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from specfast.errors import DataError
from specfast.report.kinds import KINDS, RASTERS
from specfast.report.maps import confusion
from specfast.report.pages import classes, continuous, embedding, pretraining, run, scene, table
from specfast.report.pages.exhibit import Exhibit, Picture, Section
from specfast.report.pages.recognition import OF_SCENES, Found, recognize


def show(
    path: str | os.PathLike,
    *,
    kind: str | None = None,
    against: Sequence[str | os.PathLike] = (),
    bands: Sequence[int] | None = None,
    stretch: Sequence[float] = (2.0, 98.0),
    spectra: Sequence[tuple[int, int]] | None = None,
    window: tuple[int, int, int, int] | None = None,
    **options,
) -> Exhibit:
    """Recognize a file or a run's folder and draw it; ``.save(path)`` of the result writes PNG, SVG or HTML.

    Args:
        path: a scene, class map, map of numbers, embedding, table of scores, log, confusion matrix, or the folder of a
            run or of maps.
        kind: one of ``report.kinds.KINDS``, where the caller knows better than the file.
        against: files shown beside it, where both are rasters.
        bands: of a scene, three numbers from 0 shown as red, green and blue; of maps of numbers, those to show.
        stretch: percentiles at the two ends of colors.
        spectra: (row, column) of a scene's pixels whose spectra are shown, at most six; None chooses four.
        window: (row, column, height, width) to show of a raster, at its full resolution as far as the picture has it.
        options: of :func:`specfast.data.open`, for scenes; those that change numbers leave maps and embeddings alone.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is nothing that can be shown, or an option does not fit it.
        ImportError: a format's library, or matplotlib, is not installed; names the extra.
    """
    found = recognize(Path(path), kind, **options)
    _check_options(found, stretch, against=against, bands=bands, spectra=spectra, window=window)
    exhibit = _exhibit(found, [Path(one) for one in against], bands, tuple(stretch), spectra, window, options)
    exhibit.told_by = found.why
    return exhibit


def _exhibit(found: Found, against: Sequence[Path], bands, stretch, spectra, window, options: dict) -> Exhibit:
    if found.kind in RASTERS:
        others = [recognize(one, **options) for one in against]
        for one in others:
            if one.kind not in RASTERS:
                raise DataError(f"{one.path}: is of kind {one.kind}; beside a raster only rasters can be shown")
        given = [name for name in OF_SCENES if options.get(name) is not None]
        if given and all(one.kind != "scene" for one in (found, *others)):
            raise DataError(f"{given[0]}: goes with scene, but {found.path} is of kind {found.kind}")
        return _of_raster(found, others, bands, stretch, spectra, window)
    if found.kind == "pretrain":
        return pretraining.exhibit(found.path)
    if found.kind in ("probe", "finetune"):
        return run.exhibit_of_training(found, {"probe": "Probe", "finetune": "Fine-tuning"}[found.kind])
    if found.kind == "maps":
        return run.exhibit_of_maps(found, stretch)
    if found.kind == "losses":
        return pretraining.exhibit_of_log(found.content, found.path)
    if found.kind == "table":
        return table.exhibit(found.content, found.path)
    matrix, names = found.content
    share = float(matrix.trace() / matrix.sum()) if matrix.sum() else 0.0
    picture = Picture(
        confusion(matrix, names),
        "Rows are true classes, columns predicted ones; each row adds up to 100 percent.",
        f"Confusion matrix of {len(names)} classes.",
    )
    text = f"{int(matrix.sum()):,} pixels, {100 * share:.1f}% of them on the diagonal."
    return Exhibit(
        "confusion",
        found.path.stem,
        f"{len(names)} classes",
        [Section("Confusion matrix", text, [picture])],
        {"classes": names, "overall_accuracy": share},
    )


def _of_raster(found: Found, others: Sequence[Found], bands, stretch, spectra, window) -> Exhibit:
    source, beside = found.source, [(one.kind, one.source) for one in others]
    shape = source.image.shape[1:]
    if window is not None and not (
        window[0] >= 0
        and window[1] >= 0
        and min(window[2:]) >= 1
        and window[0] + window[2] <= shape[0]
        and window[1] + window[3] <= shape[1]
    ):
        raise DataError(f"{found.path}: window {tuple(window)} does not lie inside its {shape[0]} x {shape[1]} pixels")
    common = {"stretch": stretch, "window": window}
    if found.kind == "scene":
        if wrong := [one.path for one in others if one.kind != "scene"]:
            raise DataError(f"{wrong[0]}: is no scene; give the map first, and the scene after --against")
        more = {"others": [one.source for one in others]}
        return scene.exhibit(source, bands=bands, pixels=spectra, **common, **more)
    if found.kind == "continuous":
        return continuous.exhibit(source, bands=bands, others=beside, **common)
    return {"classes": classes, "embedding": embedding}[found.kind].exhibit(source, others=beside, **common)


def _check_options(found: Found, stretch, **given) -> None:
    """Raise DataError for an option that what was found cannot heed: a picture that ignores it would mislead."""
    heeding = {"against": RASTERS, "bands": ("scene", "continuous"), "spectra": ("scene",), "window": RASTERS}
    for name, value in given.items():
        if value and found.kind not in heeding[name]:
            raise DataError(f"{name}: goes with {' or '.join(heeding[name])}, but {found.path} is of kind {found.kind}")
    if found.kind == "scene" and given["bands"] is not None and len(given["bands"]) != 3:
        raise DataError(f"bands: expected three numbers, shown as red, green and blue; got {len(given['bands'])}")
    if not (len(stretch) == 2 and 0 <= stretch[0] < stretch[1] <= 100):
        shown = " ".join(f"{one:g}" for one in stretch)
        raise DataError(f"stretch: expected two ascending percentiles from 0 to 100, got {shown}")


def page(folder: str | os.PathLike, kind: str | None = None) -> Path:
    """Write FOLDER/report.html, a self-contained page of a run or of a folder of maps, and return its path.

    Raises:
        As :func:`show`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {kind!r}")
    return show(folder, kind=kind).save(Path(folder) / "report.html")

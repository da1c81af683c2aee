"""Folders: what fine-tuning and probing wrote, and folders of maps."""

from __future__ import annotations

import json
from pathlib import Path

from specfast.errors import DataError
from specfast.report.pages import classes, continuous, embedding, scene, table
from specfast.report.pages.exhibit import Exhibit, Section
from specfast.report.pages.pretraining import read_log, training_section
from specfast.report.pages.recognition import Found, rasters_in, recognize
from specfast.report.sources import Source, open_source

MOST_MAPS = 8


def exhibit_of_training(found: Found, title: str) -> Exhibit:
    """Show a run of probing or fine-tuning: its table of scores, its training log and its maps, as far as there are."""
    content, folder = found.content or {}, found.path
    file = folder / f"{found.stem}.json"
    scores = table.sections(content, file) if content else []
    settings = [scores.pop()] if scores and scores[-1].title == "Settings" else []
    log = [training_section(read_log(folder / "log.csv"))] if _holds_steps(folder / "log.csv") else []
    maps = [_map_section(path, content) for path in rasters_in(folder)[:MOST_MAPS]]
    model = [] if content else [_model_section(folder / "model")]
    summary = table.summary(table.read_rows(content, file)) if content else {}
    heading = f"{title}: {folder.resolve().name}"
    return Exhibit(
        found.kind, heading, found.stem, [*scores, *log, *maps, *model, *settings], summary, table.verdict(content)
    )


def _holds_steps(log: Path) -> bool:
    """Tell whether a log is there and holds more than its columns' names: a head may be left as it starts."""
    return log.is_file() and log.read_text(encoding="utf-8").count("\n") > 1


def _model_section(folder: Path) -> Section:
    """Return what a saved task model's config.json says of it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        facts = {name: config[name] for name in ("architecture", "head")}
        facts["outputs"] = ", ".join(config["outputs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'config.json'}: is no saved task model ({type(error).__name__}: {error})"
        ) from error
    return Section("Model", facts=facts)


def exhibit_of_maps(found: Found, stretch=(2.0, 98.0)) -> Exhibit:
    """Show every map in a folder, the first eight by name."""
    paths = rasters_in(found.path)
    shown = [_page_of(recognize(path), stretch) for path in paths[:MOST_MAPS]]
    sections = []
    for path, one in zip(paths, shown, strict=False):
        for section in one.sections[:1]:
            sections.append(Section(path.name, one.subtitle, section.pictures, section.tables, section.facts))
    left = f"Shown are the first {MOST_MAPS} of {len(paths)} files." if len(paths) > MOST_MAPS else ""
    summary = {"files": {path.name: one.kind for path, one in zip(paths, shown, strict=False)}}
    return Exhibit("maps", found.path.resolve().name, f"{len(paths)} files", sections, summary, left)


def _page_of(found: Found, stretch) -> Exhibit:
    build = {"scene": scene, "classes": classes, "continuous": continuous, "embedding": embedding}
    if found.kind not in build:
        raise DataError(f"{found.path}: is of kind {found.kind}, which is no raster")
    return build[found.kind].exhibit(found.source, stretch=stretch)


def _map_section(path: Path, content: dict) -> Section:
    """Return a section with one map; a class map stands beside the labels it learned from, if they are still there."""
    found = recognize(path)
    if found.kind != "classes":
        section = _page_of(found, (2.0, 98.0)).sections[0]
        return Section(f"Map {path.stem}", section.text, section.pictures, section.tables)
    names = {int(number): name for number, name in table.class_names(content).items()}
    source = found.source
    source.classes = {**names, **source.classes}
    labels = _labels(source, content)
    shown = classes.exhibit(source, others=[] if labels is None else [("classes", labels)])
    how = str((content.get("settings") or {}).get("class_map") or "")
    text = f"Made by {how}." if how else ""
    if labels is not None:
        text += " It covers all pixels, those it was trained on too."
    return Section(f"Map {path.stem}", text.strip(), shown.sections[0].pictures, shown.sections[0].tables)


def _labels(source: Source, content: dict) -> Source | None:
    """Return the first of the settings' label maps that can be read and has the map's size."""
    named = (content.get("settings") or {}).get("labels")
    for name in named if isinstance(named, list) else [named] if isinstance(named, str) else []:
        try:
            labels = open_source(Path(name), "classes")
        except (DataError, OSError, ImportError):
            continue
        if labels.image.shape == source.image.shape:
            return labels
    return None

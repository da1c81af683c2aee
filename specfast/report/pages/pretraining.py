"""A run of pre-training: how the loss fell, and what the model fills in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from specfast.data import SpectralStore
from specfast.errors import DataError
from specfast.models import SpecAwareMAE
from specfast.report.maps import reconstructions
from specfast.report.pages.exhibit import Exhibit, Picture, Section, Table, plain, words
from specfast.report.pages.scene import QUANTITIES
from specfast.report.plots import SpectrumPanel, band_error, loss_curves, spectra
from specfast.report.reconstruction import MEAN, MODEL, NEAREST, Filled, fill, pictures

_MOST_SENSORS = 3
_SEED = 0  # of the masks
_CURVES = ("step", "loss", "loss_spectral", "loss_charbonnier", "lr")


def read_columns(lines: list[list[str]], path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a log, float64; a last line that was cut off is left out.

    Raises:
        DataError: a line is no row of numbers, or there is none.
    """
    names, *rows = lines
    if rows and len(rows[-1]) != len(names):
        rows.pop()
    try:
        values = np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise DataError(f"{path}: holds a line that is no row of numbers ({error})") from None
    if values.size == 0:
        raise DataError(f"{path}: holds no step yet")
    return dict(zip(names, values.T, strict=True))


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a log.csv; see :func:`read_columns`."""
    text = path.read_text(encoding="utf-8")
    lines = [row for row in csv.reader(text[: text.rfind("\n") + 1].splitlines()) if row]
    if not lines:
        raise DataError(f"{path}: the file is empty")
    return read_columns(lines, path)


def training_section(history: dict[str, np.ndarray], title: str = "Training") -> Section:
    """Return the loss curves and what they come to."""
    loss, steps = history["loss"], history["step"]
    tail = max(1, len(loss) // 20)
    end = float(np.mean(loss[-tail:]))
    known = {name: history[name] for name in _CURVES if name in history}
    facts = {
        "steps logged": f"{len(steps):,}, the last is {int(steps[-1]):,}",
        "loss at first": f"{loss[0]:.4f}",
        "loss at the end": f"{end:.4f}" + (f" (mean of the last {tail} rows)" if tail > 1 else ""),
    }
    if "samples_per_second" in history:
        facts["samples a second"] = f"{np.median(history['samples_per_second']):.1f} (median)"
    if "samples" in history:
        facts["samples seen"] = f"{int(history['samples'][-1]):,}"
    if "seconds" in history:
        facts["training time"] = f"{history['seconds'][-1]:,.0f} s"
    caption = "Loss of each step (faint) and its running mean" + (
        "; below, the learning rate." if "lr" in known else "."
    )
    alt = f"Line chart: the loss goes from {loss[0]:.3g} to {end:.3g} in {int(steps[-1])} steps."
    heading = "Pre-training loss on removed patches" if "loss_spectral" in known else "Training loss"
    return Section(title, pictures=[Picture(loss_curves(known, heading), caption, alt)], facts=facts)


def exhibit_of_log(lines: list[list[str]], path: Path) -> Exhibit:
    """Show a log alone."""
    history = read_columns(lines, path)
    return Exhibit("losses", path.stem, str(path.name), [training_section(history)], _summary(history))


def exhibit(folder: Path) -> Exhibit:
    """Show a run of ``specfast pretrain``, finished or not.

    Reads config.yaml and log.csv; where the model and the stores are there, fills in a tile of up to three sensors.

    Raises:
        DataError: a file of the run is missing or damaged.
    """
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{folder / 'config.yaml'}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.yaml'}: expected the options of a run by name")
    history = read_log(folder / "log.csv")
    done, asked = int(history["step"][-1]), config.get("steps")
    left = f"The run is not finished: {done:,} of {asked:,} steps are done." if asked and done < asked else ""
    sections = [training_section(history), *_reconstruction(folder, config)]
    facts = {words(name): plain(value) for name, value in config.items() if value not in (None, "", [], {})}
    sections.append(Section("Options", facts=facts))
    summary = _summary(history) | {"steps": done, "finished": not left}
    return Exhibit(
        "pretrain", f"Pre-training: {folder.resolve().name}", str(config.get("model", "")), sections, summary, left
    )


def _summary(history: dict[str, np.ndarray]) -> dict:
    return {"step": int(history["step"][-1]), "loss": float(history["loss"][-1])}


def _reconstruction(folder: Path, config: dict) -> list[Section]:
    """Return what the model fills in, or a section that says why there is nothing to see."""
    title = "Reconstruction"
    if not (folder / "model" / "config.json").is_file():
        return [Section(title, "There is no model yet: it is written when the run is finished.")]
    stores = [Path(one) for one in config.get("data") or ()]
    there = [store for store in stores if store.is_dir()]
    if not there:
        missing = ", ".join(map(str, stores)) or "none is named"
        return [
            Section(title, f"The stores it was trained on are not here ({missing}), so there is nothing to fill in.")
        ]
    model = SpecAwareMAE.from_pretrained(folder / "model")
    ratio = float(config.get("mask_ratio") or 0.75)
    examples = _examples(there)
    filled = {name: fill(model, sample, mask_ratio=ratio, seed=_SEED) for name, sample in examples.items()}
    return [_filled_section(title, filled, examples, ratio)]


def _examples(stores: list[Path]) -> dict:
    """Return up to three tiles, one a sensor and level: in each scene's middle, where it is mostly valid."""
    found = {}
    for path in stores:
        store = SpectralStore.open(path)
        by_kind: dict[str, list[int]] = {}
        for index in range(len(store)):
            scene = store.tile(index).scene
            by_kind.setdefault(f"{scene.sensor}, {scene.level}", []).append(index)
        for name, tiles in by_kind.items():
            best = max(store.tile(index).valid_share for index in tiles)
            good = [index for index in tiles if store.tile(index).valid_share >= best]
            found.setdefault(name, store.sample(good[len(good) // 2]))
    return dict(list(found.items())[:_MOST_SENSORS])


def _filled_section(title: str, filled: dict[str, Filled], examples: dict, ratio: float) -> Section:
    waves = {name: examples[name].wavelength.numpy() for name in filled}
    rows = [
        [name, way, f"{100 * one.relative_error(way):.1f}", f"{one.spectral_angle(way):.2f}"]
        for name, one in filled.items()
        for way in (MODEL, NEAREST, MEAN)
    ]
    table = Table(
        ["sensor", "filled with", "relative error (%)", "mean spectral angle (degrees)"],
        rows,
        "Error on removed pixels",
        [number for number, row in enumerate(rows) if row[1] == MODEL],
    )
    panels = [
        SpectrumPanel(
            f"row {row}, column {column}",
            name,
            waves[name],
            {"input": one.original[:, row, column], "reconstruction": one.ways[MODEL][:, row, column]},
        )
        for name, one in filled.items()
        for row, column in _typical(one)
    ]
    levels = {sample.level for sample in examples.values()}
    quantity = QUANTITIES[next(iter(levels))] if len(levels) == 1 else "radiance or reflectance"
    errors = {
        name: (waves[name], {MODEL: one.band_error(MODEL), NEAREST: one.band_error(NEAREST)})
        for name, one in filled.items()
    }
    shown = [
        Picture(
            reconstructions([(name, pictures(one, waves[name])) for name, one in filled.items()]),
            f"A tile of the training data with {ratio:.0%} of its patches removed, all three with the input's stretch. "
            "The removed patches are new; the tile is not.",
            "For each sensor: a tile, the tile with most patches gray, and the tile with these filled in by the model.",
        ),
        Picture(
            spectra(panels, quantity),
            "Two removed pixels of each sensor, with the median and the 90th percentile of the error.",
            "Spectra of removed pixels, the input's and the reconstruction's.",
        ),
        Picture(
            band_error(errors, f"RMS error, {quantity}"),
            "Root mean square error of each band over removed pixels, beside that of the nearest kept pixel.",
            "Line chart of the reconstruction error over wavelength.",
        ),
    ]
    text = (
        "The error is relative: the root of the summed squared differences over that of the summed squares, on removed "
        "pixels. The simple ways know what the model knows, the kept patches of the same window."
    )
    return Section(title, text, shown, [table])


def _typical(filled: Filled) -> list[tuple[int, int]]:
    """Return the removed pixels with the median and the 90th percentile of the model's error."""
    rows, columns = np.nonzero(filled.pixels)
    error = np.square(filled.ways[MODEL] - filled.original).sum(axis=0)[rows, columns]
    order = np.argsort(error, kind="stable")
    chosen = [order[int(share * (len(order) - 1))] for share in (0.5, 0.9)]
    return [(int(rows[i]), int(columns[i])) for i in chosen]

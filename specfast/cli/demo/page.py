"""The demo's report: what was done, what came out, and in words what won."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specfast import report
from specfast.cli.demo.scene import CLASSES, GSD, SOURCE
from specfast.report.maps import class_picture
from specfast.report.reconstruction import MODEL, NEAREST, Filled, pictures

QUANTITY = "radiance (µW cm$^{-2}$ nm$^{-1}$ sr$^{-1}$)"
SHOWN_CLASSES = (14, 11, 2, 5)  # woods, soybean, corn, grass: common, and unlike each other


@dataclass
class Results:
    """All that the page shows.

    Attributes:
        title_facts: name -> value, shown at the end as the run's environment.
        stages: (name, seconds, reused) in order.
        settings: the run's settings as plain values.
        history: columns of the training log.
        wavelengths: sensor -> [C] nm.
        filled: sensor -> Filled.
        errors: sensor -> way -> {"relative_error", "spectral_angle_deg"}.
        labels: [H, W], 0 unlabeled.
        class_map: [H, W] predicted classes; map_how says how, map_test [H, W] which pixels it may be judged on.
        probe: rows with method, kind, classifier, split, labels, group, and values (OA), aa, kappa in percent.
        verdict: what won, in words; notes: what the probe could not do as asked.
    """

    title_facts: dict
    stages: list[tuple[str, float, bool]]
    settings: dict
    history: dict
    wavelengths: dict
    filled: dict[str, Filled]
    errors: dict
    labels: np.ndarray
    class_map: np.ndarray
    map_how: str
    map_test: np.ndarray
    probe: list[dict]
    verdict: str
    notes: list[str]


def shown_pixels(filled: Filled, labels: np.ndarray) -> list[tuple[int, int]]:
    """Return for each shown class the removed pixel whose reconstruction error is the median of its class."""
    labels = labels[: filled.original.shape[1], : filled.original.shape[2]]
    error = np.square(filled.ways[MODEL] - filled.original).sum(axis=0)
    found = []
    for number in SHOWN_CLASSES:
        rows, columns = np.nonzero(filled.pixels & (labels == number))
        if rows.size:
            middle = np.argsort(error[rows, columns], kind="stable")[rows.size // 2]
            found.append((int(rows[middle]), int(columns[middle])))
    return found


def spectrum_panel(results: Results, sensor: str, pixel: tuple[int, int]) -> report.SpectrumPanel:
    """Original and reconstructed spectrum of one pixel."""
    row, column = pixel
    filled = results.filled[sensor]
    return report.SpectrumPanel(
        title=f"{CLASSES[results.labels[row, column] - 1]} (row {row}, column {column})",
        sensor=sensor,
        wavelength=results.wavelengths[sensor],
        lines={"input": filled.original[:, row, column], "reconstruction": filled.ways[MODEL][:, row, column]},
    )


def overview(results: Results):
    """The picture for a README."""
    sensor = next(iter(results.filled))
    group = results.probe[-1]["group"]
    pixel = shown_pixels(results.filled[sensor], results.labels)[0]
    images = pictures(results.filled[sensor], results.wavelengths[sensor])
    images.append(("ground truth", class_picture(results.labels, len(CLASSES))))
    images.append(
        ("from frozen features", class_picture(np.where(results.labels > 0, results.class_map, 0), len(CLASSES)))
    )
    simplest = results.probe[0]["classifier"]
    rows = [
        row
        for row in results.probe
        if row["group"] == group and (row["kind"] == "baseline" or row["classifier"] == simplest)
    ]
    return report.overview(images, spectrum_panel(results, sensor, pixel), QUANTITY, rows, f"Probe: {group}")


def build(results: Results) -> report.Report:
    """Return the whole page."""
    page = report.Report("SpecAware on Indian Pines", "What a small model learned from one scene, seen by two sensors")
    page.callout(results.verdict.replace("\n", "\n\n"))
    if results.settings["quick"]:
        page.callout("This was a --quick run: it shows that the parts work together. Its numbers mean nothing.")
    page.text(
        f"The scene is {SOURCE}: 145 x 145 pixels of {GSD:g} m. "
        "It is used as two sensors would have seen it: in the 200 recorded bands, and resampled to the bands of EnMAP. "
        "One model was pre-trained on both together, without labels. The numbers below come from this run."
    )
    _training(page, results)
    _reconstruction(page, results)
    _map(page, results)
    _probe(page, results)
    _run(page, results)
    return page


def _training(page, results: Results) -> None:
    settings, history = results.settings, results.history
    bands = "all bands of" if settings["bands"] is None else f"{settings['bands']} bands drawn at random from"
    page.section("Pre-training")
    page.text(
        f"A tiny SpecAware masked autoencoder, trained for {settings['steps']:,} steps of {settings['batch_size']} "
        f"crops of {settings['crop']} x {settings['crop']} pixels, each with {bands} "
        "either sensor. Three quarters of the patches are removed; the loss compares what the model puts in "
        "their place with what was there: one minus the cosine of "
        "the spectra, plus twice the Charbonnier distance in radiance. Encoder and decoder start from random weights; "
        "those of the factor generators are drawn with a larger spread than published, without which so short a run "
        "learns only the mean spectrum."
    )
    last = float(np.mean(history["loss"][-max(1, len(history["loss"]) // 20) :]))
    page.figure(
        report.loss_curves(
            {name: history[name] for name in ("step", "loss", "loss_spectral", "loss_charbonnier", "lr")}
        ),
        "Loss of each step (faint) and its running mean; below, the learning rate.",
        f"Line chart: the training loss falls from {history['loss'][0]:.2f} to {last:.2f} "
        f"over {len(history['loss'])} steps.",
    )


def _reconstruction(page, results: Results) -> None:
    page.section("Reconstruction")
    shown = {sensor: pictures(filled, results.wavelengths[sensor]) for sensor, filled in results.filled.items()}
    page.text(
        f"{_reconstruction_verdict(results.errors)} The error is relative: the root of the summed squared differences "
        "over that of the summed squares, on removed pixels. The simple ways know what the model knows, the kept "
        "patches of the same window. The scene is the one the model was trained on; the removed patches are new."
    )
    page.table(
        ["sensor", "filled with", "relative error (%)", "mean spectral angle (degrees)"],
        [
            [sensor, way, f"{100 * error['relative_error']:.1f}", f"{error['spectral_angle_deg']:.2f}"]
            for sensor, ways in results.errors.items()
            for way, error in ways.items()
        ],
        "Error on removed pixels",
        marked=[i for i, way in enumerate([w for ways in results.errors.values() for w in ways]) if way == MODEL],
    )
    page.figure(
        report.reconstructions(list(shown.items())),
        "Natural color, all three with the input's 2-98% stretch. Kept patches are shown as they were.",
        "For each sensor three pictures: the scene, the scene with three quarters of its patches gray, and the scene "
        "with those patches filled in by the model.",
    )
    pixels = shown_pixels(next(iter(results.filled.values())), results.labels)
    panels = [spectrum_panel(results, sensor, pixel) for pixel in pixels for sensor in results.filled]
    page.figure(
        report.spectra(panels, QUANTITY),
        "Removed pixels, neither the best nor the worst: each has the median error of its class (chosen on the first "
        "sensor). Gray: no band there.",
        "Spectra of removed pixels, the input's and the reconstruction's, for both sensors.",
    )
    errors = {
        sensor: (
            results.wavelengths[sensor],
            {"SpecAware": filled.band_error(MODEL), NEAREST: filled.band_error(NEAREST)},
        )
        for sensor, filled in results.filled.items()
    }
    page.figure(
        report.band_error(errors, f"RMS error, {QUANTITY}"),
        "Root mean square error of each band over removed pixels.",
        "Line chart of reconstruction error over wavelength for both sensors, beside the error of the nearest pixel.",
    )


def _reconstruction_verdict(errors: dict) -> str:
    parts = []
    for sensor, ways in errors.items():
        own = ways[MODEL]["relative_error"]
        name, best = min(((n, e["relative_error"]) for n, e in ways.items() if n != MODEL), key=lambda each: each[1])
        word = "better than" if own < 0.98 * best else "worse than" if own > 1.02 * best else "about as good as"
        parts.append(f"{sensor}: {100 * own:.1f}%, {word} the {name} ({100 * best:.1f}%)")
    return f"How far the filled-in pixels are off: {'; '.join(parts)}."


def _map(page, results: Results) -> None:
    page.section("Class map")
    where = results.labels > 0
    right = results.map_test & (results.class_map == results.labels)
    page.text(
        f"Made by {results.map_how}, field-disjoint. Of the {results.map_test.sum():,} pixels of fields that it was "
        f"not trained on, {100 * right.sum() / results.map_test.sum():.1f}% are right. The map shows all labeled "
        "pixels, those it was trained on too."
    )
    page.figure(
        report.class_maps(
            [("ground truth", results.labels), ("from frozen features", np.where(where, results.class_map, 0))],
            CLASSES,
            counts=np.bincount(results.labels.ravel(), minlength=len(CLASSES) + 1)[1:],
        ),
        "Ground truth and predicted classes; in brackets the number of labeled pixels.",
        "Two class maps of the scene side by side, with a legend of 16 classes.",
    )
    matrix = np.zeros((len(CLASSES), len(CLASSES)), dtype=int)
    np.add.at(matrix, (results.labels[results.map_test] - 1, results.class_map[results.map_test] - 1), 1)
    page.figure(
        report.confusion(matrix, CLASSES, "Test pixels"),
        "Which classes are taken for which, test pixels only.",
        "Confusion matrix of 16 classes; each row adds up to 100 percent.",
    )


def _probe(page, results: Results) -> None:
    page.section("Probe")
    page.text(
        "How much do frozen features help to tell classes apart? Few labels a class train a simple classifier, all "
        "other labeled pixels test it. Random pixels: test pixels lie beside training pixels of the same field, so "
        "the number mostly measures how well a method remembers a field. Field-disjoint: whole fields are either "
        "trained or tested on, so it measures how well a method knows a crop. Controls share everything with the "
        "features but the training: the random encoder has fresh weights of the kind that pre-training started from. "
        "Training settings were chosen by the training loss. How features are made of tokens was chosen by comparing a "
        "few ways on other divisions of the same labeled pixels, and two of them on those shown, so the rows with "
        "features lean to the optimistic side. Pre-training saw all pixels, but no label."
    )
    page.figure(
        report.probe_chart(results.probe),
        "Mean over seeds (marker), one standard deviation to each side (line), and single seeds (ticks).",
        "Dot chart of overall accuracy for each method and split; the numbers are in the table below.",
    )
    columns = ["split", "labels", "method", "what it is", "OA (%)", "AA (%)", "kappa x 100"]
    rows = [
        [
            row["split"],
            row["labels"],
            row["method"],
            row["kind"],
            _spread(row["values"]),
            _spread(row["aa"]),
            _spread(row["kappa"]),
        ]
        for row in results.probe
    ]
    best = [
        max(
            (i for i, row in enumerate(results.probe) if row["group"] == group),
            key=lambda i: np.mean(results.probe[i]["values"]),
        )
        for group in dict.fromkeys(row["group"] for row in results.probe)
    ]
    if results.notes:
        page.text("\n\n".join(f"{note[0].upper()}{note[1:]}." for note in results.notes))
    page.table(columns, rows, "Mean ± standard deviation over seeds; the best of each split stands out.", marked=best)


def _spread(values, digits: int = 1) -> str:
    values = np.asarray(values, dtype=float)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if values.size > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _run(page, results: Results) -> None:
    page.section("This run")
    rows = [
        [name, f"{seconds:.1f}", "found finished" if reused else "done now"] for name, seconds, reused in results.stages
    ]
    rows.append(["all", f"{sum(seconds for _, seconds, _ in results.stages):.1f}", ""])
    page.table(["stage", "seconds", ""], rows, "Time of each stage when it was done")
    page.facts(results.title_facts)


def save_overview(results: Results, path: Path) -> Path:
    """Write the overview as PNG."""
    from specfast.files import write_atomic
    from specfast.report.montage import DPI
    from specfast.report.style import to_png

    return write_atomic(path, to_png(overview(results), DPI))

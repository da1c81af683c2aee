"""python -m bench.scenes: megapixels a second and peak memory of mapping whole scenes, by kind of map and by length.

Scenes are ENVI flightlines of 16-bit random numbers (the longest of zeros, which take no room on disk) in a temporary
folder; maps are written as GeoTIFF. Every row goes to bench/results/scenes/<device>.json once it is measured;
``--docs`` writes the table of docs/scenes.md from there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.machine import ROOT, slug, versions
from bench.memory import peak_memory
from bench.results import FOLDER, ResultFile, read_rows
from bench.table import machine, replaced, table
from bench.timing import quantiles
from specfast.data import SpectralImage
from specfast.data import open as open_scene
from specfast.files import write_atomic
from specfast.infer import EmbedPredictor, Predictor, ScorePredictor, SegmentPredictor, fit_scorer, map_scene
from specfast.models import create_model
from specfast.tasks.anomaly import anomaly_scorer

BANDS, SAMPLES = 202, 600
SPARSE = 100_000  # lines
RESULTS = FOLDER / "scenes"
TITLES = {
    "copy": "two bands copied: reading and writing only",
    "rx": "RX, two passes",
    "embed": "features of patches",
    "segment": "12 classes and their probabilities",
}


@dataclass(frozen=True)
class Case:
    """One row: what is mapped, with which model, from a flightline of so many lines."""

    kernel: str
    lines: int
    model: str = ""
    dtype: str = "float32"
    compiled: bool = False
    runs: int = 1


def cases(device: torch.device, *, quick: bool) -> Iterator[Case]:
    """Short ones first. Long flightlines show what memory depends on."""
    if quick:
        yield Case("copy", 300)
        yield Case("segment", 64, "specaware_tiny_patch8")
        return
    for kernel in ("copy", "rx"):
        for lines in (500, 5_000):
            yield Case(kernel, lines, runs=3 if lines == 500 else 1)
    yield Case("copy", SPARSE)
    models = ("specaware_tiny_patch8", "specaware_base_patch8")
    for model in models:
        lines = 448 if device.type == "cpu" else 4_480
        for dtype in ("float32", "bfloat16"):
            for compiled in (False,) if device.type == "cpu" else (False, True):
                yield Case("embed", lines, model, dtype, compiled, runs=3)
    for lines in (448, 4_480):
        yield Case("segment", lines, models[0])


class Copy(Predictor):
    """Two bands as they are."""

    outputs = ("first", "second")
    overlap, identity = 0.25, "copy"

    def __call__(self, samples):
        return torch.stack([sample.image[:2] for sample in samples])


def flightline(folder: Path, lines: int) -> SpectralImage:
    """An ENVI file, interleaved by line, of the same random lines again and again; from SPARSE lines on of zeros."""
    block = np.random.default_rng(0).integers(1, 9000, (64, BANDS, SAMPLES)).astype("<i2")
    path = folder / f"flightline{lines}.img"
    with path.open("wb") as file:
        if lines >= SPARSE:
            file.truncate(lines * block[0].nbytes)
        else:
            for start in range(0, lines, len(block)):
                file.write(block[: lines - start].tobytes())
    header = {"samples": SAMPLES, "lines": lines, "bands": BANDS, "header offset": 0, "data type": 2, "byte order": 0}
    header |= {"interleave": "bil", "wavelength units": "Nanometers"}
    header["wavelength"] = "{" + ", ".join(f"{value:.1f}" for value in np.linspace(400, 2450, BANDS)) + "}"
    header["fwhm"] = "{" + ", ".join(["9"] * BANDS) + "}"
    path.with_suffix(".hdr").write_text("ENVI\n" + "".join(f"{key} = {value}\n" for key, value in header.items()))
    return open_scene(path, gsd=5.0, sensor="avng", level="L2", scale=1e4)


def measure(case: Case, device: torch.device, folder: Path) -> dict:
    """Map the scene of a case as often as it says; the row."""
    image = flightline(folder, case.lines)
    job = _job(case, image, device, folder / "map.tif")
    if case.compiled:
        job()  # compiles
    seconds, result = [], None
    with peak_memory(device) as peak:
        for _ in range(case.runs):
            result = job()
            seconds.append(result["seconds"])
    for path in folder.iterdir():
        path.unlink()
    p20, p50, p80 = quantiles(seconds)
    megapixels = case.lines * SAMPLES / 1e6
    return {
        "unit": "scene",
        "kernel": case.kernel,
        "mode": case.model or "none",
        "shape": f"C{BANDS}-{case.lines}x{SAMPLES}",
        "dtype": case.dtype,
        "provider": "specfast-compile" if case.compiled else "specfast",
        "lines": case.lines,
        "window": result["window"],
        "overlap": result["overlap"],
        "p20_ms": round(1e3 * p20, 1),
        "p50_ms": round(1e3 * p50, 1),
        "p80_ms": round(1e3 * p80, 1),
        "runs": case.runs,
        "megapixels_per_s": float(f"{megapixels / p50:.4g}"),
        "peak_memory": peak.bytes,
        **versions(device),
    }


def _job(case: Case, image: SpectralImage, device: torch.device, out: Path):
    predictor = None if case.kernel == "rx" else _predictor(case, device)

    def run() -> dict:
        start = time.perf_counter()
        used = predictor or ScorePredictor(fit_scorer(anomaly_scorer("rx"), image), identity="rx")
        map_scene(image, used, out, probabilities=case.kernel == "segment")
        return {"seconds": time.perf_counter() - start, "window": used.window, "overlap": used.overlap}

    return run


def _predictor(case: Case, device: torch.device) -> Predictor:
    if case.kernel == "copy":
        return Copy()
    torch.manual_seed(0)
    options = {"bf16": case.dtype == "bfloat16", "compile": case.compiled}
    if case.kernel == "embed":
        return EmbedPredictor(create_model(case.model, task="encoder").to(device), **options)
    outputs = tuple(f"class {number}" for number in range(12))
    return SegmentPredictor(create_model(case.model, task="segmentation", outputs=outputs).to(device), **options)


def document(root: Path = ROOT, results: Path = RESULTS) -> dict[Path, str]:
    """Path and new content of docs/scenes.md."""
    path = root / "docs" / "scenes.md"
    return {path: replaced(path, details(results), "bench.scenes")}


def details(results: Path) -> str:
    """A table a device."""
    parts = []
    for path in sorted(results.glob("*.json")):
        rows = read_rows(path)
        body = [
            [
                f"{TITLES[row['kernel']]}{_with(row)}",
                f"{row['lines']:,}",
                f"{row['megapixels_per_s']:.3g}",
                f"{row['peak_memory'] / 1e6:,.0f} MB",
            ]
            for row in rows
        ]
        parts.append(f"{machine(rows)}:\n\n{table(['map', 'lines', 'megapixels/s', 'peak memory'], body)}")
    return "\n\n".join(parts) or "Nothing has been measured yet: `python -m bench.scenes`."


def _with(row: dict) -> str:
    named = [] if row["mode"] == "none" else [row["mode"], "bf16" if row["dtype"] == "bfloat16" else row["dtype"]]
    compiled = ["compiled"] if row["provider"].endswith("-compile") else []
    return "".join(f", {word}" for word in [*named, *compiled])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scenes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, into runs/bench/scenes: tries the tool")
    parser.add_argument("--kernels", nargs="+", choices=TITLES, help="only these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder of the result files (bench/results/scenes)")
    parser.add_argument("--docs", action="store_true", help="measure nothing; write the table of docs/scenes.md")
    args = parser.parse_args(argv)
    if args.docs:
        for path, text in document().items():
            write_atomic(path, text.encode())
        return 0
    device = torch.device(args.device)
    folder = args.out or (Path("runs", "bench", "scenes") if args.quick else RESULTS)
    results = ResultFile(folder / f"{slug(device)}.json")
    for case in cases(device, quick=args.quick):
        if args.kernels and case.kernel not in args.kernels:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            row = measure(case, device, Path(temporary))
        results.add([row])
        print(
            f"{row['kernel']:8} {row['mode']:22} {row['shape']:18} {row['dtype']:8} {row['provider']:17}"
            f"{row['megapixels_per_s']:9.3g} megapixels/s {(row['peak_memory'] or 0) / 1e6:9.0f} MB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

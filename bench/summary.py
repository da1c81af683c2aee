"""What tables and figures are made of: rows by device, picked, related and fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bench.plan import SUITES
from bench.results import FOLDER, key, read_rows

# kernels a user meets, in the order they are shown: (unit, kernel, mode) and what to call it
HEADLINE = {
    ("module", "hyper_embed", "full"): "`hyper_embed`, from condition and image to tokens",
    ("module", "hyper_linear_loss", "full"): "`hyper_linear_loss`, from condition and tokens to the loss",
    ("step", "training_step", "full"): "whole training step",
    ("inference", "encoder", "forward"): "encoder, inference",
}
LOWER_BOUND = "conv2d"
LABELS = {
    "reference": "published form",
    "reference-compile": "published form, torch.compile",
    "reassociated": "re-associated, plain PyTorch",
    "specfast": "specfast",
    "specfast-compile": "specfast, torch.compile",
    "specfast-eager": "specfast, eager backend",
    "specfast-triton": "specfast, Triton",
    "specfast-cuda": "specfast, CUDA",
    "conv2d": "Conv2d for fixed bands, all patches",
}
AXES = {"bands": "bands C", "patches": "patches N", "batch": "samples B"}


@dataclass(frozen=True)
class Line:
    """One provider's times along an axis, and the slope of their logarithms."""

    kernel: str
    provider: str
    axis: str
    values: tuple[int, ...]
    milliseconds: tuple[float, ...]

    @property
    def slope(self) -> float:
        x, y = ([math.log(v) for v in values] for values in (self.values, self.milliseconds))
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        spread = sum((a - mean_x) ** 2 for a in x)
        return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def devices(folder: Path = FOLDER) -> dict[str, list[dict]]:
    """Rows by the device's name in the files: cpu, nvidia-h200, ..."""
    found: dict[str, dict[tuple, dict]] = {}
    for path in sorted(folder.glob("*.json")):
        name = path.stem
        if name.startswith("network-"):  # no device; bench.network.report reads them
            continue
        for suite in SUITES:
            name = name.removesuffix(f"-{suite}")
        rows = read_rows(path)
        found.setdefault(name, {}).update((key(row), row) for row in rows)
    return {name: list(rows.values()) for name, rows in found.items() if rows}


def timed(rows: list[dict], **named) -> list[dict]:
    """Rows with a time, and with these values."""
    return [row for row in rows if "p50_ms" in row and all(row[name] == value for name, value in named.items())]


def one(rows: list[dict], **named) -> dict | None:
    """The row with these values, or None."""
    return next(iter(timed(rows, **named)), None)


def usual(rows: list[dict], unit: str, kernel: str, mode: str, dtype: str) -> list[dict]:
    """Rows at the batch and image size that most rows of this kernel have, without those of the scaling runs."""
    rows = timed(rows, unit=unit, kernel=kernel, mode=mode, dtype=dtype)
    if not rows:
        return []
    largest = max(row["patches"] for row in rows)
    rows = [row for row in rows if row["patches"] == largest]
    bands = {row["batch"]: {other["bands"] for other in rows if other["batch"] == row["batch"]} for row in rows}
    batch = max(bands, key=lambda batch: (len(bands[batch]), batch))
    return [row for row in rows if row["batch"] == batch]


def dtypes(rows: list[dict]) -> list[str]:
    """Dtypes with rows, widest first."""
    return [name for name in ("float32", "bfloat16", "float16") if any(row["dtype"] == name for row in rows)]


def speedup(row: dict, base: dict | None) -> float | None:
    """How many times as fast as the base."""
    return base["p50_ms"] / row["p50_ms"] if base else None


def lines(rows: list[dict]) -> list[Line]:
    """Times along each axis where at least three sizes were measured with the other two fixed."""
    found = []
    rows = timed(rows, unit="module", mode="full")
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        for provider in ("reference", "specfast"):
            for dtype in dtypes(rows):
                mine = timed(rows, kernel=kernel, provider=provider, dtype=dtype)
                for axis in AXES:
                    if points := _longest(mine, axis):
                        values, times = zip(*points, strict=True)
                        found.append(Line(kernel, provider, axis, values, times))
    return list({(line.kernel, line.provider, line.axis): line for line in reversed(found)}.values())[::-1]


def _longest(rows: list[dict], axis: str) -> list[tuple[int, float]]:
    groups: dict[tuple, dict[int, float]] = {}
    for row in rows:
        others = tuple(row[name] for name in AXES if name != axis)
        groups.setdefault(others, {})[row[axis]] = row["p50_ms"]
    best = max(groups.values(), key=lambda group: (len(group), max(group) / min(group)), default={})
    return sorted(best.items()) if len(best) >= 3 else []

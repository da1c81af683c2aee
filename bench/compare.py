"""python -m bench.compare A B: what became slower, larger or wrong from one result file to another.

Rows with the same unit, kernel, mode, shape, dtype and provider are compared. Exit code 1 if a time or a peak memory
grew by more than the threshold, or a row failed that did not before. Times of another device, or of a machine whose
measured peaks differ, say little: such a difference is named first.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.results import KEY, key, read_rows

SPREAD = 3.0  # a change within so many times the spread (p20 to p80) of both measurements is noise
LEAST_BYTES = 2**20  # smaller growth of memory is nobody's concern


@dataclass(frozen=True)
class Change:
    """One row that changed: what, by which ratio, and whether for the worse."""

    row: tuple
    what: str
    ratio: float
    worse: bool

    def __str__(self) -> str:
        sign = "WORSE " if self.worse else "better"
        return f"{sign} {self.what:12} x{self.ratio:<6.2f} {' '.join(self.row)}"


def compare(before: list[dict], after: list[dict], threshold: float) -> list[Change]:
    """Return the changes beyond the threshold (0.1: ten percent), worst first."""
    old = {key(row): row for row in before}
    changes = []
    for row in after:
        was = old.get(key(row))
        if was is None:
            continue
        if "failed" in row and "failed" not in was:
            changes.append(Change(key(row), f"failed: {row['failed']}", float("inf"), True))
        if "p50_ms" in row and "p50_ms" in was:
            ratio = row["p50_ms"] / was["p50_ms"]
            noise = SPREAD * max(_spread(row), _spread(was))
            if abs(ratio - 1) > max(threshold, min(noise, 0.5)):
                changes.append(Change(key(row), "p50", ratio, ratio > 1))
        if row.get("peak_memory") and was.get("peak_memory"):
            ratio = row["peak_memory"] / was["peak_memory"]
            if abs(ratio - 1) > threshold and abs(row["peak_memory"] - was["peak_memory"]) > LEAST_BYTES:
                changes.append(Change(key(row), "peak memory", ratio, ratio > 1))
    return sorted(changes, key=lambda change: (not change.worse, -abs(change.ratio - 1)))


def differences_of_machine(before: list[dict], after: list[dict]) -> list[str]:
    """What else changed between the two files, a line each."""
    found = []
    for name in ("device", "threads", "torch", "specfast", "commit"):
        one, other = ({str(row.get(name)) for row in rows} for rows in (before, after))
        if one != other:
            found.append(f"{name}: {', '.join(sorted(one))} -> {', '.join(sorted(other))}")
    for name in ("peak_tflops", "peak_gbs"):
        one, other = (max((row.get(name, 0) for row in rows), default=0) for rows in (before, after))
        if one and abs(other / one - 1) > 0.1:
            found.append(f"{name}: {one:g} -> {other:g}; the machine was not as quiet, or is another")
    return found


def _spread(row: dict) -> float:
    return (row["p80_ms"] - row["p20_ms"]) / row["p50_ms"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=0.1, help="relative growth that counts (0.1)")
    args = parser.parse_args(argv)
    for path in (args.before, args.after):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    before, after = read_rows(args.before), read_rows(args.after)
    shared = {key(row) for row in before} & {key(row) for row in after}
    if not shared:
        parser.error(f"the files have no row in common ({', '.join(KEY)})")
    for text in differences_of_machine(before, after):
        print(text)
    changes = compare(before, after, args.threshold)
    for change in changes:
        print(change)
    worse = sum(change.worse for change in changes)
    print(f"{len(shared)} rows compared: {worse} worse, {len(changes) - worse} better")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.table: write the performance tables of README.md and docs/performance.md from bench/results.

What stands between the markers is made here and nowhere else; a test holds that the files equal what this makes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.machine import ROOT
from bench.plot import figures_of
from bench.results import FOLDER
from bench.summary import AXES, HEADLINE, LABELS, LOWER_BOUND, devices, dtypes, lines, one, speedup, timed, usual
from specfast.files import write_atomic

WITHIN_NOISE = 1.03  # a forced backend that is the default one, too, is as fast but for noise
BEGIN, END = "<!-- begin: made by python -m {} -->", "<!-- end -->"


def documents(root: Path = ROOT, results: Path = FOLDER) -> dict[Path, str]:
    """Path and new content of every file with markers."""
    by_device = devices(results)
    made = {root / "README.md": headline(by_device), root / "docs" / "performance.md": details(by_device)}
    return {path: replaced(path, text, "bench.table") for path, text in made.items()}


def replaced(path: Path, text: str, maker: str) -> str:
    """The document with ``text`` between the markers that name the module that makes it."""
    begin = BEGIN.format(maker)
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(END), re.DOTALL)
    document = path.read_text(encoding="utf-8")
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"{path.name}: expected {begin!r} once, and {END!r} after it")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{END}", document)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    head = list(head)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *map(list, rows)))


def headline(by_device: dict[str, list[dict]]) -> str:
    """For the README: times and speed-ups over the published form, a table a device."""
    parts = []
    for rows in by_device.values():
        body = []
        bands = sorted({row["bands"] for kernel in HEADLINE for d in dtypes(rows) for row in usual(rows, *kernel, d)})
        for dtype in dtypes(rows):
            for kernel, title in HEADLINE.items():
                here = usual(rows, *kernel, dtype)
                cells = [_against(here, count) for count in bands]
                if any(cells):
                    body.append([f"{title}, {_short(dtype)}", *cells, _memory(here)])
        if body:
            head = [machine(rows), *(f"C {count}" for count in bands), "peak memory"]
            parts.append(table(head, body))
    if not parts:
        return "Nothing has been measured yet: `python -m bench`, then `python -m bench.table`."
    return "\n\n".join(parts)


def details(by_device: dict[str, list[dict]]) -> str:
    """For docs/performance.md: every kernel, provider and size, figures, slopes, and where we lose."""
    parts = []
    for device, rows in by_device.items():
        parts.append(f"## {machine(rows)}\n\n{provenance(rows)}")
        for name, caption in figures_of(rows).items():
            parts.append(f"![{caption}](images/performance/{device}-{name}.png)")
        for unit, title in (
            ("module", "Modules: operators with their generators"),
            ("operator", "Operators"),
            ("step", "Training step"),
            ("inference", "Encoder inference"),
        ):
            if text := _unit_table(rows, unit):
                parts.append(f"### {title}\n\n{text}")
        if text := _slopes(rows):
            parts.append(f"### Growth\n\n{text}")
        parts.append(f"### Where specfast loses\n\n{_losses(rows)}")
        if failed := [row for row in rows if "failed" in row]:
            listed = "\n".join(f"- {_name(row)}, {row['provider']}: {row['failed']}" for row in failed)
            parts.append(f"### Not measured\n\n{listed}")
    return "\n\n".join(parts) if parts else "Nothing has been measured yet."


def machine(rows: list[dict]) -> str:
    """The device in words."""
    row = rows[0]
    threads = f", {row['threads']} threads" if "cuda" not in row else ""
    return f"{row['device']}{threads}"


def provenance(rows: list[dict]) -> str:
    """What the numbers were made with, and the peaks they are related to."""
    row = rows[0]
    rates = ", ".join(
        f"{_peak(timed(rows, dtype=dtype), 'peak_tflops'):.3g} TFLOP/s in {dtype}" for dtype in dtypes(timed(rows))
    )
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"torch {row['torch']}, specfast {row['specfast']} at commit {commits}. Measured peaks: {rates}, "
        f"{_peak(rows, 'peak_gbs'):.3g} GB/s of copying (read and written bytes together)."
    )


def _peak(rows: list[dict], name: str) -> float:
    return max(row[name] for row in rows)


def _against(rows: list[dict], bands: int) -> str:
    ours, base = (one(rows, bands=bands, provider=name) for name in ("specfast", "reference"))
    if not ours:
        return ""
    ratio = speedup(ours, base)
    return _time(ours["p50_ms"]) + (f" ({ratio:.1f}x)" if ratio else "")


def _memory(rows: list[dict]) -> str:
    """Ours over the published form's at the middle band count."""
    bands = sorted({row["bands"] for row in rows})
    middle = bands[len(bands) // 2]
    ours, base = (one(rows, bands=middle, provider=name) for name in ("specfast", "reference"))
    if not (ours and base and ours["peak_memory"] and base["peak_memory"]):
        return ""
    return f"{100 * ours['peak_memory'] / base['peak_memory']:.0f}% at C {middle}"


def _unit_table(rows: list[dict], unit: str) -> str:
    mine = timed(rows, unit=unit)
    body, done = [], set()
    for row in sorted(mine, key=lambda row: (row["dtype"] != "float32", row["kernel"], row["mode"], row["bands"])):
        named = {name: row[name] for name in ("kernel", "mode", "shape", "dtype")}
        if tuple(named.values()) in done:
            continue
        done.add(tuple(named.values()))
        if unit == "module" and row["shape"] not in _shown_shapes(mine):
            continue  # of the scaling runs: in the figure
        group = [other for other in mine if all(other[name] == value for name, value in named.items())]
        base = one(group, provider="reference")
        for other in group:
            ratio = speedup(other, base)
            memory, floor = other["peak_memory"], other.get("percent_of_floor")
            body.append(
                [
                    f"{other['kernel']}, {other['mode']}, {other['shape']}, {_short(other['dtype'])}",
                    LABELS.get(other["provider"], other["provider"]),
                    _time(other["p50_ms"]),
                    f"{_time(other['p20_ms'])} to {_time(other['p80_ms'])}",
                    f"{ratio:.2f}x" if ratio else "",
                    f"{floor:.0f}%" if floor else "",
                    "" if memory is None else f"{memory / 1e6:.0f} MB",
                    f"{other['relative_error']:.0e}" if "relative_error" in other else "",
                    f"{other['samples_per_s']:.3g}",
                ]
            )
    head = ("row", "provider", "median", "p20 to p80", "speed-up", "of the floor", "peak memory", "error", "samples/s")
    return table(head, body) if body else ""


def _shown_shapes(rows: list[dict]) -> set[str]:
    kinds = {(row["unit"], row["kernel"], row["mode"], row["dtype"]) for row in rows}
    return {row["shape"] for kind in kinds for row in usual(rows, *kind)}


def _slopes(rows: list[dict]) -> str:
    body = [
        [
            f"{line.kernel}, {AXES[line.axis]}",
            LABELS[line.provider],
            f"{line.values[0]} to {line.values[-1]}",
            f"{line.slope:.2f}",
        ]
        for line in lines(rows)
    ]
    head = ("module and axis", "provider", "range", "log-log slope")
    return table(head, body) if body else ""


def _losses(rows: list[dict]) -> str:
    """Rows in which another provider, a backend that is not chosen by default included, is faster than specfast."""
    found = []
    for row in timed(rows, provider="specfast"):
        names = ("unit", "kernel", "mode", "shape", "dtype", "batch")
        for other in timed(rows, **{name: row[name] for name in names}):
            if other["provider"] != LOWER_BOUND and other["p50_ms"] < row["p50_ms"] / WITHIN_NOISE:
                ratio = row["p50_ms"] / other["p50_ms"]
                name = LABELS.get(other["provider"], other["provider"])
                found.append((ratio, f"- {_name(row)}: {name} is {ratio:.2f} times as fast"))
    return "\n".join(text for _, text in sorted(found, reverse=True)) or "In no row of this file."


def _name(row: dict) -> str:
    return f"{row['unit']} {row['kernel']}, {row['mode']}, {row['shape']}, {_short(row['dtype'])}"


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)


def _time(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.3g} ms"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file would change")
    args = parser.parse_args(argv)
    stale = [path for path, text in documents().items() if path.read_text(encoding="utf-8") != text]
    if args.check:
        for path in stale:
            print(f"{path.name} is not what bench/results gives: run python -m bench.table")
        return 1 if stale else 0
    for path, text in documents().items():
        write_atomic(path, text.encode())
    print("\n".join(f"wrote {path.relative_to(ROOT)}" for path in stale) or "nothing changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

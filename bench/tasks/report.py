"""python -m bench.tasks.report: tables of bench/results/tasks in Markdown, and what was asked of them.

With --write they go into docs/tasks.md and README.md, between the markers and nowhere else, and the charts to
docs/images/tasks; a test holds that the documents equal it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.machine import ROOT
from bench.results import FOLDER
from bench.table import replaced, table
from specfast.files import write_atomic

RESULTS = FOLDER / "tasks"
MAKER = "bench.tasks.report"
FIGURES = Path("docs", "images", "tasks")
TITLES = {
    "indian-pines": "Indian Pines",
    "indian-pines-tr-te": "Indian Pines, TR/TE maps",
    "indian-pines-disjoint": 'Indian Pines, published "disjoint" map',
    "enmap": "EnMAP Potsdam",
    "enmap-csv": "EnMAP Potsdam, csv split",
    "change": "Change, made-up second date of Indian Pines",
    "anomaly": "Anomalies, MUUFL sub-scene",
}
SEGMENTATION = tuple(TITLES)[:5]
#: what was asked: case, split, labels a class (0: a given division), OA in percent
BARS = (
    ("indian-pines", "random pixels", 10, 75.0),
    ("indian-pines", "random pixels", 50, 90.0),
    ("indian-pines", "field-disjoint", 50, 45.0),
    ("enmap", "by tile", 50, 72.0),
)

NOTHING = "Nothing has been measured yet: `python -m bench.tasks --data FOLDER`."
CONTROLS = {"fine-tuned random encoder": "on a random encoder", "fine-tuned spectra": "on the spectrum alone"}
SHOWN = 5e-4  # a smaller spread would be shown as 0.0


def read(folder: Path = RESULTS) -> dict[str, dict]:
    """Results by case, in the order of :data:`TITLES`; cases that were not measured are missing."""
    paths = {name: folder / f"{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def settings_of(rows: Iterable[dict]) -> list[tuple[str, int]]:
    """Split and labels a class of a segmentation case, in the order of the rows."""
    return list(dict.fromkeys((row["split"], row["labels_per_class"]) for row in rows))


def select(rows: Iterable[dict], split: str, labels: int) -> list[dict]:
    return [row for row in rows if (row["split"], row["labels_per_class"]) == (split, labels)]


def best(rows: Iterable[dict], kinds: tuple[str, ...] = ("fine-tuned", "features", "control", "baseline")) -> dict:
    """The row of these kinds with the highest mean OA."""
    return max((row for row in rows if row["kind"] in kinds), key=lambda row: row["overall_accuracy"]["mean"])


def percent(row: dict, metric: str = "overall_accuracy") -> str:
    """Mean and spread; only the mean where nothing is drawn, as of a given division."""
    score = row[metric]
    if score["mean"] is None:
        return "-"
    drawn = len(score["values"]) > 1 and score["std"] >= SHOWN
    return f"{100 * score['mean']:.1f}" + (f" ± {100 * score['std']:.1f}" if drawn else "")


def details(results: dict[str, dict], pretraining: dict) -> str:
    """For docs/tasks.md: what was asked, then every case."""
    if not results:
        return NOTHING
    parts = [_provenance(results, pretraining), asked(results), words(results)]
    for name, result in results.items():
        parts.append(f"### {TITLES[name]}")
        parts.append(_segmentation(result["rows"]) if name in SEGMENTATION else _scores(result["rows"]))
        if name in SEGMENTATION:
            parts.append(f"![{TITLES[name]}: overall accuracy by method](images/{FIGURES.name}/{name}.png)")
    return "\n\n".join(parts)


def asked(results: dict[str, dict]) -> str:
    """The bars: what the segmenter gives, what stands beside it, and whether it is above both."""
    body = []
    for case, split, labels, wanted in BARS:
        rows = select(results[case]["rows"], split, labels) if case in results else []
        if rows:
            ours, random, spectrum, baseline = beside(rows)
            body.append(
                [
                    f"{TITLES[case]}, {split}, {labels} labels a class",
                    f"{wanted:.0f}",
                    *(percent(row) for row in (ours, random, spectrum)),
                    f"{percent(baseline)} ({baseline['method']})",
                    _met(*(100 * row["overall_accuracy"]["mean"] for row in (ours, baseline)), wanted),
                ]
            )
    head = ("overall accuracy, %", "asked", "segmenter", *CONTROLS.values(), "best baseline", "asked and baselines")
    return table(head, body)


def beside(rows: list[dict]) -> list[dict]:
    """The segmenter, its :data:`CONTROLS`, and what has the highest mean without an encoder: a baseline, or the raw
    spectrum with the probes' classifier."""
    named = {row["inputs"]: row for row in rows}
    plain = [row for row in rows if row["kind"] == "baseline" or row["inputs"] == "raw spectrum"]
    return [*(named[name] for name in ("fine-tuned", *CONTROLS)), best(plain)]


def _met(ours: float, baseline: float, wanted: float) -> str:
    failed = [word for word, bar in (("the number", wanted), ("the best baseline", baseline)) if ours < bar]
    return "met" if not failed else f"below {' and '.join(failed)}"


def headline(results: dict[str, dict], pretraining: dict) -> str:
    """For the README: the segmenter beside its control and the best baseline, a line a division."""
    if not results:
        return NOTHING
    body = []
    for name in SEGMENTATION:
        for split, labels in settings_of(results[name]["rows"]) if name in results else ():
            rows = select(results[name]["rows"], split, labels)
            ours, random, spectrum, baseline = beside(rows)
            count = f", {labels} labels a class" if labels else ""
            title = TITLES[name].split(",")[0]
            body.append(
                [
                    f"{title}, {split if labels else TITLES[name].split(', ')[1]}{count}",
                    *(percent(row) for row in (ours, random, spectrum)),
                    f"{percent(baseline)} ({baseline['method']})",
                ]
            )
    head = ("overall accuracy, %", "segmenter", *CONTROLS.values(), "best baseline")
    minutes = pretraining["seconds"] / 60
    return (
        f"Few labels, after {minutes:.0f} minutes of pre-training on two CPU cores on nothing but these scenes, without"
        f" their labels:\n\n{table(head, body)}"
    )


def _provenance(results: dict[str, dict], pretraining: dict) -> str:
    first = next(iter(results.values()))["versions"]
    commits = sorted({result["versions"]["commit"] for result in results.values()})
    seconds = sum(result["seconds"] for result in results.values())
    trained = pretraining["versions"]
    return (
        f"One encoder for all, {pretraining['parameters'] / 1e6:.1f} million parameters with its decoder, pre-trained "
        f"in {pretraining['seconds'] / 60:.0f} minutes ({trained['device']}, {trained['threads']} threads) on "
        f"{pretraining['samples']:,.0f} crops of {' and '.join(pretraining['scenes'])}, without labels: its pixels "
        f"include those that are tested. Tables: torch {first['torch']}, commit {', '.join(commits)}, "
        f"{seconds / 60:.0f} minutes. Overall accuracy in percent, mean and standard deviation over five divisions "
        "(seeds 0 to 4), or of five trainings where the division is given. The files in bench/results/tasks hold all "
        "other scores and every seed."
    )


def words(results: dict[str, dict]) -> str:
    """What pre-training and the tokens add to the segmenter: paired differences over the seeds."""
    body = []
    for name in SEGMENTATION:
        for found in results[name]["comparisons"] if name in results else ():
            if found["features"] == "fine-tuned":
                drawn = f", {found['split']}, {found['labels_per_class']}" if found["labels_per_class"] else ""
                margin = "" if found["margin"] is None else f" ± {found['margin']:.1f}"
                body.append(
                    [
                        f"{TITLES[name]}{drawn}",
                        "pre-trained or random" if "random" in found["against"] else "tokens or none",
                        f"{found['difference']:+.1f}{margin}",
                        {"better": "gain", "worse": "loss"}.get(found["outcome"], "not clear"),
                    ]
                )
    return table(["points of overall accuracy", "encoder", "difference, 95% interval", ""], body)


def _segmentation(rows: list[dict]) -> str:
    columns = settings_of(rows)
    methods = list(dict.fromkeys((row["method"], row["kind"]) for row in rows))
    found = {(row["method"], row["split"], row["labels_per_class"]): row for row in rows}
    tops = {column: best(select(rows, *column)) for column in columns}
    body = []
    for method, kind in methods:
        cells = []
        for column in columns:
            row = found.get((method, *column))
            text = "" if row is None else percent(row)
            cells.append(f"**{text}**" if row is tops[column] else text)
        body.append([f"{method}{' (control)' if kind == 'control' else ''}", *cells])
    head = ["method", *(f"{split}, {labels}" if labels else split for split, labels in columns)]
    return table(head, body)


def _scores(rows: list[dict]) -> str:
    metrics = [name for name, value in rows[0].items() if isinstance(value, dict)]
    several = len({row["setting"] for row in rows}) > 1
    body = [
        [f"{row['setting']}: {row['method']}" if several else row["method"], *(percent(row, one) for one in metrics)]
        for row in rows
    ]
    return table(["method", *(_METRICS.get(one, one) for one in metrics)], body)


_METRICS = {"f1": "F1", "iou": "IoU", "auc": "AUC", "error_auc": "AUC of uncertainty for errors", "best_f1": "best F1"}


def figures(results: dict[str, dict]) -> dict[Path, bytes]:
    """Path below the project and PNG of each segmentation case's chart."""
    from specfast.report import probe_chart
    from specfast.report.style import to_png

    return {
        FIGURES / f"{name}.png": to_png(probe_chart(_chart_rows(results[name]["rows"])), dpi=110)
        for name in SEGMENTATION
        if name in results
    }


def _chart_rows(rows: list[dict]) -> list[dict]:
    return [
        {
            "method": row["method"],
            "kind": row["kind"],
            "group": f"{row['split']}, {row['labels_per_class']} labels a class"
            if row["labels_per_class"]
            else row["split"],
            "values": [100 * value for value in row["overall_accuracy"]["values"]],
        }
        for row in rows
    ]


def documents(root: Path = ROOT, folder: Path = RESULTS) -> dict[Path, str]:
    """Path and new content of the documents with markers."""
    results, path = read(folder), folder / "pretraining.json"
    pretraining = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    made = {
        root / "docs" / "tasks.md": details(results, pretraining),
        root / "README.md": headline(results, pretraining),
    }
    return {path: replaced(path, text, MAKER) for path, text in made.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MAKER}", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--write", action="store_true", help="write documents and charts in place of printing")
    args = parser.parse_args(argv)
    results = read(args.results)
    if not args.write:
        for name, result in results.items():
            print(f"\n{TITLES[name]}\n")
            print(_segmentation(result["rows"]) if name in SEGMENTATION else _scores(result["rows"]))
        print(f"\n{asked(results)}")
        return 0
    for path, text in documents(folder=args.results).items():
        write_atomic(path, text.encode())
    for path, picture in figures(results).items():
        write_atomic(ROOT / path, picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Tables of scores: probes, fine-tuning and detection, each method beside its controls and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specfast.errors import DataError
from specfast.report.maps import confusion
from specfast.report.pages.exhibit import Exhibit, Picture, Section, Table, plain, words
from specfast.report.plots import KINDS, probe_chart

# Title of a metric, and what it is multiplied with to be shown; others are shown as they are.
METRICS = {
    "overall_accuracy": ("OA (%)", 100),
    "average_accuracy": ("AA (%)", 100),
    "kappa": ("kappa x 100", 100),
    "mean_iou": ("mIoU (%)", 100),
    "mean_f1": ("F1 (%)", 100),
    "f1": ("F1 (%)", 100),
    "iou": ("IoU (%)", 100),
    "auc": ("AUC (%)", 100),
    "error_auc": ("AUC of uncertainty for errors (%)", 100),
    "best_f1": ("best F1 (%)", 100),
    "r2": ("R²", 1),
    "rmse": ("RMSE", 1),
}
_ERRORS = "rmse"  # metrics that begin so are better when they are smaller
_MOST_CHARTED = 2  # metrics drawn; the table has all


@dataclass(frozen=True)
class Scores:
    """One row of a table file.

    Attributes:
        method, kind, group: as :func:`specfast.report.probe_chart` takes them.
        values: metric -> float64, one a seed, those that are not defined left out.
        row: the row as it stands in the file.
    """

    method: str
    kind: str
    group: str
    values: dict[str, np.ndarray]
    row: dict


def read_rows(content: dict, path: Path) -> list[Scores]:
    """Return the rows of a table that :class:`ProbeTable` or a fine-tuning wrote as JSON.

    Raises:
        DataError: it is none.
    """
    rows = []
    try:
        for row in content["rows"]:
            values = {
                name: np.array([value for value in entry["values"] if value is not None], dtype=float)
                for name, entry in row.items()
                if isinstance(entry, dict) and "values" in entry
            }
            kind = row["kind"]
            if kind not in KINDS:
                raise DataError(f"{path}: expected rows of kind {', '.join(KINDS)}; got {kind!r}")
            rows.append(Scores(str(row["method"]), kind, _group(row), values, row))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is no table of scores: {type(error).__name__} {error}") from error
    if not rows or not any(one.size for row in rows for one in row.values.values()):
        raise DataError(f"{path}: holds no scores")
    return rows


def sections(content: dict, path: Path) -> list[Section]:
    """Return the chart, the table, the classes and the confusion matrix of a table file's content."""
    rows = read_rows(content, path)
    metrics = list(dict.fromkeys(name for row in rows for name, values in row.values.items() if values.size))
    found = [_scores(rows, metrics, content)]
    if per_class := _per_class(rows, content):
        found.append(per_class)
    if matrix := _matrix(rows, content):
        found.append(matrix)
    settings = {words(name): plain(value) for name, value in (content.get("settings") or {}).items()}
    if settings:
        found.append(Section("Settings", facts=settings))
    return found


def exhibit(content: dict, path: Path, title: str = "Scores") -> Exhibit:
    """Show a table file."""
    rows = read_rows(content, path)
    return Exhibit("table", title, path.name, sections(content, path), summary(rows), verdict(content))


def verdict(content: dict) -> str:
    """Return the verdict as paragraphs."""
    return str(content.get("verdict") or "").replace("\n", "\n\n")


def summary(rows: Sequence[Scores]) -> dict:
    """Return the mean of every metric by group and method."""
    return {
        "groups": list(dict.fromkeys(row.group for row in rows)),
        "rows": [
            {
                "group": row.group,
                "method": row.method,
                "kind": row.kind,
                **{name: float(values.mean()) for name, values in row.values.items() if values.size},
            }
            for row in rows
        ],
    }


def _group(row: dict) -> str:
    if "setting" in row:
        return str(row["setting"])
    labels = row.get("labels_per_class")  # 0 where a division was given and not drawn
    return f"{row['split']}, {labels} labels a class" if labels else str(row["split"])


def _titled(metric: str) -> tuple[str, float]:
    return METRICS.get(metric, (words(metric), 1))


def _scores(rows: list[Scores], metrics: list[str], content: dict) -> Section:
    pictures = []
    for metric in metrics[:_MOST_CHARTED]:
        title, factor = _titled(metric)
        charted = [
            {"method": row.method, "kind": row.kind, "group": row.group, "values": factor * row.values[metric]}
            for row in rows
            if row.values.get(metric, np.empty(0)).size
        ]
        seeds = max(len(one["values"]) for one in charted)
        what = "Mean over seeds (marker), one standard deviation to each side (line), single seeds (ticks)."
        caption = f"{title}. {what if seeds > 1 else 'One seed: there is no spread to judge differences by.'}"
        pictures.append(Picture(probe_chart(charted, title), caption, f"Dot chart of {title} by method."))
    columns = ["setting", "method", "what it is", *(_titled(metric)[0] for metric in metrics)]
    cells = [[row.group, row.method, row.kind, *(_cell(row, metric) for metric in metrics)] for row in rows]
    best = []
    for group in dict.fromkeys(row.group for row in rows):
        index = max((i for i, row in enumerate(rows) if row.group == group), key=lambda i: _merit(rows[i], metrics[0]))
        best += [index] if np.isfinite(_merit(rows[index], metrics[0])) else []
    caption = "Mean ± standard deviation over seeds; the best of each setting stands out."
    notes = "\n\n".join(f"{note[:1].upper()}{note[1:]}." for note in map(str, content.get("notes") or ()))
    return Section("Scores", notes, pictures, [Table(columns, cells, caption, best)])


def _cell(row: Scores, metric: str) -> str:
    values = row.values.get(metric, np.empty(0)) * _titled(metric)[1]
    if not values.size:
        return "-"
    digits = 1 if _titled(metric)[1] == 100 else 4
    spread = f" ± {values.std(ddof=1):.{digits}f}" if values.size > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _shown(rows: list[Scores]) -> list[Scores]:
    """Return, of the last setting, the best row of each kind: what a reader compares."""
    last = [row for row in rows if row.group == rows[-1].group]
    metric = next(iter(last[0].values))
    best = [
        max((row for row in last if row.kind == kind), key=lambda row: _merit(row, metric), default=None)
        for kind in KINDS
    ]
    return [row for row in best if row is not None and np.isfinite(_merit(row, metric))]


def _merit(row: Scores, metric: str) -> float:
    """Return the mean over seeds, so turned that more is better; minus infinity where there is none."""
    values = row.values.get(metric, np.empty(0))
    if not values.size:
        return -np.inf
    return float(-values.mean() if metric.startswith(_ERRORS) else values.mean())


def class_names(content: dict) -> dict[str, str]:
    """Return names of classes by number, as text, where the settings have them."""
    settings = content.get("settings") or {}
    names = settings.get("class_names") or settings.get("outputs") or settings.get("names") or {}
    if isinstance(names, dict):
        return {str(number): str(name) for number, name in names.items()}
    return {str(number): str(name) for number, name in enumerate(names, start=1)} if isinstance(names, list) else {}


def _per_class(rows: list[Scores], content: dict) -> Section | None:
    """Return the share of each class that is right, by the best method of each kind."""
    shown = [row for row in _shown(rows) if row.row.get("per_class")]
    if not shown:
        return None
    names = class_names(content)
    numbers = sorted({number for row in shown for one in row.row["per_class"] for number in one}, key=int)
    cells = []
    for number in numbers:
        line = [names.get(number, number)]
        for row in shown:
            shares = [100 * one[number] for one in row.row["per_class"] if number in one]
            line.append(f"{np.mean(shares):.1f}" if shares else "-")
        cells.append(line)
    text = f"In the setting “{shown[0].group}”, by the best method of each kind. Shares are means over seeds."
    table = Table(
        ["class", *(row.method for row in shown)], cells, "Share of each class's test pixels that is right (%)"
    )
    return Section("Classes", text, tables=[table])


def _matrix(rows: list[Scores], content: dict) -> Section | None:
    """Return the confusion matrix, summed over seeds, of the best row that has one."""
    for row in _shown(rows):
        matrices, classes = row.row.get("confusion"), row.row.get("classes")
        if matrices and classes:
            numbers = sorted({int(number) for one in classes for number in one})
            total = np.zeros((len(numbers), len(numbers)))
            for matrix, one in zip(matrices, classes, strict=True):
                place = np.searchsorted(numbers, np.array(one, dtype=int))
                total[np.ix_(place, place)] += np.array(matrix, dtype=float)
            names = [class_names(content).get(str(number), str(number)) for number in numbers]
            caption = f"Which classes {row.method} takes for which, {row.group}; test pixels, all seeds together."
            alt = f"Confusion matrix of {len(names)} classes; each row adds up to 100 percent."
            return Section("Confusion", pictures=[Picture(confusion(total, names, "Test pixels"), caption, alt)])
    return None

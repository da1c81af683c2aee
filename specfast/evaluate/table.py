"""The probe's result: a table of scores by method, split and number of labels, and what it says in words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specfast.evaluate.metrics import METRICS, Scores, mean_and_spread
from specfast.files import write_atomic

CONFIDENCE = 0.95  # a difference is called clear when Student's interval of the paired differences excludes 0

FIXED = 0  # in place of labels a class, where a division is given and not drawn

_SHORT = {"overall_accuracy": "OA", "average_accuracy": "AA", "kappa": "kappa", "mean_iou": "mIoU", "mean_f1": "F1"}


@dataclass(frozen=True)
class ProbeRow:
    """One method in one setting, all seeds.

    Attributes:
        method: as shown ("LDA, frozen features").
        kind: ``"features"``, ``"fine-tuned"``, ``"control"`` or ``"baseline"``.
        inputs: what is classified: ``"features"``, ``"random encoder"``, ``"raw spectrum"``,
            ``"raw + features"``, ``"raw + random encoder"``, ``"fine-tuned"``, ``"fine-tuned random encoder"``,
            ``"fine-tuned spectra"``, or a baseline's key.
        classifier: its key, such as ``"lda"``.
        split: the split's name.
        labels_per_class: labels of each class that were trained on (fewer where ``shortfall`` says so); 0 where the
            division is given and not drawn.
        scores: one a seed.
        seconds: fitting and predicting, all seeds.
    """

    method: str
    kind: str
    inputs: str
    classifier: str
    split: str
    labels_per_class: int
    scores: tuple[Scores, ...]
    seconds: float

    def values(self, metric: str = "overall_accuracy") -> np.ndarray:
        """Return one number a seed, float64."""
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}; got {metric!r}")
        return np.array([getattr(one, metric) for one in self.scores])

    def summary(self, metric: str = "overall_accuracy") -> tuple[float, float]:
        """Return mean and sample standard deviation over the seeds."""
        return mean_and_spread(self.values(metric))


@dataclass(frozen=True)
class Comparison:
    """Frozen features against another input, with the same classifier and the same pixels.

    Attributes:
        outcome: ``"better"``, ``"worse"``, ``"unclear"``, or ``"one seed"`` when there is no spread to judge by.
        difference: mean over seeds of OA with features minus OA without, in percentage points.
        margin: half the width of its confidence interval, NaN with one seed.
    """

    features: str
    against: str
    classifier: str
    split: str
    labels_per_class: int
    outcome: str
    difference: float
    margin: float


@dataclass
class ProbeTable:
    """Results of :func:`specfast.evaluate.probe`.

    Attributes:
        rows: one for each method, split and number of labels.
        notes: what was assumed or could not be done, in words (classes with too few pixels, ...).
        settings: how the features were made and what was asked for; plain values.
        class_maps: split -> int16 [H, W] of each scene, 0 where a pixel is invalid; ``settings["class_map"]`` says how.
    """

    rows: list[ProbeRow]
    notes: list[str] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    class_maps: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def settings_of_rows(self) -> list[tuple[str, int]]:
        """Return (split, labels a class) in the order of the rows."""
        return list(dict.fromkeys((row.split, row.labels_per_class) for row in self.rows))

    def select(self, split: str, labels_per_class: int) -> list[ProbeRow]:
        """Return the rows of one split and number of labels."""
        return [row for row in self.rows if (row.split, row.labels_per_class) == (split, labels_per_class)]

    def chart_rows(self, metric: str = "overall_accuracy") -> list[dict]:
        """Return mappings as :func:`specfast.report.probe_chart` takes; values in percent (kappa times 100)."""
        return [
            {
                "method": row.method,
                "kind": row.kind,
                "group": _setting(row.split, row.labels_per_class),
                "values": (100 * row.values(metric)).tolist(),
            }
            for row in self.rows
        ]

    def comparisons(self) -> list[Comparison]:
        """Compare frozen features, alone and beside the spectrum, with what they have to beat."""
        pairs = (
            ("features", "raw spectrum"),
            ("features", "random encoder"),
            ("raw + features", "raw spectrum"),
            ("raw + features", "raw + random encoder"),
            ("fine-tuned", "fine-tuned random encoder"),
            ("fine-tuned", "fine-tuned spectra"),
        )
        found = []
        for split, labels in self.settings_of_rows():
            rows = {(row.inputs, row.classifier): row for row in self.select(split, labels)}
            classifiers = list(dict.fromkeys(classifier for _, classifier in rows))
            for features, against in pairs:
                for classifier in classifiers:
                    if (features, classifier) in rows and (against, classifier) in rows:
                        found.append(_compare(rows[features, classifier], rows[against, classifier]))
        return found

    def verdict(self) -> str:
        """Say what won, and whether features beat the raw spectrum and the random encoder: paragraphs of plain text."""
        if not self.rows:
            return "Nothing was measured."
        comparisons = self.comparisons()
        lines = []
        for subject, features, against in (
            ("Frozen features alone", "features", "raw spectrum"),
            ("Frozen features alone", "features", "random encoder"),
            ("Spectrum and features together", "raw + features", "raw spectrum"),
            ("Spectrum and features together", "raw + features", "raw + random encoder"),
            ("The trained model", "fine-tuned", "fine-tuned random encoder"),
            ("The trained model", "fine-tuned", "fine-tuned spectra"),
        ):
            part = [c for c in comparisons if (c.features, c.against) == (features, against)]
            if part:
                lines.append(f"{subject} {_outcome_words(part, _NAMES[against])}")
        for split, labels in self.settings_of_rows():
            rows = sorted(self.select(split, labels), key=lambda row: -row.summary()[0])
            setting = _setting(split, labels)
            lines.append(f"{setting[0].upper()}{setting[1:]}: {_winner_words(rows)}")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return everything as plain values; scores as shares from 0 to 1, every seed kept."""
        return {
            "settings": self.settings,
            "notes": self.notes,
            "verdict": self.verdict(),
            "rows": [
                {
                    **{name: getattr(row, name) for name in _IDENTITY},
                    **{
                        metric: {"mean": mean, "std": spread, "values": row.values(metric).tolist()}
                        for metric in METRICS
                        for mean, spread in [row.summary(metric)]
                    },
                    "per_class": [{str(c): share for c, share in one.per_class.items()} for one in row.scores],
                    "classes": [list(one.classes) for one in row.scores],
                    "confusion": [one.confusion.tolist() for one in row.scores],
                    "seconds": row.seconds,
                }
                for row in self.rows
            ],
            "comparisons": [
                {**vars(one), "margin": None if np.isnan(one.margin) else one.margin} for one in self.comparisons()
            ],
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """Return one line a method, split, number of labels and seed, and one with the mean and one with the spread."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_IDENTITY, "seed", *METRICS])
        for row in self.rows:
            identity = [getattr(row, name) for name in _IDENTITY]
            for seed, one in enumerate(row.scores):
                writer.writerow([*identity, seed, *(f"{getattr(one, metric):.6f}" for metric in METRICS)])
            for number, name in enumerate(("mean", "std")):
                writer.writerow([*identity, name, *(f"{row.summary(metric)[number]:.6f}" for metric in METRICS)])
        return text.getvalue()

    def to_markdown(self, metrics: Sequence[str] = METRICS) -> str:
        """Return one table: a line a method, a column for each split, number of labels and metric (percent)."""
        settings = self.settings_of_rows()
        columns = [(split, labels, metric) for split, labels in settings for metric in metrics]
        head = ["method", *(f"{split} {labels or 'all'}, {_SHORT[metric]}" for split, labels, metric in columns)]
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        cells = {(row.method, row.split, row.labels_per_class): row for row in self.rows}
        for method in dict.fromkeys(row.method for row in self.rows):
            values = []
            for split, labels, metric in columns:
                row = cells.get((method, split, labels))
                values.append("" if row is None else "{:.1f} ± {:.1f}".format(*(100 * v for v in row.summary(metric))))
            lines.append(f"| {method} | {' | '.join(values)} |")
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path, stem: str = "probe") -> list[Path]:
        """Write ``stem``.json, .csv and .md into a folder (made if needed), each replaced in one step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{self.to_markdown()}\n{self.verdict()}\n" + "".join(f"\n- {note}" for note in self.notes)
        contents = {"json": self.to_json(), "csv": self.to_csv(), "md": text.rstrip() + "\n"}
        return [write_atomic(folder / f"{stem}.{ending}", text.encode()) for ending, text in contents.items()]


_IDENTITY = ("method", "kind", "inputs", "classifier", "split", "labels_per_class")
_PRETRAINED = ("features", "raw + features", "fine-tuned")
_NAMES = {
    "raw spectrum": "the raw spectrum",
    "random encoder": "the same encoder with random weights",
    "raw + random encoder": "the spectrum beside random features",
    "fine-tuned random encoder": "the same model trained from random weights",
    "fine-tuned spectra": "the same head on the spectrum alone",
}


def _compare(features: ProbeRow, other: ProbeRow) -> Comparison:
    difference = 100 * (features.values() - other.values())
    mean, spread = mean_and_spread(difference)
    count = len(difference)
    if count == 1:
        margin, outcome = float("nan"), "one seed"
    else:
        from scipy.stats import t

        margin = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread / count**0.5
        outcome = "unclear" if abs(mean) <= margin else "better" if mean > 0 else "worse"
    return Comparison(
        features.inputs,
        other.inputs,
        features.classifier,
        features.split,
        features.labels_per_class,
        outcome,
        mean,
        margin,
    )


def _setting(split: str, labels: int) -> str:
    return split if labels == FIXED else f"{split}, {labels} labels a class"


def _outcome_words(comparisons: list[Comparison], other: str) -> str:
    """Finish a sentence about one pair of inputs over all settings and classifiers."""
    total = len(comparisons)
    counts = {name: sum(c.outcome == name for c in comparisons) for name in ("better", "worse", "unclear", "one seed")}
    low, high = (edge(c.difference for c in comparisons) for edge in (min, max))
    by = f"{low:+.1f} points" if total == 1 else f"{low:+.1f} to {high:+.1f} points"
    if counts["one seed"] == total:
        higher = sum(c.difference > 0 for c in comparisons)
        return f"scored higher than {other} in {higher} of {total} comparisons ({by}); one seed cannot say more."
    if counts["better"] == total:
        return f"beat {other} in all {total} comparisons ({by})." if total > 1 else f"beat {other} ({by})."
    if counts["worse"] == total:
        return f"lost to {other} in all {total} comparisons ({by})." if total > 1 else f"lost to {other} ({by})."
    if counts["unclear"] == total:
        return f"did not beat {other}: no clear difference ({by})."
    lead = "beat" if counts["better"] else "did not beat"
    where = "; ".join(_listed(name, comparisons) for name in ("better", "worse", "unclear") if counts[name])
    return f"{lead} {other}{' only in part' if counts['better'] else ''} ({by}): {where}."


def _listed(outcome: str, comparisons: list[Comparison]) -> str:
    part = [c for c in comparisons if c.outcome == outcome]
    word = {"better": "clearly better", "worse": "clearly worse", "unclear": "no clear difference"}[outcome]
    labels: dict[tuple[str, int], list[str]] = {}
    for c in part:
        labels.setdefault((c.split, c.labels_per_class), []).append(c.classifier)
    places = (f"{split} {count} ({', '.join(names)})" for (split, count), names in labels.items())
    return f"{word} in {len(part)} of {len(comparisons)}: {', '.join(places)}"


def _winner_words(rows: list[ProbeRow]) -> str:
    """Name the best method and, if it is another one, the best that uses the pre-trained features."""

    def text(row):
        mean, spread = (100 * value for value in row.summary())
        return (
            f"{row.method}, OA {mean:.1f} ± {spread:.1f}%" if len(row.scores) > 1 else f"{row.method}, OA {mean:.1f}%"
        )

    best = rows[0]
    pretrained = next((row for row in rows if row.inputs in _PRETRAINED), None)
    words = f"best is {text(best)}"
    if pretrained is None:
        return words + "."
    if pretrained is best:
        other = next((row for row in rows if row.inputs not in _PRETRAINED), None)
        return words + (f", with pre-trained features; best without them: {text(other)}." if other else ".")
    return words + f", without pre-trained features; best with them: {text(pretrained)}."

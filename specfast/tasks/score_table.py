"""Scores of several methods in several settings over seeds: as Markdown, CSV and JSON, and what they say in words."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specfast.evaluate.metrics import mean_and_spread
from specfast.files import write_atomic


@dataclass(frozen=True)
class ScoreRow:
    """One method in one setting.

    Attributes:
        method: as shown.
        kind: ``"fine-tuned"``, ``"features"``, ``"control"`` or ``"baseline"``.
        setting: what the scores were measured on ("random pixels, 10 labels a class").
        scores: metric -> one number a seed, NaN where it is not defined; one number where nothing is drawn.
        seconds: fitting and predicting, all seeds.
    """

    method: str
    kind: str
    setting: str
    scores: dict[str, tuple[float, ...]]
    seconds: float

    def summary(self, metric: str) -> tuple[float, float]:
        """Return mean and sample standard deviation over the seeds."""
        return mean_and_spread(self.scores[metric])


@dataclass
class ScoreTable:
    """Rows, and how they came about.

    Attributes:
        rows: one for each method and setting.
        metrics: key of ``ScoreRow.scores`` -> column title, in the order of the columns; the first ranks the methods.
        notes: what was assumed or could not be done, in words.
        settings: what was asked for; plain values.
        percent: scores are shares, shown in percent; if not, they are shown as they are.
    """

    rows: list[ScoreRow]
    metrics: dict[str, str]
    notes: list[str] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    percent: bool = True

    def verdict(self) -> str:
        """Name, for each setting, the best method and the best of the other side (with or without a model)."""
        metric, title = next(iter(self.metrics.items()))
        lines = []
        for setting in self._settings():
            rows = [row for row in self.rows if row.setting == setting and np.isfinite(row.summary(metric)[0])]
            rows.sort(key=lambda row: -row.summary(metric)[0])
            if not rows:
                continue
            best, ours = rows[0], ("fine-tuned", "features")
            other = next((row for row in rows if (row.kind in ours) != (best.kind in ours)), None)
            line = f"{setting}: best is {best.method}, {title} {self._cell(best, metric)}"
            if other is not None:
                side = "without a pre-trained model" if best.kind in ours else "with the pre-trained model"
                line += f"; best {side}: {other.method}, {self._cell(other, metric)}"
            lines.append(line + ".")
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return a table for each setting: a line a method, mean ± spread over seeds."""
        parts = []
        for setting in self._settings():
            lines = [
                f"**{setting}**",
                "",
                f"| method | {' | '.join(self.metrics.values())} |",
                "|---|" + "---|" * len(self.metrics),
            ]
            for row in self.rows:
                if row.setting == setting:
                    lines.append(f"| {row.method} | {' | '.join(self._cell(row, metric) for metric in self.metrics)} |")
            parts.append("\n".join(lines) + "\n")
        return "\n".join(parts)

    def to_csv(self) -> str:
        """Return one line a method, setting and seed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "kind", "setting", "seed", *self.metrics])
        for row in self.rows:
            for seed, values in enumerate(zip(*(row.scores[metric] for metric in self.metrics), strict=True)):
                cells = ["" if np.isnan(value) else f"{value:.6f}" for value in values]
                writer.writerow([row.method, row.kind, row.setting, seed, *cells])
        return text.getvalue()

    def to_dict(self) -> dict:
        """Return everything as plain values, shares from 0 to 1, every seed kept; null where a score is not defined."""
        return {
            "settings": self.settings,
            "notes": self.notes,
            "verdict": self.verdict(),
            "rows": [
                {
                    "method": row.method,
                    "kind": row.kind,
                    "setting": row.setting,
                    "seconds": row.seconds,
                    **{
                        metric: {"mean": _plain(mean), "std": _plain(spread), "values": [_plain(v) for v in values]}
                        for metric, values in row.scores.items()
                        for mean, spread in [row.summary(metric)]
                    },
                }
                for row in self.rows
            ],
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, folder: str | Path, stem: str) -> list[Path]:
        """Write ``stem``.json, .csv and .md into a folder (made if needed), each replaced in one step."""
        text = f"{self.to_markdown()}\n{self.verdict()}\n" + "".join(f"\n- {note}" for note in self.notes)
        contents = {"json": self.to_json(), "csv": self.to_csv(), "md": text.rstrip() + "\n"}
        return [
            write_atomic(Path(folder) / f"{stem}.{ending}", content.encode()) for ending, content in contents.items()
        ]

    def _cell(self, row: ScoreRow, metric: str) -> str:
        mean, spread = row.summary(metric)
        if np.isnan(mean):
            return "-"
        words = [f"{100 * value:.1f}" if self.percent else f"{value:.3g}" for value in (mean, spread)]
        return words[0] if len(row.scores[metric]) == 1 else " ± ".join(words)

    def _settings(self) -> list[str]:
        return list(dict.fromkeys(row.setting for row in self.rows))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

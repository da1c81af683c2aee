"""python -m bench.network.report: tables of bench/results/network-*.json in Markdown, and what was asked of them.

With --write they go into docs/dssync.md, between its markers and nowhere else; a test holds that the file equals it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.machine import ROOT
from bench.network.clusters import CLUSTERS
from bench.network.providers import PROVIDERS
from bench.results import FOLDER, read_rows
from bench.table import replaced, table
from specfast.files import write_atomic

TITLES = {
    "unshaped": "not limited",
    "flat": "one switch",
    "racks-4to1": "two racks, 4:1",
    "racks-8to1": "two racks, 8:1",
    "slow-nic": "one link at 1/4",
    "delay": "2 ms each way",
}
DOCUMENT = ROOT / "docs" / "dssync.md"
TARGET_ROOM = 1.02  # the target is DDP's mean final loss times this


@dataclass(frozen=True)
class Bar:
    """Something asked of the results, and what they say."""

    name: str
    value: float
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted

    def __str__(self) -> str:
        relation = "at most" if self.at_most else "at least"
        return f"{'met' if self.met else 'MISSED'}: {self.name}: {self.value:.3g}, {relation} {self.wanted:.3g}"


def read(folder: Path = FOLDER) -> list[dict]:
    """The rows of both files of a folder."""
    return read_rows(folder / "network-timing.json") + read_rows(folder / "network-training.json")


def times(rows: list[dict], kernel: str, cluster: str, shape: str) -> dict[str, dict]:
    """Rows by provider that have a time, in the order of ``PROVIDERS``."""
    found = {
        row["provider"]: row
        for row in rows
        if (row["kernel"], row["mode"], row["shape"]) == (kernel, cluster, shape) and "p50_ms" in row
    }
    return {name: found[name] for name in PROVIDERS if name in found}


def shapes(rows: list[dict], kernel: str) -> list[str]:
    return list(dict.fromkeys(row["shape"] for row in rows if row["kernel"] == kernel))


def tasks(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(shape.split("-")[1] for shape in shapes(rows, "training")))


def clusters(rows: list[dict], kernel: str, shape: str) -> list[str]:
    there = {row["mode"] for row in rows if (row["kernel"], row["shape"]) == (kernel, shape)}
    return [name for name in CLUSTERS if name in there]


def timing_table(rows: list[dict], kernel: str, shape: str) -> str:
    """Milliseconds a step by provider and cluster, and how many times as fast as DDP."""
    columns = {name: times(rows, kernel, name, shape) for name in clusters(rows, kernel, shape)}
    body = []
    for provider in PROVIDERS:
        cells = [_cell(found.get(provider), found.get("ddp")) for found in columns.values()]
        if any(cells):
            body.append([f"`{provider}`", *cells])
    return table([f"{shape}, {kernel}", *(TITLES[name] for name in columns)], body)


def _cell(row: dict | None, base: dict | None) -> str:
    if row is None:
        return ""
    ratio = f" ({base['p50_ms'] / row['p50_ms']:.2f}x)" if base and row is not base else ""
    return f"{row['p50_ms']:.0f}{ratio}" if row["p50_ms"] >= 10 else f"{row['p50_ms']:.1f}{ratio}"


def bytes_table(rows: list[dict], shape: str) -> str:
    """Megabytes a step that all workers send, and that leave the racks."""
    columns = {name: times(rows, "exchange", name, shape) for name in clusters(rows, "exchange", shape)}
    body = []
    for provider in PROVIDERS:
        cells = []
        for found in columns.values():
            row = found.get(provider)
            across = f", {row['uplink_bytes'] / 1e6:.1f} across" if row and row["uplink_bytes"] > 1e5 else ""
            cells.append(f"{row['wire_bytes'] / 1e6:.1f}{across}" if row else "")
        if any(cells):
            body.append([f"`{provider}`", *cells])
    return table([f"{shape}, MB a step", *(TITLES[name] for name in columns)], body)


@dataclass(frozen=True)
class Training:
    """What a provider reached on a task, over seeds."""

    provider: str
    losses: tuple[float, ...]
    to_target: tuple[float, ...]  # seconds; inf where the target was not reached
    step_ms: float
    disagreement: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float:
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0


def trainings(rows: list[dict], cluster: str, task: str) -> dict[str, Training]:
    """Results by provider over the seeds that DDP and the provider both have."""
    by_provider: dict[str, dict[int, dict]] = {}
    for row in rows:
        if (row["kernel"], row["mode"]) != ("training", cluster) or f"-{task}-" not in row["shape"]:
            continue
        by_provider.setdefault(row["provider"], {})[row["seed"]] = row
    if "ddp" not in by_provider:
        return {}
    target = TARGET_ROOM * statistics.fmean(row["final_loss"] for row in by_provider["ddp"].values())
    found = {}
    for name in PROVIDERS:
        seeds = by_provider.get(name, {}).keys() & by_provider["ddp"].keys()
        if seeds:
            runs = [by_provider[name][seed] for seed in sorted(seeds)]
            found[name] = Training(
                name,
                tuple(run["final_loss"] for run in runs),
                tuple(_seconds_to(run["curve"], target) for run in runs),
                statistics.median(run["p50_ms"] for run in runs),
                statistics.fmean(run["disagreement"] for run in runs),
            )
    return found


def _seconds_to(curve: list, target: float) -> float:
    """When the loss first falls to the target, on straight lines between the points."""
    for (_, before, high), (_, after, low) in itertools.pairwise(curve):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low)
    return math.inf


def training_table(found: dict[str, Training], title: str) -> str:
    """Final loss of the mean model, time to the target, time of a step."""
    base = found["ddp"]
    body = []
    for name, result in found.items():
        median = statistics.median(result.to_target)
        ratio = f" ({statistics.median(base.to_target) / median:.2f}x)" if median < math.inf and name != "ddp" else ""
        reached = f"{median:.1f} s{ratio}" if median < math.inf else "not reached"
        body.append(
            [
                f"`{name}`",
                f"{result.mean:.4f} ± {result.spread:.4f}",
                f"{(result.mean - base.mean) / base.spread:+.1f}" if base.spread else "",
                reached,
                f"{result.step_ms:.0f}",
                f"{result.disagreement:.1e}",
            ]
        )
    head = [title, "final loss", "from DDP's, in its std", "to the target", "ms a step", "disagreement"]
    return table(head, body)


def bars(rows: list[dict]) -> list[Bar]:
    """What issue and design ask for, as far as there are rows."""
    found: list[Bar] = []

    def ratio(name, shape, cluster, provider, wanted, base="ddp"):
        there = times(rows, "exchange", cluster, shape)
        if base in there and provider in there:
            found.append(Bar(name, there[base]["p50_ms"] / there[provider]["p50_ms"], wanted))

    shape = "N4-4MB"
    ratio("4:1, a crossing every round over DDP", shape, "racks-4to1", "dssync-emissary", 1.5)
    ratio("4:1, a crossing every 4th round over DDP", shape, "racks-4to1", "dssync-every4", 1.9)
    ratio("4:1, planned over DDP", shape, "racks-4to1", "dssync-planned", 1.9)
    ratio("one link at 1/4, planned over DDP", shape, "slow-nic", "dssync-planned", 3.0)
    ratio("flat packing over tensor by tensor", shape, "unshaped", "dssync-two-phase", 1.8, base="per-tensor")
    for shape in shapes(rows, "exchange"):
        there = times(rows, "exchange", "unshaped", shape)
        if "ddp" in there and "dssync-grid" in there:
            value = there["dssync-grid"]["p50_ms"] / there["ddp"]["p50_ms"]
            found.append(Bar(f"fast network, {shape}: time over DDP's", value, 1.05, at_most=True))
    for task in tasks(rows):
        for cluster in CLUSTERS:
            results = trainings(rows, cluster, task)
            if not results or not results["ddp"].spread:
                continue
            base = results["ddp"]
            for name, result in results.items():
                if name.startswith("dssync-"):
                    distance = (result.mean - base.mean) / base.spread
                    control = name == "dssync-static"
                    wanted = "control, must be worse" if control else "equal steps"
                    text = f"{task}, {cluster}, {name}: final loss from DDP's in its std ({wanted})"
                    found.append(Bar(text, distance, 1.0, at_most=not control))
    return found


def sections(rows: list[dict]) -> list[str]:
    """Everything there is to say of the rows, as Markdown."""
    found = [text for shape in shapes(rows, "exchange") for text in _exchange_section(rows, shape)]
    found += [timing_table(rows, "step", shape) for shape in shapes(rows, "step")]
    for task in tasks(rows):
        for cluster in CLUSTERS:
            if results := trainings(rows, cluster, task):
                seeds = len(results["ddp"].losses)
                found.append(f"![Loss of {task}](images/dssync/network-training-{task}-{cluster}.png)")
                found.append(training_table(results, f"{task}, {TITLES[cluster]}, {seeds} seeds"))
    return found


def _exchange_section(rows: list[dict], shape: str) -> list[str]:
    picture = f"![Exchange of a step, {shape}](images/dssync/network-exchange-{shape.lower()}.png)"
    return [picture, timing_table(rows, "exchange", shape), bytes_table(rows, shape)]


def provenance(rows: list[dict]) -> str:
    """What the numbers were made with."""
    row = rows[0]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"{row['device']}, {row['cores']} cores for all workers, one thread a worker, Linux {row['kernel_version']}, "
        f"torch {row['torch']}, Gloo, specfast at commit {commits}."
    )


def document(results: Path = FOLDER) -> str:
    """What docs/dssync.md should be."""
    rows = read(results)
    parts = ["Nothing has been measured yet: `python -m bench.network`."]
    if rows:
        asked = "\n".join(f"- {bar}" for bar in bars(rows))
        parts = [provenance(rows), *sections(rows), f"What was asked of it:\n\n{asked}"]
    return replaced(DOCUMENT, "\n\n".join(parts), "bench.network.report")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.network.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--write", action="store_true", help="into docs/dssync.md")
    args = parser.parse_args(argv)
    if args.write:
        print(f"wrote {write_atomic(DOCUMENT, document(args.results).encode())}")
        return 0
    rows = read(args.results)
    print("\n\n".join([*sections(rows), "\n".join(map(str, bars(rows)))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

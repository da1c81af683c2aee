"""python -m bench.network.plot: draw docs/images/dssync/network-*.png from bench/results/network-*.json."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench.machine import ROOT
from bench.network.clusters import CLUSTERS
from bench.network.providers import PROVIDERS
from bench.network.report import TITLES, clusters, read, shapes, tasks, times
from bench.results import FOLDER
from specfast.files import write_atomic
from specfast.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, new_figure, styled, to_png

FIGURES = ROOT / "docs" / "images" / "dssync"
BROWN, GRAPE, LIGHT, TEAL = "#b5651d", "#7d6b91", "#2a7fb8", "#4f9d96"
STYLE = {
    "ddp": ("DDP all-reduce", VERMILLION),
    "ddp-bf16": ("DDP, bf16 hook", ORANGE),
    "ddp-powersgd": ("DDP, PowerSGD hook", BROWN),
    "per-tensor": ("pairs, tensor by tensor", MUTED),
    "postlocal": ("PostLocalSGD", PURPLE),
    "hierarchical": ("hierarchical averager", GRAPE),
    "dssync-two-phase": ("DS-Sync, two phases", SKY),
    "dssync-grid": ("DS-Sync, grid", LIGHT),
    "dssync-emissary": ("DS-Sync, a crossing every round", TEAL),
    "dssync-every4": ("DS-Sync, slow link every 4th round", GREEN),
    "dssync-planned": ("DS-Sync, planned", BLUE),
    "dssync-static": ("static groups (control)", INK),
}


def draw(rows: list[dict]) -> dict[str, bytes]:
    """Name and PNG of each figure that these rows are enough for."""
    found = {}
    for shape in shapes(rows, "exchange"):
        found[f"network-exchange-{shape.lower()}"] = to_png(exchange(rows, shape), dpi=120)
    for task in tasks(rows):
        for cluster in CLUSTERS:
            if curves := _curves(rows, cluster, task):
                found[f"network-training-{task}-{cluster}"] = to_png(training(curves, task, cluster), dpi=120)
    return found


@styled
def exchange(rows: list[dict], shape: str):
    """Time of a step's exchange by provider, a panel a cluster; a tick marks what the cost model says."""
    names = clusters(rows, "exchange", shape)
    fig = new_figure(2.6 + 1.9 * len(names), 3.4)
    axes = fig.subplots(1, len(names), sharey=True, squeeze=False)[0]
    columns = [times(rows, "exchange", name, shape) for name in names]
    order = [provider for provider in STYLE if any(provider in found for found in columns)][::-1]
    for ax, name, found in zip(axes, names, columns, strict=True):
        for place, provider in enumerate(order):
            if (row := found.get(provider)) is None:
                continue
            ax.barh(place, row["p50_ms"], color=STYLE[provider][1], height=0.72)
            if "predicted_ms" in row:
                ax.plot([row["predicted_ms"]] * 2, [place - 0.36, place + 0.36], color=INK, linewidth=1.2)
            ax.text(row["p50_ms"], place, f" {row['p50_ms']:.0f}", va="center", fontsize="x-small")
        ax.set_yticks(range(len(order)), [STYLE[provider][0] for provider in order])
        ax.set_title(TITLES[name], fontsize="small")
        ax.set_xlabel("ms")
        ax.margins(x=0.22)
        ax.grid(axis="y", visible=False)
    workers, message = shape[1:].split("-")
    fig.suptitle(
        f"Exchange of a step, {workers} workers, {message[:-2]} MB; black: cost model",
        x=0.01,
        ha="left",
        fontsize="small",
    )
    return fig


def _curves(rows: list[dict], cluster: str, task: str) -> dict[str, list[tuple[float, float, float]]]:
    """Step, seconds and loss by provider: medians over the seeds at each point."""
    found = {}
    for provider in PROVIDERS:
        curves = [
            row["curve"]
            for row in rows
            if (row["kernel"], row["mode"], row["provider"]) == ("training", cluster, provider)
            and f"-{task}-" in row["shape"]
        ]
        if curves:
            points = zip(*curves, strict=True)
            found[provider] = [tuple(statistics.median(values) for values in zip(*p, strict=True)) for p in points]
    return found


@styled
def training(curves: dict[str, list[tuple[float, float, float]]], task: str, cluster: str):
    """Loss of the mean model against steps, and against time."""
    fig = new_figure(8.4, 3.6)
    axes = fig.subplots(1, 2, sharey=True)
    for provider, points in curves.items():
        label, color = STYLE[provider]
        steps, seconds, losses = zip(*points[1:], strict=True)
        style = "--" if provider == "dssync-static" else "-"
        axes[0].plot(steps, losses, style, color=color, label=label)
        axes[1].plot(seconds, losses, style, color=color)
    axes[0].set_xlabel("steps")
    axes[1].set_xlabel("seconds")
    axes[0].set_ylabel("loss of the mean model, held out")
    axes[0].set_yscale("log")
    axes[0].set_title(f"{task}: equal steps")
    axes[1].set_title(f"{TITLES[cluster]}: time")
    fig.legend(loc="outside lower center", ncols=3, fontsize="small")
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.network.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the figures")
    args = parser.parse_args(argv)
    for name, png in draw(read(args.results)).items():
        print(f"wrote {write_atomic(args.out / f'{name}.png', png)}")


if __name__ == "__main__":
    main()

"""python -m bench.plot: draw docs/images/performance/<device>-*.png from bench/results.

bars (time by provider and band count), roofline, scaling (log-log, with fitted slopes), memory, throughput.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from bench.machine import ROOT
from bench.results import FOLDER
from bench.summary import AXES, HEADLINE, LABELS, devices, dtypes, lines, speedup, timed, usual
from specfast.files import write_atomic
from specfast.report.style import BLUE, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, new_figure, styled, to_png

FIGURES = ROOT / "docs" / "images" / "performance"
STYLE = {  # one color and marker a provider, in every figure; the others are in the tables
    "reference": (VERMILLION, "s"),
    "reference-compile": (ORANGE, "^"),
    "reassociated": (SKY, "D"),
    "specfast": (BLUE, "o"),
    "specfast-compile": (PURPLE, "v"),
    "conv2d": (MUTED, "P"),
}


def figures_of(rows: list[dict]) -> dict[str, str]:
    """Names and captions of the figures these rows are enough for."""
    captions = {
        "bars": "Time of modules, training step and encoder by provider and band count",
        "roofline": "Operators and modules under the measured roof",
        "scaling": "Growth of time in bands, patches and samples",
        "memory": "Peak memory by provider and band count",
        "throughput": "Samples a second and peak memory against bands and batch",
    }
    if not _headline_groups(rows):
        return {}
    if not lines(rows):
        del captions["scaling"]
    if not timed(rows, unit="step"):
        del captions["throughput"]
    if not any("tflops" in row for row in rows):
        del captions["roofline"]
    return captions


def draw(rows: list[dict]) -> dict[str, bytes]:
    """Name and PNG of each figure."""
    makers: dict[str, Callable] = {
        "bars": bars,
        "roofline": roofline,
        "scaling": scaling,
        "memory": memory,
        "throughput": throughput,
    }
    return {name: to_png(makers[name](rows), dpi=144) for name in figures_of(rows)}


def _headline_groups(rows: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """Title, dtype and rows of each panel that shows a kernel of the headline."""
    groups = []
    for dtype in dtypes(rows):
        for kernel in HEADLINE:
            if found := usual(rows, *kernel, dtype):
                title = {"training_step": "training step"}.get(kernel[1], kernel[1])
                groups.append((f"{title}, {dtype}", dtype, found))
    return groups


def _panels(count: int, columns: int, width: float = 3.5, height: float = 2.6):
    rows = -(-count // columns)
    fig = new_figure(0.4 + width * columns, 0.5 + height * rows)
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return fig, axes[:count]


def _legend(fig, axes) -> None:
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(handles), int(fig.get_figwidth() / 2.6)))  # inches of the longest label
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def _device_title(fig, rows: list[dict]) -> None:
    row = rows[0]
    fig.suptitle(f"{row['device']}, torch {row['torch']}", fontsize="small", color=MUTED, ha="right", x=0.99)


def _log_axis(ax) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _grouped_bars(ax, rows: list[dict], value: Callable[[dict], float | None], annotate: bool) -> None:
    bands = sorted({row["bands"] for row in rows})
    providers = [name for name in STYLE if any(row["provider"] == name for row in rows)]
    width = 0.84 / len(providers)
    for number, provider in enumerate(providers):
        color, _ = STYLE[provider]
        found = {row["bands"]: row for row in rows if row["provider"] == provider}
        spots = [(bands.index(count), row) for count, row in found.items() if value(row)]
        x = [spot + (number - (len(providers) - 1) / 2) * width for spot, _ in spots]
        ax.bar(x, [value(row) for _, row in spots], 0.92 * width, color=color, label=LABELS[provider])
        if annotate and provider == "specfast":
            for at, (_, row) in zip(x, spots, strict=True):
                base = next((o for o in rows if o["provider"] == "reference" and o["bands"] == row["bands"]), None)
                if base:
                    ax.annotate(
                        f"{speedup(row, base):.1f}x",
                        (at, value(row)),
                        ha="center",
                        va="bottom",
                        xytext=(0, 1),
                        textcoords="offset points",
                        fontsize="x-small",
                        color=INK,
                    )
    ax.set_xticks(range(len(bands)), [f"C {count}" for count in bands])
    _log_axis(ax)
    heights = [value(row) for row in rows if value(row)]
    ax.set_ylim(bottom=min(heights) / 2.5, top=max(heights) * 1.6)
    ax.grid(axis="x", visible=False)


@styled
def bars(rows: list[dict]):
    """Median time of each provider, with specfast's speed-up over the published form."""
    groups = _headline_groups(rows)
    fig, axes = _panels(len(groups), 2)
    for ax, (title, _, found) in zip(axes, groups, strict=True):
        _grouped_bars(ax, found, lambda row: row["p50_ms"], annotate=True)
        ax.set_title(f"{title}, B {found[0]['batch']}")
        ax.set_ylabel("time (ms)")
    _legend(fig, axes)
    _device_title(fig, rows)
    return fig


@styled
def memory(rows: list[dict]):
    """Peak memory above what was allocated before."""
    groups = [group for group in _headline_groups(rows) if any(row["peak_memory"] for row in group[2])]
    fig, axes = _panels(len(groups), 2)
    for ax, (title, _, found) in zip(axes, groups, strict=True):
        _grouped_bars(ax, found, lambda row: row["peak_memory"] and row["peak_memory"] / 1e6, annotate=False)
        ax.set_title(f"{title}, B {found[0]['batch']}")
        ax.set_ylabel("peak memory (MB)")
    _legend(fig, axes)
    _device_title(fig, rows)
    return fig


@styled
def roofline(rows: list[dict]):
    """Rate against arithmetic intensity, both with the least FLOP and bytes of the algebra, under the measured roof."""
    kinds = [dtype for dtype in dtypes(rows) if any("tflops" in row for row in timed(rows, dtype=dtype))]
    fig, axes = _panels(len(kinds), len(kinds), width=4.6, height=3.2)
    markers = "osD^vP*X"
    for ax, dtype in zip(axes, kinds, strict=True):
        mine = [
            row
            for row in timed(rows, dtype=dtype)
            if row.get("gbs") and row["provider"] in ("reference", "reassociated", "specfast") and row["tflops"]
        ]
        mine = [row for row in mine if row["mode"] == "full" or row["kernel"] == "patch_pool"]
        mine = [row for row in mine if row["patches"] == max(other["patches"] for other in mine)]
        top, bandwidth = mine[0]["peak_tflops"], mine[0]["peak_gbs"]
        reach = [row["tflops"] / row["gbs"] * 1e3 for row in mine]
        low, high = min(*reach, 1e3 * top / bandwidth) / 2, max(*reach, 1e3 * top / bandwidth) * 2
        ridge = 1e3 * top / bandwidth
        ax.plot([low, ridge, high], [low * bandwidth / 1e3, top, top], color=INK, linewidth=1.2)
        kernels = list(dict.fromkeys((row["unit"], row["kernel"]) for row in mine))
        for row, intensity in zip(mine, reach, strict=True):
            number = kernels.index((row["unit"], row["kernel"]))
            ax.plot(
                intensity,
                row["tflops"],
                markers[number % len(markers)],
                color=STYLE[row["provider"]][0],
                markersize=5,
                alpha=0.85,
                linestyle="none",
            )
        for number, (unit, kernel) in enumerate(kernels):
            ax.plot([], [], markers[number % len(markers)], color=MUTED, linestyle="none", label=f"{kernel} ({unit})")
        for provider in ("reference", "reassociated", "specfast"):
            ax.plot([], [], color=STYLE[provider][0], linewidth=4, label=LABELS[provider])
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(f"{dtype}: {top:.3g} TFLOP/s, {bandwidth:.3g} GB/s")
        ax.set_xlabel("least FLOP over least bytes")
        ax.set_ylabel("least FLOP a second (TFLOP/s)")
    _legend(fig, axes)
    _device_title(fig, rows)
    return fig


@styled
def scaling(rows: list[dict]):
    """Time along each axis, log-log, with the slope of a line fitted to the logarithms."""
    from matplotlib.ticker import NullLocator

    found = lines(rows)
    kernels = list(dict.fromkeys(line.kernel for line in found))
    axes_names = [axis for axis in AXES if any(line.axis == axis for line in found)]
    fig = new_figure(0.4 + 2.7 * len(axes_names), 0.5 + 2.4 * len(kernels))
    grid = fig.subplots(len(kernels), len(axes_names), squeeze=False)
    for i, kernel in enumerate(kernels):
        for j, axis in enumerate(axes_names):
            ax = grid[i][j]
            for line in found:
                if (line.kernel, line.axis) == (kernel, axis):
                    color, marker = STYLE[line.provider]
                    label = LABELS[line.provider]
                    ax.plot(line.values, line.milliseconds, marker=marker, color=color, markersize=4, label=label)
                    ax.annotate(
                        f"slope {line.slope:.2f}",
                        (line.values[-1], line.milliseconds[-1]),
                        xytext=(0, 4),
                        textcoords="offset points",
                        ha="right",
                        va="bottom",
                        fontsize="x-small",
                        color=color,
                    )
            ax.set_xscale("log")
            _log_axis(ax)
            ticks = sorted({value for line in found if line.axis == axis for value in line.values})
            ax.set_xticks(ticks, [str(value) for value in ticks])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.margins(y=0.15)
            ax.set_xlabel(AXES[axis])
            if j == 0:
                ax.set_title(f"{kernel}, forward and backward")
                ax.set_ylabel("time (ms)")
    _legend(fig, [grid[0][0]])
    _device_title(fig, rows)
    return fig


@styled
def throughput(rows: list[dict]):
    """Samples a second and peak memory of step and encoder, against bands (usual batch) and batch (middle bands)."""
    dtype = dtypes(timed(rows, unit="step"))[0]
    columns = []
    for unit, kernel, mode in (("step", "training_step", "full"), ("inference", "encoder", "forward")):
        by_bands = usual(rows, unit, kernel, mode, dtype)
        counts = sorted({row["bands"] for row in by_bands}) or [0]
        by_batch = timed(rows, unit=unit, kernel=kernel, mode=mode, dtype=dtype, bands=counts[len(counts) // 2])
        columns += [(kernel, "bands", by_bands), (kernel, "batch", by_batch)]
    quantities = (("samples_per_s", 1.0, "samples / s"), ("peak_memory", 1e-6, "peak memory (MB)"))
    fig, axes = _panels(8, 4)
    for number, ax in enumerate(axes):
        kernel, axis, found = columns[number % 4]
        quantity, scale, name = quantities[number // 4]
        for provider, (color, marker) in STYLE.items():
            mine = [row for row in found if row["provider"] == provider and row[quantity]]
            if points := sorted((row[axis], scale * row[quantity]) for row in mine):
                x, y = zip(*points, strict=True)
                ax.plot(x, y, marker=marker, color=color, markersize=4, label=LABELS[provider])
        ax.set_title(f"{kernel.replace('_', ' ')}, {dtype}")
        ax.set_xlabel(AXES[axis])
        ax.set_ylabel(name)
        ax.set_ylim(bottom=0)
    _legend(fig, axes)
    _device_title(fig, rows)
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the figures")
    args = parser.parse_args(argv)
    for device, rows in devices(args.results).items():
        for name, png in draw(rows).items():
            print(f"wrote {write_atomic(args.out / f'{device}-{name}.png', png)}")


if __name__ == "__main__":
    main()

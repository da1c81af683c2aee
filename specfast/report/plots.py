"""Charts: losses, spectra, probe results, error by band. Each public function takes plain arrays, returns a Figure.

Legend: C bands. Wavelengths are in nm and stay in the order of the file: a line is broken, never re-sorted, where the
wavelength steps back (overlapping detectors) or jumps (removed bands).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specfast.report.style import BLUE, GREEN, INK, LINE_COLORS, MUTED, ORANGE, SHADE, VERMILLION, new_figure, styled

GAP = 3.0  # a step this many times the median spacing is a gap

_NAME_WIDTH = 0.062  # inches of a letter of a method's name

# Color and marker of what a row of scores comes from.
KINDS = {
    "fine-tuned": (VERMILLION, "^"),
    "features": (BLUE, "o"),
    "control": (ORANGE, "s"),
    "baseline": (MUTED, "D"),
}


@dataclass
class SpectrumPanel:
    """One pixel in one sensor's bands.

    Attributes:
        title: what the pixel is ("row 12, column 80: Woods").
        sensor: the sensor's name, written into the panel.
        wavelength: [C] nm, any order.
        lines: label -> [C] values; NaN leaves a hole.
        good: [C] bool, bands to draw; the others are shaded. None if all are good.
    """

    title: str
    sensor: str
    wavelength: np.ndarray
    lines: Mapping[str, np.ndarray]
    good: np.ndarray | None = None


def band_runs(wavelength, good=None) -> list[np.ndarray]:
    """Return index arrays of bands that one unbroken line may join, in file order."""
    wavelength = np.asarray(wavelength, dtype=float)
    good = np.ones(len(wavelength), bool) if good is None else np.asarray(good, dtype=bool)
    step = np.diff(wavelength)
    rising = step[step > 0]
    longest = GAP * float(np.median(rising)) if rising.size else np.inf
    joined = (step > 0) & (step <= longest) & good[1:] & good[:-1]
    runs = np.split(np.arange(len(wavelength)), np.flatnonzero(~joined) + 1)
    return [run for run in runs if good[run].all()]


def unmeasured(wavelength, good=None) -> list[tuple[float, float]]:
    """Return the (low, high) ranges in nm, within the measured range, that no good band covers.

    A gap between good bands counts where it is wide, and where a bad band lies in it, be it only one.
    """
    wavelength = np.asarray(wavelength, dtype=float)
    good = np.ones(len(wavelength), bool) if good is None else np.asarray(good, dtype=bool)
    usable = np.sort(wavelength[good])
    if usable.size < 3:
        return []
    spacing = float(np.median(np.diff(usable)[np.diff(usable) > 0], axis=0))
    left_out = np.zeros(len(usable) + 1, bool)
    left_out[np.searchsorted(usable, wavelength[~good])] = True
    step = np.diff(usable)
    gaps = np.flatnonzero((step > GAP * spacing) | (left_out[1:-1] & (step > GAP / 2 * spacing)))
    ranges = [(float(usable[i] + spacing / 2), float(usable[i + 1] - spacing / 2)) for i in gaps]
    low, high = float(np.nanmin(wavelength)), float(np.nanmax(wavelength))
    if usable[0] - low > spacing / 2:
        ranges.insert(0, (low, float(usable[0] - spacing / 2)))
    if high - usable[-1] > spacing / 2:
        ranges.append((float(usable[-1] + spacing / 2), high))
    return ranges


def draw_spectrum(ax, panel: SpectrumPanel, *, legend: bool = True, quantity: str | None = None) -> None:
    """Draw one panel into ``ax``."""
    wavelength = np.asarray(panel.wavelength, dtype=float)
    for low, high in unmeasured(wavelength, panel.good):
        ax.axvspan(low, high, color=SHADE, linewidth=0, zorder=0)
    runs = band_runs(wavelength, panel.good)
    for (label, values), color in zip(panel.lines.items(), LINE_COLORS, strict=False):
        values = np.asarray(values, dtype=float)
        if values.shape != wavelength.shape:
            raise ValueError(
                f"{label}: expected [{len(wavelength)}] values to match wavelength; got {list(values.shape)}"
            )
        for number, run in enumerate(runs):
            ax.plot(
                wavelength[run],
                values[run],
                color=color,
                label=label if number == 0 else None,
                marker="." if len(run) == 1 else None,
                linewidth=1.4,
            )
    ax.set_title(panel.title)
    ax.text(0.99, 0.97, panel.sensor, transform=ax.transAxes, ha="right", va="top", color=MUTED, fontsize="small")
    ax.set_xlabel("wavelength (nm)")
    if quantity:
        ax.set_ylabel(quantity)
    if legend:
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.92), handlelength=1.2)


@styled
def spectra(panels: Sequence[SpectrumPanel], quantity: str, columns: int = 2):
    """Original against reconstructed spectra, a panel for each pixel and sensor; ranges without a good band are shaded.

    Args:
        panels: what to draw.
        quantity: the y axis with its unit, such as ``"radiance (uW cm$^{-2}$ nm$^{-1}$ sr$^{-1}$)"``.
        columns: panels in a row.

    Raises:
        ValueError: no panel, or a line that does not match its wavelengths.
    """
    if not panels:
        raise ValueError("panels: expected at least one spectrum, got none")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    fig = new_figure(0.3 + 3.7 * columns, 0.3 + 2.25 * rows)
    axes = fig.subplots(rows, columns, squeeze=False)
    for number, ax in enumerate(axes.flat):
        if number >= len(panels):
            ax.remove()
            continue
        draw_spectrum(ax, panels[number], legend=number == 0)
        ax.label_outer()
    fig.supylabel(quantity, fontsize="medium", color=INK)
    return fig


@styled
def loss_curves(history: Mapping[str, Sequence[float]], title: str = "Pre-training loss on removed patches"):
    """Training loss with its two parts, over the learning rate.

    Args:
        history: columns ``step`` and ``loss``; ``loss_spectral``, ``loss_charbonnier`` and ``lr`` where known.
        title: above the curves.

    Raises:
        ValueError: ``step`` or ``loss`` is missing or empty, or a column has another length.
    """
    columns = {key: np.asarray(values, dtype=float) for key, values in history.items()}
    for key in ("step", "loss"):
        if key not in columns or columns[key].size == 0:
            raise ValueError(f"history: expected a column {key!r} with at least one step, got {sorted(columns)}")
    step = columns["step"]
    for key, values in columns.items():
        if values.shape != step.shape:
            raise ValueError(f"history: column {key!r} holds {values.size} values for {step.size} steps")
    has_lr = "lr" in columns
    fig = new_figure(5.0, 3.7)
    axes = fig.subplots(1 + has_lr, 1, sharex=True, height_ratios=[3, 1] if has_lr else [1], squeeze=False)[:, 0]
    parts = {
        "loss": ("loss (sum)" if "loss_spectral" in columns else "loss", INK),
        "loss_spectral": ("spectral: 1 - cosine", VERMILLION),
        "loss_charbonnier": ("Charbonnier (counts twice)", BLUE),
    }
    for key, (label, color) in parts.items():
        if key in columns:
            axes[0].plot(step, columns[key], color=color, alpha=0.25, linewidth=0.8)
            axes[0].plot(step, running_mean(columns[key]), color=color, label=label)
    if all(np.nanmin(columns[key]) > 0 for key in parts if key in columns):
        axes[0].set_yscale("log")
        _plain_log_ticks(axes[0].yaxis)
    axes[0].set_title(title)
    axes[0].set_ylabel("loss")
    axes[0].legend()
    if has_lr:
        axes[1].plot(step, columns["lr"], color=GREEN)
        axes[1].set_ylabel("learning rate")
        axes[1].set_ylim(bottom=0)
        axes[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[-1].set_xlabel("step")
    return fig


def _plain_log_ticks(axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def running_mean(values, window: int | None = None) -> np.ndarray:
    """Return the centered running mean of ``values``, a twentieth of the run wide; at the ends over what is there."""
    values = np.asarray(values, dtype=float)
    half = (len(values) // 40) if window is None else window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


@styled
def probe_chart(rows: Sequence[Mapping], metric: str = "overall accuracy (%)"):
    """Dot chart of probe results: mean, spread and single seeds; features, controls and baselines told apart.

    Args:
        rows: mappings with ``method``, ``kind`` (one of :data:`KINDS`), ``group`` (one panel a group,
            such as "field-disjoint, 50 labels a class"), ``values`` (one number a seed). Methods keep the order of
            their first row.
        metric: the x axis.

    Raises:
        ValueError: no rows, or an unknown kind.
    """
    if not rows:
        raise ValueError("rows: expected at least one result, got none")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    # the longest name beside the first panel needs its room, and the legend below its own
    width = max(2.4, 0.9 + _NAME_WIDTH * max(map(len, methods))) + 2.6 * columns
    handles = _kind_handles({row["kind"] for row in rows})
    legend_columns = max(1, min(len(handles), int(width / 1.9)))
    legend_lines = -(-len(handles) // legend_columns)
    fig = new_figure(width, 0.55 + 0.2 * legend_lines + lines * (0.6 + 0.21 * len(methods)))
    axes = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for number, ax in enumerate(axes.flat):
        if number >= len(groups):
            ax.remove()
            continue
        draw_probe(ax, [row for row in rows if row["group"] == groups[number]], methods)
        ax.set_title(textwrap.fill(groups[number], 26))
        ax.set_xlabel(metric)
        ax.label_outer()
    fig.legend(handles=handles, loc="outside lower center", ncols=legend_columns)
    return fig


def draw_probe(ax, rows: Sequence[Mapping], methods: Sequence[str]) -> None:
    """Draw one group of results into ``ax``, a line for each of ``methods``, the first on top."""
    for row in rows:
        if row["kind"] not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {row['kind']!r}")
        color, marker = KINDS[row["kind"]]
        values = np.asarray(row["values"], dtype=float)
        y, mean, spread = methods.index(row["method"]), values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
        ax.plot(values, np.full(values.size, y), linestyle="none", marker="|", color=color, alpha=0.6, markersize=6)
        ax.errorbar(mean, y, xerr=spread, color=color, marker=marker, markersize=6, linewidth=1.6, zorder=3)
        ax.annotate(
            f"{mean:.1f}" if abs(mean) >= 10 else f"{mean:.3g}",
            (max(mean + spread, values.max()), y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=color if row["kind"] in ("fine-tuned", "features") else INK,
            fontsize="small",
        )
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.margins(x=0.14)
    ax.locator_params(axis="x", nbins=6)
    ax.tick_params(axis="y", length=0)


def _kind_handles(kinds):
    from matplotlib.lines import Line2D

    names = {
        "fine-tuned": "fine-tuned SpecAware",
        "features": "frozen SpecAware features",
        "control": "control",
        "baseline": "baseline",
    }
    return [
        Line2D([], [], color=color, marker=marker, linestyle="none", label=names[kind])
        for kind, (color, marker) in KINDS.items()
        if kind in kinds
    ]


@styled
def band_error(sensors: Mapping[str, tuple], quantity: str):
    """Reconstruction error by band, one panel for all sensors.

    Args:
        sensors: sensor name -> (wavelength [C] nm, error [C] or {label: error [C]}); a second label is drawn dashed,
            such as the spread of the scene that the error is to be judged against.
        quantity: the y axis with its unit.

    Raises:
        ValueError: no sensors.
    """
    if not sensors:
        raise ValueError("sensors: expected at least one sensor, got none")
    fig = new_figure(5.0, 3.0)
    ax = fig.subplots()
    common = None
    for (name, (wavelength, errors)), color in zip(sensors.items(), LINE_COLORS, strict=False):
        gaps = set(unmeasured(wavelength))
        common = gaps if common is None else common & gaps
        errors = errors if isinstance(errors, Mapping) else {"": errors}
        for (label, error), linestyle in zip(errors.items(), ("-", "--", ":"), strict=False):
            for number, run in enumerate(band_runs(wavelength)):
                ax.plot(
                    np.asarray(wavelength, dtype=float)[run],
                    np.asarray(error, dtype=float)[run],
                    color=color,
                    linestyle=linestyle,
                    linewidth=1.4,
                    label=(f"{name}: {label}" if label else name) if number == 0 else None,
                )
    for low, high in common:
        ax.axvspan(low, high, color=SHADE, linewidth=0, zorder=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("wavelength (nm)")
    ax.set_ylabel(quantity)
    ax.set_title("Reconstruction error by band")
    ax.legend()
    return fig

"""Synchronization against the number of workers: step time above, disagreement below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specfast.report.style import LINE_COLORS, MUTED, new_figure, styled

_MARKERS = ("o", "s", "^", "D", "v", "P")


@styled
def scaling(rows: Sequence[Mapping], title: str = ""):
    """Draw step time and disagreement of every strategy against the number of workers.

    Args:
        rows: mappings with ``world``, ``strategy``, ``seconds`` (a step) and ``disagreement`` (mean squared distance
            to the mean in units of what a step's noise adds; 0 is exact and not drawn).
        title: above the panels: the network that was simulated.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one result, got none")
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    fig = new_figure(5.4, 5.6)
    time, apart = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for number, name in enumerate(names):
        own = sorted((row for row in rows if row["strategy"] == name), key=lambda row: row["world"])
        look = {"color": LINE_COLORS[number % len(LINE_COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}
        worlds = [row["world"] for row in own]
        time.plot(worlds, [1e3 * row["seconds"] for row in own], markersize=4, label=name, **look)
        if any(row["disagreement"] > 0 for row in own):
            apart.plot(worlds, [row["disagreement"] for row in own], markersize=4, **look)
    time.set_xscale("log", base=2)
    for ax in (time, apart):
        ax.set_yscale("log")
        _plain(ax.yaxis)
    _plain(time.xaxis)
    time.set_ylabel("step (ms)")
    time.set_title("Simulated step time")
    apart.axhline(1.0, color=MUTED, linewidth=0.8, linestyle="--")
    apart.set_ylabel("disagreement\n(noise of one step = 1)")
    apart.set_title("Simulated disagreement; all-reduce has none")
    apart.set_xlabel("workers")
    fig.legend(loc="outside lower center", ncols=3)
    if title:
        fig.suptitle(title, fontsize="small", color=MUTED)
    return fig


def _plain(axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axis.axis_name == "y":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())

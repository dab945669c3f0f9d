"""Figures of a history: the mixture, the weights and the loss over training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from swsmix._histogram import MAX_BINS, Array, bin_edges
from swsmix._labels import format_number
from swsmix.plots.density import back_to_front
from swsmix.plots.given import refusal
from swsmix.plots.style import (
    FULL,
    GREY,
    IDLE,
    INK,
    NEGATIVE,
    POSITIVE,
    TICKS,
    Panels,
    add_legend,
    component_colors,
    make_panels,
    num_columns,
    styled,
    unshared,
)
from swsmix.training.history import History

_GREYS = ListedColormap([str(1 - 0.65 * i / 255) for i in range(20, 256)])  # lines stand out
_HALO = [Stroke(linewidth=2.2, foreground="w"), Normal()]


def check_history(history: object, what: str) -> None:
    """A TypeError for anything but a history.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(history, History):
        return
    if isinstance(getattr(history, "history", None), History):
        mend = "pass its .history"
    elif isinstance(history, str | Path):
        mend = "pass load_run(folder).history"
    else:
        mend = "pass what fit returned, or load_run(folder).history"
    raise TypeError(refusal(what, "the history of a run", history, mend))


def group_of(history: History, group: str | None, what: str) -> str:
    """The group to draw: the only one, or the one asked for."""
    check_history(history, what)
    if not any(columns.get("mean") for columns in history.series.values()):
        raise ValueError(f"{what}: needs a history with records, got an empty one: record some")
    if group is None and len(history.groups) == 1:
        return history.groups[0]
    if group not in history.groups:
        got = "no group" if group is None else f"group {group!r}"
        raise ValueError(f"{what}: needs one of {list(history.groups)}, got {got}: pass group=")
    return group


def series(history: History, group: str, name: str) -> Array:
    """One recorded quantity of a group: float64 (records, ...)."""
    return history.stacked(group, name).double().numpy()


def common_histograms(history: History, group: str) -> tuple[Array, Array]:
    """A group's histograms on common edges: edges, counts (records, bins). Totals are kept."""
    # A record's own bins say where a weight is only to within their width: no common bin is
    # narrower, and the counts that interpolation across an edge gives are rounded.
    own_edges, own_counts = (series(history, group, n) for n in ("bin_edges", "bin_counts"))
    mean = series(history, group, "mean")
    low, high = min(own_edges.min(), mean.min()), max(own_edges.max(), mean.max())
    pad = 0.02 * (high - low) or 1e-6
    low, high = low - pad, high + pad
    most = min(MAX_BINS, int((high - low) / np.diff(own_edges).max()))
    edges = bin_edges(int(own_counts[0].sum()), low, high, most, finest=0.0)
    below = np.pad(own_counts.cumsum(1), ((0, 0), (1, 0)))
    pairs = zip(own_edges, below, strict=True)
    return edges, np.diff(np.stack([np.interp(edges, e, b).round() for e, b in pairs]))


def time_axis(history: History, records: int) -> tuple[Array, str]:
    """The horizontal axis of a history: epochs where they are recorded, else record numbers."""
    epochs = history.scalars.get("epoch", [])
    if len(epochs) == records:
        return np.asarray(epochs, dtype=float), "epoch"
    return np.arange(records, dtype=float), "record"


def _label_time(ax: Axes, epochs: Array, unit: str) -> None:
    ax.set_xlabel(unit)
    if len(epochs) == 1:
        ax.set_xticks(epochs)


def _deaths_and_mergers(claimed: Array, count: Array) -> tuple[dict[int, int], dict[int, int]]:
    """Component -> the record where it lost its last weight for good: deaths, and mergers."""
    holds = claimed >= 1
    lost = {
        j: int(np.flatnonzero(holds[:, j])[-1]) + 1
        for j in np.flatnonzero(holds.any(0) & ~holds[-1]).tolist()
    }
    deaths = {j: record for j, record in lost.items() if count[-1, j] < 1}
    return deaths, {j: record for j, record in lost.items() if j not in deaths}


@styled
def trajectories(
    history: History, group: str | None = None, *, ax: Panels = None, width: float = FULL
) -> Figure:
    """The mixture over training: mean (band: +- one std), std, mixing and the number of clusters.

    A component claims a weight if it is the most responsible one for it; a cluster is a component
    that claims at least one weight, so of duplicates only one is. A mark shows where a component
    lost its last weight for good: a cross for a death (at the end it expects fewer than one weight,
    N_j < 1), a circle for a merger (it shares weights that others claim). Colours are those of the
    last means; dashed are the components that claim no weight at the end. The number of clusters
    may rise: at a large first std, one component is the most responsible for nearly all weights.

    Args:
        history: the history of a run.
        group: the mixture's group; needed if there are several.
        ax: four Axes.
        width: width of the figure, in inches; below 5 the panels are stacked.

    Raises:
        TypeError: if it is no history.
        ValueError: if the history is empty, or it has several groups and none is named.

    Example:
        >>> figure = trajectories(history)  # doctest: +SKIP
    """
    group = group_of(history, group, "trajectories")
    names = ("mean", "std", "mixing", "count")
    mean, std, mixing, count = (series(history, group, name) for name in names)
    claimed = history.claimed(group).numpy()
    idle = claimed[-1] < 1
    order = back_to_front(mixing[-1], claimed[-1])
    mixing = np.where(mixing > 0, mixing, np.nan)
    epochs, unit = time_axis(history, len(mean))
    colors = component_colors(history.stacked(group, "mean")[-1])
    columns = num_columns(width)
    figure, panels = make_panels(
        ax, 4, width=width, row=1.8 if columns == 2 else 1.4, columns=columns, sharex=True
    )
    deaths, mergers = _deaths_and_mergers(claimed, count)
    dot = "." if len(mean) == 1 else ""
    for j in order:
        color, dashes = colors[j], IDLE if idle[j] else {}
        end = deaths.get(j, len(mean) - 1) + 1
        for panel, values in zip(panels, (mean, std, mixing), strict=False):
            panel.plot(
                epochs[:end], values[:end, j], color=color, marker=dot, label=f"_component {j}",
                **dashes,
            )  # fmt: skip
        below, above = (mean - std)[:end, j], (mean + std)[:end, j]
        if not idle[j]:
            panels[0].fill_between(epochs[:end], below, above, color=color, alpha=0.15, lw=0)
    keys = []
    for name, marker, lost in (("died", "x", deaths), ("merged", "o", mergers)):
        style: dict[str, Any] = {"ls": "", "marker": marker, "ms": 4, "mfc": "w"}
        for j, record in lost.items():
            panels[0].plot(
                epochs[record], mean[record, j], color=colors[j], label=f"_{name} {j}", **style
            )
        keys += [Line2D([], [], color=INK, label=name, **style)] if lost else []
    if idle.any():
        keys.append(Line2D([], [], color=INK, label="no weight at the end", **IDLE))
    if keys:
        add_legend(panels[0], keys)
    pad = 0.15 * float(np.ptp(mean)) + float(np.median(std))
    panels[0].set(ylabel="mean (weight)", ylim=(mean.min() - pad, mean.max() + pad))
    for panel, label in zip(panels[1:3], ("std (weight)", "mixing"), strict=True):
        panel.set(ylabel=label, yscale="log")
        low, high = panel.get_ylim()
        panel.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:.3g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    clusters = (claimed >= 1).sum(1)
    panels[3].step(epochs, clusters, where="post", color=INK, marker=dot, label="_clusters")
    panels[3].set(ylabel="clusters", ylim=(0, len(colors) + 0.5))
    panels[3].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for panel in unshared(panels):
        _label_time(panel, epochs, unit)
    return figure


@styled
def collapse(
    history: History, group: str | None = None, *, ax: Panels = None, width: float = FULL
) -> Figure:
    """The weight histogram over training as a heat map, with the centres that claim weights.

    A cell is a record wide and as high as a bin of the recorded histograms, which tell no more.

    Args:
        history: the history of a run.
        group: the group of weights; needed if there are several.
        ax: one Axes.
        width: width of the figure, in inches.

    Raises:
        TypeError: if it is no history.
        ValueError: if the history is empty, or it has several groups and none is named.

    Example:
        >>> figure = collapse(history)  # doctest: +SKIP
    """
    group = group_of(history, group, "collapse")
    edges, counts = common_histograms(history, group)
    epochs, unit = time_axis(history, len(counts))
    padded = np.pad(epochs, 1, "reflect", reflect_type="odd")  # one more record at each end
    sides = (padded[1:] + padded[:-1]) / 2 if len(epochs) > 1 else epochs[0] + [-0.5, 0.5]
    density = counts / (counts.sum(1, keepdims=True) * (edges[1] - edges[0]))
    nonzero = np.ma.masked_less_equal(density, 0)
    figure, (panel,) = make_panels(ax, 1, width=width, row=0.35 * width + 1)
    low, high = max(nonzero.min(), 1e-4 * nonzero.max()) / 3, nonzero.max()
    mesh = panel.pcolormesh(
        sides, edges, nonzero.T, cmap=_GREYS, norm=LogNorm(low, high), rasterized=True
    )
    mean = np.where(history.claimed(group).numpy() >= 1, series(history, group, "mean"), np.nan)
    for j, color in enumerate(component_colors(history.stacked(group, "mean")[-1])):
        panel.plot(
            epochs,
            mean[:, j],
            color=color,
            lw=0.8,
            label=f"_component {j}",
            marker="." if len(epochs) == 1 else "",
            path_effects=_HALO,
        )
    panel.set(xlim=(sides[0], sides[-1]), ylim=(edges[0], edges[-1]), ylabel="weight")
    _label_time(panel, epochs, unit)
    bar = figure.colorbar(mesh, ax=panel, pad=0.015, aspect=30, label="density (1 / weight)")
    bar.ax.spines[:].set_visible(False)
    bar.ax.tick_params(**TICKS)
    bar.minorticks_off()
    if high < 100 * low:  # it may span no power of ten
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(format_number)
    return figure


@styled
def loss_terms(history: History, *, ax: Panels = None, width: float = FULL) -> Figure:
    """The objective's terms over training.

    The first panel, in nats per case: the objective, the data loss, and their difference, the
    prior's term. The second, in nats: R(w) (`nll`) and the hyper-prior. Where the first records
    would flatten the rest, they are cut, and where they begin is written beside the cut.

    Args:
        history: the history of a run, with the scalars that `fit` writes.
        ax: two Axes.
        width: width of the figure, in inches; below 5 the panels are stacked.

    Raises:
        TypeError: if it is no history.
        ValueError: if the history is empty or lacks one of the scalars.

    Example:
        >>> figure = loss_terms(history)  # doctest: +SKIP
    """
    check_history(history, "loss_terms")
    wanted = ("objective", "data_loss", "nll", "hyper_prior")
    if missing := [name for name in wanted if not history.scalars.get(name)]:
        raise ValueError(
            f"loss_terms: needs records of {list(wanted)}, got {len(history)} record(s) without "
            f"{missing}: write them with History.record"
        )
    objective, data, nll, hyper = (np.asarray(history.scalars[name]) for name in wanted)
    epochs, unit = time_axis(history, len(history))
    columns = num_columns(width)
    figure, panels = make_panels(
        ax, 2, width=width, row=2.2 if columns == 2 else 1.8, columns=columns
    )
    for panel, name, values, color in (
        (panels[0], "objective", objective, INK),
        (panels[0], "data", data, POSITIVE),
        (panels[0], "prior", objective - data, NEGATIVE),
        (panels[1], "R(w)", nll, NEGATIVE),
        (panels[1], "hyper-prior", hyper, "#009e73"),
    ):
        panel.plot(epochs, values, color=color, label=name, marker="." if len(epochs) == 1 else "")
    for panel, label in zip(panels, ("nats per case", "nats"), strict=True):
        panel.axhline(0, color="0.8", lw=0.5, zorder=0)
        panel.set_ylabel(label)
        panel.yaxis.set_major_formatter(format_number)
        _label_time(panel, epochs, unit)
        add_legend(panel)
        _cut_start(panel)
    return figure


def _cut_start(ax: Axes) -> None:
    """Cut the first records if the lines' range over the rest is less than half of the whole."""
    named = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
    named = {name: values for name, values in named.items() if len(values) > 2}  # no axhline
    lines = np.array([*named.values()])
    first = max(1, lines.shape[-1] // 20) if len(lines) else 0
    if not first or lines.shape[1] < 5:
        return
    late = lines[:, first:]
    low, high = min(0.0, late.min()), max(0.0, late.max())
    if lines.min() >= low - (high - low) and lines.max() <= high + (high - low):
        return
    pad = 0.05 * (high - low)
    ax.set_ylim(low - pad, high + pad)
    said = [
        f"{name} from {format_number(values[0])}"
        for name, values in named.items()
        if not low - pad <= values[0] <= high + pad
    ]
    ax.text(
        0.99, 0.97, "cut: " + ",\n".join(said), transform=ax.transAxes, ha="right", va="top",
        fontsize=6.5, color=GREY,
    )  # fmt: skip

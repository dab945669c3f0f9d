"""Pictures of a mixture at work: tensors, a mixture or a history in, a matplotlib Figure out.

Every figure can be redrawn from stored data and touches no global state: no pyplot, no backend,
nothing to close; it shows itself in a notebook, and `save` writes it, byte for byte the same.
`width` is in inches (`COLUMN`, `FULL`); with `ax` the figure goes into axes of your own. Colours
mean the same everywhere (`component_colors`). Density curves are averaged over a bin, as the bars
are: a component narrower than a bin keeps its mass instead of leaving the page.

Empty or non-finite weights, an empty history, an unknown or ambiguous group, and the wrong number
of axes are a ValueError, in all functions.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from swsmix.history import History
from swsmix.mixture import GaussianMixture

COLUMN, FULL = 3.3, 6.8  # widths in inches: one column of a paper, and a whole page
NEGATIVE, NEUTRAL, POSITIVE = "#0072b2", "#595959", "#d55e00"

_COLD_TO_WARM = (NEGATIVE, "#56b4e9", "#009e73", "#cc79a7", "#e69f00", POSITIVE)  # Okabe-Ito
_BARS, _GREY, _INK = "#d6d6d6", "#666666", "#1a1a1a"
_MAX_BINS, _MAX_DOTS, _MAX_SQUARES, _CHUNK = 240, 20_000, 65_536, 1 << 18
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
_STYLE: Any = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.5,
    "axes.edgecolor": "0.45",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,
    "svg.hashsalt": "swsmix",
}
_TICKS: dict[str, Any] = {"labelsize": 7, "width": 0.5, "length": 2.5, "color": "0.45"}

Array = np.ndarray[Any, np.dtype[Any]]
Parameters = tuple[Array, Array, Array]  # mixing, mean, std: float64 (k,)
Panels = Axes | Sequence[Axes] | Array | None
P = ParamSpec("P")
R = TypeVar("R")


# --- shared: style, data ---


# Run under the house style, and leave the user's rcParams as they were.
def _styled(plot: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return styled


def component_colors(mean: Float[Tensor, " k"]) -> list[str]:
    """One colour for each component, by the order of the means: cold below, warm above zero.

    The component nearest zero is grey. Up to 7 components the others take colours of Okabe and
    Ito, beyond that steps of the perceptually uniform map "plasma"; both are safe for the
    colour-blind. Figures of a history use its last means, those of a mixture its own, so all
    figures of one run agree.

    Args:
        mean: the component means (k,), in units of the weights.

    Returns:
        k colours as "#rrggbb", in the order of the components.

    Example:
        >>> component_colors(torch.tensor([0.2, 0.0, -0.2]))
        ['#d55e00', '#595959', '#0072b2']
    """
    mean = mean.detach().double().cpu()
    zero = int(mean.abs().argmin())
    others = [j for j in mean.argsort(stable=True).tolist() if j != zero]
    colors = {zero: NEUTRAL}
    for j, shade in zip(others, np.linspace(0, 1, len(others)), strict=True):
        uniform = matplotlib.colormaps["plasma"](0.04 + 0.82 * shade)
        colors[j] = _COLD_TO_WARM[round(5 * shade)] if len(mean) <= 7 else to_hex(uniform)
    return [colors[j] for j in range(len(mean))]


# The weights as one finite vector on the CPU, or an error that says what to do.
def _flat(weights: Tensor, name: str = "weights") -> Tensor:
    flat = weights.detach().reshape(-1).cpu()
    flat = flat if flat.dtype in {torch.float32, torch.float64} else flat.float()
    if not len(flat):
        raise ValueError(
            f"{name}: wanted at least one weight, got shape {tuple(weights.shape)}: leave it out"
        )
    if bad := int((~flat.isfinite()).sum()):
        raise ValueError(
            f"{name}: wanted finite weights, got {bad} nan or inf among {len(flat)}: "
            "find where training diverged, or pass weights[weights.isfinite()]"
        )
    return flat


def _parameters(mixture: GaussianMixture) -> Parameters:
    mixing, mean, std = (
        v.detach().double().cpu().numpy() for v in (mixture.mixing, mixture.mean, mixture.std)
    )
    return mixing, mean, std


# The most responsible component of each weight, in chunks of bounded memory.
def _assign(weights: Tensor, mixture: GaussianMixture) -> Array:
    with torch.no_grad():
        chunks = (c.to(mixture.mean) for c in torch.split(weights, _CHUNK))
        labels: Array = torch.cat([mixture.log_joint(c).argmax(-1).cpu() for c in chunks]).numpy()
    return labels


# An interval with all weights and live centres, at least 8 of the narrowest stds wide.
def _span(parameters: Parameters, *weights: Tensor) -> tuple[float, float]:
    mean, std = (v[parameters[0] > 0] for v in parameters[1:])
    ends = [v for w in weights for v in (w.min().item(), w.max().item())]
    ends += list(mean) if weights else [*(mean - 4 * std), *(mean + 4 * std)]
    low, high = min(ends), max(ends)
    pad = max(0.03 * (high - low), 4 * std.min() - (high - low) / 2)
    return float(low - pad), float(high + pad)


# Bin edges and counts; a bin is centred on zero, so that pruned weights do not straddle two.
def _histogram(weights: Tensor, low: float, high: float) -> tuple[Array, Array]:
    step = (high - low) / min(_MAX_BINS, max(40, 4 * len(weights) ** 0.5))
    edges = (np.arange(np.floor(low / step - 0.5), np.ceil(high / step - 0.5) + 1) + 0.5) * step
    counts, _ = np.histogram(weights.numpy(), len(edges) - 1, (edges[0], edges[-1]))
    return edges, counts.astype(float)


# Points from low to high, dense enough about each centre to draw any std.
def _grid(low: float, high: float, mean: Array, std: Array, step: float = 0.0) -> Array:
    offsets = np.linspace(-4, 4, 25) * std[:, None]
    near = [mean[:, None] + offsets + shift for shift in (-step / 2, step / 2)]
    points = np.concatenate([np.linspace(low, high, 800), *(n.ravel() for n in near)])
    return np.unique(points[(points >= low) & (points <= high)])


# pi_j N(x | mu_j, sigma_j^2) averaged over a bin of width `step` about x: (k, points).
def _densities(x: Array, mixing: Array, mean: Array, std: Array, step: float) -> Array:
    distance = torch.from_numpy(np.abs(x - mean[:, None]))
    upper, lower = (
        torch.special.ndtr((half - distance) / torch.from_numpy(std)[:, None])
        for half in (step / 2, -step / 2)
    )
    share: Array = (upper - lower).numpy() / step
    return mixing[:, None] * share


# The group to draw: the only one, or the one asked for.
def _group(history: History, group: str | None, what: str) -> str:
    if not any(columns.get("mean") for columns in history.series.values()):
        raise ValueError(f"{what}: wanted a history with records, got an empty one: record some")
    if group is None and len(history.groups) == 1:
        return history.groups[0]
    if group not in history.groups:
        got = "no group" if group is None else f"group {group!r}"
        raise ValueError(f"{what}: got {got}: pass group= one of {list(history.groups)}")
    return group


def _series(history: History, group: str, name: str) -> Array:
    return history.stacked(group, name).double().numpy()


# All histograms of a group on common edges: edges, counts (records, bins). Totals are kept.
def _film(history: History, group: str) -> tuple[Array, Array]:
    own_edges, own_counts = (_series(history, group, n) for n in ("bin_edges", "bin_counts"))
    mean = _series(history, group, "mean")
    low, high = min(own_edges.min(), mean.min()), max(own_edges.max(), mean.max())
    pad = 0.02 * (high - low) or 1e-6
    edges = np.linspace(low - pad, high + pad, _MAX_BINS + 1)
    below = np.pad(own_counts.cumsum(1), ((0, 0), (1, 0)))
    pairs = zip(own_edges, below, strict=True)
    return edges, np.diff(np.stack([np.interp(edges, e, b) for e, b in pairs]))


# The horizontal axis of a history: epochs where they are recorded, else record numbers.
def _clock(history: History, records: int) -> tuple[Array, str]:
    epochs = history.scalars.get("epoch", [])
    if len(epochs) == records:
        return np.asarray(epochs, dtype=float), "epoch"
    return np.arange(records, dtype=float), "record"


# --- shared: drawing ---


# Two panels side by side on a page, one below the other in a column.
def _columns(width: float) -> int:
    return 2 if width >= 5 else 1


# A new figure with `count` panels in rows `row` inches high, or the user's axes, checked.
def _panels(
    ax: Panels, count: int, *, width: float, row: float, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    if ax is not None:
        axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != count or not all(isinstance(a, Axes) for a in axes):
            raise ValueError(
                f"ax: wanted {count} Axes, got {len(axes)} object(s) of type "
                f"{type(ax).__name__}: pass figure.subplots(1, {count}), or leave it out"
            )
        return _figure(axes[0]), axes
    rows = -(-count // columns)
    figure = Figure(figsize=(width, row * rows), dpi=150, layout="constrained")
    # Notebooks show what has a `_repr_png_`; a Figure made without pyplot has none.
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    grid = figure.subplots(rows, columns, squeeze=False, **subplots).ravel()
    for spare in grid[count:]:
        spare.remove()
    for panel in grid[:count]:
        panel.tick_params(which="major", **_TICKS)
        panel.tick_params(which="minor", width=0.4, length=1.5, color="0.45")
    return figure, list(grid[:count])


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


# Lay the figure out, and keep it so: constrained layout moves a little with every drawing.
def _settle(figure: Figure) -> None:
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@_styled
def _png(figure: Figure) -> bytes:
    _settle(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata=_METADATA["png"])
    return buffer.getvalue()


# A legend above the axes, where it covers nothing.
def _legend(ax: Axes, handles: Sequence[Any] | None = None, columns: int = 4) -> None:
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    ax.legend(
        handles=list(handles),
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
    )


# Three digits, with k, M, G for thousands; also an axis formatter.
def _number(value: Any, _: Any = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def _shorten(name: str, length: int) -> str:
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


# The positions nearest to those given that lie `gap` apart, in the same order.
def _spread(positions: Array, gap: float) -> Array:
    order = np.argsort(positions, kind="stable")
    steps = gap * np.arange(len(positions))
    blocks: list[list[float]] = []
    for p in positions[order] - steps:
        blocks.append([p])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    spread = np.empty(len(positions))
    spread[order] = np.repeat([np.mean(b) for b in blocks], [len(b) for b in blocks]) + steps
    return spread


# A label above each centre, moved aside where they crowd, tied to it by a thin line.
def _label_centres(
    ax: Axes, mean: Array, labels: Sequence[str], colors: Sequence[str], title: str
) -> None:
    box, dpi = ax.get_window_extent(), _figure(ax).dpi
    low, high = ax.get_xlim()
    at, gap = (mean - low) / (high - low), 7.5 / 72 * dpi / box.width
    rise = 1 + 9 / 72 * dpi / box.height
    legible = gap * (len(at) - 1) <= 1.1
    style: dict[str, Any] = {"fontsize": 6.5, "va": "bottom", "label": "_centre"}
    tie: dict[str, Any] = {"arrowstyle": "-", "lw": 0.6, "shrinkA": 0, "shrinkB": 0}
    if legible:
        ax.text(-0.015, rise, title, transform=ax.transAxes, ha="right", color=_GREY, **style)
    for x, place, label, color in zip(
        mean, _spread(at, gap) if legible else at, labels, colors, strict=True
    ):
        ax.annotate(
            label if legible else "",
            (x, 1),
            (place, rise),
            ("data", "axes fraction"),
            "axes fraction",
            tie | {"color": color},
            color=color,
            rotation=90,
            ha="center",
            **style,
        )


# A histogram as a density, the live components scaled by mixing, and their sum.
def _density_panel(
    ax: Axes,
    edges: Array,
    counts: Array,
    parameters: Parameters,
    colors: Sequence[str],
    *,
    log: bool,
) -> None:
    step, middles = edges[1] - edges[0], (edges[1:] + edges[:-1]) / 2
    density = counts / (counts.sum() * step)
    x = _grid(edges[0], edges[-1], parameters[1], parameters[2], step)
    components = _densities(x, *parameters, step)
    total = components.sum(0)
    top = max(density.max(), total.max())
    floor = min(0.5 / (counts.sum() * step), 0.01 * total.max()) if log else 0.0
    ax.stairs(
        np.maximum(density, floor), edges, baseline=floor, fill=True, color=_BARS, label="weights"
    )
    ground = floor / 10  # out of sight, so that no line runs along the axis
    ax.plot(x, np.maximum(total, ground), color=_INK, lw=0.8, label="mixture")
    for j in np.flatnonzero(parameters[0] > 0).tolist():
        seen = np.flatnonzero(components[j] > (ground if log else 1e-4 * top))
        part = slice(max(seen[0] - 1, 0), seen[-1] + 2) if len(seen) else slice(0)
        curve = np.maximum(components[j][part], ground)
        ax.fill_between(x[part], ground, curve, color=colors[j], alpha=0.35, lw=0)
        ax.plot(x[part], curve, color=colors[j], lw=0.8, label=f"_component {j}")
    ax.set_xlim(edges[0], edges[-1])
    if log:
        if ax.get_yscale() != "log":  # setting it again costs a film much time
            ax.set_yscale("log")
        ax.set_ylim(floor, 2 * top)
        return
    limit, second = 1.04 * top, np.sort(components.max(1))[-2:][0]
    outline = np.maximum(density, np.interp(middles, x, total))
    if top > 10 * second > 0 and (outline > 5 * second).mean() < 0.05:
        limit = 5 * second  # a tower at zero would flatten all the rest: cut it, and say so
        tower = middles[outline.argmax()]
        side = -1 if tower > middles.mean() else 1
        ax.annotate(
            f"cut: reaches {_number(top)}",
            (tower, limit),
            (6 * side, -2),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="top",
            fontsize=6.5,
            color=_GREY,
        )
    ax.set_ylim(0, limit)
    ax.yaxis.set_major_formatter(_number)


def _over_time(ax: Axes, epochs: Array, unit: str) -> None:
    ax.set_xlabel(unit)
    if len(epochs) == 1:
        ax.set_xticks(epochs)


# --- figures of weights and a mixture ---


@_styled
def clusters(
    weights: Float[Tensor, "..."],
    mixture: GaussianMixture,
    *,
    ax: Panels = None,
    width: float = FULL,
) -> Figure:
    """The weights' histogram with the mixture's density and its components, linear and log.

    The number above each centre is the number of weights for which that component is the most
    responsible. Components with mixing 0 are not drawn. In the linear panel a lone tower ten
    times higher than the rest is cut; its height is written beside it.

    Args:
        weights: weights of any shape.
        mixture: the mixture (k components).
        ax: two Axes, linear and log.
        width: of the figure, in inches; below 5 the panels are stacked.

    Returns:
        The figure.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = clusters(torch.tensor([0.0, 0.1, 0.9]), mixture)
    """
    w = _flat(weights)
    parameters, colors = _parameters(mixture), component_colors(mixture.mean)
    edges, counts = _histogram(w, *_span(parameters, w))
    columns = _columns(width)
    figure, panels = _panels(ax, 2, width=width, row=2.5 if columns == 2 else 1.95, columns=columns)
    for panel, log in zip(panels, (False, True), strict=True):
        _density_panel(panel, edges, counts, parameters, colors, log=log)
        panel.set(xlabel="weight", ylabel="density (1 / weight)")
    live = np.flatnonzero(parameters[0] > 0)
    numbers = np.bincount(_assign(w, mixture), minlength=len(colors))
    _label_centres(
        panels[1],
        parameters[1][live],
        [_number(numbers[j]) for j in live],
        [colors[j] for j in live.tolist()],
        "weights\nin each",
    )
    _legend(panels[0])
    return figure


@_styled
def responsibilities(
    mixture: GaussianMixture,
    weights: Float[Tensor, "..."] | None = None,
    *,
    ax: Panels = None,
    width: float = FULL,
) -> Figure:
    """Which component claims a weight of a given value: gamma_j(w), stacked to 1.

    Args:
        mixture: the mixture (k components).
        weights: weights of any shape, drawn below as a histogram (log counts), each bar in the
            colour of the component that claims it.
        ax: one Axes, or two with weights.
        width: of the figure, in inches.

    Returns:
        The figure.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = responsibilities(mixture, torch.tensor([0.0, 0.1, 0.9]))
    """
    parameters, colors = _parameters(mixture), component_colors(mixture.mean)
    flat = [] if weights is None else [_flat(weights)]
    low, high = _span(parameters, *flat)
    mean, live = parameters[1], parameters[0] > 0
    order = [j for j in np.argsort(mean, kind="stable").tolist() if live[j]]
    shades = [colors[j] for j in order]

    def gamma(points: Array) -> Array:
        with torch.no_grad():
            rows = mixture.responsibilities(torch.from_numpy(points).to(mixture.mean))
        return rows.double().cpu().numpy().T[order]

    figure, panels = _panels(
        ax,
        1 + len(flat),
        width=width,
        row=1.35 if flat else 1.8,
        sharex=True,
        height_ratios=[2.0, 1.5][: 1 + len(flat)],
    )
    x = _grid(low, high, mean, parameters[2])
    areas = panels[0].stackplot(x, gamma(x), colors=shades, lw=0.3, ec="w", alpha=0.85)
    for j, area in zip(order, areas, strict=True):
        area.set_label(f"_component {j}")
    panels[0].set(xlim=(low, high), ylim=(0, 1), ylabel="responsibility")
    _label_centres(panels[0], mean[order], [_number(mean[j]) for j in order], shades, "mean")
    for w in flat:
        edges, counts = _histogram(w, low, high)
        claimant = gamma((edges[1:] + edges[:-1]) / 2).argmax(0)
        for i, j in enumerate(order):
            held = np.where(claimant == i, np.maximum(counts, 0.5), 0.5)
            panels[1].stairs(
                held,
                edges,
                baseline=0.5,
                fill=True,
                color=colors[j],
                alpha=0.85,
                label=f"_component {j}",
            )
        panels[1].set(yscale="log", ylim=(0.5, 3 * counts.max()), ylabel="weights / bin")
    panels[-1].set_xlabel("weight")
    return figure


@_styled
def before_after(
    initial: Float[Tensor, "..."],
    final: Float[Tensor, "..."],
    mixture: GaussianMixture,
    *,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """Each weight after training against its start, coloured by its final component.

    Bands are mean +- 2 std of each live component; the grey diagonal is "did not move"; the
    margins hold the histograms of all weights (log counts). The dots are at most 20,000 weights,
    the same ones every time.

    Args:
        initial: weights before training, any shape.
        final: the same weights after training.
        mixture: the final mixture (k components).
        ax: one Axes; the margins are drawn about it.
        width: of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: if the numbers of weights differ.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = before_after(torch.tensor([0.2, 0.7]), torch.tensor([0.0, 1.0]), mixture)
    """
    before, after = _flat(initial, "initial"), _flat(final, "final")
    if len(before) != len(after):
        raise ValueError(
            f"wanted the same weights before and after, got {len(before)} and {len(after)}: "
            "pass both from the same tensors of the network"
        )
    parameters, colors = _parameters(mixture), component_colors(mixture.mean)
    dots = np.arange(len(after))
    if len(after) > _MAX_DOTS:
        seed = torch.Generator().manual_seed(0)
        dots = np.unique(torch.randint(len(after), (_MAX_DOTS,), generator=seed).numpy())
    component = _assign(after[dots], mixture)
    figure, (main,) = _panels(ax, 1, width=width, row=0.95 * width)
    xlim, ylim = _span(parameters, before), _span(parameters, after)
    main.axline((0, 0), slope=1, color="0.75", lw=0.8, zorder=0, label="_did not move")
    for j in np.flatnonzero(parameters[0] > 0).tolist():
        middle, half = parameters[1][j], 2 * parameters[2][j]
        main.axhspan(
            middle - half, middle + half, color=colors[j], alpha=0.15, lw=0, label=f"_band {j}"
        )
        main.axhline(middle, color=colors[j], lw=0.4, alpha=0.6, zorder=1, label=f"_centre {j}")
    main.scatter(
        before.numpy()[dots],
        after.numpy()[dots],
        c=[colors[j] for j in component],
        s=3 if len(dots) > 2000 else 8,
        alpha=0.5,
        lw=0,
        rasterized=True,
        label="_dots",
    )
    main.set(xlim=xlim, ylim=ylim, xlabel="initial weight", ylabel="final weight")
    main.text(1.02, 1.02, "counts\n(log)", transform=main.transAxes, fontsize=6, color=_GREY)
    margins: tuple[tuple[Literal["vertical", "horizontal"], Tensor], ...]
    margins = (("vertical", before), ("horizontal", after))
    for side, values in margins:
        upright = side == "vertical"
        limits = xlim if upright else ylim
        margin = main.inset_axes((0, 1.02, 1, 0.16) if upright else (1.02, 0, 0.16, 1))
        edges, counts = _histogram(values, *limits)
        margin.stairs(np.log10(1 + counts), edges, fill=True, color="0.6", orientation=side)
        (margin.set_xlim if upright else margin.set_ylim)(limits)
        margin.axis("off")
    return figure


@_styled
def hinton(
    weight_matrix: Float[Tensor, "..."],
    *,
    mixture: GaussianMixture | None = None,
    scale: float | None = None,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """A Hinton diagram: each weight a square, its area the magnitude, its colour the sign.

    Args:
        weight_matrix: a matrix (rows, columns); a row is an output in torch's layout.
        mixture: colour the squares by their most responsible component instead of the sign.
        scale: the magnitude that fills a cell; the largest one by default.
        ax: one Axes.
        width: of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: if the tensor is no matrix, holds more than 65,536 weights, or `scale` is not
            positive.

    Example:
        >>> figure = hinton(torch.tensor([[0.5, -1.0], [0.0, 2.0]]))
    """
    shape = tuple(weight_matrix.shape)
    if len(shape) != 2 or weight_matrix.numel() > _MAX_SQUARES:
        raise ValueError(
            f"weight_matrix: wanted a matrix of at most {_MAX_SQUARES:,} weights, got shape "
            f"{shape}: pass w.flatten(1), or a block such as w[:64, :64]"
        )
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: wanted a positive magnitude, got {scale}: leave it out")
    w = _flat(weight_matrix, "weight_matrix")
    value, (rows, columns) = w.double().numpy(), shape
    full = scale or float(np.abs(value).max()) or 1.0
    half = 0.48 * np.sqrt(np.minimum(np.abs(value) / full, 1))
    y, x = np.divmod(np.arange(len(value)), columns)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    squares = np.stack([x, y], -1)[:, None] + half[:, None, None] * corners
    handles = [
        Patch(color=NEGATIVE, label="negative"),
        Patch(color=POSITIVE, label="positive"),
        Patch(color="none", label=f"full cell: {full:.3g}"),
    ]
    colors, per_line = np.where(value < 0, NEGATIVE, POSITIVE), max(3, int(width / 0.8))
    if mixture is not None:
        palette, component = component_colors(mixture.mean), _assign(w, mixture)
        mean, colors = _parameters(mixture)[1], np.array(palette)[component]
        used = sorted(set(component.tolist()), key=lambda j: mean[j])
        handles = [Patch(color=palette[j], label=_number(mean[j])) for j in used]
    height = 0.88 * width * min(max(rows / columns, 0.1), 2)
    height += 0.5 + 0.15 * -(-len(handles) // per_line)
    figure, (panel,) = _panels(ax, 1, width=width, row=height)
    seen = half > 0
    panel.add_collection(
        PolyCollection(
            list(squares[seen]),
            facecolors=list(colors[seen]),
            lw=0,
            rasterized=len(value) > 5000,
            label="_squares",
        )
    )
    panel.set(
        xlim=(-0.6, columns - 0.4),
        ylim=(rows - 0.4, -0.6),
        aspect="equal",
        anchor="W",
        xlabel="column (input)",
        ylabel="row (output)",
        facecolor="0.95",
    )
    for axis, count in ((panel.xaxis, columns), (panel.yaxis, rows)):
        ticks = min(count, max(1, round(5 * count / max(shape))))
        axis.set_ticks(np.unique(np.linspace(0, count - 1, ticks).round()))
    panel.spines[:].set_visible(False)
    _legend(panel, handles, per_line)
    return figure


@_styled
def layers(
    named_weights: Mapping[str, Tensor],
    mixture: GaussianMixture | Mapping[str, GaussianMixture],
    *,
    ax: Panels = None,
    width: float = FULL,
) -> Figure:
    """The weights and the mixture's density (log), one small panel for each tensor.

    Args:
        named_weights: name -> weights of any shape.
        mixture: one mixture for all tensors, or name -> mixture.
        ax: one Axes for each tensor.
        width: of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no tensors, or a name has no mixture.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = layers({"fc1": torch.randn(9), "fc2": torch.randn(9)}, mixture)
    """
    if not named_weights:
        raise ValueError("named_weights: wanted name -> weights, got none: pass one or more")
    if isinstance(mixture, GaussianMixture):
        mixture = dict.fromkeys(named_weights, mixture)
    if missing := [name for name in named_weights if name not in mixture]:
        raise ValueError(f"mixture: none for {missing}; got those for {list(mixture)}: add them")
    columns = min(len(named_weights), max(1, int(width / 1.6)))
    figure, panels = _panels(ax, len(named_weights), width=width, row=1.35, columns=columns)
    for panel, (name, weights) in zip(panels, named_weights.items(), strict=True):
        w, own = _flat(weights, name), mixture[name]
        parameters = _parameters(own)
        edges, counts = _histogram(w, *_span(parameters, w))
        _density_panel(panel, edges, counts, parameters, component_colors(own.mean), log=True)
        panel.set_title(f"{_shorten(name, 20)}  ({_number(len(w))})", fontsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(3))
    for panel in panels[-columns:]:
        panel.set_xlabel("weight")
    for panel in panels[::columns]:
        panel.set_ylabel("density")
    return figure


@_styled
def entropy(named_bits: Mapping[str, float], *, ax: Panels = None, width: float = COLUMN) -> Figure:
    """The bits that a weight costs, one bar for each tensor, in the order given.

    Args:
        named_bits: name -> bits a weight.
        ax: one Axes.
        width: of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no tensors, or a value is negative or not finite.

    Example:
        >>> figure = entropy({"fc1": 0.41, "fc2": 1.9})
    """
    bits = np.array(list(named_bits.values()), dtype=float)
    if not len(bits) or not np.isfinite(bits).all() or bits.min() < 0:
        raise ValueError(
            f"named_bits: wanted name -> finite bits a weight, at least 0; got {dict(named_bits)}: "
            "pass one or more tensors, and leave out those without a size"
        )
    figure, (panel,) = _panels(ax, 1, width=width, row=0.5 + 0.17 * len(bits))
    bars = panel.barh(range(len(bits)), bits, height=0.7, color=NEGATIVE)
    panel.bar_label(bars, [f"{b:.2f}" for b in bits], padding=2, fontsize=6.5, color=_GREY)
    panel.set_yticks(range(len(bits)), [_shorten(name, 28) for name in named_bits])
    panel.set(
        ylim=(len(bits) - 0.4, -0.6), xlim=(0, 1.15 * bits.max() or 1), xlabel="bits a weight"
    )
    panel.tick_params(axis="y", length=0)
    return figure


# --- figures of a history ---


# Component -> record of its death: its count is below 1 for good.
# Component -> record of its merger: for good within one std (the smaller) of a fuller one.
def _fates(count: Array, mean: Array, std: Array) -> tuple[dict[int, int], dict[int, int]]:
    live, deaths, mergers = count >= 1, {}, {}
    rank = np.argsort(np.argsort(-count[-1], kind="stable"))
    for j in range(len(rank)):
        if live[:, j].any() and not live[-1, j]:
            deaths[j] = int(np.flatnonzero(live[:, j])[-1]) + 1
        close = np.abs(mean - mean[:, [j]]) < np.minimum(std, std[:, [j]])
        close &= live & live[:, [j]]
        joined = close[-1] & ~close.all(0) & (rank < rank[j])
        if joined.any():
            mergers[j] = 1 + min(int(np.flatnonzero(~c)[-1]) for c in close.T[joined])
    return deaths, mergers


@_styled
def trajectories(
    history: History, group: str | None = None, *, ax: Panels = None, width: float = FULL
) -> Figure:
    """The mixture over training: mean (band: +- one std), std, mixing and live components.

    A cross marks the death of a component (expected count below 1 for good), a circle where one
    joins a fuller one (centres within one std for good). Colours follow the last means.

    Args:
        history: of a run.
        group: whose mixture; needed when there are several.
        ax: four Axes.
        width: of the figure, in inches; below 5 the panels are stacked.

    Returns:
        The figure.

    Example:
        >>> figure = trajectories(history)  # doctest: +SKIP
    """
    group = _group(history, group, "trajectories")
    names = ("mean", "std", "mixing", "count")
    mean, std, mixing, count = (_series(history, group, name) for name in names)
    mixing = np.where(mixing > 0, mixing, np.nan)
    epochs, unit = _clock(history, len(mean))
    colors = component_colors(history.stacked(group, "mean")[-1])
    columns = _columns(width)
    figure, panels = _panels(
        ax, 4, width=width, row=1.8 if columns == 2 else 1.4, columns=columns, sharex=True
    )
    deaths, mergers = _fates(count, mean, std)
    dot = "." if len(mean) == 1 else ""
    for j, color in enumerate(colors):
        end = deaths.get(j, len(mean) - 1) + 1
        for panel, values in zip(panels, (mean, std, mixing), strict=False):
            panel.plot(
                epochs[:end], values[:end, j], color=color, marker=dot, label=f"_component {j}"
            )
        panels[0].fill_between(
            epochs[:end],
            (mean - std)[:end, j],
            (mean + std)[:end, j],
            color=color,
            alpha=0.15,
            lw=0,
        )
    keys = []
    for name, marker, fates in (("died", "x", deaths), ("merged", "o", mergers)):
        style: dict[str, Any] = {"ls": "", "marker": marker, "ms": 4, "mfc": "w"}
        for j, record in fates.items():
            panels[0].plot(
                epochs[record], mean[record, j], color=colors[j], label=f"_{name} {j}", **style
            )
        keys += [Line2D([], [], color=_INK, label=name, **style)] if fates else []
    if keys:
        _legend(panels[0], keys)
    pad = 0.15 * float(np.ptp(mean)) + float(np.median(std))
    panels[0].set(ylabel="mean (weight)", ylim=(mean.min() - pad, mean.max() + pad))
    for panel, label in zip(panels[1:3], ("std (weight)", "mixing"), strict=True):
        panel.set(ylabel=label, yscale="log")
        low, high = panel.get_ylim()
        panel.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:.3g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[3].step(epochs, (count >= 1).sum(1), where="post", color=_INK, marker=dot, label="_live")
    panels[3].set(ylabel="live components", ylim=(0, len(colors) + 0.5))
    panels[3].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for panel in panels[-columns:]:
        _over_time(panel, epochs, unit)
    return figure


@_styled
def collapse(
    history: History, group: str | None = None, *, ax: Panels = None, width: float = FULL
) -> Figure:
    """The weight histogram over training as a heat map, with the live centres on it.

    Args:
        history: of a run.
        group: whose weights; needed when there are several.
        ax: one Axes.
        width: of the figure, in inches.

    Returns:
        The figure.

    Example:
        >>> figure = collapse(history)  # doctest: +SKIP
    """
    group = _group(history, group, "collapse")
    edges, counts = _film(history, group)
    epochs, unit = _clock(history, len(counts))
    padded = np.pad(epochs, 1, "reflect", reflect_type="odd")  # one more record at each end
    sides = (padded[1:] + padded[:-1]) / 2 if len(epochs) > 1 else epochs[0] + [-0.5, 0.5]
    density = counts / (counts.sum(1, keepdims=True) * (edges[1] - edges[0]))
    shown = np.ma.masked_less_equal(density, 0)
    figure, (panel,) = _panels(ax, 1, width=width, row=0.35 * width + 1)
    norm = LogNorm(max(shown.min(), 1e-4 * shown.max()) / 3, shown.max())
    mesh = panel.pcolormesh(sides, edges, shown.T, cmap="Greys", norm=norm, rasterized=True)
    mean = np.where(_series(history, group, "count") >= 1, _series(history, group, "mean"), np.nan)
    for j, color in enumerate(component_colors(history.stacked(group, "mean")[-1])):
        panel.plot(
            epochs,
            mean[:, j],
            color=color,
            lw=0.8,
            label=f"_component {j}",
            marker="." if len(epochs) == 1 else "",
        )
    panel.set(xlim=(sides[0], sides[-1]), ylim=(edges[0], edges[-1]), ylabel="weight")
    _over_time(panel, epochs, unit)
    bar = figure.colorbar(mesh, ax=panel, pad=0.015, aspect=30, label="density (1 / weight)")
    bar.ax.spines[:].set_visible(False)
    bar.ax.tick_params(**_TICKS)
    bar.minorticks_off()
    return figure


@_styled
def loss_terms(history: History, *, ax: Panels = None, width: float = FULL) -> Figure:
    """The objective's parts over training: what the data cost, and what the prior costs.

    First, in nats a case: the objective, the data loss, and their difference, the prior's share.
    Then, in nats: R(w) (`nll`) and the hyper-prior.

    Args:
        history: of a run, with the scalars that `fit` writes.
        ax: two Axes.
        width: of the figure, in inches; below 5 the panels are stacked.

    Returns:
        The figure.

    Raises:
        ValueError: if the history is empty or lacks one of the scalars.

    Example:
        >>> figure = loss_terms(history)  # doctest: +SKIP
    """
    wanted = ("objective", "data_loss", "nll", "hyper_prior")
    if missing := [name for name in wanted if not history.scalars.get(name)]:
        raise ValueError(
            f"loss_terms: wanted records of {list(wanted)}, got {len(history)} record(s) without "
            f"{missing}: write them with History.record"
        )
    objective, data, nll, hyper = (np.asarray(history.scalars[name]) for name in wanted)
    epochs, unit = _clock(history, len(history))
    columns = _columns(width)
    figure, panels = _panels(ax, 2, width=width, row=2.2 if columns == 2 else 1.8, columns=columns)
    for panel, name, values, color in (
        (panels[0], "objective", objective, _INK),
        (panels[0], "data", data, POSITIVE),
        (panels[0], "prior", objective - data, NEGATIVE),
        (panels[1], "R(w)", nll, NEGATIVE),
        (panels[1], "hyper-prior", hyper, "#009e73"),
    ):
        panel.plot(epochs, values, color=color, label=name, marker="." if len(epochs) == 1 else "")
    for panel, label in zip(panels, ("nats a case", "nats"), strict=True):
        panel.axhline(0, color="0.8", lw=0.5, zorder=0)
        panel.set_ylabel(label)
        panel.yaxis.set_major_formatter(_number)
        _over_time(panel, epochs, unit)
        _legend(panel)
    return figure


# --- files ---


# A temporary name beside `path`, renamed to it at the end: all of the file, or none.
@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@_styled
def save(figure: Figure, path: str | Path, *, dpi: float = 200) -> Path:
    """Write a figure, the same bytes each time: no dates, fixed ids, atomically.

    A constrained layout is settled at the first save and stays as it is from then on.

    Args:
        figure: any figure.
        path: ends in .png, .pdf or .svg.
        dpi: of PNGs and of the rasterised layers of the others.

    Returns:
        The path.

    Raises:
        ValueError: if the suffix is another one.

    Example:
        >>> save(entropy({"fc1": 0.41}), "entropy.pdf")  # doctest: +SKIP
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in _METADATA:
        raise ValueError(f"path: wanted .png, .pdf or .svg, got {path.name!r}: change its suffix")
    _settle(figure)
    with _replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=_METADATA[kind])
    return path


@_styled
def animate_collapse(
    history: History,
    path: str | Path,
    group: str | None = None,
    *,
    seconds: float = 8.0,
    max_frames: int = 100,
    width: float = 4.8,
) -> Path:
    """The weights' collapse as a film: histogram, density and centres over training.

    Args:
        history: of a run.
        path: ends in .gif, or in .mp4 where ffmpeg is installed.
        group: whose weights; needed when there are several.
        seconds: of the film; the last frame then stays two more.
        max_frames: at most this many records are shown, evenly spaced.
        width: of the picture, in inches of 120 pixels.

    Returns:
        The path.

    Raises:
        ValueError: if the suffix is another one, or ffmpeg is missing.

    Example:
        >>> animate_collapse(history, "collapse.gif")  # doctest: +SKIP
    """
    path, group = Path(path), _group(history, group, "animate_collapse")
    kind, ffmpeg = path.suffix.lower(), shutil.which("ffmpeg")
    if kind not in {".gif", ".mp4"} or (kind == ".mp4" and ffmpeg is None):
        why = "there is no ffmpeg for it" if kind == ".mp4" else "wanted .gif or .mp4"
        raise ValueError(f"path: got {path.name!r}, {why}: change the suffix to .gif")
    edges, counts = _film(history, group)
    epochs, unit = _clock(history, len(counts))
    mixing, mean, std = (_series(history, group, name) for name in ("mixing", "mean", "std"))
    colors = component_colors(history.stacked(group, "mean")[-1])
    unit_bar = 1 / (counts[0].sum() * (edges[1] - edges[0]))  # the density of one weight in a bin
    figure, (panel,) = _panels(None, 1, width=width, row=0.6 * width)
    figure.set_dpi(120)
    canvas: Any = FigureCanvasAgg(figure)
    frames = []
    for i in np.unique(np.linspace(0, len(counts) - 1, max_frames).round().astype(int)).tolist():
        for artist in (*panel.lines, *panel.patches, *panel.collections):
            artist.remove()
        _density_panel(panel, edges, counts[i], (mixing[i], mean[i], std[i]), colors, log=True)
        panel.set(
            ylim=(0.5 * unit_bar, 2 * unit_bar * counts.max()),
            xlabel="weight",
            ylabel="density (1 / weight)",
        )
        for j in np.flatnonzero(mixing[i] > 0).tolist():
            panel.plot(
                mean[i, j],
                1.02,
                "v",
                color=colors[j],
                ms=3.5,
                mew=0,
                clip_on=False,
                transform=panel.get_xaxis_transform(),
            )
        panel.set_title(f"{unit} {epochs[i]:g}", y=1.05)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
        figure.set_layout_engine("none")  # the first frame's layout, so that nothing jumps
    hold = max(0.02, seconds / len(frames))
    with _replacing(path) as temporary:
        if kind == ".gif":
            _write_gif(frames, temporary, hold)
        else:
            _write_mp4(frames, temporary, hold, str(ffmpeg))
    return path


def _write_gif(frames: list[Image.Image], path: Path, hold: float) -> None:
    chosen = [np.asarray(frames[i]) for i in (0, len(frames) // 2, -1)]
    palette = Image.fromarray(np.concatenate(chosen)).quantize(96)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    duration = [round(100 * hold) * 10] * (len(small) - 1) + [2000]
    small[0].save(path, "GIF", save_all=True, append_images=small[1:], duration=duration, loop=0)


def _write_mp4(frames: list[Image.Image], path: Path, hold: float, ffmpeg: str) -> None:
    width, height = (2 * (side // 2) for side in frames[0].size)  # yuv420p wants even sides
    last = [frames[-1]] * max(1, round(2 / hold))
    pixels = b"".join(f.crop((0, 0, width, height)).tobytes() for f in frames + last)
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {1 / hold:.4f} -i -"
    target = "-pix_fmt yuv420p -fflags +bitexact -f mp4"
    command = [ffmpeg, "-v", "error", "-y", *source.split(), *target.split(), str(path)]
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[-500:]
        raise ValueError(f"ffmpeg failed, {why!r}: change the suffix to .gif")

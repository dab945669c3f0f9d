"""Mixtures as density curves, and the panel that shows them with the weights' histogram.

A curve has its component's own width down to a 240th of the axis, which is less than a point in
print. It is averaged over that width, so that narrower components keep their mass. Bars are no
wider than the narrowest component, down to the same width.

A component is idle if it is the most responsible one for no weight. Its curve is dashed, and lies
under those of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from swsmix._histogram import MAX_BINS, Array, Parameters, chunks, histogram, span
from swsmix._labels import format_number
from swsmix.mixture import GaussianMixture
from swsmix.plots.style import BARS, GREY, IDLE, INK, root_figure, text_width
from swsmix.tables.regions import decision_regions

_LABEL = 6.5  # points
SMALL_BINS = 100  # in a panel an inch or two wide


def most_responsible(flat: Sequence[Tensor], mixture: GaussianMixture) -> Array:
    """The most responsible component of each weight."""
    regions = decision_regions(mixture)
    labels: Array = torch.cat([regions.assign(part) for part in chunks(flat)]).numpy()
    return labels


def num_claimed(flat: Sequence[Tensor], mixture: GaussianMixture) -> Array:
    """The number of weights for which each component is the most responsible."""
    regions = decision_regions(mixture)
    numbers: Array = torch.stack([regions.count(w) for w in flat]).sum(0).numpy()
    return numbers


def curve_points(low: float, high: float, mean: Array, std: Array, step: float = 0.0) -> Array:
    """Points from low to high, dense enough about each centre to draw any std."""
    offsets = np.linspace(-4, 4, 25) * std[:, None]
    near = [mean[:, None] + offsets + shift for shift in (-step / 2, step / 2)]
    points = np.concatenate([np.linspace(low, high, 800), *(n.ravel() for n in near)])
    return np.unique(points[(points >= low) & (points <= high)])


def simplified(x: Array, curves: Array, tolerance: float) -> Array:
    """The indices of the points that keep the curves (m, points), as polylines, within a tolerance.

    By Douglas and Peucker.
    """
    if len(x) < 3:
        return np.arange(len(x))
    kept, parts = {0, len(x) - 1}, [(0, len(x) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        inside = slice(first + 1, last)
        along = (x[inside] - x[first]) / (x[last] - x[first])
        ends = curves[:, [first, last]]
        off = np.abs(curves[:, inside] - ends[:, :1] - along * (ends[:, 1:] - ends[:, :1])).max(0)
        if off.max() > tolerance:
            middle = first + 1 + int(off.argmax())
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    return np.array(sorted(kept))


def _densities(x: Array, mixing: Array, mean: Array, std: Array, step: float) -> Array:
    """pi_j N(x | mu_j, sigma_j^2) averaged over a bin of width `step` about x: (k, points)."""
    distance = torch.from_numpy(np.abs(x - mean[:, None]))
    upper, lower = (
        torch.special.ndtr((half - distance) / torch.from_numpy(std)[:, None])
        for half in (step / 2, -step / 2)
    )
    share: Array = (upper - lower).numpy() / step
    return mixing[:, None] * share


def peaks(mixing: Array, std: Array, step: float) -> Array:
    """The heights of the components' curves, averaged over a bin of width `step`."""
    share: Array = torch.erf(torch.from_numpy(step / (8**0.5 * std))).numpy()
    return mixing * share / step


def back_to_front(mixing: Array, claimed: Array) -> list[int]:
    """The components in drawing order: the idle first, the largest mixing last.

    Of equals the first one is last, as it is the one that weights are assigned to.
    """
    numbers = np.arange(len(mixing))
    order: list[int] = np.lexsort((-numbers, mixing, claimed >= 1)).tolist()
    return order


def fine_histogram(
    flat: Sequence[Tensor], parameters: Parameters, most: int = MAX_BINS
) -> tuple[Array, Array]:
    """The histogram in bins no wider than the narrowest component with mixing > 0, if possible."""
    finest = float(parameters[2][parameters[0] > 0].min())
    return histogram(flat, *span(parameters, flat), most, finest)


def curve_step(edges: Array) -> float:
    """The width over which curves are averaged: what is narrower cannot be seen."""
    return float(min(edges[1] - edges[0], (edges[-1] - edges[0]) / MAX_BINS))


def _spread_out(positions: Array, gap: float) -> Array:
    """The positions nearest to these that are at least `gap` apart, in the same order."""
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


def label_centres(
    ax: Axes, mean: Array, labels: Sequence[str], colors: Sequence[str], title: str
) -> None:
    """A label above each centre, in two lines where they crowd, with a line to the centre.

    If even two lines are too short for all labels, only the lines to the centres are drawn.
    """
    box, point = ax.get_window_extent(), root_figure(ax).dpi / 72
    low, high = ax.get_xlim()
    font = FontProperties(size=_LABEL)
    order, wide = np.argsort(mean, kind="stable"), [text_width(each, font) for each in labels]
    at = (mean - low) / (high - low)
    one = (max(wide, default=0.0) + 3) * point / box.width  # a label's share of the width
    crowded = bool((np.diff(at[order]) < one).any())
    gap = (0.5 * one + 1.5 * point / box.width) if crowded else one
    line = np.zeros(len(at), dtype=int)
    line[order[1::2]] = crowded  # every second label stands above the others
    rise = 1 + (7 + 8.5 * line) * point / box.height
    legible = gap * (len(at) - 1) <= 1.1
    style: dict[str, Any] = {"fontsize": _LABEL, "va": "bottom", "label": "_centre"}
    tie: dict[str, Any] = {"arrowstyle": "-", "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
    tie |= {"patchA": None, "relpos": (0.5, 0)}  # from below the label: clipping it there is slow
    places = _spread_out(at, gap) if legible else at
    if legible:
        half = 0.5 * np.array(wide) * point / box.width
        left = min(-0.015, float((places - half).min(initial=0.0)) - 3 * point / box.width)
        foot = 1 + 7 * point / box.height
        ax.text(left, foot, title, transform=ax.transAxes, ha="right", color=GREY, **style)
    for x, place, height, label, color in zip(mean, places, rise, labels, colors, strict=True):
        ax.annotate(
            label if legible else "",
            (x, 1),
            (place, height),
            ("data", "axes fraction"),
            "axes fraction",
            tie | {"color": color},
            color=INK,  # a component's colour may be too light to read
            ha="center",
            **style,
        )


def lowest(unit: float, heights: Array) -> float:
    """Where a log axis starts, so that single weights and components that hold one are in sight.

    `unit` is the height of one weight in a bin, `heights` are those components' peaks: one so wide
    that it ends far below is drawn down to a ten-thousandth of the unit.
    """
    return float(min([0.5 * unit, *np.maximum(0.3 * heights, 1e-4 * unit)]))


def density_panel(
    ax: Axes,
    edges: Array,
    counts: Array,
    parameters: Parameters,
    colors: Sequence[str],
    claimed: Array,
    *,
    log: bool,
    bottom: float | None = None,
) -> None:
    """A histogram as a density, the components with mixing > 0, and their sum.

    `claimed` (k,) counts the weights that each component claims: those with none are dashed. The
    log axis starts at `bottom`; by default where `lowest` says. Without weights there are no bars.
    """
    step, middles = edges[1] - edges[0], (edges[1:] + edges[:-1]) / 2
    fine, total_count = curve_step(edges), max(counts.sum(), 1.0)
    density = counts / (total_count * step)
    x = curve_points(edges[0], edges[-1], parameters[1], parameters[2], fine)
    components = _densities(x, *parameters, fine)
    total = components.sum(0)
    top = max(density.max(), total.max())
    floor = 0.0
    if log:
        heights = components.max(1)[(claimed >= 1) & (parameters[0] > 0)]
        floor = lowest(1 / (total_count * step), heights) if bottom is None else bottom
    ground = floor / 10  # below the axis, so that no line runs along it
    limit, second = (2 if log else 1.04) * top, np.sort(components.max(1))[-2:][0]
    outline = np.maximum(density, np.interp(middles, x, total))
    highest = int(components.max(1).argmax())
    off = np.abs(middles - parameters[1][highest]) > 4 * parameters[2][highest] + step
    rest = max(5 * second, 1.1 * density[off].max(initial=0.0))  # what is to be seen
    tower = (
        not log
        and second > 0
        and top > max(10 * second, 2 * rest)
        and (outline > rest).mean() < 0.05
    )
    if tower:
        limit = rest  # a lone tower would flatten all other bars: cut it, and label it

    def visible_points(curve: Array) -> Array:
        """The indices of the points that draw the part of a curve above the axis."""
        above = np.flatnonzero(curve > (ground if log else 1e-4 * limit))
        part = np.arange(max(above[0] - 1, 0), min(above[-1] + 2, len(x))) if len(above) else above
        curve = np.maximum(curve[part], ground)
        height = np.log(curve / floor) / np.log(limit / floor) if log else curve / limit
        return part[simplified(x[part], height[None], 5e-4)]

    if counts.any():
        bars = np.maximum(density, floor)
        ax.stairs(bars, edges, baseline=floor, fill=True, color=BARS, label="weights")
    points = visible_points(total)
    ax.plot(x[points], np.maximum(total[points], ground), color=INK, lw=0.8, label="mixture")
    for j in back_to_front(parameters[0], claimed):
        if parameters[0][j] == 0:
            continue
        points = visible_points(components[j])
        curve = np.maximum(components[j][points], ground)
        style: dict[str, Any] = {"color": colors[j], "label": f"_component {j}"}
        if claimed[j] < 1:
            ax.plot(x[points], curve, **style, **IDLE)
            continue
        ax.fill_between(x[points], ground, curve, color=colors[j], alpha=0.35, lw=0)
        ax.plot(x[points], curve, lw=0.8, **style)
    ax.set_xlim(edges[0], edges[-1])
    if log and ax.get_yscale() != "log":  # setting it again makes films slow
        ax.set_yscale("log")
    ax.set_ylim(floor, limit)
    if log and limit > 1e3 * floor:
        ax.yaxis.set_minor_locator(NullLocator())  # a powder between decades, and half of the time
    elif log:
        ax.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))  # labels of all nine overlap
    if not log:
        ax.yaxis.set_major_formatter(format_number)
    if tower:
        place = middles[outline.argmax()]
        _label_cut(ax, place, top, limit, side=-1 if place > middles.mean() else 1)


def _label_cut(ax: Axes, place: float, top: float, limit: float, *, side: int) -> None:
    """Write the height of a bar that is cut beside it."""
    ax.annotate(
        f"cut: reaches {format_number(top)}",
        (place, limit),
        (6 * side, -2),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="top",
        fontsize=6.5,
        color=GREY,
    )

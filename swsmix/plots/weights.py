"""Figures of a vector of weights and its mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from swsmix._histogram import (
    Array,
    Parameters,
    bin_edges,
    flat_weights,
    histogram,
    parameters_of,
    span,
)
from swsmix._labels import distinct, format_number
from swsmix.mixture import GaussianMixture
from swsmix.plots.density import (
    SMALL_BINS,
    curve_points,
    curve_step,
    density_panel,
    fine_histogram,
    label_centres,
    num_claimed,
    peaks,
    simplified,
)
from swsmix.plots.given import Mixture, Weights, mixture_of, weights_of
from swsmix.plots.multiples import draw_each, has_several, sizes_of
from swsmix.plots.style import (
    FULL,
    IDLE,
    INK,
    Panels,
    add_legend,
    component_colors,
    make_panels,
    num_columns,
    space_ticks,
    styled,
    unshared,
)
from swsmix.prior import MixturePrior

_DENSITY = "density (1 / weight)"


@styled
def clusters(
    weights: Weights | GaussianMixture,
    mixture: Mixture | None = None,
    *,
    group: str | None = None,
    ax: Panels = None,
    width: float = FULL,
) -> Figure:
    """The weights' histogram with the mixture's density and its components, linear and log.

    The number above a centre counts the weights for which that component is the most responsible;
    components without any have no number and a dashed curve, under those of the others. Components
    with mixing 0 are not drawn. Curves have their own widths, down to a 240th of the axis. In the
    linear panel a lone peak is cut if it is more than ten times as high as the second highest
    component and twice as high as all other bars; its height is written beside it.

    A prior with several mixtures has a logarithmic panel for each, the 12 largest. A mixture alone
    has its curves, without bars, and the mixing above its centres.

    Args:
        weights: a prior, a network, a tensor or array of any shape, or several whose weights are
            drawn together; or a mixture.
        mixture: the mixture (k components) or its prior; by default that of the given prior, or
            one placed on the weights.
        group: which of the prior's mixtures, where it has several.
        ax: two Axes, linear and log; of a prior with several mixtures, one for each.
        width: width of the figure, in inches; below 5 the panels are stacked.

    Raises:
        TypeError: for anything that is or holds no weights.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = clusters(torch.tensor([0.0, 0.1, 0.9]), mixture)
        >>> figure = clusters(mixture)
    """
    if has_several(weights, group):
        return _clusters_of_each(weights, mixture, ax, width)
    if isinstance(weights, GaussianMixture) and mixture is None:
        return _mixture_alone(weights, ax, width)
    w = flat_weights(weights_of(weights, group))
    mixture = mixture_of(mixture, group, weights)
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    edges, counts = fine_histogram(w, parameters)
    numbers = num_claimed(w, mixture)
    figure, panels, columns = _linear_and_log(ax, width)
    for panel, log in zip(panels, (False, True), strict=True):
        density_panel(panel, edges, counts, parameters, colors, numbers, log=log)
    add_legend(panels[0], _keys(panels), columns + 1)
    _label_owners(panels[1], parameters, colors, numbers)
    for panel in panels:
        space_ticks(panel)
    return figure


def _linear_and_log(ax: Panels, width: float) -> tuple[Figure, list[Axes], int]:
    columns = num_columns(width)
    row = 2.5 if columns == 2 else 1.95
    figure, panels = make_panels(ax, 2, width=width, row=row, columns=columns)
    for panel in panels:
        panel.set(xlabel="weight", ylabel=_DENSITY)
    return figure, panels, columns


def _clusters_of_each(prior: Any, mixture: Mixture | None, ax: Panels, width: float) -> Figure:
    """A logarithmic panel for each of a prior's mixtures."""

    def draw_one(panel: Axes, name: str) -> None:
        w, own = flat_weights(weights_of(prior, name)), mixture_of(mixture, name, prior)
        parameters, colors = parameters_of(own), component_colors(own.mean)
        edges, counts = fine_histogram(w, parameters, SMALL_BINS)
        numbers = num_claimed(w, own)
        density_panel(panel, edges, counts, parameters, colors, numbers, log=True)
        panel.set(xlabel="weight", ylabel=_DENSITY)
        _label_owners(panel, parameters, colors, numbers, "")
        space_ticks(panel)

    return draw_each(
        sizes_of(prior),
        draw_one,
        ax=ax,
        width=width,
        height=lambda w: 0.65 * w,
        pad=25.0,
        keys=_keys,
    )


def _mixture_alone(mixture: GaussianMixture, ax: Panels, width: float) -> Figure:
    """The curves of a mixture, without weights."""
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    mixing, mean, std = parameters
    live = np.flatnonzero(mixing)
    edges = bin_edges(0, *span(parameters), finest=float(std[live].min()))
    figure, panels, columns = _linear_and_log(ax, width)
    heights = peaks(mixing[live], std[live], curve_step(edges))
    bottom = max(0.01 * heights.min(), 1e-6 * heights.max())
    for panel, log in zip(panels, (False, True), strict=True):
        none, all_own = np.zeros(len(edges) - 1), np.ones(len(mean))
        density_panel(
            panel, edges, none, parameters, colors, all_own, log=log, bottom=bottom if log else None
        )
    add_legend(panels[0], _keys(panels), columns + 1)
    shares = [format_number(mixing[j], digits=2) for j in live]
    label_centres(panels[1], mean[live], shares, [colors[j] for j in live.tolist()], "mixing")
    for panel in panels:
        space_ticks(panel)
    return figure


def _keys(panels: Sequence[Axes]) -> list[Any]:
    handles = list(panels[0].get_legend_handles_labels()[0])
    if any(_rises(line) for panel in panels for line in panel.lines if line.is_dashed()):
        handles.append(Line2D([], [], color=INK, label="most responsible for none", **IDLE))
    return handles


def _label_owners(
    panel: Axes,
    parameters: Parameters,
    colors: Sequence[str],
    numbers: Array,
    title: str = "weights\nin each",
) -> None:
    """The number of weights above each centre that owns some."""
    owners = np.flatnonzero(numbers)
    labels = [format_number(numbers[j]) for j in owners], [colors[j] for j in owners.tolist()]
    label_centres(panel, parameters[1][owners], *labels, title)


def _rises(line: Line2D) -> bool:
    """Whether a curve rises into view, by a hundredth of its panel's height."""
    panel = line.axes
    assert panel is not None
    top = float(np.max(line.get_ydata(), initial=panel.get_ylim()[0]))
    low, high, at = panel.yaxis.get_transform().transform([*panel.get_ylim(), top])
    return bool(at - low > 0.01 * (high - low))


@styled
def responsibilities(
    mixture: Mixture | Weights,
    weights: Weights | None = None,
    *,
    group: str | None = None,
    ax: Panels = None,
    width: float = FULL,
) -> Figure:
    """The responsibilities gamma_j(w) for a weight of a given value, stacked to 1.

    Components whose responsibility exceeds a quarter somewhere are labelled with their means, equal
    ones once, with their number; where they do so over less than a point of the axis, they are
    drawn a point wide. All colours are those of components, by the sign and size of their means: a
    bar below has that of the component that claims it, which near zero may have the other sign.

    A prior with several mixtures has a panel for each, the 12 largest, without bars.

    Args:
        mixture: the mixture (k components), or a prior or weights that bring one (see `clusters`)
            and are drawn below.
        weights: a tensor or array of any shape, several, or a network, drawn below as a histogram
            (log counts), each bar in the colour of its most responsible component.
        group: which of the prior's mixtures, where it has several.
        ax: one Axes, or two with weights; of a prior with several mixtures, one for each.
        width: width of the figure, in inches.

    Raises:
        TypeError: for anything that is or holds no weights.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = responsibilities(mixture, torch.tensor([0.0, 0.1, 0.9]))
    """
    if has_several(mixture, group) and weights is None:
        return _responsibilities_of_each(mixture, ax, width)
    if not isinstance(mixture, GaussianMixture):
        weights = mixture if weights is None else weights
        given = mixture if isinstance(mixture, MixturePrior) else None
        mixture = mixture_of(given, group, weights)
    flat = [] if weights is None else flat_weights(weights_of(weights, group))
    figure, panels = make_panels(
        ax,
        1 + bool(flat),
        width=width,
        row=1.35 if flat else 1.8,
        sharex=True,
        height_ratios=[2.0, 1.5][: 1 + bool(flat)],
    )
    low, high = span(parameters_of(mixture), flat)
    mean, names, colors = _shares(panels[0], mixture, low, high, 72 * width)
    if flat:
        _claimed_bars(panels[1], mixture, flat, low, high)
    for panel in unshared(panels):
        panel.set_xlabel("weight")
    label_centres(panels[0], mean, names, colors, "mean")
    for panel in unshared(panels):
        space_ticks(panel)
    return figure


def _responsibilities_of_each(prior: Any, ax: Panels, width: float) -> Figure:
    """The responsibilities of each of a prior's mixtures in a panel."""

    def draw_one(panel: Axes, name: str) -> None:
        own, flat = prior.mixtures[name], flat_weights(weights_of(prior, name))
        low, high = span(parameters_of(own), flat)
        mean, names, colors = _shares(
            panel, own, low, high, panel.get_window_extent().width / 2, coarse=0.005
        )
        panel.set_xlabel("weight")
        label_centres(panel, mean, names, colors, "")
        space_ticks(panel)

    return draw_each(
        sizes_of(prior), draw_one, ax=ax, width=width, height=lambda w: 0.5 * w, pad=25.0
    )


def _gamma(mixture: GaussianMixture, points: Array, order: list[int]) -> Array:
    with torch.no_grad():
        rows = mixture.responsibilities(torch.from_numpy(points).to(mixture.mean))
    return rows.double().cpu().numpy().T[order]


def _by_mean(mixture: GaussianMixture) -> list[int]:
    """The components with mixing > 0, by their means."""
    mixing, mean, _ = parameters_of(mixture)
    return [j for j in np.argsort(mean, kind="stable").tolist() if mixing[j] > 0]


def _shares(
    panel: Axes,
    mixture: GaussianMixture,
    low: float,
    high: float,
    points_wide: float,
    *,
    coarse: float = 0.0,
) -> tuple[Array, list[str], list[str]]:
    """The responsibilities as a stack; the means to label, their texts and colours.

    Where there is little room, `coarse` is the share of the axis to which the texts are rounded.
    """
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    mean, order = parameters[1], _by_mean(mixture)
    shades = [colors[j] for j in order]
    x = curve_points(low, high, mean, parameters[2])
    shares = _gamma(mixture, x, order)
    points = simplified(x, shares.cumsum(0), 1e-3)
    areas = panel.stackplot(x[points], shares[:, points], colors=shades, lw=0.3, ec="w", alpha=0.85)
    for j, area in zip(order, areas, strict=True):
        area.set_label(f"_component {j}")
    wide = (shares > 0.25) @ np.gradient(x) > (high - low) / points_wide  # than a point
    for i in np.flatnonzero((shares.max(1) > 0.25) & ~wide).tolist():  # else hidden by its edges
        at = shares[i].argmax()
        sides = shares[:i, at].sum(), shares[: i + 1, at].sum()
        panel.vlines(x[at], *sides, colors=shades[i], lw=1, label=f"_narrow {order[i]}")
    panel.set(xlim=(low, high), ylim=(0, 1), ylabel="responsibility")
    named = [j for j, most in zip(order, shares.max(1), strict=True) if most > 0.25]
    shown_mean = mean[named]
    if coarse:
        step = 10.0 ** np.floor(np.log10(coarse * (high - low)))
        shown_mean = np.round(shown_mean / step) * step
    names = distinct(shown_mean.tolist(), digits=2 if coarse else 3)
    first = {name: names.index(name) for name in names}  # of components with equal means
    shown = [f"{n} (×{names.count(n)})" if names.count(n) > 1 else n for n in first]
    centres = [named[i] for i in first.values()]
    return mean[centres], shown, [colors[j] for j in centres]


def _claimed_bars(
    panel: Axes, mixture: GaussianMixture, flat: list[Tensor], low: float, high: float
) -> None:
    """The histogram, each bar in the colour of the component most responsible at its middle."""
    order, colors = _by_mean(mixture), component_colors(mixture.mean)
    edges, counts = histogram(flat, low, high)
    claimant = _gamma(mixture, (edges[1:] + edges[:-1]) / 2, order).argmax(0)
    for i, j in enumerate(order):
        heights = np.where(claimant == i, np.maximum(counts, 0.5), 0.5)
        style: dict[str, Any] = {"color": colors[j], "alpha": 0.85, "label": f"_component {j}"}
        panel.stairs(heights, edges, baseline=0.5, fill=True, **style)
    panel.set(yscale="log", ylim=(0.5, max(3 * counts.max(), 20)))
    panel.set(xlim=(low, high), ylabel="weights / bin")

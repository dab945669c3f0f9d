"""Figures of a vector of weights and its mixture."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from swsmix._histogram import Array, chunks, flat_weights, histogram, parameters_of, span
from swsmix._labels import distinct, format_number
from swsmix.mixture import GaussianMixture
from swsmix.plots.density import (
    curve_points,
    density_panel,
    fine_histogram,
    label_centres,
    most_responsible,
    num_claimed,
    simplified,
)
from swsmix.plots.given import Mixture, Weights, mixture_of, weights_of
from swsmix.plots.style import (
    COLUMN,
    FULL,
    GREY,
    IDLE,
    INK,
    Panels,
    add_legend,
    component_colors,
    lay_out,
    make_panels,
    num_columns,
    space_ticks,
    styled,
    unshared,
)
from swsmix.prior import MixturePrior

_MAX_DOTS = 20_000


@styled
def clusters(
    weights: Weights,
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

    Args:
        weights: a prior, a network, a tensor or array of any shape, or several whose weights are
            drawn together.
        mixture: the mixture (k components) or its prior; by default that of the given prior, or
            one placed on the weights.
        group: which of the prior's mixtures, where it has several.
        ax: two Axes, linear and log.
        width: width of the figure, in inches; below 5 the panels are stacked.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = clusters(torch.tensor([0.0, 0.1, 0.9]), mixture)
    """
    w = flat_weights(weights_of(weights, group))
    mixture = mixture_of(mixture, group, weights)
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    edges, counts = fine_histogram(w, parameters)
    numbers = num_claimed(w, mixture)
    columns = num_columns(width)
    figure, panels = make_panels(
        ax, 2, width=width, row=2.5 if columns == 2 else 1.95, columns=columns
    )
    for panel, log in zip(panels, (False, True), strict=True):
        density_panel(panel, edges, counts, parameters, colors, numbers, log=log)
        panel.set(xlabel="weight", ylabel="density (1 / weight)")
    handles = list(panels[0].get_legend_handles_labels()[0])
    if any(_rises(line) for panel in panels for line in panel.lines if line.is_dashed()):
        handles.append(Line2D([], [], color=INK, label="most responsible for none", **IDLE))
    add_legend(panels[0], handles, columns + 1)
    owners = np.flatnonzero(numbers)
    labels = [format_number(numbers[j]) for j in owners], [colors[j] for j in owners.tolist()]
    label_centres(panels[1], parameters[1][owners], *labels, "weights\nin each")
    for panel in panels:
        space_ticks(panel)
    return figure


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
    drawn a point wide.

    Args:
        mixture: the mixture (k components), or a prior or weights that bring one (see `clusters`)
            and are drawn below.
        weights: a tensor or array of any shape, several, or a network, drawn below as a histogram
            (log counts), each bar in the colour of its most responsible component.
        group: which of the prior's mixtures, where it has several.
        ax: one Axes, or two with weights.
        width: width of the figure, in inches.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = responsibilities(mixture, torch.tensor([0.0, 0.1, 0.9]))
    """
    if not isinstance(mixture, GaussianMixture):
        weights = mixture if weights is None else weights
        given = mixture if isinstance(mixture, MixturePrior) else None
        mixture = mixture_of(given, group, weights)
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    flat = [] if weights is None else flat_weights(weights_of(weights, group))
    low, high = span(parameters, flat)
    mean, live = parameters[1], parameters[0] > 0
    order = [j for j in np.argsort(mean, kind="stable").tolist() if live[j]]
    shades = [colors[j] for j in order]

    def gamma(points: Array) -> Array:
        with torch.no_grad():
            rows = mixture.responsibilities(torch.from_numpy(points).to(mixture.mean))
        return rows.double().cpu().numpy().T[order]

    figure, panels = make_panels(
        ax,
        1 + bool(flat),
        width=width,
        row=1.35 if flat else 1.8,
        sharex=True,
        height_ratios=[2.0, 1.5][: 1 + bool(flat)],
    )
    x = curve_points(low, high, mean, parameters[2])
    shares = gamma(x)
    points = simplified(x, shares.cumsum(0), 1e-3)
    areas = panels[0].stackplot(
        x[points], shares[:, points], colors=shades, lw=0.3, ec="w", alpha=0.85
    )
    for j, area in zip(order, areas, strict=True):
        area.set_label(f"_component {j}")
    wide = (shares > 0.25) @ np.gradient(x) > (high - low) / (72 * width)  # than a point
    for i in np.flatnonzero((shares.max(1) > 0.25) & ~wide).tolist():  # else hidden by its edges
        at = shares[i].argmax()
        sides = shares[:i, at].sum(), shares[: i + 1, at].sum()
        panels[0].vlines(x[at], *sides, colors=shades[i], lw=1, label=f"_narrow {order[i]}")
    panels[0].set(xlim=(low, high), ylim=(0, 1), ylabel="responsibility")
    named = [j for j, most in zip(order, shares.max(1), strict=True) if most > 0.25]
    names = distinct(mean[named].tolist())
    first = {name: names.index(name) for name in names}  # of components with equal means
    shown = [f"{n} (×{names.count(n)})" if names.count(n) > 1 else n for n in first]
    centres = [named[i] for i in first.values()]
    if flat:
        edges, counts = histogram(flat, low, high)
        claimant = gamma((edges[1:] + edges[:-1]) / 2).argmax(0)
        for i, j in enumerate(order):
            heights = np.where(claimant == i, np.maximum(counts, 0.5), 0.5)
            style = {"color": colors[j], "alpha": 0.85, "label": f"_component {j}"}
            panels[1].stairs(heights, edges, baseline=0.5, fill=True, **style)
        panels[1].set(yscale="log", ylim=(0.5, max(3 * counts.max(), 20)))
        panels[1].set(xlim=(low, high), ylabel="weights / bin")
    for panel in unshared(panels):
        panel.set_xlabel("weight")
    label_centres(panels[0], mean[centres], shown, [colors[j] for j in centres], "mean")
    for panel in unshared(panels):
        space_ticks(panel)
    return figure


@styled
def before_after(
    initial: Tensor | np.ndarray,
    final: Weights,
    mixture: Mixture | None = None,
    *,
    group: str | None = None,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """Each weight after training against its initial value, coloured by its final component.

    Bands are mean +- 2 std of each component that claims a final weight; weights on the grey
    diagonal did not move; the margins show histograms of all weights (log counts). At most 20,000
    weights are drawn as dots, the same ones every time.

    Args:
        initial: weights before training, any shape.
        final: the same weights after training: a tensor, an array, a network or the prior.
        mixture: the final mixture (k components) or its prior; by default as for `clusters`.
        group: which of the prior's mixtures, where it has several.
        ax: one Axes; the margins are drawn beside it.
        width: width of the figure, in inches.

    Raises:
        ValueError: if the numbers of weights differ.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = before_after(torch.tensor([0.2, 0.7]), torch.tensor([0.0, 1.0]), mixture)
    """
    mixture = mixture_of(mixture, group, final)
    before, after = (
        torch.cat(flat_weights(weights_of(each, group), name))
        for each, name in ((initial, "initial"), (final, "final"))
    )
    if len(before) != len(after):
        raise ValueError(
            f"needs the same weights before and after, got {len(before)} and {len(after)}: "
            "pass both from the same tensors of the network"
        )
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    dots = np.arange(len(after))
    if len(after) > _MAX_DOTS:
        seed = torch.Generator().manual_seed(0)
        drawn = torch.randint(
            len(after), (_MAX_DOTS,), generator=seed, dtype=torch.int64, device="cpu"
        )
        dots = np.unique(drawn.numpy())
    component = most_responsible([after[dots]], mixture)
    figure, (main,) = make_panels(ax, 1, width=width, row=0.95 * width)
    ends = [v.item() for part in chunks([before]) for v in part.aminmax()]
    first, last = min(ends), max(ends)
    pad = 0.03 * (last - first) or parameters[2].min()
    xlim, ylim = (first - pad, last + pad), span(parameters, [after])
    main.axline((0, 0), slope=1, color="0.75", lw=0.8, zorder=0, label="_did not move")
    for j in np.flatnonzero(num_claimed([after], mixture)).tolist():
        middle, half = parameters[1][j], 2 * parameters[2][j]
        main.axhspan(
            middle - half, middle + half, color=colors[j], alpha=0.15, lw=0, label=f"_band {j}"
        )
        main.axhline(middle, color=colors[j], lw=0.4, alpha=0.6, zorder=1, label=f"_centre {j}")
    main.scatter(
        before[dots].float().cpu(),
        after[dots].float().cpu(),
        c=[colors[j] for j in component],
        s=3 if len(dots) > 2000 else 8,
        alpha=0.5,
        lw=0,
        rasterized=True,
        label="_dots",
    )
    main.set(xlim=xlim, ylim=ylim, ylabel="final weight")
    main.set_xlabel("initial weight (grey line: unmoved)")
    main.text(1.02, 1.02, "counts\n(log)", transform=main.transAxes, fontsize=6, color=GREY)
    _margin_histogram(main, before, xlim, "vertical")
    _margin_histogram(main, after, ylim, "horizontal")
    if ax is None:
        lay_out(figure)  # the margins narrow the panel
    space_ticks(main)
    return figure


def _margin_histogram(
    main: Axes,
    values: Tensor,
    limits: tuple[float, float],
    orientation: Literal["vertical", "horizontal"],
) -> None:
    """A histogram (log counts) above the panel, or, horizontal, to the right of it."""
    above = orientation == "vertical"
    margin = main.inset_axes((0, 1.02, 1, 0.16) if above else (1.02, 0, 0.16, 1))
    edges, counts = histogram([values], *limits)
    margin.stairs(np.log10(1 + counts), edges, fill=True, color="0.6", orientation=orientation)
    (margin.set_xlim if above else margin.set_ylim)(limits)
    margin.axis("off")

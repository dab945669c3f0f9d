"""Figures of a network's tensors: one as a matrix, or several side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from torch import nn

from swsmix._histogram import flat_weights, parameters_of
from swsmix._labels import distinct, format_number
from swsmix.mixture import GaussianMixture
from swsmix.plots.density import (
    density_panel,
    fine_histogram,
    most_responsible,
    num_claimed,
)
from swsmix.plots.given import Weights, tensors_of
from swsmix.plots.given import named_weights as named_weights_of
from swsmix.plots.style import (
    COLUMN,
    FULL,
    GREY,
    NEGATIVE,
    POSITIVE,
    Panels,
    add_legend,
    component_colors,
    make_panels,
    shortened_to_width,
    space_ticks,
    styled,
    text_width,
)

_MAX_SQUARES = 65_536
_SMALL_BINS = 100  # in a panel an inch wide


@styled
def hinton(
    weight_matrix: torch.Tensor | np.ndarray | nn.Module,
    *,
    mixture: GaussianMixture | None = None,
    scale: float | None = None,
    name: str | None = None,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """A Hinton diagram: each weight is a square, its area the magnitude, its colour the sign.

    Args:
        weight_matrix: a matrix (rows, columns), tensor or array, a row holding the weights of one
            output, as in torch; or a layer or prior with one such matrix.
        mixture: colours the squares by their most responsible component instead of the sign.
            The legend names the means, or the smallest and the largest that share a colour.
        scale: the magnitude that fills a cell; by default the largest one.
        name: the matrix's name, written below it; by default that in the layer or prior, if any.
        ax: one Axes.
        width: width of the figure, in inches.

    Raises:
        TypeError: if weight_matrix is not a tensor.
        ValueError: if it is not a matrix, holds more than 65,536 weights, or `scale` is not
            positive.

    Example:
        >>> figure = hinton(torch.tensor([[0.5, -1.0], [0.0, 2.0]]))
    """
    if isinstance(weight_matrix, nn.Module):
        found, weight_matrix = _only(named_weights_of(weight_matrix))
        name = found if name is None else name
    elif isinstance(weight_matrix, np.ndarray):
        weight_matrix = torch.from_numpy(weight_matrix)
    _check_matrix(weight_matrix)
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: needs a positive magnitude, got {scale}: omit it")
    (w,) = flat = flat_weights(weight_matrix, "weight_matrix")
    value, (rows, columns) = w.double().cpu().numpy(), weight_matrix.shape
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
        palette, component = component_colors(mixture.mean), most_responsible(flat, mixture)
        mean, colors = parameters_of(mixture)[1], np.array(palette)[component]
        used = sorted(set(component.tolist()), key=lambda j: mean[j])
        means = dict(zip(used, distinct(mean[used].tolist()), strict=True))
        named: dict[str, list[str]] = {}
        for j, text in means.items():
            named.setdefault(palette[j], []).append(text)
        handles = [
            Patch(color=color, label=" to ".join(dict.fromkeys([texts[0], texts[-1]])))
            for color, texts in named.items()
        ]
        font = FontProperties(size=7)
        widest = max(text_width(str(handle.get_label()), font) for handle in handles)
        per_line = max(1, int(72 * width / (widest + 24)))  # points, with the patch
    height = 0.88 * width * min(max(rows / columns, 0.1), 2)
    height += 0.5 + 0.15 * -(-len(handles) // per_line)
    figure, (panel,) = make_panels(ax, 1, width=width, row=height)
    nonzero = half > 0
    panel.add_collection(
        PolyCollection(
            list(squares[nonzero]),
            facecolors=list(colors[nonzero]),
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
    for axis, cells in ((panel.xaxis, columns), (panel.yaxis, rows)):
        most = max(1, round(5 * cells / max(rows, columns)))
        steps = (m * 10**power for power in range(6) for m in (1, 2, 5))
        axis.set_ticks(range(0, cells, next(step for step in steps if step * most >= cells)))
    panel.spines[:].set_visible(False)
    if name:
        panel.set_xlabel(f"{shortened_to_width(name, 36 * width, 7.5)}: column (input)")
    add_legend(panel, handles, per_line)
    return figure


def _check_matrix(weights: object) -> None:
    if not isinstance(weights, torch.Tensor):
        raise TypeError(
            f"weight_matrix: needs a tensor, got {type(weights).__name__}: pass torch.as_tensor(w)"
        )
    if weights.ndim != 2 or weights.numel() > _MAX_SQUARES:
        raise ValueError(
            f"weight_matrix: needs a matrix of at most {_MAX_SQUARES:,} weights, got shape "
            f"{tuple(weights.shape)}: pass w.flatten(1), or a block such as w[:64, :64]"
        )


@styled
def layers(
    named_weights: Mapping[str, torch.Tensor | np.ndarray] | Weights,
    mixture: GaussianMixture | Mapping[str, GaussianMixture] | None = None,
    *,
    ax: Panels = None,
    width: float = FULL,
) -> Figure:
    """The weights and the mixture's density (log), one small panel for each tensor.

    Curves are those of `clusters`, dashed where a component claims no weight of the tensor. A
    mixture is that of all its tensors, so that the bars of one need not follow it.

    Args:
        named_weights: name -> weights of any shape; a prior or network that has them; or one
            tensor or array.
        mixture: one mixture for all tensors, or name -> mixture; by default those of the prior, or
            one placed on each tensor.
        ax: one Axes per tensor.
        width: width of the figure, in inches.

    Raises:
        ValueError: if there are no tensors, or a name has no mixture.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = layers({"fc1": torch.randn(9), "fc2": torch.randn(9)}, mixture)
    """
    given = tensors_of(named_weights, mixture)
    columns = min(len(given), max(1, int(width / 1.6)))
    figure, panels = make_panels(ax, len(given), width=width, row=1.45, columns=columns)
    for panel, (name, (weights, own)) in zip(panels, given.items(), strict=True):
        w = flat_weights(weights, name)
        parameters = parameters_of(own)
        edges, counts = fine_histogram(w, parameters, _SMALL_BINS)
        numbers, colors = num_claimed(w, own), component_colors(own.mean)
        density_panel(panel, edges, counts, parameters, colors, numbers, log=True)
        points = 72 / figure.dpi * panel.get_window_extent().width
        size = f"{format_number(weights.numel())} weight{'s' * (weights.numel() != 1)}"
        title = f"{shortened_to_width(name, points, 7.0)}\n{size}"
        panel.set_title(title, fontsize=7, parse_math=False, linespacing=1.1)
        space_ticks(panel)
    for panel in panels[-columns:] if ax is None else panels:
        panel.set_xlabel("weight")
    for panel in panels[::columns] if ax is None else panels:
        panel.set_ylabel("density")
    return figure


@styled
def entropy(
    named_bits: Mapping[str, float | torch.Tensor | np.ndarray] | Weights,
    mixture: GaussianMixture | Mapping[str, GaussianMixture] | None = None,
    *,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """The bits per weight of each tensor, as bars, in the order given.

    Of weights they are the zero-order entropy of their clusters, -sum_j p_j log2 p_j with p_j the
    share of the weights for which component j is the most responsible.

    Args:
        named_bits: name -> bits per weight; or weights, as `layers` takes them, a tensor or array.
        mixture: for weights: one mixture for all, or name -> mixture; by default those of the
            prior, or one placed on each tensor.
        ax: one Axes.
        width: width of the figure, in inches.

    Raises:
        ValueError: if there are no tensors, or a value is negative or not finite.

    Example:
        >>> figure = entropy({"fc1": 0.41, "fc2": 1.9})
        >>> figure = entropy(torch.nn.Linear(8, 3))
    """
    if not isinstance(named_bits, Mapping) or any(map(_holds_weights, named_bits.values())):
        tensors = tensors_of(named_bits, mixture)
        named_bits = {name: _bits(name, *each) for name, each in tensors.items()}
    bits = np.array(list(named_bits.values()), dtype=float)
    if not len(bits) or not np.isfinite(bits).all() or bits.min() < 0:
        raise ValueError(
            "named_bits: needs name -> finite bits per weight, at least 0; got "
            f"{dict(named_bits)}: pass one or more tensors, and omit those without a size"
        )
    figure, (panel,) = make_panels(ax, 1, width=width, row=0.5 + 0.17 * len(bits))
    bars = panel.barh(range(len(bits)), bits, height=0.7, color=NEGATIVE)
    panel.bar_label(bars, [f"{b:.2f}" for b in bits], padding=2, fontsize=6.5, color=GREY)
    points = 0.45 * 72 * figure.get_figwidth()
    names = [shortened_to_width(name, points, 7.0) for name in named_bits]
    panel.set_yticks(range(len(bits)), names, parse_math=False)
    panel.set(
        ylim=(len(bits) - 0.4, -0.6), xlim=(0, 1.15 * bits.max() or 1), xlabel="bits per weight"
    )
    panel.tick_params(axis="y", length=0)
    return figure


def _holds_weights(value: object) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0


def _bits(name: str, weights: torch.Tensor, mixture: GaussianMixture) -> float:
    numbers = num_claimed(flat_weights(weights, name), mixture)
    share = numbers[numbers > 0] / numbers.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def _only(matrices: Mapping[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    if len(matrices) != 1:
        raise ValueError(
            f"weight_matrix must be one matrix, got those of {list(matrices)}: pass one of them"
        )
    ((name, matrix),) = matrices.items()
    return name, matrix.detach()

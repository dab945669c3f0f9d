"""Figures of a network's tensors side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from swsmix._histogram import flat_weights, parameters_of, span
from swsmix._labels import format_number
from swsmix.mixture import GaussianMixture
from swsmix.plots.density import (
    SMALL_BINS,
    curve_points,
    density_panel,
    fine_histogram,
    num_claimed,
)
from swsmix.plots.given import Mixture, Weights, refusal, tensors_of
from swsmix.plots.style import (
    BARS,
    COLUMN,
    FULL,
    GREY,
    INK,
    NEGATIVE,
    Panels,
    component_colors,
    make_panels,
    shortened_to_width,
    space_ticks,
    styled,
)


@styled
def layers(
    named_weights: Mapping[str, torch.Tensor | np.ndarray] | Weights,
    mixture: Mixture | Mapping[str, GaussianMixture] | None = None,
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
        TypeError: for anything that is or holds no weights, as a mixture alone.
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
        edges, counts = fine_histogram(w, parameters, SMALL_BINS)
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
    named_bits: Mapping[str, float | torch.Tensor | np.ndarray] | Weights | GaussianMixture,
    mixture: Mixture | Mapping[str, GaussianMixture] | None = None,
    *,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """The bits per weight of each tensor, as bars, in the order given.

    Of weights they are the zero-order entropy of their clusters, -sum_j p_j log2 p_j with p_j the
    share of the weights for which component j is the most responsible. Of a mixture alone they are
    H(w) = -sum_j gamma_j(w) log2 gamma_j(w), how uncertain it is of the component of a weight w.

    Args:
        named_bits: name -> bits per weight; or weights, as `layers` takes them; or a mixture.
        mixture: for weights: one mixture for all, or name -> mixture; by default those of the
            prior, or one placed on each tensor.
        ax: one Axes.
        width: width of the figure, in inches.

    Raises:
        TypeError: for anything that is or holds neither bits nor weights.
        ValueError: if there are no tensors, or a value is negative or not finite.

    Example:
        >>> figure = entropy({"fc1": 0.41, "fc2": 1.9})
        >>> figure = entropy(torch.nn.Linear(8, 3))
    """
    if isinstance(named_bits, GaussianMixture) and mixture is None:
        return _uncertainty(named_bits, ax, width)
    if not isinstance(named_bits, Mapping) or any(map(_holds_weights, named_bits.values())):
        tensors = tensors_of(named_bits, mixture)
        named_bits = {name: _bits(name, *each) for name, each in tensors.items()}
    for name, each in named_bits.items():
        if not isinstance(each, float | int | np.number | np.ndarray | torch.Tensor):
            raise TypeError(
                refusal(str(name), "bits per weight or weights", each, "pass numbers or tensors")
            )
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


def _uncertainty(mixture: GaussianMixture, ax: Panels, width: float) -> Figure:
    """The entropy of the responsibilities of a weight of a given value, with the centres."""
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    mixing, mean, std = parameters
    low, high = span(parameters)
    x = curve_points(low, high, mean, std)
    with torch.no_grad():
        gamma = mixture.responsibilities(torch.from_numpy(x).to(mixture.mean)).double().cpu()
    bits = torch.special.entr(gamma).sum(1).numpy() / np.log(2)
    figure, (panel,) = make_panels(ax, 1, width=width, row=0.5 * width)
    panel.fill_between(x, bits, color=BARS, lw=0, label="_area")
    panel.plot(x, bits, color=INK, label="entropy")
    for j in np.flatnonzero(mixing).tolist():
        panel.plot(mean[j], 0, "^", color=colors[j], ms=4, mew=0, clip_on=False,
                   label=f"_component {j}")  # fmt: skip
    panel.set(xlim=(low, high), ylim=(0, max(1.1 * bits.max(), 1e-3)), xlabel="weight")
    panel.set_ylabel("bits, of its component")
    space_ticks(panel)
    return figure

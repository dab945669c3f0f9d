"""The weights before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from swsmix._histogram import chunks, flat_weights, histogram, parameters_of, span
from swsmix.mixture import GaussianMixture
from swsmix.plots.density import most_responsible, num_claimed
from swsmix.plots.given import (
    Mixture,
    Weights,
    group_of,
    mixture_of,
    named_weights,
    refusal,
    weights_of,
)
from swsmix.plots.multiples import draw_each, has_several, sizes_of
from swsmix.plots.style import (
    COLUMN,
    GREY,
    Panels,
    component_colors,
    lay_out,
    make_panels,
    space_ticks,
    styled,
)
from swsmix.prior import MixturePrior

_MAX_DOTS = 20_000
Initial = Tensor | np.ndarray | nn.Module | Mapping[str, Any]


@styled
def before_after(
    initial: Initial,
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
    weights are drawn as dots, the same ones every time. A dot's colour is that of the mean of the
    component that claims the final weight, which near zero may have the other sign. A prior with
    several mixtures has a panel for each, the 12 largest.

    Args:
        initial: weights before training: a tensor or array of any shape, in the order of the final
            ones; a copy of the network; tensors by name, as in a state dict; or a vector for each
            group, as in `History.initial`.
        final: the same weights after training: a tensor, an array, a network or the prior.
        mixture: the final mixture (k components) or its prior; by default as for `clusters`.
        group: which of the prior's mixtures, where it has several.
        ax: one Axes, for each group; the margins are drawn beside it.
        width: width of the figure, in inches.

    Raises:
        TypeError: for anything that is or holds no weights.
        ValueError: if the numbers of weights differ, or a tensor's initial values are missing.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> figure = before_after(torch.tensor([0.2, 0.7]), torch.tensor([0.0, 1.0]), mixture)
    """
    if has_several(final, group):
        return _of_each(initial, final, mixture, ax, width)
    mixture = mixture_of(mixture, group, final)
    after = torch.cat(flat_weights(weights_of(final, group, "final"), "final"))
    before = _before(initial, final, group, len(after))
    figure, (main,) = make_panels(ax, 1, width=width, row=0.95 * width)
    _draw(main, before, after, mixture)
    main.set(ylabel="final weight", xlabel="initial weight (grey line: unmoved)")
    main.text(1.02, 1.02, "counts\n(log)", transform=main.transAxes, fontsize=6, color=GREY)
    if ax is None:
        lay_out(figure)  # the margins narrow the panel
    space_ticks(main)
    return figure


def _of_each(
    initial: Initial, prior: Any, mixture: Mixture | None, ax: Panels, width: float
) -> Figure:
    """A panel for each of a prior's mixtures."""
    sizes = sizes_of(prior)
    if isinstance(initial, Tensor | np.ndarray):  # all weights, group after group
        whole = torch.cat(flat_weights(weights_of(initial, None, "initial"), "initial"))
        _check_number(len(whole), sum(sizes.values()))
        initial = dict(zip(sizes, whole.split(list(sizes.values())), strict=True))

    def draw_one(panel: Axes, name: str) -> None:
        after = torch.cat(flat_weights(weights_of(prior, name), "final"))
        before = _before(initial, prior, name, len(after))
        _draw(panel, before, after, mixture_of(mixture, name, prior))
        panel.set(xlabel="initial weight", ylabel="final weight")
        space_ticks(panel)

    def side(wide: float) -> float:
        return 1.05 * wide

    above = 0.18 * 72 * side(width / max(1, int(width / 2)))  # points: the margin's height
    return draw_each(sizes, draw_one, ax=ax, width=width, height=side, pad=min(above, 26.0))


def _before(initial: Any, final: Any, group: str | None, number: int) -> Tensor:
    """The initial values of the weights under a mixture, as one vector."""
    if isinstance(initial, Mapping) or (
        isinstance(initial, nn.Module) and isinstance(final, nn.Module)
    ):
        initial = _by_name(initial, final, group)
    before = torch.cat(flat_weights(weights_of(initial, None, "initial"), "initial"))
    _check_number(len(before), number)
    return before


def _by_name(initial: Any, final: Any, group: str | None) -> Any:
    """Of a network, a state dict or `History.initial`: the tensors that the final weights are."""
    if not isinstance(final, nn.Module):
        raise TypeError(
            refusal("initial", "a tensor or an array, as the final weights are one", initial)
        )
    if isinstance(initial, MixturePrior):
        return list(initial.parameters_of(group_of(initial, group)).values())
    if isinstance(final, MixturePrior):
        group = group_of(final, group)
        names = list(final.parameters_of(group))
        if isinstance(initial, Mapping) and group in initial and names != [group]:
            return initial[group]
    else:
        names = list(named_weights(final))
    known = initial if isinstance(initial, Mapping) else dict(initial.named_parameters())
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"initial: needs the values of {names}, got none of {missing}: pass the network's "
            "state dict from before training, or history.initial"
        )
    return [known[name] for name in names]


def _check_number(before: int, after: int) -> None:
    if before != after:
        raise ValueError(
            f"needs the same weights before and after, got {before} and {after}: "
            "pass both from the same tensors of the network"
        )


def _draw(main: Axes, before: Tensor, after: Tensor, mixture: GaussianMixture) -> None:
    """The dots, the bands and the margins of one mixture."""
    parameters, colors = parameters_of(mixture), component_colors(mixture.mean)
    dots = np.arange(len(after))
    if len(after) > _MAX_DOTS:
        seed = torch.Generator().manual_seed(0)
        drawn = torch.randint(
            len(after), (_MAX_DOTS,), generator=seed, dtype=torch.int64, device="cpu"
        )
        dots = np.unique(drawn.numpy())
    component = most_responsible([after[dots]], mixture)
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
    main.set(xlim=xlim, ylim=ylim)
    _margin_histogram(main, before, xlim, "vertical")
    _margin_histogram(main, after, ylim, "horizontal")


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

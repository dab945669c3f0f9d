"""Small multiples: a panel for each of a prior's mixtures, or for each of several matrices.

At most 12 are drawn, the largest ones, in the order given; a line below says how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swsmix._labels import format_number
from swsmix.plots.style import GREY, Panels, make_panels, shortened_to_width
from swsmix.prior import MixturePrior

MOST = 12


def has_several(given: Any, group: str | None) -> bool:
    """Whether a prior with several mixtures is given, and no group of it asked for."""
    return group is None and isinstance(given, MixturePrior) and len(given.mixtures) > 1


def sizes_of(prior: MixturePrior) -> dict[str, int]:
    """The number of weights of each group."""
    return {g: sum(p.numel() for p in prior.parameters_of(g).values()) for g in prior.mixtures}


def largest(sizes: Mapping[str, int]) -> list[str]:
    """The names of the largest, at most MOST, in the order given."""
    first = set(sorted(sizes, key=lambda name: -sizes[name])[:MOST])
    return [name for name in sizes if name in first]


def draw_each(
    sizes: Mapping[str, int],
    draw: Callable[[Axes, str], None],
    *,
    ax: Panels,
    width: float,
    height: Callable[[float], float],
    kind: str = "groups",
    narrowest: float = 2.0,
    pad: float = 4.0,
    subtitle: Callable[[str], str] | None = None,
    keys: Sequence[Any] | Callable[[list[Axes]], Sequence[Any]] = (),
    others: int = 0,
) -> Figure:
    """A panel for each of the largest, with its name and size as the title.

    Args:
        sizes: name -> number of weights.
        draw: draws one into its panel.
        ax: one Axes for each that is drawn.
        width: width of the figure, in inches.
        height: the height of a panel of a width, in inches, without title and labels.
        kind: what they are, for the line below.
        narrowest: the least width of a panel, in inches, if it is less than half of the figure's.
        pad: the points between a panel and its title.
        subtitle: the second line of a title; by default the number of weights.
        keys: the handles of a legend above all panels, or what makes them of the panels.
        others: how many more there are that could not be drawn.
    """
    names = largest(sizes)
    fit = max(1, int(width / min(narrowest, width / 2)))  # two in a column of a paper
    rows = -(-len(names) // fit)
    columns = -(-len(names) // rows)
    row = height(width / columns - 0.45) + 0.55 + pad / 72
    figure, panels = make_panels(ax, len(names), width=width, row=row, columns=columns)
    for panel, name in zip(panels, names, strict=True):
        draw(panel, name)
        number = sizes[name]
        second = f"{format_number(number)} weight{'s' * (number != 1)}"
        second = second if subtitle is None else subtitle(name)
        points = 72 / figure.dpi * panel.get_window_extent().width
        title = f"{shortened_to_width(name, points, 7.0)}\n{second}"
        panel.set_title(title, fontsize=7, parse_math=False, linespacing=1.1, pad=pad)
    if ax is not None:  # where a line and a legend would go is the user's to say
        return figure
    for i, panel in enumerate(panels):
        if i % columns:
            panel.set_ylabel("")
    handles = keys(panels) if callable(keys) else keys
    if handles:
        figure.legend(handles=list(handles), ncols=4, loc="outside upper left")
    if len(names) < len(sizes) + others:
        text = f"{len(names)} of {len(sizes) + others} {kind}: the largest that fit a panel"
        figure.supxlabel(text, fontsize=7, color=GREY)
    return figure

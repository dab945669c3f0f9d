"""The size of a file against what it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from swsmix.plots.given import refusal, tensor_of
from swsmix.plots.style import COLUMN, Panels, add_legend, make_panels, styled


@styled
def rate_distortion(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """Relative distortion against bytes, both logarithmic; a line per method.

    Args:
        curves: name -> (bytes, relative distortion) of several files.
        ax: where to draw; a new figure by default.
        width: width of a new figure in inches.

    Returns:
        The figure.

    Raises:
        TypeError: for anything but pairs by name.
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = rate_distortion({"ours": [(400_000.0, 0.005), (200_000.0, 0.1)]})
    """
    if not isinstance(curves, Mapping):
        raise TypeError(
            refusal("curves", "name -> (bytes, distortion) pairs", curves, 'pass {"ours": pairs}')
        )
    pairs = {name: tensor_of(points, str(name)).double() for name, points in curves.items()}
    if any(each.numel() and each.shape[1:] != (2,) for each in pairs.values()):
        shapes = {name: tuple(each.shape) for name, each in pairs.items()}
        raise ValueError(f"curves: needs pairs (n, 2) by name, got shapes {shapes}: pass pairs")
    drawn = {
        name: [p for p in each.reshape(-1, 2).tolist() if min(p) > 0]
        for name, each in pairs.items()
    }
    if not any(drawn.values()):
        raise ValueError(
            f"curves: needs points of positive size and distortion, got none in {[*curves]}: add "
            "some"
        )
    figure, (panel,) = make_panels(ax, 1, width=width, row=0.75 * width)
    for name, points in drawn.items():
        panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
    panel.set(xscale="log", yscale="log", xlabel="bytes of the file", ylabel="relative distortion")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    if any(drawn):
        add_legend(panel)
    return figure

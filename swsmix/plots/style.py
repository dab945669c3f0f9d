"""The house style: sizes, colours, panels, legends, numbers; no pyplot and no global state."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from swsmix._colors import NEGATIVE as NEGATIVE
from swsmix._colors import NEUTRAL as NEUTRAL
from swsmix._colors import POSITIVE as POSITIVE
from swsmix._colors import component_colors as component_colors
from swsmix._histogram import Array
from swsmix._labels import shorten, visible

COLUMN, FULL = 3.3, 6.8  # widths in inches: one column of a paper, and a whole page
BARS, GREY, INK = "#d6d6d6", "#666666", "#1a1a1a"
IDLE: dict[str, Any] = {"ls": (0, (3, 2)), "lw": 0.7}  # of a component that claims no weight

_BY_HAND: Any = {"figure.autolayout": False, "figure.constrained_layout.use": False}
METADATA: dict[str, dict[str, None]] = {
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
    "axes.labelcolor": INK,
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
TICKS: dict[str, Any] = {"labelsize": 7, "width": 0.5, "length": 2.5, "color": "0.45"}

Panels = Axes | Sequence[Axes] | Array | None
P = ParamSpec("P")
R = TypeVar("R")


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Run under the house style, and leave the user's rcParams as they were."""

    @functools.wraps(plot)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return wrapper


def num_columns(width: float) -> int:
    """Two panels side by side if the figure is at least 5 inches wide, else one."""
    return 2 if width >= 5 else 1


def make_panels(
    ax: Panels, count: int, *, width: float, row: float, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """A new figure with `count` panels in rows `row` inches high, or the user's axes, checked."""
    if ax is not None:
        axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) != count or not all(isinstance(a, Axes) for a in axes):
            raise ValueError(
                f"ax: needs {count} Axes, got {len(axes)} object(s) of type "
                f"{type(ax).__name__}: pass figure.subplots(1, {count}), or omit it"
            )
        return root_figure(axes[0]), axes
    rows = -(-count // columns)
    figure = Figure(figsize=(width, row * rows), dpi=150, layout="constrained")
    figure.subplotpars.update(**_about(72 * width, 72 * row * rows, rows, columns))
    FigureCanvasAgg(figure)  # keeps what it measured of texts, where a plain canvas measures anew
    # Notebooks show what has a `_repr_png_`; a Figure made without pyplot has none.
    vars(figure)["_repr_png_"] = functools.partial(png, figure)
    grid = figure.subplots(rows, columns, squeeze=False, **subplots).ravel()
    for spare in grid[count:]:
        spare.remove()
    for panel in grid[:count]:
        panel.tick_params(which="major", **TICKS)
        panel.tick_params(which="minor", width=0.4, length=1.5, color="0.45")
    return figure, list(grid[:count])


def _about(width: float, height: float, rows: int, columns: int) -> dict[str, float]:
    """About where a layout will place the panels, in points: what is placed by their sizes sees it.

    To lay a figure out takes as long as to draw it; so it is done once, when the figure is saved.
    """
    left, right, between = 48.0, 8.0, 38.0
    top, bottom = min(20.0, 0.2 * height), min(30.0, 0.3 * height)
    wide = (width - left - right - between * (columns - 1)) / columns
    high = (height - top - bottom - between * (rows - 1)) / rows
    return {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
        "wspace": between / max(wide, 1.0),
        "hspace": between / max(high, 1.0),
    }


def root_figure(ax: Axes) -> Figure:
    """The outermost figure of the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def unshared(panels: Sequence[Axes]) -> list[Axes]:
    """The panels with numbers on their horizontal axis: not those that share the one below."""
    return [p for p in panels if p.xaxis.get_tick_params().get("labelbottom", True)]


def space_ticks(ax: Axes) -> None:
    """Give the horizontal axis as many ticks, up to 9, as have labels that do not touch."""
    font = ax.xaxis.get_major_ticks(1)[0].label1.get_fontproperties()
    points = 72 / root_figure(ax).dpi * ax.get_window_extent().width
    low, high = ax.get_xlim()
    for most in range(9, 1, -1):  # matplotlib's own choice ignores the labels' lengths
        ax.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
        ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
        labels = ax.xaxis.get_major_formatter().format_ticks(ticks)
        wide = max((text_width(label, font) for label in labels), default=0.0)
        apart = points * np.diff(ticks) / (high - low)
        if (apart > wide + 0.5 * font.get_size_in_points()).all():
            return


def text_width(text: str, font: FontProperties) -> float:
    """In points, with a twentieth more, because letters are wider in pixels."""
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 0.95


def lay_out(figure: Figure) -> None:
    """Place the panels as a drawing does, without drawing them, which takes twice as long."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def settle(figure: Figure) -> None:
    """Lay the figure out and fix it: a constrained layout moves a little with every drawing."""
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        lay_out(figure)
        # Not "none", a placeholder: with any engine each save draws everything twice.
        with matplotlib.rc_context(_BY_HAND):
            figure.set_layout_engine(None)


@styled
def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    settle(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata=METADATA["png"])
    return buffer.getvalue()


def add_legend(ax: Axes, handles: Sequence[Any] | None = None, columns: int = 4) -> None:
    """A legend above the axes, where it covers nothing, to be read line by line.

    It has at most so many columns, and fewer where they would be wider than the axes.
    """
    handles = list(ax.get_legend_handles_labels()[0] if handles is None else handles)
    columns = min(columns, len(handles))
    while columns > 1 and _legend_width(ax, handles, columns) > _room(ax):
        columns -= 1
    ax.legend(  # matplotlib fills its columns one after the other
        handles=[handle for first in range(columns) for handle in handles[first::columns]],
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
    )


def _legend_width(ax: Axes, handles: Sequence[Any], columns: int) -> float:
    """In points, of lines of at most so many entries."""
    size = float(matplotlib.rcParams["legend.fontsize"])
    font = FontProperties(size=size)
    names = [str(handle.get_label()) for handle in handles]
    wide = [max(text_width(n, font) for n in names[i::columns]) for i in range(columns)]
    ems = 1.2 + 0.8 + 1.2  # the handle, the space behind it and that between columns
    return sum(wide) + ems * size * columns - 0.4 * size  # and a border


def _room(ax: Axes) -> float:
    """The points that a legend has: about the width of the axes."""
    return 72 * float(root_figure(ax).get_figwidth()) * float(ax.get_position().width)


def shortened_to_width(name: str, points: float, size: float) -> str:
    """A name, shortened if it is wider than `points` at a font size."""
    font = FontProperties(size=size)
    most = int(points / (0.25 * size)) + 1  # few letters are as narrow as a quarter of their size
    for length in range(min(len(visible(name)), most), 0, -1):
        shown = shorten(name, length)
        if text_width(shown, font) <= points:
            break
    return shown

"""Several checkpoints on the same axes: their histograms, and measures of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from swsmix._histogram import Array
from swsmix._labels import visible
from swsmix.plots.style import (
    FULL,
    GREY,
    INK,
    NEGATIVE,
    POSITIVE,
    lay_out,
    make_panels,
    shortened_to_width,
    styled,
)

_FEW = ((NEGATIVE, "o"), (POSITIVE, "s"), ("#009e73", "^"), ("#cc79a7", "D"), (INK, "v"))


@styled
def histograms_compared(
    names: Sequence[str],
    edges: Array,
    counts: Sequence[Array],
    far: Sequence[tuple[float, float]],
    *,
    width: float = FULL,
) -> Figure:
    """One panel for each checkpoint: the share of its weights in each bin, on a log axis.

    Args:
        names: the checkpoints.
        edges: bin edges (bins + 1,), the same for all.
        counts: for each checkpoint the weights in each bin (bins,).
        far: for each checkpoint the mean, and how far from it weights are outliers: bins beyond
            are ringed.
        width: width of the figure, in inches.
    """
    figure, panels = make_panels(None, len(names), width=width, row=1.15, sharex=True, sharey=True)
    shares = [part / part.sum() for part in counts]
    floor = 0.4 / max(part.sum() for part in counts)
    middles = (edges[1:] + edges[:-1]) / 2
    for panel, name, share, (mean, limit) in zip(panels, names, shares, far, strict=True):
        panel.stairs(
            np.maximum(share, floor), edges, baseline=floor, fill=True, color=GREY, label="weights"
        )
        outside = (share > 0) & (np.minimum(abs(edges[1:] - mean), abs(edges[:-1] - mean)) > limit)
        if outside.any():  # an empty line that is not clipped would have no place in the layout
            panel.plot(
                middles[outside], share[outside], "o", mfc="none", mec=POSITIVE, ms=4.5, mew=0.9,
                ls="", label="_outliers", clip_on=False,
            )  # fmt: skip
        panel.set_title(visible(name), fontsize=7.5)
    panels[0].set_yscale("log")
    panels[0].set_ylim(floor, 2 * max(share.max() for share in shares))
    panels[0].set_xlim(edges[0], edges[-1])
    panels[-1].set_xlabel("weight")
    for panel in panels:
        panel.set_ylabel("share")
    return figure


@styled
def measures_compared(
    names: Sequence[str],
    tensors: Sequence[str],
    measures: Mapping[str, Sequence[Sequence[float]]],
    *,
    width: float = FULL,
) -> Figure:
    """One panel for each measure, one line for each tensor, one mark for each checkpoint.

    Up to five checkpoints have a colour and a mark each; more have shades from first to last.

    Args:
        names: the checkpoints.
        tensors: the tensors, from above.
        measures: label -> a number for each tensor and checkpoint; nan and infinity have no mark.
        width: width of the figure, in inches.
    """
    figure, panels = make_panels(
        None, len(measures), width=width, row=0.9 + 0.16 * len(tensors), columns=len(measures),
        sharey=True,
    )  # fmt: skip
    marks = [*_FEW[: len(names)]]
    if len(names) > len(_FEW):
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
        marks = [(matplotlib.colors.to_hex(shade), "o") for shade in shades]
    lines = np.arange(len(tensors))
    for panel, (label, rows) in zip(panels, measures.items(), strict=True):
        values = np.array(rows, dtype=float)
        values[~np.isfinite(values)] = np.nan
        for i, (name, (color, mark)) in enumerate(zip(names, marks, strict=True)):
            panel.plot(
                values[:, i], lines, mark, color=color, ms=4, mfc="none", label=visible(name)
            )
        known = values[np.isfinite(values)]
        if len(known) and known.min() > 0 and known.max() > 20 * known.min():
            panel.set_xscale("log")
        panel.set_title(label)
        panel.grid(axis="y", color="0.9", lw=0.5)
        panel.set_axisbelow(True)
    panels[0].set_yticks(lines, [shortened_to_width(name, 90.0, 7.0) for name in tensors])
    panels[0].set_ylim(len(tensors) - 0.5, -0.5)
    handles, _ = panels[0].get_legend_handles_labels()
    if len(names) > len(_FEW):
        handles = [handles[0], handles[-1]]
    figure.legend(handles=handles, ncols=5, loc="outside upper left")
    lay_out(figure)
    return figure

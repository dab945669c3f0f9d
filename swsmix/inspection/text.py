"""Weights and mixtures as text: a histogram of block characters, and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from swsmix._colors import component_colors
from swsmix._histogram import Array
from swsmix._labels import distinct, number_of, shorten, visible
from swsmix.inspection.inspect import InspectedTensor
from swsmix.mixture import GaussianMixture

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_GAP, _MIN_BINS = 2, 8  # characters between a table's columns, and of the smallest histogram
_MAX_COMPONENTS = 32  # rows of a mixture's table
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def bars(counts: Array, *, rows: int = 1, ascii_only: bool = False) -> list[str]:
    """A histogram as lines of block characters, with heights log(1 + count).

    An empty bin is blank; a bin with a single weight is not.

    Args:
        counts: weights in each bin (bins,), one character per bin.
        rows: the number of lines.
        ascii_only: for terminals without Unicode.

    Returns:
        The lines, the top one first.

    Example:
        >>> bars(np.array([0, 1, 3, 1000]))
        [' ▁▂█']
    """
    shades = _ASCII if ascii_only else _BLOCKS
    height = np.log1p(counts) / np.log1p(max(counts.max(), 1)) * 8 * rows
    eighths = np.where(counts > 0, np.maximum(np.round(height), 1), 0)
    levels = [np.clip(eighths - 8 * row, 0, 8).astype(int) for row in reversed(range(rows))]
    return ["".join(shades[i] for i in level) for level in levels]


def rebin(counts: Array, bins: int) -> Array:
    """A histogram with at most `bins` equal bins, by adding neighbours, so that no count is split.

    Args:
        counts: weights in each bin.
        bins: the largest number of bins.

    Returns:
        Fewer bins with the same total; the last one may extend beyond the old range.
    """
    size = -(-len(counts) // bins)
    padded = np.pad(counts, (0, -len(counts) % size))
    total: Array = padded.reshape(-1, size).sum(1)
    return total


def histogram_text(
    counts: Array,
    edges: Array,
    mixture: GaussianMixture,
    *,
    rows: int = 6,
    width: int = 72,
    ascii_only: bool = False,
    claimed: Array | None = None,
) -> Text:
    """The text histogram, with the centres below it in the colours of the figures.

    Args:
        counts: weights in each bin (bins,).
        edges: edges of the bins (bins + 1,).
        mixture: its centres with mixing > 0 are marked.
        rows: height of the bars, in lines.
        width: the largest width, in characters.
        ascii_only: for terminals without Unicode.
        claimed: the weights of each component, if known: those without are not marked.

    Returns:
        Lines for rich's `print`.
    """
    from rich.text import Text

    size = -(-len(counts) // width)
    small = rebin(counts, width)
    step = size * (edges[1] - edges[0])
    text = Text(no_wrap=True)
    for line in bars(small, rows=rows, ascii_only=ascii_only):
        text.append(line.rstrip() + "\n")
    marks: list[tuple[str, str]] = [(" ", "")] * len(small)
    colors = component_colors(mixture.mean)
    for j in mixture.mixing.argsort().tolist():  # the largest last, so on top
        place = int((float(mixture.mean[j]) - edges[0]) / step)
        owns = mixture.mixing[j] > 0 and (claimed is None or claimed[j] > 0)
        if owns and 0 <= place <= len(marks):  # the ends of the axis included
            marks[min(place, len(marks) - 1)] = ("^" if ascii_only else "▲", colors[j])
    for mark, color in marks:
        text.append(mark, color)
    low, high = distinct([edges[0], edges[0] + step * len(small)], _significant)
    text.append(f"\n{low}{high:>{max(len(small) - len(low), len(high) + 1)}}")
    return text


def _significant(value: float, digits: int) -> str:
    return f"{value:.{digits}g}"


def mixture_table(mixture: GaussianMixture, claimed: Array, size: int) -> Table:
    """The components of a mixture, one per row, sorted by their means; the 32 largest of many.

    Args:
        mixture: the mixture (k components).
        claimed: the number of weights of each component (k,), claimed or expected.
        size: the number of weights.

    Returns:
        A table for rich's `print`.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("mean", "std", "mixing", "weights", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    colors = component_colors(mixture.mean)
    means = distinct(mixture.mean.tolist(), _significant)
    largest = {*np.argsort(-claimed, kind="stable")[:_MAX_COMPONENTS].tolist()}
    for j in torch.argsort(mixture.mean, stable=True).tolist():
        if j not in largest:
            continue
        table.add_row(
            f"[{colors[j]}]#[/]" if claimed[j] > 0 else ".",  # a colour only of what owns weights
            means[j],
            *(f"{float(v):.3g}" for v in (mixture.std[j], mixture.mixing[j])),
            f"{claimed[j]:,.0f}",
            f"{100 * claimed[j] / size:.1f} %",
        )
    if more := len(claimed) - len(largest):
        rest = claimed.sum() - claimed[[*largest]].sum()
        share = f"{100 * rest / size:.1f} %"
        table.add_row("", f"{more} more", "", "", f"{rest:,.0f}", share)
    return table


def tensor_table(
    tensors: Sequence[InspectedTensor], *, width: int = 120, ascii_only: bool = False
) -> RenderableType:
    """Tensors as a table: shape, size, clusters, entropy, non-zero, a small histogram, shares.

    Shares are in the order of the centres; of weights that are not clustered, clusters and entropy
    are a dash. A narrow terminal omits first the shape, then the
    histogram; if the rest does not fit either, each tensor has its own lines instead of a row.

    Args:
        tensors: the tensors of an inspection.
        width: width of the terminal, in characters.
        ascii_only: for terminals without Unicode.

    Returns:
        A renderable for rich's `print`.
    """
    from rich.table import Table
    from rich.text import Text

    rows = [_cells(tensor, ascii_only) for tensor in tensors]
    wide = {n: max(len(n), *(len(row[n]) for row in rows)) for n in rows[0]}
    numbers = ("weights", "clusters", "bits", "non-zero")
    name, shares = min(wide["tensor"], 20), min(wide["shares, %"], 14)
    left = width - name - shares - _GAP - sum(_GAP + wide[column] for column in numbers)
    if left < 0:
        return Text("\n").join(_stacked(row, width, ascii_only) for row in rows)
    more = min(left, min(wide["shares, %"], 24) - shares)
    shares, left = shares + more, left - more
    more = min(left, min(wide["tensor"], 32) - name)
    name, left = name + more, left - more
    histogram = min(left - _GAP, 24) if left >= _GAP + _MIN_BINS else 0
    left -= (_GAP + histogram) * bool(histogram)
    shape = left >= _GAP + wide["shape"]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("tensor", no_wrap=True, min_width=name)
    columns = [*(["shape"] if shape else []), *numbers]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=wide[column])
    if histogram:
        table.add_column("histogram", no_wrap=True, min_width=histogram)
    table.add_column("shares, %", overflow="fold", min_width=shares)
    for tensor, row in zip(tensors, rows, strict=True):
        bar = bars(rebin(tensor.counts, max(histogram, 1)), ascii_only=ascii_only)[0]
        table.add_row(
            Text(shorten(tensor.name, name, ascii_only=ascii_only)),
            *(row[column] for column in columns),
            *([Text(bar)] if histogram else []),
            Text(row["shares, %"]),
        )
    return table


def _cells(tensor: InspectedTensor, ascii_only: bool) -> dict[str, str]:
    return {
        "tensor": visible(tensor.name, ascii_only=ascii_only),
        "shape": "x".join(map(str, tensor.weights.shape)),
        "weights": f"{tensor.size:,}",
        "clusters": str(tensor.num_clusters) if tensor.clustered else "-",
        "bits": f"{tensor.bits_per_weight:.2f}" if tensor.clustered else "-",
        "non-zero": f"{100 * tensor.nonzero / tensor.size:.1f} %",
        "shares, %": " ".join(map(percent, tensor.shares))
        if len(tensor.shares) <= _MAX_COMPONENTS
        else f"at most {percent(tensor.shares.max())}",
    }


def _stacked(row: dict[str, str], width: int, ascii_only: bool) -> Text:
    """A tensor on lines of its own, for a terminal too narrow for a table."""
    from rich.text import Text

    facts = [number_of(int(row["weights"].replace(",", "")), "weight")]
    if row["clusters"] == "-":
        facts.append("not clustered")
    else:
        facts += [number_of(int(row["clusters"]), "cluster"), f"{row['bits']} bits"]
    facts += [f"{row['non-zero']} non-zero"]
    body = [
        part
        for line in ("; ".join(facts), f"shares, %: {row['shares, %']}")
        for part in textwrap.wrap(line, max(width - 2, 1), break_on_hyphens=False)
    ]
    name = shorten(row["tensor"], width, ascii_only=ascii_only)
    return Text("\n  ".join([name, *body]))


def percent(share: float) -> str:
    """A share in whole percent, in at most three characters; `.` for 0, `<1` below a half.

    Example:
        >>> [percent(s) for s in (0.0, 0.001, 0.42, 1.0)]
        ['.', '<1', '42', '100']
    """
    return "." if share == 0 else "<1" if share < 0.005 else f"{100 * share:.0f}"

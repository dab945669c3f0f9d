"""Several checkpoints side by side: the same measures and the same axes for all of them.

Tensors are matched by name. The first checkpoint that has a tensor, and a measure of it, is the
reference: what the others differ from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from swsmix._histogram import Array, bin_counts, bin_edges, chunks, count
from swsmix._labels import number_of, shorten, visible
from swsmix.inspection.figures import MAX_BARS, Picture
from swsmix.inspection.inspect import InspectedTensor, Inspection
from swsmix.inspection.measures import Measures, measures
from swsmix.inspection.printed import heads_of, shown, table_of
from swsmix.inspection.sorting import KEYS, check, places
from swsmix.inspection.text import bars, rebin

if TYPE_CHECKING:
    from rich.console import RenderableType

ALL = "all weights"
_BINS = 120


@dataclass(frozen=True)
class Row:
    """A tensor in all checkpoints, or all their weights.

    Attributes:
        name: the tensor's name.
        values: for each checkpoint, the measures by their names in `sorting.KEYS`, nan for what it
            has not; None where there is no such tensor.
        measured: for each checkpoint, the mean, the std and more; None likewise.
        edges: bin edges, the same for all checkpoints (bins + 1,).
        counts: for each checkpoint the weights in each bin; None likewise.
    """

    name: str
    values: tuple[dict[str, float] | None, ...]
    measured: tuple[Measures | None, ...]
    edges: Array = field(repr=False)
    counts: tuple[Array | None, ...] = field(repr=False)

    def reference(self, key: str) -> int | None:
        """The first checkpoint that has the tensor, and this measure of it; None if none has."""
        known = (i for i, v in enumerate(self.values) if v is not None and v[key] == v[key])
        return next(known, None)

    def difference(self, i: int, key: str) -> float:
        """What a measure of checkpoint `i` is more than the reference's.

        It is nan if one has none, or if one of the two is infinite: then no number is the change.
        """
        change = self._change(i, key)
        return math.nan if math.isinf(change) else change

    def _change(self, i: int, key: str) -> float:
        place = self.reference(key)
        mine, reference = self.values[i], None if place is None else self.values[place]
        if mine is None or reference is None:
            return math.nan
        return 0.0 if mine[key] == reference[key] else mine[key] - reference[key]

    def change(self, key: str) -> float:
        """The largest magnitude of a measure's changes, infinite ones too; nan if there is none."""
        reference = self.reference(key)
        differences = (self._change(i, key) for i in range(len(self.values)) if i != reference)
        return max((abs(d) for d in differences if d == d), default=math.nan)


@dataclass(frozen=True)
class Comparison:
    """Checkpoints to compare.

    Attributes:
        names: a name of its own for each.
        inspections: what each holds.
        rows: the tensors of all, in the order in which they come; first, all weights together.
    """

    names: tuple[str, ...]
    inspections: tuple[Inspection, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The names of what is compared."""
        return " | ".join(self.names)


def compare(inspections: Sequence[Inspection]) -> Comparison:
    """Compare checkpoints: epochs of a run, or models side by side.

    Args:
        inspections: at least two, each from `inspect` with the same options.

    Raises:
        ValueError: if there are fewer than two.

    Example:
        >>> epochs = [inspect(f"epoch-{i}.pt") for i in range(3)]  # doctest: +SKIP
        >>> compare(epochs).rows[0].difference(2, "kurtosis")  # doctest: +SKIP
        1.375
    """
    if len(inspections) < 2:
        raise ValueError(
            f"inspections must be at least two, to compare them; got {len(inspections)}: add others"
        )
    by_name = [{t.name: t for t, _ in inspection.layers} for inspection in inspections]
    names = list(dict.fromkeys(name for tensors in by_name for name in tensors))
    rows = [_all(inspections)]
    rows += [_row(name, [tensors.get(name) for tensors in by_name]) for name in names]
    return Comparison(_names(inspections), tuple(inspections), tuple(rows))


def _names(inspections: Sequence[Inspection]) -> tuple[str, ...]:
    """The names of the files, or as much of their paths as tells them apart."""
    paths = [visible(str(inspection.path)).strip("/").split("/") for inspection in inspections]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return tuple(names)
    seen = Counter[str]()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return tuple(unique)


def _all(inspections: Sequence[Inspection]) -> Row:
    flats = [[t.weights.reshape(-1) for t, _ in each.layers] for each in inspections]
    values = inspections[0].layers[0][0].measures.values
    measured = [measures(flat, values) for flat in flats]
    found = [
        {
            "kurtosis": measure.kurtosis,
            "gg-shape": measure.shape,
            "left": measure.left,
            "bits": each.bits_per_weight,
            "non-zero": each.nonzero,
            "outliers": float(measure.outliers),
            "clusters": float(each.num_clusters or math.nan),
            "weights": float(each.size),
        }
        for each, measure in zip(inspections, measured, strict=True)
    ]
    return Row(ALL, tuple(found), tuple(measured), *_histograms(flats))


def _row(name: str, tensors: Sequence[InspectedTensor | None]) -> Row:
    return Row(
        name,
        tuple(
            None if t is None else {key: float(of(t)) for key, of in KEYS.items()} for t in tensors
        ),
        tuple(None if t is None else t.measures for t in tensors),
        *_histograms([None if t is None else [t.weights.reshape(-1)] for t in tensors]),
    )


def _histograms(
    flats: Sequence[Sequence[Tensor] | None],
) -> tuple[Array, tuple[Array | None, ...]]:
    """Edges of bins for the weights of all, and how many of each are in them."""
    every = [w for flat in flats if flat is not None for w in flat]
    ends = [v.item() for part in chunks(every) for v in part.aminmax()]
    low, high = min(ends), max(ends)
    pad = 0.02 * (high - low) or 0.01 * abs(low) or 1.0
    edges = bin_edges(count(every), low - pad, high + pad, _BINS)
    return edges, tuple(None if flat is None else bin_counts(flat, edges) for flat in flats)


def table(
    comparison: Comparison, *, width: int = 120, ascii_only: bool = False, sort: str | None = None
) -> RenderableType:
    """The comparison for the terminal: histograms on the same axes, then measures.

    Of each tensor the first that has a measure shows it, and those below the difference from it.

    Args:
        comparison: the comparison.
        width: width of the terminal, in characters.
        ascii_only: for terminals without Unicode.
        sort: the measure by whose largest change the tensors are sorted.

    Returns:
        A renderable for rich's `print`.

    Raises:
        ValueError: if there is no such measure.
    """
    from rich.console import Group as Stack
    from rich.text import Text

    if sort is not None:
        check(sort)
    whole, tensors = comparison.rows[0], comparison.rows[1:]
    if sort is not None:
        tensors = tuple(tensors[i] for i in places([row.change(sort) for row in tensors]))
    names = [shorten(name, min(width, 40), ascii_only=ascii_only) for name in comparison.names]
    parts: list[RenderableType] = []
    low, high = whole.edges[0], whole.edges[-1]
    parts.append(Text(f"weights from {low:.3g} to {high:.3g}; height: log(1 + weights)", "dim"))
    for name, inspection, counts in zip(names, comparison.inspections, whole.counts, strict=True):
        said = f"{number_of(inspection.size, 'weight')}, {visible(inspection.kind)}"
        if inspection.left_out:
            said += f"; {number_of(len(inspection.left_out), 'tensor')} left out"
        parts += [Text(f"{name}: {said}"), Text(_bar(counts, width, ascii_only))]
    parts += [
        Text(""),
        Text("the first of a column; below it, with a sign, the differences from it", "dim"),
    ]
    rows: list[tuple[str, list[str]]] = []
    for row in (whole, *tensors):
        rows.append((row.name, []))
        rows += _lines(row, comparison.names, ascii_only)
    if any(_has_dash(row) for row in (whole, *tensors)):
        said = (
            "-: weights that are all equal have no kurtosis and no shape, and no number is the "
            "change to or from an infinite shape"
        )
        parts.append(Text(said, "dim"))
    values = next(m.values for m in whole.measured if m is not None)
    heads = heads_of([*KEYS], values)
    parts.append(table_of("tensor", heads, rows, width=width, ascii_only=ascii_only))
    return Stack(*parts)


def _has_dash(row: Row) -> bool:
    """Whether a checkpoint's shape, or its difference from the first, is no number."""
    key = "gg-shape"
    return any(
        v is not None and math.isnan(row.difference(i, key) if i != row.reference(key) else v[key])
        for i, v in enumerate(row.values)
    )


def _bar(counts: Array | None, width: int, ascii_only: bool) -> str:
    return "" if counts is None else bars(rebin(counts, min(width, 72)), ascii_only=ascii_only)[0]


def _lines(row: Row, names: Sequence[str], ascii_only: bool) -> Iterator[tuple[str, list[str]]]:
    for i, (name, values) in enumerate(zip(names, row.values, strict=True)):
        if values is None:
            yield f"  {name}", ["not there", *[""] * (len(KEYS) - 1)]
            continue
        texts = [
            shown(key, values[key], ascii_only)
            if i == row.reference(key)
            else shown(key, row.difference(i, key), ascii_only, signed=True)
            for key in KEYS
        ]
        yield f"  {name}", texts


def draw_compared(comparison: Comparison) -> Iterator[Picture]:
    """Draw the checkpoints' histograms on the same axes, then the measures of their tensors.

    Args:
        comparison: the comparison.

    Yields:
        The pictures; of very many tensors, the 40 largest.
    """
    from swsmix.plots.compared import histograms_compared, measures_compared

    whole = comparison.rows[0]
    counts = [part for part in whole.counts if part is not None]
    far = [m for m in whole.measured if m is not None]
    yield Picture(
        "compared",
        "The weights of each checkpoint on the same axes, logarithmic; rings: bins more than 6 "
        "std from the mean.",
        histograms_compared(
            comparison.names, whole.edges, counts, [(m.mean, 6 * m.std) for m in far]
        ),
    )
    tensors = comparison.rows[1:]
    sizes = [max(v["weights"] for v in row.values if v is not None) for row in tensors]
    most = sorted(places(sizes)[:MAX_BARS])
    some = "" if len(most) == len(tensors) else f" The {len(most)} largest of {len(tensors)}."
    keys = [key for key in ("kurtosis", "gg-shape", "left", "bits") if _known(tensors, key)]
    values = next(m.values for m in whole.measured if m is not None)
    labels = {
        "kurtosis": "kurtosis",
        "gg-shape": "GG shape",
        "left": f"variance left by {values}",
        "bits": "bits per weight",
    }
    yield Picture(
        "compared-measures",
        "Measures of each tensor in each checkpoint (a Gaussian has kurtosis 3 and a "
        f"generalised-Gaussian (GG) shape of 2).{some}",
        measures_compared(
            comparison.names,
            [tensors[i].name for i in most],
            {
                labels[key]: [
                    [math.nan if v is None else v[key] for v in tensors[i].values] for i in most
                ]
                for key in keys
            },
        ),
    )


def _known(rows: Sequence[Row], key: str) -> bool:
    return any(v is not None and math.isfinite(v[key]) for row in rows for v in row.values)

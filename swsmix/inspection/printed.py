"""An inspection as `swsmix inspect` prints it, and the table of the measures of its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swsmix._labels import number_of, shorten, visible
from swsmix.inspection.inspect import InspectedTensor, Inspection
from swsmix.inspection.sorting import KEYS, ordered
from swsmix.inspection.text import histogram_text, mixture_table, tensor_table

if TYPE_CHECKING:
    from rich.console import RenderableType

_MAX_GROUPS = 4  # with a histogram and a table of components
_MAX_NAMES = 6  # of tensors left out for one reason
_GAP, _MIN_NAME, _MAX_NAME = 2, 12, 32
MEASURED = ("kurtosis", "gg-shape", "left", "outliers")  # what the other table has not


def terminal(
    inspection: Inspection, *, width: int = 120, ascii_only: bool = False, sort: str | None = None
) -> RenderableType:
    """An inspection as `swsmix inspect` prints it.

    If there are more than 4 mixtures, the 4 largest are shown, then one table of all tensors.

    Args:
        inspection: the inspection.
        width: width of the terminal, in characters.
        ascii_only: for terminals without Unicode.
        sort: the measure that tensors are sorted by, the largest first; see `sorting.KEYS`.

    Returns:
        A renderable for rich's `print`.

    Raises:
        ValueError: if there is no such measure.
    """
    from rich.console import Group as Stack
    from rich.text import Text

    def shown(text: str) -> str:
        return visible(text, ascii_only=ascii_only)

    def tables(tensors: Sequence[InspectedTensor]) -> list[RenderableType]:
        tensors = ordered(tensors, sort)
        options: Any = {"width": width, "ascii_only": ascii_only}
        first, second = tensor_table(tensors, **options), measure_table(tensors, **options)
        return [Text(""), first, Text(""), second]

    parts: list[RenderableType] = [Text(shown(inspection.title), "bold")]
    chart = min(width, 72)
    many = len(inspection.groups) > _MAX_GROUPS
    largest = {g.name for g in sorted(inspection.groups, key=lambda g: -g.size)[:_MAX_GROUPS]}
    for group in inspection.groups:
        if group.name not in largest:
            continue
        weights = number_of(group.size, "weight")
        parts += [
            Text(f"\nmixture '{shown(group.name)}': {weights}; {group.origin}"),
            Text(f"{group.clustering}\n"),
            Text("height: log(1 + weights); triangles: centres", "dim"),
            histogram_text(
                group.counts,
                group.edges,
                group.mixture,
                width=chart,
                ascii_only=ascii_only,
                claimed=group.claimed,
            ),
            Text(""),
            mixture_table(group.mixture, group.claimed, group.size),
        ]
        if not many:
            parts += tables(group.layers)
    if many:
        title = (
            f"\nthe {_MAX_GROUPS} largest of {len(inspection.groups)} mixtures are shown above; "
        )
        parts.append(Text(f"{title}the tensors of all:"))
        parts += tables([tensor for tensor, _ in inspection.layers])
    for group in inspection.groups:
        for found in group.findings:
            parts.append(Text(f"\nmixture '{shown(group.name)}' {found.message}", "bold"))
    if inspection.left_out:
        parts.append(Text(""))
    reasons: dict[str, list[str]] = {}
    for name, why in inspection.left_out.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        width_of_name = max(width - 2, 1)
        some = (shorten(n, width_of_name, ascii_only=ascii_only) for n in names[:_MAX_NAMES])
        parts.append(Text(f"left out ({shown(why)}): {', '.join(some)}{more}"))
    return Stack(*parts)


def measure_table(
    tensors: Sequence[InspectedTensor], *, width: int = 120, ascii_only: bool = False
) -> RenderableType:
    """Tensors with their kurtosis, generalised-Gaussian shape, variance left and outliers.

    Args:
        tensors: the tensors of an inspection.
        width: width of the terminal, in characters; columns that do not fit are named below.
        ascii_only: for terminals without Unicode.

    Returns:
        A renderable for rich's `print`.
    """
    values = tensors[0].measures.values
    rows = [
        (tensor.name, [shown(key, float(KEYS[key](tensor)), ascii_only) for key in MEASURED])
        for tensor in tensors
    ]
    heads = heads_of(MEASURED, values)
    return table_of("tensor", heads, rows, width=width, ascii_only=ascii_only)


def heads_of(keys: Sequence[str], values: int) -> list[str]:
    """The heads of measures; `values` is K of `left`."""
    return [f"left by {values}" if key == "left" else key for key in keys]


def shown(key: str, value: float, ascii_only: bool, *, signed: bool = False) -> str:
    """A measure as text; a dash where a tensor has none."""
    if math.isnan(value):
        return "-"
    sign = "+" if signed else ""
    if math.isinf(value):
        return f"{value:{sign}}" if ascii_only else f"{value:{sign}}".replace("inf", "∞")
    if key in ("left", "non-zero"):
        return f"{100 * value:{sign}.{2 if key == 'left' else 1}f} %"
    if key in ("clusters", "weights", "outliers"):
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.2f}" if abs(value) < 1e5 else f"{value:{sign}.2g}"


def table_of(
    first: str,
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    *,
    width: int,
    ascii_only: bool,
) -> RenderableType:
    """A table of numbers: columns from the left as far as they fit, and the others by name.

    Args:
        first: the head of the names.
        heads: those of the columns.
        rows: names, each with the texts of its columns; without texts, a line across.
        width: width of the terminal, in characters.
        ascii_only: for terminals without Unicode.

    Returns:
        A renderable for rich's `print`.
    """
    from rich.text import Text

    wide = [max(len(head), *(len(t[i]) for _, t in rows if t)) for i, head in enumerate(heads)]
    labels = [visible(name, ascii_only=ascii_only) for name, texts in rows if texts]
    longest = max(len(first), *map(len, labels))
    number = len(heads)
    while number > 1 and min(longest, _MIN_NAME) + sum(_GAP + w for w in wide[:number]) > width:
        number -= 1
    room = width - sum(_GAP + w for w in wide[:number])
    name = max(min(longest, _MAX_NAME, room), 1)

    def line(label: str, texts: Sequence[str]) -> str:
        indent = len(label) - len(label.lstrip(" "))
        most = (name if texts else width) - indent
        short = " " * indent + shorten(label[indent:], max(most, 1), ascii_only=ascii_only)
        cells = zip(texts[:number], wide, strict=False)
        if texts:
            short = f"{short:<{name}}"
        return short + "".join(f"{text:>{_GAP + w}}" for text, w in cells)

    text = Text(overflow="fold")
    text.append(line(first, heads), "bold")
    for label, texts in rows:
        text.append("\n" + line(label, texts).rstrip())
    if number < len(heads):
        text.append(f"\ntoo narrow here for: {', '.join(heads[number:])}", "dim")
    return text

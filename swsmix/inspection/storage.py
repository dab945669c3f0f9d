"""Where the bytes of a compressed file are, as text: tensor by tensor, and by what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from swsmix._labels import shorten
from swsmix.codec import TensorSize
from swsmix.inspection.printed import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_NAME = 32  # characters, at most
_NUMBERS = "weights", "K", "bytes", "bits per\nweight", "order-0\nbytes", "saved"
_SHORT = "weights", "K", "bytes", "bits/w", "order-0", "saved"  # of a narrow terminal
_OTHER = "header, checksum, coder's loss"
_PURPOSES = (
    "component numbers",
    "codebooks",
    "exact values (biases and the like)",
    "names and shapes",
)


def byte_tables(
    sizes: Mapping[str, TensorSize], total: int, *, width: int = 120, ascii_only: bool = False
) -> RenderableType:
    """Two tables, by tensor and by purpose; the bytes of each add up to the file's.

    Where the terminal is narrow, what a tensor is stored as stands below its name.

    Args:
        sizes: from `swsmix.codec.sizes`.
        total: the file's bytes.
        width: width of the terminal, in characters.
        ascii_only: for terminals without Unicode.

    Returns:
        Something for rich's `print`.
    """
    from rich.console import Group
    from rich.text import Text

    cells = whole_bytes(
        (size.index_bits, size.codebook_bits, size.value_bits, size.name_bits)
        for size in sizes.values()
    )
    rows = [cells[4 * i : 4 * i + 4] for i in range(len(sizes))]
    other = total - sum(cells)

    everything = sum(size.numel for size in sizes.values())
    found = [
        (name, f"{size.kind}: {size.model}" if size.model else size.kind, _numbers(size, sum(row)))
        for (name, size), row in zip(sizes.items(), rows, strict=True)
    ]
    whole = f"{everything:,}", "", f"{total:,}", _per_weight(total, everything), "", ""
    found += [(_OTHER, "", ("", "", f"{other:,}", "", "", "")), ("total", "", whole)]
    tensors = _tensors(found, width, ascii_only)

    purposes = _table("what for", "bytes", "share")
    sums = [sum(column) for column in zip(*rows, strict=True)] or [0] * len(_PURPOSES)
    for purpose, size in zip((*_PURPOSES, _OTHER), (*sums, other), strict=True):
        purposes.add_row(purpose, f"{size:,}", f"{100 * size / total:.1f} %")
    purposes.add_row("total", f"{total:,}", "100.0 %")
    return Group(tensors, Text(""), purposes)


def _numbers(size: TensorSize, taken: int) -> tuple[str, ...]:
    """The columns `_NUMBERS` of a tensor that takes so many bytes."""
    entropy = size.entropy_bits
    return (
        f"{size.numel:,}",
        str(size.num_values or ""),
        f"{taken:,}",
        _per_weight(taken, size.numel),
        f"{entropy / 8:,.0f}" if entropy else "",
        _percent(1 - size.index_bits / entropy) if entropy else "",
    )


def _tensors(
    rows: Sequence[tuple[str, str, Sequence[str]]], width: int, ascii_only: bool
) -> RenderableType:
    """The first table: names, what they are stored as, numbers."""
    from rich.console import Console
    from rich.text import Text

    table = _table("tensor", "stored as", *_NUMBERS)
    for name, kind, numbers in rows:
        table.add_row(Text(shorten(name, _NAME, ascii_only=ascii_only)), kind, *numbers)
    if Console(width=1000).measure(table).maximum <= width:
        return table
    lines: list[tuple[str, Sequence[str]]] = []
    for name, kind, numbers in rows:
        lines.append(("the rest" if name == _OTHER else name, numbers))
        lines += [(f"  {kind}", ())] if kind else []
    return table_of("tensor", _SHORT, lines, width=width, ascii_only=ascii_only)


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f} %"  # never -0.0


def _per_weight(taken: int, numel: int) -> str:
    return f"{8 * taken / numel:.2f}" if numel else ""


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        text = column in ("tensor", "stored as", "what for")  # these wrap, numbers never do
        justify: Literal["left", "right"] = "left" if text else "right"
        table.add_column(column, justify=justify, no_wrap=not text, overflow="fold")
    return table


def whole_bytes(parts: Iterable[Iterable[float]]) -> list[int]:
    """Bits as whole bytes, so that the sum of the first n is right to the nearest byte, for any n.

    Args:
        parts: bits, in rows.

    Returns:
        The bytes, row after row.

    Example:
        >>> whole_bytes([[12.0, 12.0], [8.0, 4.0, 4.0]])
        [2, 1, 1, 0, 1]
    """
    total, done, rounded = 0.0, 0, []
    for bits in (bits for row in parts for bits in row):
        total += bits
        rounded.append(round(total / 8) - done)
        done += rounded[-1]
    return rounded

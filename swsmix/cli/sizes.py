"""The table of `swsmix compress`: the file beside the same network in other formats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.compression.snap import Quantized


def ties(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Name of a matrix -> name of an earlier one that it equals bit for bit, as tied ones do."""
    from zlib import crc32

    from swsmix.codec.header import to_patterns

    seen: dict[tuple[object, ...], list[str]] = {}
    tied = {}
    for name, t in tensors.items():
        if t.ndim < 2 or not t.is_floating_point() or not t.any():
            continue
        patterns = to_patterns(t)
        before = seen.setdefault((t.dtype, t.shape, crc32(patterns.data)), [])
        same = [n for n in before if (to_patterns(tensors[n]) == patterns).all()]
        if same:
            tied[name] = same[0]
        before.append(name)
    return tied


@dataclass(frozen=True)
class Size:
    """A row of the table; the error is None where it is not measured."""

    format: str
    bytes: int
    biases: str
    error: float | None


def sizes(
    original: dict[str, Tensor],
    found: dict[str, Quantized],
    state: dict[str, Tensor],
    size: int,
    out: Path,
    *,
    values: int | None,
    bias_bits: int | None,
    seed: int,
) -> list[Size]:
    """The size of the file and of the same network in other formats, float32 first."""
    import gzip

    from swsmix.codec import encode
    from swsmix.codec.header import to_patterns
    from swsmix.compression.codebooks import packed_bytes, quantize_state, snapped

    tied = ties(original)
    once = {n: t for n, t in original.items() if n not in tied}
    plain = b"".join(to_patterns(t).tobytes() for t in once.values())
    floats = sum(t.numel() for t in once.values() if t.is_floating_point())
    rest = sum(t.nbytes for t in once.values() if not t.is_floating_point())
    kept = "exact" if bias_bits is None else f"{bias_bits} bits"
    rows = [
        Size("float32", 4 * floats + rest, "exact", 0.0),
        Size("float16", 2 * floats + rest, "float16", None),
        Size("the tensors as they are", len(plain), "exact", 0.0),
        Size("the same, gzip", len(gzip.compress(plain, 6, mtime=0)), "exact", 0.0),
    ]
    if found:
        # As many values as whole bits per weight hold: codebooks of other sizes pay no more.
        most = values or 2 ** min(max(math.ceil(bits_per_weight(found)), 1), 8)
        chosen = {name: original[name] for name in found}
        other = quantize_state(chosen, most, method="kmeans", seed=seed, progress=True)
        palette = {n: state[n] for n in state if n not in found} | snapped(chosen, other)
        error = rms_error(original, palette, found)
        packed = {n: t for n, t in palette.items() if n not in tied}
        coded = len(encode(palette, progress=True))
        name = f"k-means, {most} values"
        rows += [
            Size(f"{name}, packed", packed_bytes(packed, other), kept, error),
            Size(f"{name}, in this format", coded, kept, error),
        ]
    return [*rows, Size(f"{out}", size, kept, rms_error(original, state, found))]


def bits_per_weight(found: dict[str, Quantized]) -> float:
    """The order-0 entropy of all component numbers, per weight."""
    from swsmix.compression.snap import bits_per_weight

    count = sum(q.index.numel() for q in found.values())
    return sum(bits_per_weight(q.index) * q.index.numel() for q in found.values()) / max(count, 1)


def relative_loss(
    before: dict[str, Tensor], after: dict[str, Tensor], names: Iterable[str]
) -> float:
    """The squared error over the weights' squares about the mean of their tensor."""
    names = list(names)
    squares = sum((before[n].double() - after[n].double()).square().sum().item() for n in names)
    whole = sum(float(before[n].double().var(correction=0)) * before[n].numel() for n in names)
    return float(squares / whole) if whole else 0.0


def print_table(rows: list[Size]) -> None:
    """Print the sizes, and what each of these files loses."""
    from rich.console import Console
    from rich.table import Table

    title = "the whole network, with biases and headers; the error is that of the weights"
    table = Table(title=title, title_justify="left")
    for column in ("", "bytes", "x float32", "biases etc.", "rms error"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for row in rows:
        error = "" if row.error is None else f"{row.error:.3g}"
        ratio = f"{rows[0].bytes / row.bytes:.1f}" if row.bytes else ""
        table.add_row(row.format, f"{row.bytes:,}", ratio, row.biases, error)
    Console(width=None).print(table)


def rms_error(before: dict[str, Tensor], after: dict[str, Tensor], names: Iterable[str]) -> float:
    """The root of the mean squared change of these tensors' weights."""
    squares = sum((before[n].double() - after[n].double()).square().sum().item() for n in names)
    count = sum(before[n].numel() for n in names)
    return float((squares / max(count, 1)) ** 0.5)

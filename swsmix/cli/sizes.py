"""The table of `swsmix compress`: the file beside the same network in other formats."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.compression.report import TensorReport

# Of a large network gzip and k-means see a part, so that the table costs seconds at most.
_COMPARED = 1 << 21  # weights
_FEWEST = 1 << 12  # of a tensor
_GZIPPED = 1 << 24  # bytes
_PIECE = 1 << 16
_ABOUT = " (estimated)"


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
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


class Formats:
    """The same network in other formats, added up tensor by tensor.

    Args:
        sizes: name -> number of elements, of all tensors.
        whole: their bytes.
    """

    def __init__(self, sizes: Mapping[str, int], whole: int) -> None:
        self.whole = self._plain = self._floats = self._rest = 0
        self._numel = sizes
        self._step = -(-sum(sizes.values()) // _COMPARED)
        self._every = -(-whole // _GZIPPED)
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._gzipped = self._packed = 0
        self._once: set[tuple[object, ...]] = set()
        self._tied: set[str] = set()
        self._kept: dict[str, Tensor] = {}

    def add(self, name: str, t: Tensor) -> None:
        """Add a tensor as it was; equal matrices count once."""
        from hashlib import blake2b

        from swsmix.codec.header import to_patterns

        patterns = to_patterns(t)
        self.whole += t.nbytes
        self._keep(name, t)
        if t.ndim >= 2 and t.is_floating_point() and patterns.any():
            content = t.dtype, t.shape, blake2b(patterns.data, digest_size=20).digest()
            if content in self._once:
                self._tied.add(name)
                return
            self._once.add(content)
        self._plain += t.nbytes
        self._floats += t.numel() if t.is_floating_point() else 0
        self._rest += 0 if t.is_floating_point() else t.nbytes
        data = patterns.data.cast("B") if t.numel() else memoryview(b"")
        for begin in range(0, len(data), self._every * _PIECE):
            piece = data[begin : begin + _PIECE]
            self._packed += len(self._gzip.compress(piece))
            self._gzipped += len(piece)

    def _keep(self, name: str, t: Tensor) -> None:
        """Keep a small network for k-means, or evenly chosen weights of a large one."""
        if self._step == 1:
            self._kept[name] = t.detach().clone()
        elif t.is_floating_point() and t.ndim > 1:
            step = max(min(self._step, t.numel() // _FEWEST), 1)
            self._kept[name] = t.detach().reshape(-1)[::step].clone().view(-1, 1)

    def rows(
        self,
        reports: Mapping[str, TensorReport],
        size: int,
        out: Path,
        *,
        values: int | None,
        bias_bits: int | None,
        seed: int,
    ) -> list[Size]:
        """The size of the file and of the network in other formats, float32 first."""
        self._packed += len(self._gzip.flush())
        share = self._plain / max(self._gzipped, 1)
        about = "" if self._gzipped == self._plain else _ABOUT
        kept = "exact" if bias_bits is None else f"{bias_bits} bits"
        rows = [
            Size("float32", 4 * self._floats + self._rest, "exact", 0.0),
            Size("float16", 2 * self._floats + self._rest, "float16", None),
            Size("the tensors as they are", self._plain, "exact", 0.0),
            Size(f"the same, gzip{about}", round(self._packed * share), "exact", 0.0),
        ]
        if reports:
            # As many values as whole bits per weight hold: codebooks of other sizes pay no more.
            most = values or 2 ** min(max(math.ceil(bits_per_weight(reports)), 1), 8)
            packed, coded, error = self._by_kmeans(reports, most, bias_bits, seed)
            name, about = f"k-means, {most} values", "" if self._step == 1 else _ABOUT
            rows += [
                Size(f"{name}, packed{about}", packed, kept, error),
                Size(f"{name}, in this format{about}", coded, kept, error),
            ]
        return [*rows, Size(f"{out}", size, kept, rms_error(reports))]

    def _by_kmeans(
        self, reports: Mapping[str, TensorReport], most: int, bias_bits: int | None, seed: int
    ) -> tuple[int, int, float]:
        """Bytes packed, bytes in this format, and the error, of k-means with so many values."""
        from swsmix.codec import encode
        from swsmix.compression.codebooks import packed_bytes, quantize_state
        from swsmix.compression.report import tensor_report
        from swsmix.compression.streamed import Rounded, snapped_tensors

        chosen = {name: self._kept[name] for name in reports}
        found = quantize_state(chosen, most, method="kmeans", seed=seed)
        changes = {name: tensor_report(name, chosen[name], q) for name, q in found.items()}
        squares = sum(r.mse * self._numel[name] for name, r in changes.items())
        error = (squares / max(sum(self._numel[name] for name in reports), 1)) ** 0.5
        if self._step == 1:
            rest = Rounded(self._kept, bias_bits, keep=reports)
            palette = dict(snapped_tensors(rest, lambda name, t: found.get(name)))
            once = {name: t for name, t in palette.items() if name not in self._tied}
            return packed_bytes(once, found), len(encode(palette)), error
        packed = coded = self._plain
        for name, q in found.items():
            if name in self._tied:
                continue
            count, width = self._numel[name], chosen[name].element_size()
            book = len(q.codebook) * width
            packed += -(-count * math.ceil(math.log2(len(q.codebook))) // 8) + book - count * width
            coded += math.ceil(count * changes[name].bits / 8.0) + book - count * width
        return packed, coded, error


def bits_per_weight(reports: Mapping[str, TensorReport]) -> float:
    """The order-0 entropy of all component numbers, per weight."""
    each = _once(reports)
    return sum(r.bits * r.numel for r in each) / max(sum(r.numel for r in each), 1)


def relative_loss(reports: Mapping[str, TensorReport]) -> float:
    """The mean over all weights of their tensor's squared error over its variance."""
    each = _once(reports)
    lost = sum(r.numel * r.mse / r.variance for r in each if r.variance > 0.0)
    return lost / max(sum(r.numel for r in each), 1)


def _once(reports: Mapping[str, TensorReport]) -> set[TensorReport]:
    """Tied tensors count once: their reports differ by the name alone."""
    return {replace(report, name="") for report in reports.values()}


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


def rms_error(reports: Mapping[str, TensorReport]) -> float:
    """The root of the mean squared change of the weights."""
    squares = sum(r.mse * r.numel for r in reports.values())
    return float((squares / max(sum(r.numel for r in reports.values()), 1)) ** 0.5)

"""Tensors to the bytes of a compressed file."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swsmix._progress import watched
from swsmix.codec.budget import ContextBudget
from swsmix.codec.decoder import max_weights_for
from swsmix.codec.densities import RowDensities
from swsmix.codec.header import (
    DTYPES,
    MAGIC,
    MAX_VALUES,
    VERSION,
    Kind,
    TableWriter,
    to_patterns,
)
from swsmix.codec.index import write_index
from swsmix.codec.stream import Array, StreamEncoder
from swsmix.codec.values import write_values

_SAMPLE = 1 << 16  # elements, to see that a tensor has too many distinct values
# Decisions for context models in one file, about half a minute; later tensors do without.
_BUDGET = 1 << 24


def encode(state: Mapping[str, Tensor], *, progress: bool = False) -> bytes:
    """Encode a state_dict as the bytes of a compressed file; `decode` gives back every bit.

    Args:
        state: name -> tensor. Tensors of few distinct values (snapped ones) become a codebook
            and entropy-coded component numbers. Context models code them until about half a
            minute of work is spent; the tensors after that are coded without.
        progress: show a progress bar over the tensors.

    Returns:
        The bytes, the same each time.

    Raises:
        TypeError: if a tensor is not a dense one of a common dtype.

    Example:
        >>> from swsmix.codec import decode
        >>> state = {"weight": torch.tensor([[0.0, 0.5], [0.0, -0.5]])}
        >>> torch.equal(decode(encode(state))["weight"], state["weight"])
        True
    """
    encoder = _Encoder()
    encoder.table.number(len(state))
    for name, t in watched(state.items(), "coding", shown=progress):
        encoder.add_(name, t)
    return encoder.to_bytes()


def check(name: str, t: Tensor) -> None:
    """Check that a compressed file can hold a tensor.

    Raises:
        TypeError: if it is not a dense tensor of a common dtype.
    """
    if not isinstance(name, str) or not isinstance(t, Tensor):
        raise TypeError(
            f"a compressed file holds names and tensors; got {name!r} -> {type(t).__name__}"
        )
    if t.layout != torch.strided or t.is_quantized or t.is_meta or t.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(
            f"{name} must be a dense tensor of {names}: convert it first; got {t.dtype}, {t.layout}"
        )


class _Stored(NamedTuple):
    """One way to store a tensor: its part of the table and its part of the stream."""

    table: TableWriter
    stream: StreamEncoder

    @property
    def bits(self) -> float:
        return self.stream.cost + 8 * len(self.table.data)


class _Encoder:
    """Writes tensors one after another, each with the help of those before it."""

    def __init__(self) -> None:
        self.table, self.stream = TableWriter(), StreamEncoder()
        self.codebooks: list[tuple[torch.dtype, Array]] = []
        self.densities, self.budget = RowDensities(), ContextBudget(_BUDGET)
        self._patterns: list[Array] = []
        self._numbers = 0
        # dtype, shape and checksum -> the tensors that have them.
        self._positions: dict[tuple[torch.dtype, tuple[int, ...], int], list[int]] = {}

    def add_(self, name: str, t: Tensor) -> None:
        """Write a tensor in the smallest way."""
        check(name, t)
        self.table.name(name)
        patterns = to_patterns(t)
        self._numbers += max(len(patterns), 1)
        original = self._original(t, patterns)
        if original is not None and len(patterns):
            self.table.number(Kind.COPY)
            self.table.number(original)
        else:
            self._append(self._smallest(t, patterns))

    def to_bytes(self) -> bytes:
        """The whole file."""
        front = TableWriter()
        front.number(len(self.table.data))
        content = front.data + self.table.data + self.stream.to_bytes()
        data = MAGIC + bytes([VERSION]) + content
        needed = max_weights_for(len(data) + 4, self._numbers, self.budget.read)
        if needed:
            warnings.warn(
                f"a file of {len(data) + 4:,} bytes with {self._numbers:,} numbers is larger or "
                "takes longer to read than its size makes plausible: load_compressed and "
                f"`swsmix decompress` read it only with max_weights = {needed} or more",
                stacklevel=3,
            )
        return data + zlib.crc32(data).to_bytes(4, "little")

    def _original(self, t: Tensor, patterns: Array) -> int | None:
        """The number of an equal tensor written before, if there is one."""
        alike = self._positions.setdefault((t.dtype, tuple(t.shape), zlib.crc32(patterns.data)), [])
        equal = [i for i in alike if np.array_equal(self._patterns[i], patterns)]
        alike.append(len(self._patterns))
        self._patterns.append(patterns)
        return equal[0] if equal else None

    def _append(self, stored: _Stored) -> None:
        self.table.data += stored.table.data
        self.stream.extend(stored.stream)

    def _smallest(self, t: Tensor, patterns: Array) -> _Stored:
        """A tensor as a codebook and an index, or value by value."""
        values = _distinct(patterns, t.dtype)
        by_value = _Stored(TableWriter(), StreamEncoder())
        by_value.table.number(Kind.VALUES)
        by_value.table.tensor(t)
        by_values = (len(patterns) >> 4) + write_values(*by_value, patterns, t.dtype)
        if values is None:
            self.budget.read_(by_values)
            return by_value
        indexed = _Stored(TableWriter(), StreamEncoder())
        values, is_new = self._write_codebook(indexed, t, values)
        index = np.searchsorted(_sortable(values, t.dtype), _sortable(patterns, t.dtype))
        index = index.astype(np.uint8 if len(values) <= 256 else np.uint16)
        if len(values) > 1:
            shape = tuple(t.shape)
            write_index(*indexed, index, len(values), shape, self.densities, self.budget)
        if indexed.bits >= by_value.bits:
            self.budget.read_(by_values)
            return by_value
        if is_new:
            self.codebooks.append((t.dtype, values))
        return indexed

    def _write_codebook(self, stored: _Stored, t: Tensor, values: Array) -> tuple[Array, bool]:
        """Write an earlier codebook's number or a new codebook; the values, and whether new."""
        shared = [
            i
            for i, (dtype, book) in enumerate(self.codebooks)
            if dtype == t.dtype
            and np.isin(values, book).all()
            # An unused entry costs the index about two bits; a new codebook stores each value.
            and 2 * len(book) < (t.dtype.itemsize * 8 + 2) * len(values)
        ]
        stored.table.number(Kind.SHARED if shared else Kind.INDEX)
        stored.table.tensor(t)
        if shared:
            stored.table.number(shared[0])
            return self.codebooks[shared[0]][1], False
        stored.table.number(len(values))
        self.budget.read_(write_values(*stored, values, t.dtype))
        return values, True


def _distinct(patterns: Array, dtype: torch.dtype) -> Array | None:
    """The distinct values in ascending order, if they are few."""
    size = len(patterns)
    if size < 2:
        return None
    limit = min(MAX_VALUES, size // 2)
    step = max(size // _SAMPLE, 1)
    if len(np.unique(patterns[::step][:_SAMPLE])) > limit:
        return None
    parts = [np.unique(part) for part in np.array_split(patterns, size // (1 << 20) + 1)]
    distinct = np.unique(np.concatenate(parts))
    if len(distinct) > limit:
        return None
    ascending: Array = distinct[np.argsort(_sortable(distinct, dtype))]
    return ascending


def _sortable(patterns: Array, dtype: torch.dtype) -> Array:
    """Bit patterns as unsigned integers that sort like the numbers that they stand for."""
    if not dtype.is_signed:
        return patterns
    bits = patterns.dtype.itemsize * 8
    top = patterns.dtype.type(1 << (bits - 1))
    if not dtype.is_floating_point:
        flipped: Array = patterns ^ top
        return flipped
    monotone: Array = np.where(patterns & top, ~patterns, patterns | top)
    return monotone

"""Tensors to the bytes of a compressed file."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swsmix._progress import watched
from swsmix.codec.blocks import write_blocks
from swsmix.codec.budget import ContextBudget, max_weights_for
from swsmix.codec.choosing import code_smallest
from swsmix.codec.densities import RowDensities, has_rows
from swsmix.codec.distinct import PlacesOf, distinct_values, is_tabulated
from swsmix.codec.header import DTYPES, Kind, TableWriter, to_patterns
from swsmix.codec.index import CONTEXTS, Numbers
from swsmix.codec.notes import Notes
from swsmix.codec.sections import SectionWriter
from swsmix.codec.stream import Array, StreamEncoder, counted, entropy_bits, smallest_type
from swsmix.codec.values import write_values

# Decisions for context models in one file, about half a minute; later tensors do without.
CONTEXT_BUDGET = 1 << 26
# Of a network of more numbers than these, only sparse tensors are coded in contexts: those of a
# dense one cost minutes, and save a percent where the budget reaches.
_MANY = 1 << 25
# Bits from which on a tensor has a section for itself, in blocks: the frame costs it .1 %.
_LARGE = 1 << 18
_MOST_IN_STREAM = 1 << 22  # weights of small tensors that wait for their section to be full
_CHUNK = 1 << 18  # elements that are looked up at a time
_SURELY_SMALLER = 1 << 16  # elements from which on a good codebook is not compared with values


def encode(
    state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    contexts: bool = True,
    progress: bool = False,
) -> bytes:
    """Encode a state_dict as the bytes of a compressed file; `decode` gives back every bit.

    Args:
        state: name -> tensor, or pairs of them. Tensors of few distinct values (snapped ones)
            become a codebook and entropy-coded component numbers. Context models code them until
            about half a minute of work is spent, and of more than 33 million numbers only sparse
            tensors; the others are coded without.
        contexts: whether context models may be used; without them a file is written at once.
        progress: show a progress bar over the tensors.

    Returns:
        The bytes, the same each time, on any number of threads.

    Raises:
        TypeError: if a tensor is not a dense one of a common dtype.

    Example:
        >>> from swsmix.codec import decode
        >>> state = {"weight": torch.tensor([[0.0, 0.5], [0.0, -0.5]])}
        >>> torch.equal(decode(encode(state))["weight"], state["weight"])
        True
    """
    file = io.BytesIO()
    encode_to(file, state, contexts=contexts, progress=progress)
    return file.getvalue()


def encode_to(
    file: io.BufferedIOBase,
    state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    contexts: bool = True,
    total: int | None = None,
    notes: Notes | None = None,
    progress: bool = False,
) -> int:
    """As `encode`, into a file: each tensor is written and let go before the next is asked for.

    Args:
        file: open for writing in binary.
        state: name -> tensor, or pairs of them, from a generator perhaps.
        contexts: whether context models may be used.
        total: how many numbers the tensors have, if they are pairs: of more than 33 million,
            context models code sparse tensors only. None takes them for fewer.
        notes: where the tensors came from, kept at the end of the file.
        progress: show a progress bar over the tensors.

    Returns:
        The number of bytes.

    Raises:
        TypeError: if a tensor is not a dense one of a common dtype.
    """
    if isinstance(state, Mapping):
        total = sum(t.numel() for t in state.values() if isinstance(t, Tensor))
    encoder = _Encoder(file, contexts=contexts, is_large=is_large(total or 0))
    pairs = ((name, state[name]) for name in state) if isinstance(state, Mapping) else state
    count = len(state) if isinstance(state, Mapping) else None
    for name, t in watched(pairs, "coding", shown=progress, total=count):
        encoder.add_(name, t)
        del t  # before the next one is made
    return encoder.finish(notes or Notes())


def is_large(total: int) -> bool:
    """Whether a network has so many numbers that only its sparse tensors are coded in contexts."""
    return total > _MANY


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


@dataclass
class _Stored:
    """One way to store a tensor: its part of the table, its part of the stream, steps to read."""

    table: TableWriter
    stream: StreamEncoder
    steps: int = 0

    @property
    def bits(self) -> float:
        return self.stream.cost + 8 * len(self.table.data)


class _Encoder:
    """Writes tensors one after another, each with the help of those before it."""

    def __init__(self, file: io.BufferedIOBase, *, contexts: bool, is_large: bool) -> None:
        self.sections = SectionWriter(file)
        self.table, self.stream = TableWriter(), StreamEncoder()
        self.codebooks: list[tuple[torch.dtype, Array]] = []
        self.densities = RowDensities()
        self.budget = ContextBudget(CONTEXT_BUDGET if contexts else 0)
        self._is_large = is_large
        self._in_section = self._waiting = 0  # tensors, and weights
        self._numbers = 0
        self._places: dict[tuple[torch.dtype, tuple[int, ...], bytes], int] = {}
        self._count = 0

    def add_(self, name: str, t: Tensor) -> None:
        """Write a tensor in the smallest way."""
        check(name, t)
        patterns = to_patterns(t)
        self._numbers += max(len(patterns), 1)
        content = t.dtype, tuple(t.shape), hashlib.blake2b(patterns.data, digest_size=20).digest()
        original = self._places.setdefault(content, self._count)
        self._count += 1
        if original < self._count - 1 and len(patterns):
            copy = TableWriter()
            copy.number(Kind.COPY)
            copy.number(original)
            self._append(name, _Stored(copy, StreamEncoder()), len(patterns))
            return
        values = distinct_values(patterns, t.dtype)
        if values is None:
            self._add_values(name, t, patterns)
        else:
            self._add_indexed(name, t, patterns, values)
        if self.stream.cost >= _LARGE or self._waiting >= _MOST_IN_STREAM:
            self._end_section()

    def finish(self, notes: Notes) -> int:
        """End the file; its size in bytes."""
        if self._in_section or not self._count:
            self._end_section()
        self.sections.finish(notes.to_bytes())
        size = self.sections.size
        needed = max_weights_for(size, self._numbers, self.budget.read)
        if needed:
            warnings.warn(
                f"a file of {size:,} bytes with {self._numbers:,} numbers is larger or "
                "takes longer to read than its size makes plausible: load_compressed and "
                f"`swsmix decompress` read it only with max_weights = {needed} or more",
                stacklevel=4,
            )
        return size

    def _append(self, name: str, stored: _Stored, size: int) -> None:
        """A tensor into the section of small ones."""
        self.table.name(name)
        self.table.data += stored.table.data
        self.stream.extend(stored.stream)
        self.budget.read_(stored.steps)
        self._in_section += 1
        self._waiting += size

    def _end_section(self) -> None:
        if self._in_section or not self._count:
            front = TableWriter()
            front.number(self._in_section)
            self.sections.add(bytes(front.data) + self.table.taken(), [self.stream.to_bytes()])
        self.stream = StreamEncoder()
        self._in_section = self._waiting = 0

    def _add_section(self, name: str, stored: _Stored, payload: list[bytes]) -> None:
        """A large tensor as a section."""
        self._end_section()
        self.table.number(0)
        self.table.name(name)
        self.table.data += stored.table.data
        self.budget.read_(stored.steps)
        self.sections.add(self.table.taken(), payload, in_blocks=True)

    def _add_values(self, name: str, t: Tensor, patterns: Array) -> None:
        """A tensor value by value."""
        if 8 * patterns.nbytes < _LARGE:
            self._append(name, _by_value(t, patterns), len(patterns))
            return
        raw = bytearray()
        stored = _by_value(t, patterns, raw)
        if 8 * len(raw) + stored.stream.cost < _LARGE:
            stored.table.data += raw
            self._append(name, stored, len(patterns))
        else:
            self._add_section(name, stored, [bytes(raw) or stored.stream.to_bytes()])

    def _add_indexed(self, name: str, t: Tensor, patterns: Array, values: Array) -> None:
        """A tensor as a codebook and an index, unless value by value is smaller."""
        stored = _Stored(TableWriter(), StreamEncoder())
        values, is_new = self._write_codebook(stored, t, values)
        index, shape = _index(patterns, values), tuple(t.shape)
        count = counted(index, len(values))
        bits = entropy_bits(count) + stored.bits
        is_dense = 2 * count.max() < len(index)
        budget = ContextBudget(0) if self._is_large and is_dense else self.budget
        # No list of numbers is much smaller than their entropy.
        is_sure = len(patterns) >= _SURELY_SMALLER and 64 * len(values) <= len(patterns)
        plain = None if is_sure else _by_value(t, patterns)
        numbers = Numbers(len(values), shape, self.densities.of_columns(shape))
        if bits >= _LARGE and shape and (plain is None or bits < plain.bits):
            head = stored.stream.to_bytes()
            stored.table.number(len(head) // 4)
            streams = write_blocks(stored.table, index, numbers, budget)
            if budget is not self.budget:
                self.budget.read_(budget.read)
            self._add_section(name, stored, [head, *streams])
        else:
            if len(values) > 1:
                model, coded = code_smallest(index, numbers, budget)
                model.write(stored.table)
                stored.stream.extend(coded)
                stored.steps += model.steps(len(values), shape)
                stored.steps += 0 if model.number == CONTEXTS else coded.decisions
            if plain is not None and stored.bits >= plain.bits:
                self._add_values(name, t, patterns)
                return
            self._append(name, stored, len(patterns))
        if len(values) > 1 and has_rows(shape):
            self.densities.add_(index, len(values), shape)
        if is_new:
            self.codebooks.append((t.dtype, values))

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
        stored.steps += write_values(stored.table, stored.stream, values, t.dtype)
        return values, True


def _by_value(t: Tensor, patterns: Array, raw: bytearray | None = None) -> _Stored:
    """A tensor value by value."""
    stored = _Stored(TableWriter(), StreamEncoder(), len(patterns) >> 4)
    stored.table.number(Kind.VALUES)
    stored.table.tensor(t)
    stored.steps += write_values(stored.table, stored.stream, patterns, t.dtype, raw)
    return stored


def _index(patterns: Array, values: Array) -> Array:
    """The number of each element's value, in the smallest type."""
    kind = smallest_type(len(values))
    places = PlacesOf(values)
    if is_tabulated(patterns):
        every = np.arange(1 << (8 * patterns.itemsize)).astype(patterns.dtype)
        return places.of(every).astype(kind)[patterns]
    index = np.empty(len(patterns), kind)
    for begin in range(0, len(patterns), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        index[part] = places.of(patterns[part])
    return index

"""The bytes of a compressed file to tensors; nothing in the bytes is trusted."""

from __future__ import annotations

import difflib
import io
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from swsmix.codec.blocks import BlockedIndex
from swsmix.codec.contents import Entry, charged, needed, read_entries
from swsmix.codec.densities import of_columns, row_classes
from swsmix.codec.header import Kind, from_patterns
from swsmix.codec.index import Numbers
from swsmix.codec.notes import Notes
from swsmix.codec.sections import read_sections
from swsmix.codec.stream import Array, StreamDecoder

_CHUNK = 1 << 18  # numbers that are looked up at a time


@dataclass(frozen=True)
class Codebook:
    """A codebook of a compressed file.

    Attributes:
        values: ascending (k,).
        names: the tensors whose elements are its values.
    """

    values: Tensor
    names: tuple[str, ...]


def decode(
    data: bytes, *, names: Collection[str] | None = None, max_weights: int | None = None
) -> dict[str, Tensor]:
    """Decode the state_dict in the bytes of a compressed file.

    Args:
        data: from `encode`.
        names: the tensors to decode, None for all. Of the others, only those that share a stream
            with them (small ones do) or that they refer to are read; and only the tensor tables
            and what is read are checked for damage, in a file of version 3.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one. None allows what the size of the file makes plausible: 2^25 and 256 per
            byte, at most 2^28 or 16 per byte. The decoding effort is limited too, to some seconds
            and two milliseconds per byte; a number allows four microseconds more per element.

    Returns:
        name -> tensor, in the order of the file.

    Raises:
        KeyError: if the file has no tensor of such a name.
        ValueError: if the bytes are not such a file, are damaged, of another version, or hold more
            than `max_weights`.
    """
    reader = Reader(io.BytesIO(data), names=names, max_weights=max_weights)
    return {part.name: part.tensor for part in reader.parts()}


def decode_books(
    data: bytes | io.BufferedIOBase, *, max_weights: int | None = None
) -> tuple[dict[str, Tensor], list[Codebook]]:
    """As `decode`, with the codebooks that the file is written in.

    Args:
        data: from `encode`, or a file open for reading in binary.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one. None allows what the size of the file makes plausible: 2^25 and 256 per
            byte, at most 2^28 or 16 per byte. The decoding effort is limited too, to some seconds
            and two milliseconds per byte; a number allows four microseconds more per element.

    Returns:
        name -> tensor, and the codebooks. No codebook lists tensors that are stored value by value.

    Raises:
        ValueError: if the bytes are not such a file, are damaged, of another version, or hold more
            than `max_weights`.

    Example:
        >>> import torch
        >>> from swsmix.codec import encode
        >>> data = encode({"weight": torch.tensor([0.0, 0.5, -0.5]).repeat(50)})
        >>> decode_books(data)[1]
        [Codebook(values=tensor([-0.5000,  0.0000,  0.5000]), names=('weight',))]
    """
    parts, books = read_parts(data, max_weights=max_weights)
    users: list[list[str]] = [[] for _ in books]
    for part in parts:
        if part.codebook is not None:
            users[part.codebook].append(part.name)
    codebooks = [Codebook(values, tuple(names)) for values, names in zip(books, users, strict=True)]
    return {part.name: part.tensor for part in parts}, codebooks


@dataclass(frozen=True)
class Part:
    """A tensor as a file stores it.

    Attributes:
        name: its name.
        tensor: its elements.
        kind: how it is stored.
        model: the model of its component numbers, in words; empty if there are none.
        codebook: the number of its codebook; None if it has none.
        bits: the sizes of its name and shape, its codebook, and its component numbers or values;
            they include the coded stream only if a `StreamMeter` reads it.
    """

    name: str
    tensor: Tensor
    kind: Kind
    model: str
    codebook: int | None
    bits: tuple[float, float, float]


def read_parts(
    data: bytes | io.BufferedIOBase,
    *,
    max_weights: int | None = None,
    stream_decoder: type[StreamDecoder] = StreamDecoder,
) -> tuple[list[Part], list[Tensor]]:
    """Read the tensors of a file, in its order, and its codebooks, each (k,).

    Args:
        data: from `encode`, or a file open for reading in binary.
        max_weights: see `decode`.
        stream_decoder: the class that reads the streams.

    Raises:
        ValueError: see `decode`.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    reader = Reader(file, max_weights=max_weights, stream_decoder=stream_decoder)
    return list(reader.parts()), reader.books()


class Reader:
    """Reads the tensors of a file one after another; only what others refer to is kept.

    Args:
        file: open for reading in binary.
        names: the tensors to read, None for all.
        max_weights: see `decode`.
        stream_decoder: the class that reads the streams.

    Raises:
        KeyError: if there is no tensor of such a name.
        ValueError: see `decode`.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        *,
        names: Collection[str] | None = None,
        max_weights: int | None = None,
        stream_decoder: type[StreamDecoder] = StreamDecoder,
    ) -> None:
        self._file, self._stream_decoder = file, stream_decoder
        self._sections, notes = read_sections(file, whole=names is None)
        size = file.seek(0, io.SEEK_END)
        self.entries = read_entries(self._sections, size)
        self.notes = Notes.from_bytes(notes, len(self.entries)) if notes else Notes()
        self._places = {entry.name: place for place, entry in enumerate(self.entries)}
        self._wanted = self._places.keys() if names is None else set(names)
        for name in self._wanted - self._places.keys():
            near = difflib.get_close_matches(name, self._places, 5, 0.5) or list(self._places)[:5]
            raise KeyError(
                f"the file has no tensor {name!r}; it has {len(self._places)}, such as "
                + ", ".join(near)
            )
        self._needed = needed(self.entries, self._wanted)
        self._budget = charged(self._needed, size, max_weights)
        holders = [place for place, e in enumerate(self.entries) if e.kind == Kind.INDEX]
        self._book_numbers = {place: number for number, place in enumerate(holders)}
        self._books: dict[int, Array] = {}  # by the tensor that holds it, as what follows
        self._classes: dict[int, Array] = {}
        self._originals: dict[int, Tensor] = {}
        self._uses = Counter(
            entry.original for entry, _ in self._needed if entry.original is not None
        )
        self._asked = {entry.sides for entry, _ in self._needed}

    def parts(self) -> Iterator[Part]:
        """Read the requested tensors, in the order of the file.

        Raises:
            ValueError: if a stream is damaged or needs too much memory.
        """
        stream, section, left = (
            None,
            -1,
            Counter(entry.section for entry in self.entries if not entry.in_blocks),
        )
        try:
            for entry, is_book in self._needed:
                place = self._places[entry.name]
                if entry.in_blocks:
                    part = self._read_blocks(place, is_book=is_book)
                else:
                    if entry.section != section:
                        section = entry.section
                        stream = self._stream_decoder(self._payload(section))
                    assert stream is not None
                    part = self._read(place, stream)
                    left[section] -= 1
                    if not left[section]:
                        stream.check_end()
                if part is not None and entry.name in self._wanted:
                    yield part
                part = None  # before the next one is read
            # A file without tensors has a stream all the same.
            if not self.entries and self._sections:
                self._stream_decoder(self._payload(0)).check_end()
        except (MemoryError, OverflowError) as error:
            raise ValueError(f"it needs more memory than there is: {error}") from None

    def books(self) -> list[Tensor]:
        """The codebooks that have been read, in the order of the file."""
        return [
            from_patterns(values.copy(), self.entries[place].dtype, values.shape)
            for place, values in sorted(self._books.items())
        ]

    def _payload(self, section: int) -> memoryview:
        return self._sections[section].payload(self._file)

    def _read(self, place: int, stream: StreamDecoder) -> Part:
        """Read the next tensor of a stream."""
        entry = self.entries[place]
        start = with_codebook = stream.cost
        if entry.kind == Kind.COPY:
            return self._part(place, self._copy(entry), 0.0, 0.0)
        if entry.values is not None:
            patterns = entry.values.patterns(stream, self._budget.read_)
        if entry.kind != Kind.VALUES:
            if entry.kind == Kind.INDEX:
                self._books[place] = patterns
                with_codebook = stream.cost
            index = np.zeros(entry.numel, np.uint8)
            if entry.model is not None:
                assert not isinstance(entry.model, BlockedIndex)
                index = entry.model.code(stream, self._numbers(entry), None, self._budget.read_)
            patterns = self._looked_up(place, index)
        tensor = _shaped(patterns, entry)
        return self._part(place, tensor, with_codebook - start, stream.cost - with_codebook)

    def _read_blocks(self, place: int, *, is_book: bool) -> Part | None:
        """Read a tensor that has a section for itself, or only its codebook."""
        entry = self.entries[place]
        payload = self._payload(entry.section)
        if entry.kind == Kind.VALUES:
            assert entry.values is not None
            stream = None
            values = entry.values
            if values.on_grid:
                stream = self._stream_decoder(payload)
            patterns = values.with_raw(payload).patterns(stream, self._budget.read_)
            if stream is not None:
                stream.check_end()
            cost = 8.0 * len(payload) if stream is None else stream.cost
            return self._part(place, _shaped(patterns, entry), 0.0, cost)
        head = self._stream_decoder(payload[: entry.head])
        if entry.values is not None and place not in self._books:
            self._books[place] = entry.values.patterns(head, self._budget.read_)
        head.check_end()
        if is_book:
            return None
        assert isinstance(entry.model, BlockedIndex)
        index, cost = entry.model.read(
            payload[entry.head :], self._numbers(entry), self._budget, self._stream_decoder
        )
        tensor = _shaped(self._looked_up(place, index), entry)
        return self._part(place, tensor, head.cost, cost)

    def _numbers(self, entry: Entry) -> Numbers:
        columns = entry.numel // max(entry.shape[0], 1) if entry.shape else 1
        sides = np.zeros(columns, np.int64)
        if entry.sides is not None:
            sides = of_columns(self._classes[entry.sides], columns)
        return Numbers(entry.num_values, entry.shape, sides)

    def _looked_up(self, place: int, index: Array) -> Array:
        """The bit patterns of component numbers; their rows' classes are kept if asked for."""
        entry = self.entries[place]
        assert entry.codebook is not None
        if place in self._asked:
            self._classes[place] = row_classes(index, entry.num_values, entry.shape)
        values = self._books[entry.codebook]
        if len(values) == 1:
            return np.broadcast_to(values, entry.numel)
        patterns = np.empty(len(index), values.dtype)
        for begin in range(0, len(index), _CHUNK):  # numpy widens the numbers that it looks up
            part = slice(begin, begin + _CHUNK)
            patterns[part] = values[index[part]]
        return patterns

    def _copy(self, entry: Entry) -> Tensor:
        assert entry.original is not None
        self._uses[entry.original] -= 1
        tensor = self._originals[entry.original]
        if not self._uses[entry.original]:
            del self._originals[entry.original]
        return tensor.clone()

    def _part(self, place: int, tensor: Tensor, book_bits: float, bits: float) -> Part:
        entry = self.entries[place]
        if self._uses[place]:
            self._originals[place] = tensor
        book = None
        if entry.codebook is not None:
            book = self._book_numbers[entry.codebook]
        named, with_codebook, rest = entry.table_bits
        model = "" if entry.model is None else str(entry.model)
        sizes = float(named), with_codebook + book_bits, rest + bits
        return Part(entry.name, tensor, entry.kind, model, book, sizes)


def _shaped(patterns: Array, entry: Entry) -> Tensor:
    try:
        return from_patterns(patterns, entry.dtype, entry.shape)
    except RuntimeError as error:
        raise ValueError(f"it is damaged: no tensor has the shape {entry.shape}: {error}") from None

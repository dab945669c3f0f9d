"""The bytes of a compressed file to tensors; nothing in the bytes is trusted."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swsmix.codec.budget import ContextBudget
from swsmix.codec.densities import RowDensities
from swsmix.codec.header import MAGIC, MAX_VALUES, VERSION, Kind, TableReader, from_patterns
from swsmix.codec.index import read_index
from swsmix.codec.stream import Array, StreamDecoder
from swsmix.codec.values import read_values

MAX_WEIGHTS = 1 << 28  # 268 million, a gigabyte in float32: the most without being asked for
_FREE_WEIGHTS, _WEIGHTS_PER_BYTE = 1 << 25, 256
_FREE_STEPS, _STEPS_PER_BYTE = 1 << 22, 2048
_STEPS_PER_ALLOWED_WEIGHT = 4
_MAX_IN_CONTEXT = 1 << 25  # weights of one file that context models may code


def limits(size: int, max_weights: int | None = None) -> tuple[int, int]:
    """What a file of `size` bytes may cost: numbers, and steps; `max_weights` allows more of both.

    A file of a few bytes may hold a large tensor of equal values; any other costs what it holds.
    A step is a decision of a context model, or as much work: about a microsecond.
    """
    steps = _FREE_STEPS + _STEPS_PER_BYTE * size
    if max_weights is None:
        return min(MAX_WEIGHTS, _FREE_WEIGHTS + _WEIGHTS_PER_BYTE * size), steps
    return max_weights, steps + _STEPS_PER_ALLOWED_WEIGHT * max_weights


def max_weights_for(size: int, numbers: int, steps: int) -> int | None:
    """The least `max_weights` for a file of this cost; None if it is read without."""
    free_numbers, free_steps = limits(size)
    if numbers <= free_numbers and steps <= free_steps:
        return None
    return max(numbers, -(-(steps - free_steps) // _STEPS_PER_ALLOWED_WEIGHT))


@dataclass(frozen=True)
class Codebook:
    """A codebook of a compressed file.

    Attributes:
        values: ascending (k,).
        names: the tensors whose elements are its values.
    """

    values: Tensor
    names: tuple[str, ...]


def decode(data: bytes, *, max_weights: int | None = None) -> dict[str, Tensor]:
    """Decode the state_dict in the bytes of a compressed file.

    Args:
        data: from `encode`.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one. None allows what the size of the file makes plausible: 2^25 and 256 per
            byte, at most 2^28. The decoding effort is limited too, to some seconds and two
            milliseconds per byte; a number allows four microseconds more per element.

    Returns:
        name -> tensor.

    Raises:
        ValueError: if the bytes are not such a file, are damaged, of another version, or hold more
            than `max_weights`.
    """
    return decode_books(data, max_weights=max_weights)[0]


def decode_books(
    data: bytes, *, max_weights: int | None = None
) -> tuple[dict[str, Tensor], list[Codebook]]:
    """As `decode`, with the codebooks that the file is written in.

    Args:
        data: from `encode`.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one. None allows what the size of the file makes plausible: 2^25 and 256 per
            byte, at most 2^28. The decoding effort is limited too, to some seconds and two
            milliseconds per byte; a number allows four microseconds more per element.

    Returns:
        name -> tensor, and the codebooks. No codebook lists tensors that are stored value by value.

    Raises:
        ValueError: if the bytes are not such a file, are damaged, of another version, or hold more
            than `max_weights`.

    Example:
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
    data: bytes,
    *,
    max_weights: int | None = None,
    stream_decoder: type[StreamDecoder] = StreamDecoder,
) -> tuple[list[Part], list[Tensor]]:
    """Read the tensors of a file, in its order, and its codebooks, each (k,).

    Args:
        data: from `encode`.
        max_weights: see `decode`.
        stream_decoder: the class that reads the stream.

    Raises:
        ValueError: see `decode`.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it is not a swsmix file: it does not begin with SWSM")
    if len(data) < len(MAGIC) + 6:
        raise ValueError("it is damaged: it ends too early")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("it is damaged: its checksum does not fit")
    if data[len(MAGIC)] != VERSION:
        raise ValueError(
            f"it has version {data[len(MAGIC)]} of the format, and this swsmix reads only version "
            f"{VERSION}: install a swsmix that reads the other"
        )
    body = TableReader(data[len(MAGIC) + 1 : -4])
    table = TableReader(body.take(body.number()))
    try:
        decoder = _Decoder(table, stream_decoder(body.rest()), max_weights, len(data))
        for _ in range(table.number(len(data))):
            decoder.read_part()
        table.check_end()
        decoder.stream.check_end()
    except (MemoryError, OverflowError) as error:
        raise ValueError(f"it needs more memory than there is: {error}") from None
    books = [from_patterns(values, dtype, values.shape) for dtype, values in decoder.codebooks]
    return decoder.parts, books


class _Decoder:
    """Reads tensors one after another, each with the help of those before it."""

    def __init__(
        self, table: TableReader, stream: StreamDecoder, max_weights: int | None, size: int
    ) -> None:
        self.table, self.stream = table, stream
        self.parts: list[Part] = []
        self.codebooks: list[tuple[torch.dtype, Array]] = []
        self.densities = RowDensities()
        self._left, steps = limits(size, max_weights)
        allowed_for = f"a file of {size:,} bytes"
        self._most = f"{self._left:,} numbers, the most for {allowed_for}"
        if max_weights is not None:
            self._most = f"max_weights = {max_weights:,} numbers"
            allowed_for += f" and max_weights = {max_weights:,}"
        self.budget = ContextBudget(_MAX_IN_CONTEXT, steps, allowed_for)
        self._names: set[str] = set()

    def read_part(self) -> None:
        """Read the next tensor into `parts`."""
        start = self._bits_read()
        name = self.table.name()
        if name in self._names:
            raise ValueError(f"it is damaged: it holds {name!r} twice")
        self._names.add(name)
        kind = Kind(self.table.number(Kind.COPY))
        original = self._read_original() if kind == Kind.COPY else None
        if original is None:
            dtype, shape = self.table.tensor()
        else:
            dtype, shape = original.tensor.dtype, tuple(original.tensor.shape)
        self._left -= max(math.prod(shape), 1)
        if self._left < 0:
            raise ValueError(
                f"it holds more than {self._most}: give a larger max_weights (--max-weights of "
                "`swsmix decompress` and `inspect`) if you trust it"
            )
        named = with_codebook = self._bits_read()
        codebook, model = None, ""
        if original is not None:
            tensor, codebook = original.tensor.clone(), original.codebook
        elif kind == Kind.VALUES:
            self.budget.read_(math.prod(shape) >> 4)
            patterns = self._read_values(math.prod(shape), dtype)
            tensor = _shaped(patterns, dtype, shape)
        else:
            codebook = self._read_codebook(kind, dtype, math.prod(shape))
            with_codebook = self._bits_read()
            patterns, model = self._read_indexed(self.codebooks[codebook][1], shape)
            tensor = _shaped(patterns, dtype, shape)
        bits = named - start, with_codebook - named, self._bits_read() - with_codebook
        self.parts.append(Part(name, tensor, kind, model, codebook, bits))

    def _bits_read(self) -> float:
        return 8 * self.table.position + self.stream.cost

    def _read_values(self, size: int, dtype: torch.dtype) -> Array:
        return read_values(self.table, self.stream, size, dtype, self.budget.read_)

    def _read_original(self) -> Part:
        number = self.table.number()
        if number >= len(self.parts):
            raise ValueError("it is damaged: a tensor is a copy of one that is not there")
        return self.parts[number]

    def _read_codebook(self, kind: Kind, dtype: torch.dtype, size: int) -> int:
        """The number of an earlier codebook, or of a new one."""
        if kind == Kind.SHARED:
            number = self.table.number()
            if number >= len(self.codebooks) or self.codebooks[number][0] != dtype:
                raise ValueError("it is damaged: a tensor refers to a codebook that is not there")
            return number
        count = self.table.number(min(size, MAX_VALUES))
        values = self._read_values(count, dtype)
        if len(values) == 0:
            raise ValueError("it is damaged: a codebook is empty")
        self.codebooks.append((dtype, values))
        return len(self.codebooks) - 1

    def _read_indexed(self, values: Array, shape: tuple[int, ...]) -> tuple[Array, str]:
        """Bit patterns that are numbers in a codebook, and the model of these numbers."""
        if len(values) == 1:
            return np.broadcast_to(values, math.prod(shape)), ""
        index, model = read_index(
            self.table, self.stream, len(values), shape, self.densities, self.budget
        )
        return values[index], model


def _shaped(patterns: Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    try:
        return from_patterns(patterns, dtype, shape)
    except RuntimeError as error:
        raise ValueError(f"it is damaged: no tensor has the shape {shape}: {error}") from None

"""The bytes of a compressed file to tensors; nothing in the bytes is trusted."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swsmix.codec.header import MAGIC, MAX_VALUES, VERSION, Kind, TableReader, from_patterns
from swsmix.codec.index import ContextBudget, RowDensities, read_index
from swsmix.codec.stream import Array, StreamDecoder
from swsmix.codec.values import read_values

MAX_WEIGHTS = 1 << 28  # 268 million, a gigabyte in float32
_MAX_IN_CONTEXT = 1 << 25  # weights of one file that context models may code


@dataclass(frozen=True)
class Codebook:
    """A codebook of a compressed file.

    Attributes:
        values: ascending (k,).
        names: the tensors whose elements are its values.
    """

    values: Tensor
    names: tuple[str, ...]


def decode(data: bytes, *, max_weights: int = MAX_WEIGHTS) -> dict[str, Tensor]:
    """Decode the state_dict in the bytes of a compressed file.

    Args:
        data: from `encode`.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one.

    Returns:
        name -> tensor.

    Raises:
        ValueError: if the bytes are not such a file, are damaged, of another version, or hold more
            than `max_weights`.
    """
    return decode_books(data, max_weights=max_weights)[0]


def decode_books(
    data: bytes, *, max_weights: int = MAX_WEIGHTS
) -> tuple[dict[str, Tensor], list[Codebook]]:
    """As `decode`, with the codebooks that the file is written in.

    Args:
        data: from `encode`.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one.

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
    decoder = _Decoder(data[len(MAGIC) + 1 : -4], max_weights)
    for _ in range(decoder.table.number(len(data))):
        decoder.read_tensor()
    decoder.table.check_end()
    decoder.stream.check_end()
    return decoder.state, decoder.books()


class _Decoder:
    """Reads tensors one after another, each with the help of those before it."""

    def __init__(self, body: bytes, max_weights: int) -> None:
        parts = TableReader(body)
        self.table = TableReader(parts.take(parts.number()))
        self.stream = StreamDecoder(parts.rest())
        self.state: dict[str, Tensor] = {}
        self.codebooks: list[tuple[torch.dtype, Array]] = []
        self.densities, self.budget = RowDensities(), ContextBudget(_MAX_IN_CONTEXT)
        self._names: list[str] = []
        self._codebook_of: dict[str, int] = {}
        self._max_weights = self._left = max_weights

    def read_tensor(self) -> None:
        """Read the next tensor into `state`."""
        name = self.table.name()
        if name in self.state:
            raise ValueError(f"it is damaged: it holds {name!r} twice")
        kind = self.table.number(Kind.COPY)
        original = self._read_original() if kind == Kind.COPY else None
        if original is None:
            dtype, shape = self.table.tensor()
        else:
            dtype, shape = self.state[original].dtype, tuple(self.state[original].shape)
        self._left -= max(math.prod(shape), 1)
        if self._left < 0:
            raise ValueError(
                f"it holds more than max_weights = {self._max_weights:,} numbers: give a larger "
                "max_weights if you trust it"
            )
        if original is None:
            patterns, codebook = self._read_patterns(kind, dtype, shape)
            self.state[name] = _shaped(patterns, dtype, shape)
        else:
            self.state[name] = self.state[original].clone()
            codebook = self._codebook_of.get(original)
        if codebook is not None:
            self._codebook_of[name] = codebook
        self._names.append(name)

    def books(self) -> list[Codebook]:
        """The codebooks read, each with the tensors that use it."""
        users: list[list[str]] = [[] for _ in self.codebooks]
        for name, number in self._codebook_of.items():
            users[number].append(name)
        return [
            Codebook(from_patterns(values, dtype, values.shape), tuple(names))
            for (dtype, values), names in zip(self.codebooks, users, strict=True)
        ]

    def _read_original(self) -> str:
        number = self.table.number()
        if number >= len(self._names):
            raise ValueError("it is damaged: a tensor is a copy of one that is not there")
        return self._names[number]

    def _read_patterns(
        self, kind: int, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> tuple[Array, int | None]:
        """A tensor's bit patterns, and the number of its codebook, if it has one."""
        size = math.prod(shape)
        if kind == Kind.VALUES:
            return read_values(self.table, self.stream, size, dtype), None
        number = self._read_codebook(kind, dtype, size)
        values = self.codebooks[number][1]
        if len(values) == 0:
            raise ValueError("it is damaged: a codebook is empty")
        if len(values) == 1:
            return np.broadcast_to(values, size), number
        index = read_index(self.table, self.stream, len(values), shape, self.densities, self.budget)
        return values[index], number

    def _read_codebook(self, kind: int, dtype: torch.dtype, size: int) -> int:
        """The number of an earlier codebook, or of a new one."""
        if kind == Kind.SHARED:
            number = self.table.number()
            if number >= len(self.codebooks) or self.codebooks[number][0] != dtype:
                raise ValueError("it is damaged: a tensor refers to a codebook that is not there")
            return number
        count = self.table.number(min(size, MAX_VALUES))
        self.codebooks.append((dtype, read_values(self.table, self.stream, count, dtype)))
        return len(self.codebooks) - 1


def _shaped(patterns: Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    try:
        return from_patterns(patterns, dtype, shape)
    except RuntimeError as error:
        raise ValueError(f"it is damaged: no tensor has the shape {shape}: {error}") from None

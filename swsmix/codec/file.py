"""Tensors to bytes and back: the tensor table, the stream, the checksum."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swsmix._progress import watched
from swsmix.codec.header import DTYPES, Reader, Writer, from_patterns, to_patterns
from swsmix.codec.index import Earlier, Effort, read_index, write_index
from swsmix.codec.stream import Array, Player, Recorder
from swsmix.codec.values import read_values, write_values

MAGIC = b"SWSM"
VERSION = 2
MAX_WEIGHTS = 1 << 28  # 268 million, a gigabyte in float32
_VALUES, _INDEX, _SHARED, _COPY = range(4)
_KINDS = "values", "codebook", "shared codebook", "copy"
_MAX_VALUES = 1 << 16
_SAMPLE = 1 << 16
# What trying context models may take in one file, half a minute; then tensors are coded without.
_EFFORT = 1 << 24
_MAX_IN_CONTEXT = 1 << 25  # weights that a file may have under them


@dataclass(frozen=True)
class Codebook:
    """A codebook of a compressed file.

    Attributes:
        values: ascending (k,).
        names: the tensors whose elements are numbers in it.
    """

    values: Tensor
    names: tuple[str, ...]


def encode(state: Mapping[str, Tensor], *, progress: bool = False) -> bytes:
    """A state_dict as the bytes of a compressed file; `decode` gives back every bit.

    Args:
        state: name -> tensor. Tensors of few distinct values (snapped ones) become a codebook
            and entropy-coded component numbers, by context models for the first tensors that
            these can be tried on in some half a minute.
        progress: show a progress bar over the tensors.

    Returns:
        The bytes, the same each time.

    Raises:
        TypeError: for something that is no dense tensor of a common dtype.

    Example:
        >>> state = {"weight": torch.tensor([[0.0, 0.5], [0.0, -0.5]])}
        >>> torch.equal(decode(encode(state))["weight"], state["weight"])
        True
    """
    writer, recorder = Writer(), Recorder()
    codebooks: list[tuple[torch.dtype, Array]] = []
    earlier, effort = Earlier(), Effort(_EFFORT)
    seen: dict[tuple[torch.dtype, tuple[int, ...], int], list[int]] = {}
    all_patterns: list[Array] = []
    writer.number(len(state))
    for position, (name, t) in enumerate(watched(state.items(), "coding", shown=progress)):
        check(name, t)
        writer.name(name)
        patterns = to_patterns(t)
        key = (t.dtype, tuple(t.shape), zlib.crc32(patterns.data))
        twin = [i for i in seen.get(key, []) if np.array_equal(all_patterns[i], patterns)]
        seen.setdefault(key, []).append(position)
        all_patterns.append(patterns)
        if twin and len(patterns):
            writer.number(_COPY)
            writer.number(twin[0])
        else:
            _write_tensor(writer, recorder, t, patterns, codebooks, earlier, effort)
    front = Writer()
    front.number(len(writer.data))
    data = MAGIC + bytes([VERSION]) + front.data + writer.data + recorder.to_bytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def decode(data: bytes, *, max_weights: int = MAX_WEIGHTS) -> dict[str, Tensor]:
    """The state_dict in the bytes of a compressed file.

    Args:
        data: from `encode`.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one.

    Returns:
        name -> tensor.

    Raises:
        ValueError: if it is no such file, damaged, of another version, or too large.
    """
    return decode_books(data, max_weights=max_weights)[0]


def decode_books(
    data: bytes, *, max_weights: int = MAX_WEIGHTS
) -> tuple[dict[str, Tensor], list[Codebook]]:
    """The state_dict in the bytes of a compressed file, and the codebooks that it is written in.

    Args:
        data: from `encode`.
        max_weights: the most elements to allocate, all tensors together; a tensor without any
            counts as one.

    Returns:
        name -> tensor, and the codebooks. Tensors that are stored value by value are in none.

    Raises:
        ValueError: if it is no such file, damaged, of a newer version, or too large.

    Example:
        >>> data = encode({"weight": torch.tensor([0.0, 0.5, -0.5]).repeat(50)})
        >>> decode_books(data)[1]
        [Codebook(values=tensor([-0.5000,  0.0000,  0.5000]), names=('weight',))]
    """
    parts, books = read_parts(data, max_weights=max_weights)
    users: list[list[str]] = [[] for _ in books]
    for part in parts:
        if part.book is not None:
            users[part.book].append(part.name)
    found = [Codebook(values, tuple(own)) for values, own in zip(books, users, strict=True)]
    return {part.name: part.tensor for part in parts}, found


@dataclass(frozen=True)
class Part:
    """A tensor as a file stores it.

    Attributes:
        name: its name.
        tensor: its elements.
        kind: 'values', 'codebook', 'shared codebook' or 'copy'.
        model: what its component numbers are coded by, in words; empty if there are none.
        book: the number of its codebook; None if it has none.
        bits: what its name and shape, its codebook, and its component numbers or values take; of
            the coded stream only if a `Meter` reads it.
    """

    name: str
    tensor: Tensor
    kind: str
    model: str
    book: int | None
    bits: tuple[float, float, float]


def read_parts(
    data: bytes, *, max_weights: int = MAX_WEIGHTS, player: type[Player] = Player
) -> tuple[list[Part], list[Tensor]]:
    """Read a file, with all that it says of its tensors.

    Args:
        data: from `encode`.
        max_weights: see `decode`.
        player: what reads the stream.

    Returns:
        The tensors, in the order of the file, and the codebooks, each (k,).

    Raises:
        ValueError: see `decode`.
    """
    reader, stream = _open(data, player)
    parts: list[Part] = []
    names: set[str] = set()
    books: list[tuple[torch.dtype, Array]] = []
    earlier, effort = Earlier(), Effort(_MAX_IN_CONTEXT)
    left = max_weights
    for _ in range(reader.number(len(data))):
        start = _bits_read(reader, stream)
        name = reader.name()
        if name in names:
            raise ValueError(f"it is damaged: it holds {name!r} twice")
        names.add(name)
        kind = reader.number(_COPY)
        original = _original(reader, parts) if kind == _COPY else None
        if original:
            dtype, shape = original.tensor.dtype, tuple(original.tensor.shape)
        else:
            dtype, shape = reader.tensor()
        left -= max(math.prod(shape), 1)
        if left < 0:
            raise ValueError(
                f"it holds more than max_weights = {max_weights:,} numbers: give a larger "
                "max_weights if you trust it"
            )
        head = middle = _bits_read(reader, stream)
        model = ""
        book = original.book if original else None
        if original:
            tensor = original.tensor.clone()
        elif kind == _VALUES:
            tensor = _shaped(read_values(reader, stream, math.prod(shape), dtype), dtype, shape)
        else:
            book = _read_codebook(reader, stream, kind, dtype, shape, books)
            middle = _bits_read(reader, stream)
            values = books[book][1]
            patterns = np.broadcast_to(values[:1], math.prod(shape))
            if len(values) > 1:
                index, model = read_index(reader, stream, len(values), shape, earlier, effort)
                patterns = values[index]
            tensor = _shaped(patterns, dtype, shape)
        bits = head - start, middle - head, _bits_read(reader, stream) - middle
        parts.append(Part(name, tensor, _KINDS[kind], model, book, bits))
    reader.check_end()
    stream.check_end()
    return parts, [from_patterns(values, dtype, values.shape) for dtype, values in books]


def _open(data: bytes, player: type[Player]) -> tuple[Reader, Player]:
    """The tensor table and the stream of a file that is whole."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it is not a swsmix file: it does not begin with SWSM")
    if len(data) < len(MAGIC) + 6:
        raise ValueError("it is damaged: it ends too early")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("it is damaged: its checksum does not fit")
    if data[len(MAGIC)] != VERSION:
        raise ValueError(
            f"it has version {data[len(MAGIC)]} of the format, this swsmix reads {VERSION} alone"
        )
    body = Reader(data[len(MAGIC) + 1 : -4])
    reader = Reader(body.take(body.number()))
    return reader, player(body.rest())


def _bits_read(reader: Reader, stream: Player) -> float:
    return 8 * reader.position + stream.cost


def _write_tensor(
    writer: Writer,
    recorder: Recorder,
    t: Tensor,
    patterns: Array,
    codebooks: list[tuple[torch.dtype, Array]],
    earlier: Earlier,
    effort: Effort,
) -> None:
    """Write a tensor as a codebook and an index, or value by value."""
    values = _distinct(patterns, t.dtype)
    plain_writer, plain = Writer(), Recorder()
    plain_writer.number(_VALUES)
    plain_writer.tensor(t)
    write_values(plain_writer, plain, patterns, t.dtype)
    if values is None:
        writer.data += plain_writer.data
        recorder.extend(plain)
        return
    shared = [
        i
        for i, (dtype, book) in enumerate(codebooks)
        if dtype == t.dtype
        and np.isin(values, book).all()
        # An entry that does not occur costs about two bits, one of its own its width.
        and 2 * len(book) < (t.dtype.itemsize * 8 + 2) * len(values)
    ]
    book_writer, book = Writer(), Recorder()
    if shared:
        values = codebooks[shared[0]][1]
        book_writer.number(_SHARED)
        book_writer.tensor(t)
        book_writer.number(shared[0])
    else:
        book_writer.number(_INDEX)
        book_writer.tensor(t)
        book_writer.number(len(values))
        write_values(book_writer, book, values, t.dtype)
    ordered = _order(values, t.dtype)
    index = np.searchsorted(ordered, _order(patterns, t.dtype))
    index = index.astype(np.uint8 if len(values) <= 256 else np.uint16)
    if len(values) > 1:
        write_index(book_writer, book, index, len(values), tuple(t.shape), earlier, effort)
    if book.cost + 8 * len(book_writer.data) >= plain.cost + 8 * len(plain_writer.data):
        writer.data += plain_writer.data
        recorder.extend(plain)
        return
    if not shared:
        codebooks.append((t.dtype, values))
    writer.data += book_writer.data
    recorder.extend(book)


def _read_codebook(
    reader: Reader,
    stream: Player,
    kind: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    books: list[tuple[torch.dtype, Array]],
) -> int:
    """The number of a tensor's codebook, which joins `books` if it is a new one."""
    if kind == _SHARED:
        number = reader.number()
        if number >= len(books) or books[number][0] != dtype:
            raise ValueError("it is damaged: a tensor refers to a codebook that is not there")
        return number
    size = reader.number(min(math.prod(shape), _MAX_VALUES))
    values = read_values(reader, stream, size, dtype)
    if len(values) == 0:
        raise ValueError("it is damaged: a codebook is empty")
    books.append((dtype, values))
    return len(books) - 1


def _original(reader: Reader, parts: list[Part]) -> Part:
    number = reader.number()
    if number >= len(parts):
        raise ValueError("it is damaged: a tensor is a copy of one that is not there")
    return parts[number]


def _shaped(patterns: Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    try:
        return from_patterns(patterns, dtype, shape)
    except RuntimeError as error:
        raise ValueError(f"it is damaged: no tensor has the shape {shape}: {error}") from None


def _distinct(patterns: Array, dtype: torch.dtype) -> Array | None:
    """The distinct values in ascending order, if they are few."""
    size = len(patterns)
    if size < 2:
        return None
    limit = min(_MAX_VALUES, size // 2)
    step = max(size // _SAMPLE, 1)
    if len(np.unique(patterns[::step][:_SAMPLE])) > limit:
        return None
    parts = [np.unique(part) for part in np.array_split(patterns, size // (1 << 20) + 1)]
    distinct = np.unique(np.concatenate(parts))
    if len(distinct) > limit:
        return None
    order: Array = distinct[np.argsort(_order(distinct, dtype))]
    return order


def _order(patterns: Array, dtype: torch.dtype) -> Array:
    """Bits as unsigned integers in the order of the numbers that they stand for."""
    if not dtype.is_signed:
        return patterns
    bits = patterns.dtype.itemsize * 8
    top = patterns.dtype.type(1 << (bits - 1))
    if not dtype.is_floating_point:
        flipped: Array = patterns ^ top
        return flipped
    monotone: Array = np.where(patterns & top, ~patterns, patterns | top)
    return monotone


def check(name: str, t: Tensor) -> None:
    """Check that a compressed file can hold a tensor.

    Raises:
        TypeError: if it is no dense tensor of a common dtype.
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

"""Compressed files: tensors of few values to bytes and back, bit for bit.

Numbers are unsigned, seven bits per byte, the lowest first; a signed z is stored as 2z or -2z - 1.
CRC-32s take 4 bytes, little-endian. A small file is one section and has version 2:

    "SWSM"  version (1 byte)
    length of the tensor table, the tensor table
    the stream: everything entropy-coded, in the order of the table (see `codec.stream`)
    CRC-32 of all of that

A larger one has version 3, and is written and read section by section:

    "SWSM"  version (1 byte)
    for each section
        length of its tensor table, length of its payload, the tensor table
        CRC-32 of the five bytes above and of every section so far as far as here, payloads aside
        the payload, its CRC-32 (both absent if it is empty)
    0
    where the tensors came from: length, JSON by zlib (absent in most files; see `codec.notes`)
    CRC-32 of all of that

    tensor table: number of tensors, then for each (of names, all tables together)
        name: number of dotted parts; each 0, length, UTF-8 or the number of an earlier part
        kind: 0 values | 1 codebook and index | 2 index into an earlier codebook | 3 a copy
        dtype, dimensions, sizes      (0, 1, 2)
        the values                    (0; in the narrowest form that is exact, see `codec.values`)
        K, the K values ascending     (1)
        which codebook | which tensor (2 | 3)
        model of the index, settings  (1, 2 unless K = 1; see `codec.index`)

The payload is the tensors' stream. In version 3 the number 0 in place of the number of tensors says
that a single large tensor follows. Its payload is its values as bytes, or their stream (0); or the
codebook's stream and one stream for each block of rows (1, 2), and the table ends with

        length of the codebook's stream, rows per block, then for each block
            model of the index, settings, length of its stream    (lengths in words of 4 bytes)

So a large tensor is coded and read in parallel, and read without the others: only a tensor whose
codebook it shares, that it is a copy of, or whose rows its contexts ask for is read with it. Small
tensors share streams of up to 32 KB.

The codec is lossless for any state_dict: it finds the few values of a snapped tensor by itself.
The file is `len(encode(state))` bytes: that is the size to report.

The modules:

- `encoder`: `encode` makes the file.
- `decoder`: `decode`, `decode_books` and `Reader` read it; nothing in it is trusted.
- `sections`: the frame of the file, and its checksums.
- `notes`: the shards, ties and texts of the checkpoint that was compressed.
- `contents`: what the tensor tables say, before a stream is read.
- `accounting`: `sizes`, what each tensor takes in a file.
- `header`: the tensor table's bytes: numbers, names, dtypes, shapes.
- `distinct`: the few values of a snapped tensor, found by itself.
- `values`: lists of numbers (codebooks, biases) in the narrowest exact form.
- `index`: the models of component numbers.
- `choosing`: which model makes them smallest, contexts by their real gain.
- `blocks`: large tensors in blocks of rows, in parallel.
- `budget`: what a file may cost, and context models may spend.
- `densities`: how dense the rows of earlier tensors are, which the context models ask.
- `scans`: the ways to read a tensor as a matrix for the context models.
- `contexts`: the context models: what neighbours, rows and columns say about a weight.
- `mixing`: adaptive models of binary decisions, which the context models are made of (in
  `numba_mixing`, compiled).
- `stream`: the entropy-coded stream and its coder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from swsmix._files import check_regular
from swsmix.codec.accounting import TensorSize, sizes
from swsmix.codec.decoder import Codebook, Reader, decode, decode_books
from swsmix.codec.encoder import check, encode, encode_to
from swsmix.codec.header import MAGIC
from swsmix.codec.notes import Notes

__all__ = [
    "MAGIC",
    "Codebook",
    "Notes",
    "Reader",
    "TensorSize",
    "check",
    "decode",
    "decode_books",
    "encode",
    "encode_to",
    "load_books",
    "load_compressed",
    "reading",
    "sizes",
]


def load_compressed(
    path: str | os.PathLike[str],
    *,
    names: Collection[str] | None = None,
    max_weights: int | None = None,
) -> dict[str, Tensor]:
    """Read a network from a file that `swsmix.compression.save_compressed` wrote.

    Nothing in the file is trusted: a damaged or hostile one gives an error. The same bytes give
    the same tensors on every machine.

    Args:
        path: the file.
        names: the tensors to read, None for all; the others are passed over, see `decode`.
        max_weights: the most numbers to allocate, all tensors together; None allows what the
            size of the file makes plausible, see `decode`.

    Returns:
        The state_dict, for `model.load_state_dict`.

    Raises:
        FileNotFoundError: if there is no file.
        KeyError: if the file has no tensor of such a name; close ones are listed.
        ValueError: if it is not such a file, is damaged, or holds more than `max_weights`.
    """
    with reading(path, names=names, max_weights=max_weights) as reader:
        return {part.name: part.tensor for part in reader.parts()}


@contextmanager
def reading(
    path: str | os.PathLike[str],
    *,
    names: Collection[str] | None = None,
    max_weights: int | None = None,
) -> Iterator[Reader]:
    """A reader of a file, one tensor after another; the arguments are those of `load_compressed`.

    Yields:
        The reader.

    Raises:
        FileNotFoundError: if there is no file.
        KeyError: if the file has no tensor of such a name; close ones are listed.
        ValueError: if it is not such a file, is damaged, or holds more than `max_weights`.
    """
    with _opened(path) as file:
        yield Reader(file, names=names, max_weights=max_weights)


def load_books(
    path: str | os.PathLike[str], *, max_weights: int | None = None
) -> tuple[dict[str, Tensor], list[Codebook]]:
    """As `load_compressed`, with the codebooks of the file.

    Args:
        path: the file.
        max_weights: the most numbers to allocate, all tensors together; None allows what the
            size of the file makes plausible, see `decode`.

    Returns:
        The state_dict and the codebooks.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not such a file, is damaged, or holds more than `max_weights`.
    """
    with _opened(path) as file:
        return decode_books(file, max_weights=max_weights)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[io.BufferedIOBase]:
    check_regular(Path(path))
    with Path(path).open("rb") as file:
        try:
            yield file
        except ValueError as error:
            raise ValueError(f"cannot read {path}: {error}") from None
        except KeyError as error:
            raise KeyError(f"cannot read {path}: {error.args[0]}") from None

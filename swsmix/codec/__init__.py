"""The format of compressed files: tensors of few values to bytes and back, bit for bit.

The file, version 2. Numbers are unsigned, seven bits a byte, the lowest first; a signed z is
stored as 2z or -2z - 1.

    "SWSM"  version (1 byte)
    length of the tensor table, the tensor table
    the stream: everything entropy-coded, in the order of the table (see `codec.stream`)
    CRC-32 of all of that (4 bytes, little-endian)

    tensor table: number of tensors, then for each
        name: number of dotted parts; each 0, length, UTF-8 or the number of a part seen before
        kind: 0 values | 1 codebook and index | 2 index into an earlier codebook | 3 a copy
        dtype, dimensions, sizes      (0, 1, 2)
        the values                    (0; in the narrowest form that is exact, see `codec.values`)
        K, the K values ascending     (1)
        which codebook | which tensor (2 | 3)
        model of the index, settings  (1, 2 unless K = 1; see `codec.index`)

The codec is lossless for any state_dict: it finds the few values of a snapped tensor by itself.
Its size is the number to print: `len(encode(state))` bytes are the file.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from swsmix.codec.accounting import TensorSize, sizes
from swsmix.codec.file import (
    MAGIC,
    MAX_WEIGHTS,
    Codebook,
    check,
    decode,
    decode_books,
    encode,
)

__all__ = [
    "MAGIC",
    "Codebook",
    "TensorSize",
    "check",
    "decode",
    "decode_books",
    "encode",
    "load_books",
    "load_compressed",
    "sizes",
]


def load_compressed(
    path: str | os.PathLike[str], *, max_weights: int = MAX_WEIGHTS
) -> dict[str, Tensor]:
    """Read a network from a file of `swsmix.compression.save_compressed`.

    Nothing in the file is trusted: a damaged or hostile one gives an error. The same bytes give
    the same tensors on every machine.

    Args:
        path: the file.
        max_weights: the most numbers to allocate, all tensors together.

    Returns:
        The state_dict, for `model.load_state_dict`.

    Raises:
        ValueError: if it is not such a file, is damaged, or holds more than `max_weights`.
    """
    return load_books(path, max_weights=max_weights)[0]


def load_books(
    path: str | os.PathLike[str], *, max_weights: int = MAX_WEIGHTS
) -> tuple[dict[str, Tensor], list[Codebook]]:
    """As `load_compressed`, with the codebooks of the file.

    Args:
        path: the file.
        max_weights: the most numbers to allocate, all tensors together.

    Returns:
        The state_dict and the codebooks.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not such a file, is damaged, or holds more than `max_weights`.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there") from None
    try:
        return decode_books(data, max_weights=max_weights)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from None

"""Where the bytes of a compressed file go, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swsmix.codec.decoder import Part, read_parts
from swsmix.codec.header import Kind, to_patterns
from swsmix.codec.stream import StreamMeter, entropy_bits

_NAMES = {
    Kind.VALUES: "values",
    Kind.INDEX: "codebook",
    Kind.SHARED: "shared codebook",
    Kind.COPY: "copy",
}


@dataclass(frozen=True)
class TensorSize:
    """The size of one tensor in a compressed file.

    Attributes:
        kind: 'values', 'codebook', 'shared codebook' (an earlier tensor's), or 'copy' (of an
            earlier tensor).
        model: the model of its component numbers, such as 'contexts by rows'; empty if it has
            none.
        numel: its number of elements.
        num_values: its number of distinct values K; 0 if it has no component numbers of its own.
        name_bits: the size of its name, type and shape, in bits.
        codebook_bits: the size of its codebook, in bits.
        index_bits: the size of its component numbers, with the model's settings, in bits.
        value_bits: the size of its elements, if they are stored value by value, in bits.
        entropy_bits: the zero-order entropy of its component numbers, in bits, without the table
            of counts that a decoder would need.
    """

    kind: str
    model: str
    numel: int
    num_values: int
    name_bits: float
    codebook_bits: float
    index_bits: float
    value_bits: float
    entropy_bits: float

    @property
    def bits(self) -> float:
        """Its whole size, in bits."""
        return self.name_bits + self.codebook_bits + self.index_bits + self.value_bits


def sizes(data: bytes, *, max_weights: int | None = None) -> dict[str, TensorSize]:
    """The size of each tensor in a compressed file.

    The file is decoded, and each decision of probability p counts as -log2 p bits. The rest of the
    file is its header, its checksum and the loss of the range coder: 12 to 24 bytes, or about
    0.02 % of a large file.

    Args:
        data: the file, from `encode`.
        max_weights: see `decode`.

    Returns:
        name -> its size, in the order of the file.

    Raises:
        ValueError: if the bytes are not such a file, are damaged, of another version, or hold more
            than `max_weights`.

    Example:
        >>> import torch
        >>> from swsmix.codec import encode
        >>> data = encode({"weight": torch.tensor([0.0, 0.5, -0.5]).repeat(500)})
        >>> size = sizes(data)["weight"]
        >>> size.kind, size.num_values, size.model
        ('codebook', 3, 'contexts by memory')
        >>> len(data) - size.bits / 8 < 24
        True
    """
    parts, _ = read_parts(data, max_weights=max_weights, stream_decoder=StreamMeter)
    return {part.name: _size(part) for part in parts}


def _size(part: Part) -> TensorSize:
    name, codebook, content = part.bits
    stored, count = part.kind == Kind.VALUES, np.zeros(0, np.int64)
    if part.kind in (Kind.INDEX, Kind.SHARED):
        count = np.unique(to_patterns(part.tensor), return_counts=True)[1]
    index, values = (0.0, content) if stored else (content, 0.0)
    return TensorSize(
        _NAMES[part.kind], part.model, part.tensor.numel(), len(count),
        name, codebook, index, values, entropy_bits(count),
    )  # fmt: skip

"""Where the bytes of a compressed file are, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swsmix.codec.file import MAX_WEIGHTS, Part, read_parts
from swsmix.codec.header import to_patterns
from swsmix.codec.stream import Meter, entropy_bits


@dataclass(frozen=True)
class TensorSize:
    """What one tensor takes in a compressed file.

    Attributes:
        kind: 'values', 'codebook', 'shared codebook' (that of a tensor before it), or 'copy' (of
            a tensor before it).
        model: what its component numbers are coded by, such as 'contexts by rows'; empty if it
            has none.
        numel: its elements.
        num_values: distinct values K; 0 if it has no component numbers of its own.
        name_bits: its name, type and shape.
        codebook_bits: its codebook.
        index_bits: its component numbers, the model's settings included.
        value_bits: its elements, where they are stored value by value.
        entropy_bits: the zero-order entropy of the component numbers; the table of counts that a
            decoder would need is not in it.
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
        """All that it takes."""
        return self.name_bits + self.codebook_bits + self.index_bits + self.value_bits


def sizes(data: bytes, *, max_weights: int = MAX_WEIGHTS) -> dict[str, TensorSize]:
    """What each tensor takes in a compressed file.

    The file is decoded, and each decision counts by its probability p, as -log2 p. The rest of the
    file is its header, its checksum and what the range coder loses: 12 to 24 bytes, in large files
    about 0.02 %.

    Args:
        data: the file, from `encode`.
        max_weights: see `decode`.

    Returns:
        name -> its size, in the order of the file.

    Raises:
        ValueError: if it is no such file, damaged, of another version, or too large.

    Example:
        >>> import torch
        >>> from swsmix.codec import encode
        >>> data = encode({"weight": torch.tensor([0.0, 0.5, -0.5]).repeat(500)})
        >>> size = sizes(data)["weight"]
        >>> size.kind, size.num_values, size.model
        ('codebook', 3, 'contexts by memory, in order')
        >>> len(data) - size.bits / 8 < 24
        True
    """
    parts, _ = read_parts(data, max_weights=max_weights, player=Meter)
    return {part.name: _size(part) for part in parts}


def _size(part: Part) -> TensorSize:
    name, codebook, content = part.bits
    stored, count = part.kind == "values", np.zeros(0, np.int64)
    if part.kind.endswith("codebook"):
        count = np.unique(to_patterns(part.tensor), return_counts=True)[1]
    index, values = (0.0, content) if stored else (content, 0.0)
    return TensorSize(
        part.kind, part.model, part.tensor.numel(), len(count), name, codebook, index, values,
        entropy_bits(count),
    )  # fmt: skip

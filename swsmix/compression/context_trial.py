"""What the file's coder makes of another assignment: a trial, of a large tensor on its middle rows.

Counts promise what a coder that knows the classes would save. Ours has to find and to learn them,
which may cost what they are worth: where rows are short, or alike but for a few. So it is asked,
scan by scan.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from swsmix.codec import scans
from swsmix.codec.index import CONTEXTS, IndexModel, Numbers, code_contexts, code_zero_order
from swsmix.codec.scans import ScanChoice
from swsmix.codec.stream import StreamEncoder, smallest_type
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.in_context import Classes, ContextBook, quantized
from swsmix.compression.matrices import Matrix
from swsmix.compression.snap import Quantized

MOST_WEIGHTS = 1 << 19  # of a trial, which takes three microseconds for each
_DOUBT = 0.01  # of the bits, that is to be saved on a part: others may save less


@torch.no_grad()
def is_smaller(m: Matrix, t: Tensor, book: Codebook, other: ContextBook) -> bool:
    """Whether squared error over lambda, plus the coder's bits, are less in context.

    Args:
        m: the tensor's survey.
        t: the tensor.
        book: its values with lengths of the whole tensor.
        other: with lengths of its classes, of the same lambda.
    """
    rows = max(MOST_WEIGHTS // t[0].numel(), 1)
    start = max(len(t) - rows, 0) // 2
    some = slice(start, start + rows)
    part = other._replace(classes=Classes(other.classes.rows[some], other.classes.columns))
    before = m.quantized(t[some], book)
    gain = _price(m, t[some], before, book.lam)
    gain -= _price(m, t[some], quantized(m, t[some], part), book.lam)
    return gain > (_DOUBT * coded_bits(before) if rows < len(t) else 0.0)


def _price(m: Matrix, t: Tensor, q: Quantized, lam: float) -> float:
    change = (q.values.double() - t.double()) / m.unit
    return float(change.square().sum()) / lam + coded_bits(q)


def coded_bits(q: Quantized) -> float:
    """The fewest bits of a tensor's index, in any scan, if nothing is known of earlier tensors."""
    k, shape = len(q.codebook), tuple(q.index.shape)
    if k < 2:
        return 0.0
    count = torch.bincount(q.index.reshape(-1).int(), minlength=k)
    index = q.index.reshape(-1).cpu().numpy().astype(smallest_type(k))
    numbers = Numbers(k, shape, np.zeros(math.prod(shape[1:]), np.int64))
    least = code_zero_order(index, numbers)[1].cost
    for kind in scans.scans_of(shape):
        stream = StreamEncoder()
        model = IndexModel(CONTEXTS, int(count.argmax()), ScanChoice(kind, 1))
        code_contexts(stream, model, numbers, index)
        least = min(least, stream.cost)
    return least

"""Numbers by their first 16 bits: there are 65,536 of these, so that tables answer for any tensor.

A table is an order of magnitude faster than a search among the boundaries.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MANY = 1 << 16
_CHUNK = 1 << 20


def all_values(dtype: torch.dtype) -> Float[Tensor, " m"]:
    """Every number of a type of 16 bits, in the order of their bits as an unsigned integer.

    Example:
        >>> all_values(torch.bfloat16)[[0, 0x3F80, 0xBF80]].tolist()
        [0.0, 1.0, -1.0]
    """
    bits = torch.arange(_MANY, dtype=torch.int32, device="cpu")
    return bits.to(torch.int16).view(dtype)


def counts(t: Float[Tensor, "*n"]) -> Int[Tensor, " m"]:
    """How often each of them occurs."""
    count = torch.zeros(_MANY, dtype=torch.int64, device="cpu")
    for part in t.detach().reshape(-1).split(_CHUNK):
        count += torch.bincount(_bits(part), minlength=_MANY).cpu()
    return count


class Intervals:
    """The interval between ascending boundaries in which a number lies, as `torch.bucketize`.

    Numbers of 16 bits are looked up; so are those of 32 bits whose first 16 bits tell.

    Args:
        ends: the boundaries, in float64 for such numbers, else in float32.
        dtype: of the numbers.
        many: there are so many numbers that a table pays.
    """

    def __init__(self, ends: Float[Tensor, " e"], dtype: torch.dtype, *, many: bool) -> None:
        self._ends = ends
        self._table: Tensor | None = None
        if dtype.itemsize > 4 or not many:
            return
        # Of 32 bits, the numbers with the same first 16 lie between two of 16 bits.
        wide = dtype.itemsize == 4
        first = all_values(torch.bfloat16 if wide else dtype).to(ends.dtype)
        self._table = torch.bucketize(first, ends.cpu(), out_int32=True).to(ends.device)
        if wide:
            last = _with_last_bits(first)
            other = torch.bucketize(last, ends.cpu(), out_int32=True).to(ends.device)
            self._table[other != self._table] = -1

    def of(self, w: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The number of each weight's interval, in int32."""
        if self._table is None:
            return torch.bucketize(w.to(self._ends.dtype), self._ends, out_int32=True)
        found = self._table.index_select(0, _bits(w))
        if w.element_size() > 2:
            untold = (found < 0).nonzero().view(-1)
            found[untold] = torch.bucketize(w[untold], self._ends, out_int32=True)
        return found


def _with_last_bits(first: Tensor) -> Tensor:
    """Numbers of 32 bits with the last 16 bits set."""
    return (first.view(torch.int32) | (_MANY - 1)).view(torch.float32)


def _bits(t: Tensor) -> Tensor:
    """The first 16 bits, as an unsigned integer."""
    if t.element_size() == 2:
        return t.contiguous().view(torch.int16).int() & (_MANY - 1)
    return (t.contiguous().view(torch.int32) >> 16) & (_MANY - 1)

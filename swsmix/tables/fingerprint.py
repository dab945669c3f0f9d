"""Whether weights are those of before: a number that any change of them changes.

Version counters are not enough: `.data`, inference mode and loaders go past them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.exact import run_isolated
from swsmix.tables.scratch import chunk_on

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd numbers without pattern (the golden ratio; Steele, Lea & Flood 2014), as signed integers.
_ONE, _TWO = 0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64)


@run_isolated
def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A sum over the weights of their scrambled bits, modulo 2^64, in O(N).

    Sums over the weights, such as R and the moments, are the same if it is: which weight is which
    does not matter to it. Other weights have the same one with a chance of 2^-64.

    Example:
        >>> w = torch.tensor([1.0, 2.0, 3.0])
        >>> fingerprint([w]) == fingerprint([w.flip(0)])
        True
        >>> fingerprint([w]) == fingerprint([w - torch.tensor([0.5, -0.5, 0.0])])
        False
    """
    total = 0
    for w in tensors:
        bits = w.detach().reshape(-1).view(_BITS[w.dtype.itemsize])
        if numba := backends.numba_exact_for(w):
            total += numba.scrambled(bits, _ONE, _TWO)
            continue
        for part in bits.split(chunk_on(w.device)):
            x = part.long() * _ONE
            x ^= x >> 29
            total += int((x * _TWO).sum())
    return total % (1 << 64)

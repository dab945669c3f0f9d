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
# The mixer of Steele, Lea & Flood (2014), "SplitMix", in signed integers.
FACTORS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


@run_isolated
def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A sum over the weights of their scrambled bits, modulo 2^64, in O(N).

    Sums over the weights, such as R and the moments, are the same if it is: which weight is which
    does not matter to it. Other weights have the same one with a chance of about 2^-64.

    Example:
        >>> w = torch.tensor([1.0, 2.0, 3.0])
        >>> fingerprint([w]) == fingerprint([w.flip(0)])
        True
        >>> fingerprint([w]) == fingerprint([w - torch.tensor([0.5, -0.5, 0.0])])
        False
    """
    total, sums = 0, []
    for w in tensors:
        bits = w.detach().reshape(-1).view(_BITS[w.dtype.itemsize])
        if numba := backends.numba_exact_for(w):
            total += numba.scrambled(bits)
            continue
        for part in bits.split(chunk_on(w.device)):
            x = part.long() + 1  # so that zeros count
            for shift, factor in FACTORS:
                x ^= x >> shift
                x *= factor
            sums.append((x ^ (x >> 31)).sum())
    total += sum(int(each) for each in sums)  # at the end: a GPU need not be waited for before
    return total % (1 << 64)

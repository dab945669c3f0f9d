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

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int32}
WORD = (1 << 32) - 1
_FEW = 1 << 16  # words at a time, whose results stay in the cache
MASK, LOW, HIGH = 0x5BD1E995, 0x9E3779B1, 0xBF58476D  # any numbers without a pattern; LOW is odd
_FACTOR = LOW + (HIGH << 32) - (1 << 64)  # as a signed integer


@run_isolated
def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A sum over the weights' words x of 32 bits, modulo 2^64, in O(N).

        y = (x xor MASK) (LOW + 2^32 HIGH),   sum of (y xor high(y)) + low(y) high(y)

    Three products of 32 bits each, which a processor makes several at a time.

    Sums over the weights, such as R and the moments, are the same if it is: which weight is which
    does not matter to it. Other weights have the same one with a chance of about 2^-64.

    Example:
        >>> w = torch.tensor([1.0, 2.0, 3.0])
        >>> fingerprint([w]) == fingerprint([w.flip(0)])
        True
        >>> fingerprint([w]) == fingerprint([w - torch.tensor([0.5, -0.5, 0.0])])
        False
    """
    total, sums = 0, list[Tensor]()
    for w in tensors:
        words = w.detach().reshape(-1).view(_WORDS[w.dtype.itemsize])
        if numba := backends.numba_exact_for(w):
            total += numba.scrambled(words)
            continue
        for part in words.split(_FEW if w.device.type == "cpu" else chunk_on(w.device)):
            x = part.long().bitwise_and_(WORD).bitwise_xor_(MASK)  # so that zeros count
            y = x.mul_(_FACTOR)
            high = (y >> 32).bitwise_and_(WORD)
            sums += (y & WORD).mul_(high).sum(), y.bitwise_xor_(high).sum()
    if sums:  # at the end: a GPU need not be waited for before
        total += sum(torch.stack(sums).tolist())
    return total % (1 << 64)

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
_FEW = 1 << 16  # words at a time, whose results stay in the cache
# Any numbers without a pattern, and odd; ADDED is for zeros, and for words that end with zeros.
FACTOR, ADDED, SECOND = 0x5BD1E995, -0x61C88651, 0x3F58476D
HIGH, FIFTEEN = 16, 15  # shifts, which keep the sign
# As tensors: to make one of a number takes torch as long as an operation on some 10,000 words.
_NUMBERS = torch.tensor(
    [FACTOR, ADDED, SECOND, HIGH, FIFTEEN], dtype=torch.int32, device="cpu"
).unbind()


@run_isolated
def fingerprint(tensors: Iterable[Tensor]) -> int:
    """Two sums over the weights' words x of 32 bits, each modulo 2^32, in O(N).

        y = FACTOR x + ADDED,   z = SECOND (y xor (y >> 16)),   v = z xor (z >> 15)
        sum of v,   sum of v y

    All in 32 bits: a processor makes twice as many at a time as in 64, and products faster still.

    Sums over the weights, such as R and the moments, are the same if it is: which weight is which
    does not matter to it. Other weights have the same one with a chance of about 2^-60.

    Example:
        >>> w = torch.tensor([1.0, 2.0, 3.0])
        >>> fingerprint([w]) == fingerprint([w.flip(0)])
        True
        >>> fingerprint([w]) == fingerprint([w - torch.tensor([0.5, -0.5, 0.0])])
        False
    """
    sums = list[tuple[int, int]]()
    parts = list[Tensor]()
    for w in tensors:
        words = w.detach().reshape(-1).view(_WORDS[w.dtype.itemsize])
        if numba := backends.numba_exact_for(w):
            sums.append(numba.scrambled(words))
        elif len(words):
            parts.append(_scrambled(words))
    if parts:  # at the end: a GPU need not be waited for before
        sums += torch.stack(parts).tolist()
    first, second = (int(sum(each)) % (1 << 32) for each in zip((0, 0), *sums, strict=True))
    return first + (second << 32)


def _scrambled(words: Tensor) -> Tensor:
    """The two sums (2,), in int32."""
    factor, added, second, high, fifteen = _NUMBERS
    size = min(len(words), _FEW if words.device.type == "cpu" else chunk_on(words.device))
    # Kept for all parts: to be given new memory for each would take longer than the work.
    memory = torch.empty(3, size, dtype=torch.int32, device=words.device)
    sums = list[Tensor]()
    for part in words.split(size):
        y, z, shifted = memory[:, : len(part)]
        torch.mul(part.int(), factor, out=y).add_(added)
        torch.bitwise_right_shift(y, high, out=shifted)
        torch.bitwise_xor(y, shifted, out=z).mul_(second)
        z.bitwise_xor_(torch.bitwise_right_shift(z, fifteen, out=shifted))
        sums += z.sum(dtype=torch.int32), y.mul_(z).sum(dtype=torch.int32)
    return torch.stack(sums).view(-1, 2).sum(0, dtype=torch.int32)

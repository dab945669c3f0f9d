"""The passes over weights in 16 bits on a CPU, as loops compiled by numba (if it is installed).

Such a weight has 65,536 values at most: all slopes are looked up in one table, by its bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix.tables.arrays import array
from swsmix.tables.numba_compiled import compiled
from swsmix.tables.threads import over_ranges

_LEAST = 1 << 20  # weights in 16 bits for each thread: they take a third of the time


def write_gradient_(
    slopes: Tensor, target: Tensor, w: Tensor, scale: float | None, count: Tensor | None = None
) -> None:
    """Write f'(w) into the target or, with a scale, add scale * f'(w); flat tensors.

    Args:
        slopes: f' of all values, in the order of their bits, in float32.
        target: in the weights' type or in float32; with a scale, in bfloat16 or float32.
        w: the weights.
        scale: the factor, or None to write.
        count: how many weights have which bits (65536,), to be added to, or None.
    """
    raw, factor = _bits(w), None if scale is None else np.float32(scale)
    out = array(target) if target.dtype == torch.float32 else _bits(target)
    if scale is None and target.dtype != torch.float32:
        slopes = slopes.to(target.dtype).view(torch.int16)
    table = slopes.numpy().view(out.dtype) if scale is None else slopes.numpy()

    def work(start: int, stop: int) -> Any:
        parts = raw[start:stop], out[start:stop], table, factor
        if scale is not None and out.dtype == np.uint16:
            return _add(*parts)
        mine = None if count is None else np.zeros((2, 1 << 16), dtype=np.int64)
        _pass(*parts, mine)
        return mine

    found = over_ranges(len(w), work, _LEAST)
    if count is not None:
        for mine in found:
            count += torch.from_numpy(mine).sum(0)


def count_(count: Tensor, w: Tensor) -> None:
    """Add to how many weights in 16 bits have which bits (65536,)."""
    raw = _bits(w)

    def work(start: int, stop: int) -> Any:
        mine = np.zeros((2, 1 << 16), dtype=np.int64)
        _pass(raw[start:stop], None, None, None, mine)
        return mine

    for mine in over_ranges(len(w), work, _LEAST):
        count += torch.from_numpy(mine).sum(0)


def _bits(w: Tensor) -> Any:
    return array(w.view(torch.int16)).view(np.uint16)


@compiled
def _pass(raw, target, table, scale, count):
    """Write or add what the table has for the bits, and count them, by turns in two rows."""
    for i in range(raw.shape[0]):
        bits = raw[i]
        if count is not None:
            count[i & 1, bits] += 1
        if target is not None:
            if scale is None:
                target[i] = table[bits]
            else:
                target[i] += scale * table[bits]


@compiled
def _add(raw, target, table, scale):
    """Add what the table has for the bits to numbers in bfloat16: the upper halves of float32s."""
    for i in range(raw.shape[0]):
        before = np.uint32(np.uint32(target[i]) << np.uint32(16)).view(np.float32)
        after = np.float32(before + scale * table[raw[i]])
        bits = after.view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
        target[i] = np.uint16(rounded) if after == after else np.uint16(0x7FC0)

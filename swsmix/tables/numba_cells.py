"""The cells' places and cubics on a CPU, as loops compiled by numba (if it is installed).

The same numbers as in `cutting` and `cells`, a cell at a time: thousands of cells are made at each
EM step, and torch would write and read each intermediate result of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix.tables.numba_compiled import compiled, fused
from swsmix.tables.taylor import Intervals

_BLOCK = 64  # cells at a time


def laid_out(
    intervals: Intervals, spans: Any, begins: Tensor, uncertified: Tensor
) -> tuple[Tensor, ...]:
    """See `cutting._laid_out`: the entries; owner, inner, ulp, width and certified of each cell."""
    entries = np.empty(1 << (32 - spans.low), np.int32)
    owner, width = np.empty((2, spans.cells), np.int64)
    inner, ulp = np.empty((2, spans.cells))
    certified = np.empty(spans.cells, np.bool_)
    places = spans.start, spans.width, spans.negative, spans.shift, spans.first, spans.alone
    of_intervals = begins, uncertified, intervals.centre, intervals.radius
    arrays = (each.numpy() for each in (*places, *of_intervals))
    _lay_out(np.int64(spans.low), *arrays, entries, owner, inner, ulp, width, certified)
    return tuple(map(torch.from_numpy, (entries, owner, inner, ulp, width, certified)))


def pieces(taylors: Sequence[Tensor], chebyshev: Tensor, *at: Tensor) -> Tensor:
    """See `cells._pieces`: the cubics of the intervals' polynomials, in float32, by turns.

    Args:
        taylors: the polynomials, each (order + 1, t).
        chebyshev: row n has the lower coefficients of T_n / 2^(n - 1).
        at: owner, inner, ulp, width and certified of each cell.
    """
    out = np.empty((len(at[0]), 4, len(taylors)), np.float32)
    arrays = [each.contiguous().numpy() for each in (chebyshev, *at)]
    for n, taylor in enumerate(taylors):
        _pieces(taylor.contiguous().numpy(), *arrays, out[:, :, n])
    return torch.from_numpy(out).flatten(1)


@compiled
def _magnitude(bits):
    return np.float64(np.uint32(bits).view(np.float32))


@compiled
def _lay_out(
    low, starts, widths, negatives, shifts, firsts, alone,
    begins, uncertified, centre, radius, entries, owner, inner, ulp, width, certified,
):  # fmt: skip
    interval, block = -1, 0
    for span in range(len(starts)):
        shift, first, start = shifts[span], firsts[span], starts[span]
        sign, below = (-1.0, np.int64(1) << 31) if negatives[span] else (1.0, np.int64(0))
        for place in range(start, start + widths[span], np.int64(1) << low):
            base = first - (((place if alone[span] else start) - below) >> shift)
            entries[block] = np.int32(np.uint32((base << 5) | shift))
            block += 1
        size = np.int64(1) << shift
        for index in range(1 if alone[span] else widths[span] >> shift):
            cell = first + index
            if interval + 1 < len(begins) and begins[interval + 1] == cell:
                interval += 1
            near = far = 0.0  # the tiny ones count as zero
            if not alone[span]:
                near = sign * _magnitude(start + index * size)
                far = sign * _magnitude(start + index * size + size - 1)
            unit = 1.0 / radius[interval]
            s = (near - centre[interval]) * unit
            owner[cell], width[cell], inner[cell] = interval, size, s
            ulp[cell] = (far * unit - centre[interval] * unit - s) / max(size - 1, 1)
            certified[cell] = not (uncertified[interval] or (alone[span] and start > 0))


# Each of these loops is over the cells of a block: the processor takes several at a time.


@fused
def _add_product(rows, n, other, by, factor):
    low, high = rows[n], rows[other]
    for i in range(len(by)):
        low[i] += factor * (high[i] * by[i])


@fused
def _shift(rows, top, by):
    """Polynomials in s (top + 1, block), lowest coefficients first, become those in s - by."""
    for done in range(top):
        for n in range(top - 1, done - 1, -1):
            _add_product(rows, n, n + 1, by, 1.0)


@fused
def _pieces(taylor, chebyshev, owner, inner, ulp, width, certified, out):
    order = taylor.shape[0] - 1
    rows = np.zeros((order + 1, _BLOCK))
    half, by, power = np.zeros(_BLOCK), np.zeros(_BLOCK), np.zeros(_BLOCK)
    for start in range(0, len(owner), _BLOCK):
        size = min(_BLOCK, len(owner) - start)
        for i in range(size):
            half[i] = 0.5 * ulp[start + i] * (width[start + i] - 1)
            by[i] = inner[start + i] + half[i]
        for n in range(order + 1):
            for i in range(size):
                rows[n, i] = taylor[n, owner[start + i]]
        _shift(rows, order, by)
        for n in range(order, 3, -1):  # economised
            power[:] = 1.0
            for m in range(n - 2, -1, -2):
                for i in range(_BLOCK):
                    power[i] *= half[i] * half[i]
                _add_product(rows, m, n, power, -chebyshev[n, m])
        for i in range(_BLOCK):
            by[i] = -half[i]
        _shift(rows, 3, by)
        for i in range(size):
            scale, cell = 1.0, start + i
            for n in range(4):
                out[cell, n] = rows[n, i] * scale
                scale *= ulp[cell]
            if not certified[cell]:
                out[cell, 0] = np.nan

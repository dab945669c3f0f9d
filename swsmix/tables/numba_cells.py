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

from swsmix.tables.cells import FINE
from swsmix.tables.numba_compiled import compiled, fused, inlined
from swsmix.tables.taylor import ORDER, Intervals

_BLOCK = 64  # cells at a time
assert ORDER == 6, "`_refine` writes the powers out"


def refinement(intervals: Intervals, tolerance: float) -> tuple[Any, ...]:
    """See `cells.refinement_for`: the fields of a `Refinement`."""
    rows = np.empty((4, len(intervals.start)))
    bounds = intervals.rest, intervals.radius, intervals.floor, intervals.second, intervals.size
    parts = np.empty((FINE + 1, rows.shape[1]), np.int64)
    named = (each.contiguous().numpy() for each in (intervals.taylor, *bounds))
    fine = _refine(*named, tolerance, rows, parts)
    rows[3] = parts[fine]
    return *torch.from_numpy(rows), fine


def spans(intervals: Intervals, shift: Tensor, most: int, low: int) -> tuple[Tensor, ...]:
    """See `cutting._spans`: all fields but the first of its `Spans`."""
    t = len(intervals.start)
    start, width, shifts, first = np.empty((4, t + 2), np.int64)
    negative, alone = np.empty((2, t + 2), np.bool_)
    of_interval = np.empty(t, np.int64)
    named = (each.contiguous().numpy() for each in (*intervals[:3], shift))
    used = _span(*named, most, low, start, width, negative, shifts, first, alone, of_interval)
    of_spans = (each[:used] for each in (start, width, negative, shifts, first, alone))
    return tuple(map(torch.from_numpy, (*of_spans, of_interval)))


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


@inlined
def _log_2_up(x):
    """The logarithm of x > 0 to base 2, rounded up; of 0 and subnormal numbers -1022."""
    bits = np.float64(x).view(np.int64)
    return (bits >> 52) - 1023 + ((bits & ((np.int64(1) << 52) - 1)) != 0)


@compiled
def _refine(taylor, rest, radius, floor, second, size, tolerance, rows, parts):
    """Cubic, rounding and third in three rows, the parts for each `fine`; returns the best one."""
    cost = np.zeros(FINE + 1)
    for i in range(rows.shape[1]):
        t3, t4, t5, t6 = abs(taylor[3, i]), abs(taylor[4, i]), abs(taylor[5, i]), abs(taylor[6, i])
        third = 6.0 * t3 + 36.0 * t4 + 135.0 * t5 + 405.0 * t6 + rest[i] / 24.0
        fourth = 24.0 * t4 + 180.0 * t5 + 810.0 * t6 + rest[i] / 6.0
        fifth = 120.0 * t5 + 1080.0 * t6 + rest[i] / 2.0
        unit = radius[i] * floor[i]
        cubic = fifth / (170.0 * unit)
        rounding = (2.0 * second[i] + 2.0 * third + 1.5 * fourth) / unit * 2.0**-21
        rows[0, i], rows[1, i], rows[2, i] = cubic, rounding, third
        by_value = third / size[i] * (8.0 / tolerance)
        least = max(
            -(-_log_2_up(cubic * (4.0 / tolerance)) // 4), _log_2_up(rounding * (8.0 / tolerance))
        )
        known = cubic + rounding + by_value < np.inf  # a NaN is not
        for fine in range(FINE + 1):
            needed = max(least, -(-_log_2_up(by_value) // 3) - fine, 0) if known else 0
            parts[fine, i] = needed
            # To make a cell costs about as much as to sum over eight parts.
            cost[fine] += 2.0**needed * (2.0**fine + 8.0)
    return cost.argmin()


@compiled
def _span(
    begins, widths, signs, shifts_of, most, low,
    start, width, negative, shift, first, alone, of_interval,
):  # fmt: skip
    last, cells, block = -1, 0, np.int64(1) << low
    for i in range(len(begins)):
        tiny = begins[i] == 0
        wide = tiny or widths[i] >= block
        begin = begins[i] if wide else begins[i] & -block
        if tiny or begin != start[last]:
            last += 1
            start[last], width[last] = begin, widths[i] if wide else block
            negative[last], alone[last], shift[last] = signs[i] < 0, tiny, most
        if not tiny:
            shift[last] = min(shift[last], shifts_of[i])
        of_interval[i] = last
        if i + 1 == len(begins) or begins[i + 1] == 0:  # the rest of those of one sign
            last += 1
            start[last] = start[last - 1] + width[last - 1]
            width[last] = (np.int64(1) << 31) - start[last]
            negative[last], alone[last], shift[last] = signs[i] < 0, True, most
    for span in range(last + 1):
        first[span] = cells
        cells += 1 if alone[span] else width[span] >> shift[span]
    return last + 1


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

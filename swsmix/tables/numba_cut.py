"""The cells of certified intervals on a CPU, compiled by numba (if it is installed).

The same as `bits._layout` and `Cells._lines`, run by run and without a temporary tensor per step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from swsmix.tables.bits import MAX_CELLS, Layout
from swsmix.tables.cells import CellRuns
from swsmix.tables.numba_loops import compiled, inlined
from swsmix.tables.taylor import ORDER, Intervals

_THIRD = np.array([n * (n - 1) * (n - 2) * 1.5 ** (n - 3) for n in range(3, ORDER + 1)])
_REST = 1.0 / math.factorial(ORDER - 2)
_NONE = 17  # no interval starts in the block


def lines(taylor: Tensor, runs: CellRuns, total: int) -> Tensor:
    """See `Cells._lines`."""
    out = np.empty((total, 2), np.float32)
    where = torch.stack([runs.middle, runs.stride, runs.back, runs.drift, runs.ulp])
    named = runs.cells.numpy(), runs.owner.numpy(), runs.certified.numpy()
    _lines(taylor.T.contiguous().numpy(), *named, where.numpy(), out)
    return torch.from_numpy(out)


def layout(intervals: Intervals, tolerance: float) -> Layout | None:
    """See `bits._layout`."""
    names = torch.stack([intervals.start, intervals.width, intervals.sign]).numpy()
    bounds = (intervals.radius, intervals.floor, intervals.second)
    taylor, rest = intervals.taylor[3:].numpy(), intervals.rest.numpy()
    absolute, shift, block, cells, where, certified = _layout(
        names, torch.stack(bounds).numpy(), taylor, rest, tolerance
    )
    if not len(block):
        return None
    places = torch.from_numpy(where)
    runs = CellRuns(*torch.from_numpy(cells), *places, torch.from_numpy(certified))
    return Layout(torch.from_numpy(block), absolute, torch.from_numpy(shift), runs)


@compiled
def _lines(taylor, cells, owner, certified, where, out):
    cell = 0
    for run in range(cells.shape[0]):
        if not certified[run]:
            for _ in range(cells[run]):
                out[cell, 0], out[cell, 1] = np.nan, 0.0
                cell += 1
            continue
        middle, stride = where[0, run], where[1, run]
        back, drift, ulp = where[2, run], where[3, run], where[4, run]
        row = taylor[owner[run]]
        for i in range(cells[run]):
            s = middle + i * stride
            level, slope = row[ORDER - 1], 0.0
            for n in range(ORDER - 2, -1, -1):
                slope = slope * s + level
                level = level * s + row[n]
            out[cell, 0] = level + slope * (back + i * drift)
            out[cell, 1] = slope * ulp
            cell += 1


@inlined
def _log2_above(x):
    """The least p >= 0 with 2^p >= x; 0 for what is not finite."""
    if not 1.0 < x < np.inf:
        return 0
    part, power = math.frexp(x)
    return power if part > 0.5 else power - 1


@compiled
def _layout(names, bounds, taylor, rest, tolerance):
    start, width, sign = names[0], names[1], names[2]
    num = start.shape[0]
    shift, coarse = np.empty(num, np.int64), 0.0
    low, top = np.int64(1) << 40, np.int64(0)
    for i in range(num):
        slack = bounds[0, i] * bounds[1, i]
        rounding = bounds[2, i] / slack * 2.0**-22
        third = rest[i] * _REST
        for n in range(ORDER - 2):
            third += _THIRD[n] * abs(taylor[n, i])
        share = max(math.sqrt(third / (2 * slack) * (1.5 / tolerance)), rounding * (8 / tolerance))
        if start[i] > 0:
            low = min(low, start[i] >> 16)
            block_rounding = rounding * 65536.0 / width[i]
            if block_rounding > coarse:  # a NaN is not
                coarse = block_rounding
        top = max(top, (start[i] + width[i]) >> 16)
        floats = 0
        while (width[i] >> (floats + 1)) > 0:
            floats += 1
        shift[i] = floats - _log2_above(share)
        if rest[i] == np.inf or shift[i] < 2:
            rest[i] = np.inf
            shift[i] = 6
        shift[i] = min(shift[i], 16)
    absolute = coarse <= tolerance / 8
    # The blocks, each with the smallest shift of its intervals.
    number = top - low + 2
    shifts, first = np.full(2 * number, _NONE), np.empty(2 * number, np.int64)
    for i in range(num):
        block = (start[i] >> 16) - low + 1 if start[i] > 0 else 0
        block += number if sign[i] > 0 else 0
        shifts[block] = min(shifts[block], shift[i])
    cells = 0
    for b in range(2 * number):
        if shifts[b] == _NONE and b > 0:
            shifts[b] = shifts[b - 1]
        if (b + 1) % number == 0:
            shifts[b] = 16
        first[b] = cells
        cells += 1 << (16 - shifts[b])
    room = 2 * number + num
    runs, where = np.empty((2, room), np.int64), np.empty((7, room))
    certified = np.empty(room, np.bool_)
    if first[-1] > MAX_CELLS:
        return absolute, shift, np.empty(0, np.int32), runs, where, certified
    table = np.empty(1 << 16, np.int32)
    for b in range(2 * number):
        at = (b % number + low - 1) + (32768 if b >= number else 0)
        table[at] = (first[b] << 5) | shifts[b]
    for b in range(0, 2 * number, number):
        side = 32768 if b else 0
        table[side : side + low] = (first[b] << 5) | shifts[b]
        table[side + low + number - 2 : side + 32768] = (first[b + number - 1] << 5) | 16
    used, i = 0, -1  # the runs, and the interval of the latest
    for b in range(2 * number):
        away, floats = b % number, np.int64(1) << shifts[b]
        begin, beyond = np.int64(0), b % number == number - 1
        bits = (away + low - 1) << 16
        alike = b > 0 and shifts[b] == shifts[b - 1] and (shifts[b] == 16 or not absolute)
        while begin < 65536:
            starts = away == 0 or not beyond and i + 1 < num and start[i + 1] == bits + begin
            i += starts
            end = np.int64(65536)
            if away > 0 and not beyond and i + 1 < num and sign[i + 1] == sign[i]:
                end = min(end, start[i + 1] - bits)
            cells = (end - begin) >> shifts[b]
            if begin == 0 and alike and not (starts or beyond):
                runs[0, used - 1] += cells
                begin = end
                continue
            runs[0, used], runs[1, used] = cells, i
            certified[used] = rest[i] < np.inf and not beyond
            ulp = 0.0 if away == 0 or beyond else 2.0 * sign[i] / (width[i] - 1)
            inner = 0.0 if beyond else ulp * (bits + begin - start[i]) - sign[i]
            middle, stride = inner + ulp * (floats - 1) / 2, ulp * floats
            slide = stride
            if absolute:
                inner -= ulp * begin
                slide = stride if shifts[b] == 16 else 0.0
            where[0, used], where[1, used], where[2, used] = middle, stride, inner
            where[3, used], where[4, used], where[5, used] = slide, inner - middle, slide - stride
            where[6, used] = ulp
            used += 1
            begin = end
    return absolute, shift, table, runs[:, :used], where[:, :used], certified[:used]

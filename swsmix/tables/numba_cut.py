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
    used, absolute, shift, block, cells, where, certified = _layout(
        names, torch.stack(bounds).numpy(), taylor, rest, tolerance
    )
    if not used:
        return None
    number, owner = torch.from_numpy(cells)[:, :used]
    middle, stride, inner, slide, back, drift, ulp = torch.from_numpy(where)[:, :used]
    held = torch.from_numpy(certified)[:used]
    runs = CellRuns(number, owner, middle, stride, inner, slide, back, drift, ulp, held)
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
        mine = owner[run]
        for i in range(cells[run]):
            s = middle + i * stride
            level, slope = taylor[mine, ORDER - 1], 0.0
            for n in range(ORDER - 2, -1, -1):
                slope = slope * s + level
                level = level * s + taylor[mine, n]
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


@inlined
def _add_run(used, cells, i, shift, start, width, sign, origin, first, runs, where):
    """Note a run whose first cell begins with the bits `first`; numbers count from an origin."""
    ulp = 2.0 * sign / (width - 1)
    stride = ulp * (np.int64(1) << shift)
    inner = ulp * (first - start) - sign
    middle = inner + ulp * ((np.int64(1) << shift) - 1) / 2
    slide = stride
    if origin >= 0:
        inner -= ulp * (first - origin)
        slide = stride if shift == 16 else 0.0
    runs[0, used], runs[1, used] = cells, i
    places = middle, stride, inner, slide, inner - middle, slide - stride, ulp
    for n in range(7):
        where[n, used] = places[n]
    return used + 1


@compiled
def _layout(names, bounds, taylor, rest, tolerance):
    start, width, sign = names[0], names[1], names[2]
    num = start.shape[0]
    shift, coarse = np.empty(num, np.int64), 0.0
    for i in range(num):
        slack = bounds[0, i] * bounds[1, i]
        rounding = bounds[2, i] / slack * 2.0**-22
        third = rest[i] * _REST
        for n in range(ORDER - 2):
            third += _THIRD[n] * abs(taylor[n, i])
        share = max(math.sqrt(third / (2 * slack) * (1.5 / tolerance)), rounding * (8 / tolerance))
        if start[i] > 0:
            block_rounding = rounding * 65536.0 / width[i]
            if block_rounding > coarse:  # a NaN is not
                coarse = block_rounding
        floats = 0
        while (width[i] >> (floats + 1)) > 0:
            floats += 1
        shift[i] = floats - _log2_above(share)
        if rest[i] == np.inf or shift[i] < 2:
            rest[i] = np.inf
            shift[i] = 6
        shift[i] = min(shift[i], 16)
    absolute = coarse <= tolerance / 8
    room = 4
    for i in range(num):
        room += max(width[i] >> 16, 1) if absolute and shift[i] < 16 else 1
    runs, where = np.zeros((2, room), np.int64), np.zeros((7, room))
    certified, table = np.zeros(room, np.bool_), np.empty(1 << 16, np.int32)
    used = i = cell = 0
    for side in range(0, 65536, 32768):
        # The floats below the intervals: all of them count as zero.
        runs[0, used], runs[1, used], certified[used] = 1 << (16 - shift[i]), i, rest[i] < np.inf
        where[0, used] = where[2, used] = -sign[i]
        for b in range(width[i] >> 16):
            table[side + b] = (cell << 5) | shift[i]
        cell += runs[0, used]
        used, i = used + 1, i + 1
        while i < num and sign[i] == sign[i - 1]:
            blocks, end = width[i] >> 16, i + 1
            size = shift[i]
            while width[i] < 65536 and end < num and start[end] >> 16 == start[i] >> 16:
                size = min(size, shift[end])  # of the intervals in a block
                end += 1
            number = np.int64(1) << (16 - size)
            for b in range(max(blocks, 1)):
                table[side + (start[i] >> 16) + b] = ((cell + b * number) << 5) | size
            cell += max(blocks, 1) * number
            pieces = blocks if blocks > 1 and absolute and size < 16 else 1
            for j in range(i, end):
                for b in range(pieces):
                    first = start[j] + (b << 16)
                    origin = first & ~0xFFFF if absolute else np.int64(-1)
                    certified[used] = rest[j] < np.inf
                    used = _add_run(
                        used, (width[j] >> size) // pieces, j, size, start[j], width[j], sign[j],
                        origin, first, runs, where,
                    )  # fmt: skip
            i = end
        # The floats beyond.
        runs[0, used], runs[1, used] = 1, i - 1
        for b in range((start[i - 1] + width[i - 1]) >> 16, 32768):
            table[side + b] = (cell << 5) | 16
        cell, used = cell + 1, used + 1
    if cell - 1 > MAX_CELLS:
        used = 0
    return used, absolute, shift, table, runs, where, certified

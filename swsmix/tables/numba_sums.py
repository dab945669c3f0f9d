"""From a histogram over the cells to the value and the moments, as loops compiled by numba.

The same sums as in `cell_histogram`, without a call of torch for each operation: for a million
weights those calls take as long as the pass over the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from swsmix.tables.cells import Cells
from swsmix.tables.numba_loops import compiled
from swsmix.tables.taylor import ORDER


def powers(
    cells: Cells, half: int, count: Tensor, first: Tensor, second: Tensor
) -> tuple[float, Tensor, bool]:
    """The value, the sums of s^n / q by interval (ORDER + 3, t), and whether weights are missing.

    Args:
        cells: the cells.
        half: the number from which the squares are.
        count: how many weights each cell has (cells,).
        first: the sums of their numbers.
        second: the sums of the squares of their numbers less the half.
    """
    at, intervals = cells.geometry, cells.intervals
    out = intervals.taylor.new_zeros(len(intervals.centre), ORDER + 3)
    value, missing = _powers(
        *_numpy(count, first, second, at.certified, at.owner, at.inner, at.ulp),
        half,
        *_numpy(intervals.taylor.T.contiguous(), intervals.bend, out),
    )
    return value, out.T, missing


def moments(x: Tensor, y: Tensor, powers: Tensor, out: Tensor) -> None:
    """Write the sums of exp(-x_j s - y_j s^2 / 2) s^n / q over intervals, n = 0 .. 2.

    Args:
        x: how the components' slopes differ, in units of the radius (t, k).
        y: how their bends differ (t, k).
        powers: the sums of s^n / q (ORDER + 3, t).
        out: the sums of each interval (3, t, k).
    """
    _moments(*_numpy(x, y, powers.T.contiguous(), out))


def _numpy(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(each.contiguous().numpy() for each in tensors)


@compiled
def _powers(count, first, second, certified, owner, inner, ulp, half, taylor, bend, out):
    total, missing = 0.0, False
    for cell in range(count.shape[0]):
        if count[cell] == 0:
            continue
        if not certified[cell]:
            missing = True
            continue
        number = np.float64(count[cell])
        mean, i = first[cell] / number, owner[cell]
        spread = np.sqrt(max(second[cell] / number - (mean - half) ** 2, 0.0)) * ulp[cell]
        middle = inner[cell] + ulp[cell] * mean
        for s in (middle - spread, middle + spread):
            rise = 0.0  # f(c + t) - f(c)
            for n in range(ORDER, 0, -1):
                rise = (rise + taylor[i, n]) * s
            total += (rise + taylor[i, 0]) * (0.5 * number)
            term = np.exp(rise - (taylor[i, 1] + 0.5 * bend[i] * s) * s) * (0.5 * number)
            for n in range(ORDER + 3):
                out[i, n] += term
                term *= s
    return total, missing


@compiled
def _moments(x, y, powers, out):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            before, now, factorial = 0.0, 1.0, 1.0
            zeroth, first, second = 0.0, 0.0, 0.0
            for n in range(ORDER + 1):
                term = now / factorial
                zeroth += term * powers[i, n]
                first += term * powers[i, n + 1]
                second += term * powers[i, n + 2]
                before, now = now, -(x[i, j] * now + n * y[i, j] * before)
                factorial *= n + 1
            out[0, i, j], out[1, i, j], out[2, i, j] = zeroth, first, second

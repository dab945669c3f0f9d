"""From a histogram over the cells to the value and the moments, as loops compiled by numba.

The same sums as in `cell_histogram`, without a call of torch for each operation: for a million
weights those calls take as long as the pass over the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from swsmix.tables.cells import PART, Cells
from swsmix.tables.exact import ExactMixture
from swsmix.tables.numba_compiled import compiled, summed
from swsmix.tables.numba_expand import CENTRE, GAMMA, LANES, MEAN, RADIUS, X, Y, expand, memory
from swsmix.tables.taylor import ORDER


def powers(
    cells: Cells, count: Tensor, first: Tensor, second: Tensor
) -> tuple[float, Tensor, bool]:
    """The value, the sums of s^n / q by interval (ORDER + 3, t), and whether weights are missing.

    Args:
        cells: the cells.
        count: how many weights each part of a cell has.
        first: the sums of their numbers.
        second: the sums of the squares of their numbers less the half.
    """
    at, intervals = cells.geometry, cells.intervals
    out = intervals.taylor.new_zeros(len(intervals.centre), ORDER + 3)
    value, missing = _powers(
        *_numpy(count, first, second, at.certified, at.owner, at.inner, at.ulp, at.width),
        cells.fine,
        *_numpy(intervals.taylor.T.contiguous(), intervals.bend, out),
    )
    return value, out.T, missing


def moments(mixture: ExactMixture, centre: Tensor, radius: Tensor, powers: Tensor) -> Tensor:
    """The moments (3, k) of the weights in some intervals; see `CellHistogram._moments`.

    Args:
        mixture: the mixture, on the CPU.
        centre: of the intervals (t,).
        radius: of the intervals (t,).
        powers: the sums of s^n / q (ORDER + 3, t).
    """
    out = powers.new_zeros(3, len(mixture.mean))
    of_mixture = mixture.as_array, mixture.levels
    _add_moments(*of_mixture, *_numpy(centre, radius, powers.T, out))
    return out


def _numpy(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(each.contiguous().numpy() for each in tensors)


@compiled
def _powers(count, first, second, certified, owner, inner, ulp, width, fine, taylor, bend, out):
    total, missing, half = 0.0, False, 1 << (PART - 1)
    for index in range(count.shape[0]):
        if count[index] == 0:
            continue
        cell = index >> fine
        if not certified[cell]:
            missing = True
            continue
        number = np.float64(count[index])
        mean, i = first[index] / number, owner[cell]
        unit = ulp[cell] * width[cell] / (1 << (PART + fine))
        spread = np.sqrt(max(second[index] / number - (mean - half) ** 2, 0.0)) * unit
        part = index - (cell << fine)
        middle = inner[cell] + unit * (mean + (part << PART))
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


@summed
def _add_component(row, lanes, mean, powers, number, moments, j):
    """The moments of one component over the intervals of a block."""
    count = first = second = 0.0
    for i in range(number):
        g, x, y, r = row[GAMMA + i], row[X + i], row[Y + i], lanes[RADIUS + i]
        d = lanes[CENTRE + i] - mean
        if g < 1e-100:  # slopes and bends may overflow
            g = x = y = 0.0
        before, now, factorial = 0.0, 1.0, 1.0
        sum_0 = sum_1 = sum_2 = 0.0
        for n in range(ORDER + 1):
            term = now / factorial
            sum_0 += term * powers[i, n]
            sum_1 += term * powers[i, n + 1]
            sum_2 += term * powers[i, n + 2]
            before, now = now, -(x * now + n * y * before)
            factorial *= n + 1
        sum_1, sum_2 = sum_1 * r, sum_2 * r * r
        count += g * sum_0
        first += g * (d * sum_0 + sum_1)
        second += g * (d * (d * sum_0 + 2 * sum_1) + sum_2)
    moments[0, j] += count
    moments[1, j] += first
    moments[2, j] += second


@compiled
def _add_moments(mixture, levels, centre, radius, powers, moments):
    even, work, lanes = memory(mixture)
    for start in range(0, len(centre), LANES):
        number = min(LANES, len(centre) - start)
        for i in range(LANES):
            interval = start + i % number
            lanes[CENTRE + i], lanes[RADIUS + i] = centre[interval], radius[interval]
        expand(work, lanes, even, levels)
        part = powers[start : start + number]
        for j in range(mixture.shape[1]):
            _add_component(work[j], lanes, mixture[MEAN, j], part, number, moments, j)

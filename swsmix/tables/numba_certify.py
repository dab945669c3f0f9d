"""The certification of `taylor` on a CPU, compiled by numba (if it is installed).

The same formulas, a block of intervals at a time (`numba_expand`) and without temporary tensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix.tables import recursions
from swsmix.tables.exact import ExactMixture
from swsmix.tables.numba_compiled import compiled, fused, part
from swsmix.tables.numba_expand import (
    BENT,
    CENTRE,
    CURVATURE,
    GRADIENT,
    LANES,
    RADIUS,
    ROUNDING,
    SWING,
    TOP,
    VALUE,
    derivatives,
    expand,
    memory,
)
from swsmix.tables.taylor import MAX_INTERVALS, ORDER, Intervals

_FACTORIALS = np.array([float(math.factorial(n)) for n in range(TOP)])
# Of an interval: centre, radius, bend, rest, second, floor, size, noise, the polynomial of f, and
# what `taylor.curvature` gives. Last comes `rest` in units of what it is measured by.
_FIELDS = 8 + (ORDER + 1) + (ORDER + 3)
_REST, _NOISE, _MISS = 3, 7, _FIELDS
# Intervals at a time: 1018 to begin with, then 16 times, as often as half an octave is halved, at
# most 16 parts of each in a block. Numba checks no bounds.
_WAITING = 1 << 14
assert _WAITING >= 1018 + 16 * 16 * LANES


def split(
    mixture: ExactMixture,
    tolerance: float,
    start: Tensor,
    width: Tensor,
    sign: Tensor,
    smallest: int,
) -> Intervals | None:
    """See `taylor.split`."""
    named = start.numpy(), width.numpy(), sign.numpy()
    used, where, found = _split(*_parameters(mixture), tolerance, *named, smallest)
    if not used:
        return None
    starts, widths, signs = where[:, :used]
    order = np.argsort(np.where(signs > 0, starts + (1 << 31), starts))
    starts, widths, signs = torch.from_numpy(where[:, order])
    rows = torch.from_numpy(found[:, order])
    centre, radius, bend, rest, second, floor, size, noise = rows[:8]
    taylor, curved = rows[8 : 9 + ORDER], rows[9 + ORDER :]
    return Intervals(
        starts,
        widths,
        signs,
        centre,
        radius,
        bend,
        taylor,
        rest,
        second,
        floor,
        size,
        noise,
        curved,
    )


def _parameters(mixture: ExactMixture) -> tuple[Any, ...]:
    return mixture.as_array, mixture.levels, float(mixture.scale)


@part
def _at(sums, i):
    """The derivatives 0 .. 7 of a lane."""
    return (
        sums[i], sums[LANES + i], sums[2 * LANES + i], sums[3 * LANES + i],
        sums[4 * LANES + i], sums[5 * LANES + i], sums[6 * LANES + i], sums[7 * LANES + i],
    )  # fmt: skip


_cumulants, _quotients = part(recursions.cumulants), part(recursions.quotients)


@fused
def _certify(lanes, exact, bound, scale, out):
    """The fields of each lane's interval, see `_FIELDS`, but for the polynomial of a.

    As in `taylor.certified`: the first cumulant is zero at the centre, and inside, the second
    one's bound is one for it too. Bounds are negated, so that all terms add up.
    """
    for i in range(LANES):
        r, value, gradient = lanes[RADIUS + i], lanes[VALUE + i], lanes[GRADIENT + i]
        q, b = _at(exact, i), _at(bound, i)
        c3, c4, c5, c6, _ = _cumulants(0.0, *q[2:], -1.0)
        _, _, _, _, rest = _cumulants(b[2], *b[2:], 1.0)
        bend = lanes[CURVATURE + i] * r * r
        second = bend + b[2]
        swing = lanes[SWING + i] + b[2] * lanes[BENT + i]
        least = (bend - swing) / (r * r)
        floor = math.sqrt(scale * scale if least < scale * scale else least)
        away = abs(gradient) - second / r
        floor += 0.0 if away < 0.0 else away
        beyond = abs(value) - abs(gradient * r) - second
        size = 1.0 + (0.0 if beyond < 0.0 else beyond)
        steep = r * floor / (ORDER + 1)
        out[i] = lanes[CENTRE + i]
        out[LANES + i] = r
        out[2 * LANES + i] = bend
        out[3 * LANES + i] = rest
        out[4 * LANES + i] = second
        out[5 * LANES + i] = floor
        out[6 * LANES + i] = size
        out[7 * LANES + i] = lanes[ROUNDING + i] / r / floor
        out[8 * LANES + i] = value
        out[9 * LANES + i] = gradient * r
        out[10 * LANES + i] = (bend - q[2]) / 2.0
        out[11 * LANES + i] = -c3 / 6.0
        out[12 * LANES + i] = -c4 / 24.0
        out[13 * LANES + i] = -c5 / 120.0
        out[14 * LANES + i] = -c6 / 720.0
        out[_MISS * LANES + i] = rest / (size if size < steep else steep)


@fused
def _certify_curvature(lanes, exact, bound, scale, out):
    """The rest of the fields; as in `taylor.curvature`."""
    for i in range(LANES):
        r, j = lanes[RADIUS + i], i + TOP * LANES
        unit, bend = 1.0 / (r * r), lanes[CURVATURE + i] * r * r
        a, q, b = _at(exact, j), _at(exact, i), _at(bound, i)
        d1, d2, d3, d4, d5, d6, _ = _quotients(*a, 0.0, *q[2:], -1.0)
        swing, _, _, _, _, _, rest = _quotients(*_at(bound, j), b[2], *b[2:], 1.0)
        low = bend - swing
        out[15 * LANES + i] = (bend + a[0]) * unit
        out[16 * LANES + i] = d1 * unit
        out[17 * LANES + i] = d2 / 2.0 * unit
        out[18 * LANES + i] = d3 / 6.0 * unit
        out[19 * LANES + i] = d4 / 24.0 * unit
        out[20 * LANES + i] = d5 / 120.0 * unit
        out[21 * LANES + i] = d6 / 720.0 * unit
        out[22 * LANES + i] = rest * unit
        out[23 * LANES + i] = (scale * scale / unit if low < scale * scale / unit else low) * unit


@fused
def _place(lanes, block, number):
    """Centres and radii of intervals; the lanes that are left repeat them."""
    for i in range(LANES):
        start, width, sign = block[i % number]
        inner = np.float64(np.int32(start).view(np.float32))
        outer = np.float64(np.int32(start + width - 1).view(np.float32))
        lanes[CENTRE + i], lanes[RADIUS + i] = sign * (inner + outer) / 2, (outer - inner) / 2


@compiled
def _doubled(array):
    more = np.empty((array.shape[0], 2 * array.shape[1]), array.dtype)
    more[:, : array.shape[1]] = array
    return more


@compiled
def _split(mixture, levels, scale, tolerance, starts, widths, signs, smallest):
    """How many intervals (0: too many), with their starts, widths and signs, and their fields."""
    room, used = 4088, 0  # no power of two: rows would share places in the cache
    where, found = np.empty((3, room), np.int64), np.empty((_FIELDS, room))
    mixture, work, lanes = memory(mixture)
    exact, bound = np.empty(2 * TOP * LANES), np.empty(2 * TOP * LANES)
    fields = np.empty((_FIELDS + 1) * LANES)
    waiting, height = np.empty((_WAITING, 3), np.int64), len(starts)
    waiting[:height, 0], waiting[:height, 1], waiting[:height, 2] = starts, widths, signs
    slack = tolerance / 8 * _FACTORIALS[ORDER + 1]
    block = np.empty((LANES, 3), np.int64)
    while height:
        number = min(height, LANES)
        height -= number
        block[:number] = waiting[height : height + number]
        _place(lanes, block, number)
        expand(work, lanes, mixture, levels)
        derivatives(work, exact, bound)
        _certify(lanes, exact, bound, scale, fields)
        _certify_curvature(lanes, exact, bound, scale, fields)
        while used + number > room:
            room, where, found = 2 * room, _doubled(where), _doubled(found)
        for i in range(number):
            start, width, sign = block[i]
            miss, noise = fields[_MISS * LANES + i], fields[_NOISE * LANES + i]
            miss, noise = miss / slack, noise / (tolerance / 16)
            excess, good = max(miss, noise), miss <= 1 and noise <= 1  # a NaN is not
            if good or width <= smallest or start == 0:
                where[0, used], where[1, used], where[2, used] = start, width, sign
                for n in range(_FIELDS):
                    found[n, used] = fields[n * LANES + i]
                if not good:
                    found[_REST, used] = np.inf
                used += 1
                continue
            power = 4
            for least in range(3, 0, -1):
                if excess <= 2.0 ** (ORDER * least):
                    power = least
            parts = min(1 << power, width // smallest)
            for index in range(parts):
                waiting[height, 0] = start + index * (width // parts)
                waiting[height, 1], waiting[height, 2] = width // parts, sign
                height += 1
        if used > MAX_INTERVALS:
            return 0, where, found
    return used, where, found

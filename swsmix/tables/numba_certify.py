"""The certification of `taylor` on a CPU, compiled by numba (if it is installed).

The same formulas, one interval at a time and without temporary tensors. Components of mixing 0 are
left out, and intervals are split depth first, so that they come out in order.
Stds lie between 1e-18 and 1e18 and centres within float32, so that no z overflows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix._log_odds import FAR, LOG_SQRT_2PI
from swsmix.tables.exact import ExactMixture
from swsmix.tables.numba_compiled import fused, inlined, summed
from swsmix.tables.numba_exp import exp
from swsmix.tables.taylor import MAX_INTERVALS, ORDER, Intervals

_TOP = ORDER + 2  # derivatives 0 .. ORDER + 1
assert _TOP == 8, "`_derivatives` writes them out"
_FACTORIALS = np.array([float(math.factorial(n)) for n in range(_TOP)])
_FIELDS = 8 + ORDER + 1  # of an interval; see `_certify`
# Rows, of the mixture's parameters and of `work` (a number per component): views of them would be
# counted, which takes as long as the arithmetic.
_LEVEL, MEAN, _STD, _INVERSE, _PRECISION = range(5)
_Z, _ODDS, _SLOPE, GAMMA, X, Y, _MOST, _NOISE = range(8)
_STACK = 1024  # an interval has at most 16 parts, and is split at most 22 times


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
    starts, widths, signs = torch.from_numpy(where)[:, :used]
    rows = torch.from_numpy(found)[:, :used]
    centre, radius, bend, rest, second, floor, size, noise = rows[:8]
    return Intervals(
        starts, widths, signs, centre, radius, bend, rows[8:], rest, second, floor, size, noise
    )


def curvature(mixture: ExactMixture, intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    """See `taylor.curvature`."""
    centre, radius = intervals.centre.contiguous().numpy(), intervals.radius.contiguous().numpy()
    rows = torch.from_numpy(_curvature(*_parameters(mixture), centre, radius))
    return rows[:-2], rows[-2], rows[-1]


def _parameters(mixture: ExactMixture) -> tuple[Any, ...]:
    return mixture.as_array, mixture.levels, float(mixture.scale)


@inlined
def _beyond(w, j, r, work, mixture):
    """The log of pi_j N_j relative to the component r, far out; see `_log_odds`."""
    mean_r, std_r, std = mixture[MEAN, r], mixture[_STD, r], mixture[_STD, j]
    one = (w - mean_r) * ((std_r - std) / std_r) / std
    other = (mean_r - mixture[MEAN, j]) / std
    gap = work[_Z, j] - work[_Z, r]
    if abs(one) + abs(other) <= abs(work[_Z, j]) + abs(work[_Z, r]):
        gap = one + other
    return mixture[_LEVEL, j] - max(0.5 * gap * (work[_Z, j] + work[_Z, r]), -1e300)


@fused
def _compare_far(w, work, mixture):
    """The odds far out, where the squares of z lose their differences; see `_log_odds`."""
    r, closest = 0, np.inf
    for j in range(work.shape[1]):
        if mixture[_LEVEL, j] > -np.inf and abs(work[_Z, j]) < closest:
            r, closest = j, abs(work[_Z, j])
    for j in range(work.shape[1]):
        work[_ODDS, j] = _beyond(w, j, r, work, mixture)
    best = r
    for j in range(work.shape[1]):
        best = j if work[_ODDS, j] > work[_ODDS, best] else best
    if best != r:
        for j in range(work.shape[1]):
            work[_ODDS, j] = _beyond(w, j, best, work, mixture)


@summed
def _total_gamma(work):
    total = 0.0
    for j in range(work.shape[1]):
        total += work[GAMMA, j]
    return total


@summed
def _means(work, mixture):
    gradient = curvature = pull = 0.0
    for j in range(work.shape[1]):
        gradient += work[GAMMA, j] * (work[_Z, j] * mixture[_INVERSE, j])
        curvature += work[GAMMA, j] * mixture[_PRECISION, j]
        pull += work[GAMMA, j] * work[_SLOPE, j]
    return gradient, curvature, pull


@summed
def _swing_and_noise(work, slack):
    swing = rounding = 0.0
    for j in range(work.shape[1]):
        if work[_MOST, j] != 0.0:
            steep, bent = abs(work[X, j]), abs(work[Y, j])
            swing += work[_MOST, j] * bent * (steep + bent + slack)
            rounding += work[_MOST, j] * (steep + bent) * work[_NOISE, j]
    return swing, rounding


@summed
def _largest(work):
    top = work[_ODDS, 0]
    for j in range(work.shape[1]):
        top = max(top, work[_ODDS, j])
    return top


@fused
def expand(w, radius, mixture, levels, work):
    """f, f' and a at a centre; the rows of `work` then describe the components.

    They are gamma, slope and bend in units of the radius, the bound on gamma, and how far rounding
    can carry log gamma.
    """
    num = work.shape[1]
    for j in range(num):
        work[_Z, j] = (w - mixture[MEAN, j]) / mixture[_STD, j]
        work[_ODDS, j] = mixture[_LEVEL, j] - 0.5 * work[_Z, j] * work[_Z, j]
    top = _largest(work)
    if top < FAR:
        _compare_far(w, work, mixture)
        top = _largest(work)
    near = 0
    while work[_ODDS, near] < top:
        near += 1
    for j in range(num):
        work[_ODDS, j] -= top
        work[GAMMA, j] = exp(work[_ODDS, j])
    total = _total_gamma(work)
    log_total = math.log(total)
    value = 0.5 * work[_Z, near] * work[_Z, near] - mixture[_LEVEL, near] + LOG_SQRT_2PI - log_total
    # Each component's own f' as a difference to the nearest one's, and in parts that do not cancel
    # far out; the smaller is exact.
    mean_r, std_r = mixture[MEAN, near], mixture[_STD, near]
    z_r, inverse_r = work[_Z, near], mixture[_INVERSE, near]
    offset, pull_r = w - mean_r, z_r * inverse_r
    for j in range(num):
        inverse = mixture[_INVERSE, j]
        one = offset * ((std_r - mixture[_STD, j]) * inverse * inverse_r) * (inverse + inverse_r)
        other, mine = (mean_r - mixture[MEAN, j]) * inverse * inverse, work[_Z, j] * inverse
        parts, whole = abs(one) + abs(other), abs(mine) + abs(pull_r)
        work[_SLOPE, j] = one + other if parts < whole else mine - pull_r
    for j in range(num):
        work[GAMMA, j] /= total
    gradient, curvature, pull = _means(work, mixture)
    for j in range(num):
        work[X, j] = (work[_SLOPE, j] - pull) * radius
        work[Y, j] = (mixture[_PRECISION, j] - curvature) * radius * radius
    for j in range(num):
        steep = abs(work[X, j])
        t = min((steep + 1e-300) / max(work[Y, j], 1e-300), 1.0)  # where the exponent peaks
        exponent = work[_ODDS, j] - log_total + t * (steep - 0.5 * work[Y, j] * t)
        # A bound is not 0, but for a component of mixing 0. Small powers of small numbers would
        # leave the normal ones, which takes a hundred times as long; large ones come back.
        least = -600.0 if steep + abs(work[Y, j]) <= 1.0 else -708.0
        bound = exp(min(max(exponent, least), 500.0))
        work[_MOST, j] = 0.0 if mixture[_LEVEL, j] == -np.inf else bound
    by_parts = value > -FAR
    for j in range(num):
        one = offset * ((std_r - mixture[_STD, j]) * mixture[_INVERSE, j] * inverse_r)
        other = (mean_r - mixture[MEAN, j]) * mixture[_INVERSE, j]
        whole = abs(work[_Z, j]) + abs(z_r)
        reach = min(abs(one) + abs(other), whole) * whole
        squares = work[_Z, j] * work[_Z, j] + z_r * z_r
        work[_NOISE, j] = 2.0**-50 * (0.5 * (reach if by_parts else squares) + levels)
    return value, gradient, curvature


@summed
def _derivatives(work, row, bound):
    """The sums of weight h_n, h_n the n-th derivative of exp(-x t - y t^2 / 2) at 0, n = 0 .. 7.

    For a bound, of exp((|x| + |y|) t + |y| t^2 / 2). Written out, so that the processor takes
    several components at a time. Where weights underflow, powers may still overflow.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for j in range(work.shape[1]):
        h0, u, v = work[row, j], -work[X, j], -work[Y, j]
        if bound:
            v = abs(work[Y, j])
            u = abs(work[X, j]) + v
        if h0 == 0.0:
            u = v = 0.0
        h1 = u * h0
        h2 = u * h1 + v * h0
        h3 = u * h2 + 2.0 * v * h1
        h4 = u * h3 + 3.0 * v * h2
        h5 = u * h4 + 4.0 * v * h3
        h6 = u * h5 + 5.0 * v * h4
        h7 = u * h6 + 6.0 * v * h5
        s0, s1, s2, s3 = s0 + h0, s1 + h1, s2 + h2, s3 + h3
        s4, s5, s6, s7 = s4 + h4, s5 + h5, s6 + h6, s7 + h7
    return s0, s1, s2, s3, s4, s5, s6, s7


@inlined
def _cumulants(q1, q2, q3, q4, q5, q6, q7, sign):
    """Cumulants 3 .. 7 from moments; with sign 1, terms add up that otherwise cancel."""
    c3 = q3 + sign * (q1 * q2 + 2.0 * q2 * q1)
    c4 = q4 + sign * (q1 * q3 + 3.0 * q2 * q2 + 3.0 * c3 * q1)
    c5 = q5 + sign * (q1 * q4 + 4.0 * q2 * q3 + 6.0 * c3 * q2 + 4.0 * c4 * q1)
    c6 = q1 * q5 + 5.0 * q2 * q4 + 10.0 * c3 * q3 + 10.0 * c4 * q2 + 5.0 * c5 * q1
    c6 = q6 + sign * c6
    c7 = q1 * q6 + 6.0 * q2 * q5 + 15.0 * c3 * q4 + 20.0 * c4 * q3 + 15.0 * c5 * q2 + 6.0 * c6 * q1
    return c3, c4, c5, c6, q7 + sign * c7


@fused
def _certify(mixture, levels, scale, inner, outer, sign, work, out):
    """The fields of one interval, in `out`: as in `Intervals`, with the polynomial last.

    Also its bounds: `rest`, what it is measured by, and `noise`.
    """
    centre, r = sign * (inner + outer) / 2, (outer - inner) / 2
    value, gradient, curvature = expand(centre, r, mixture, levels, work)
    _, _, q2, q3, q4, q5, q6, q7 = _derivatives(work, GAMMA, False)
    _, _, b2, b3, b4, b5, b6, b7 = _derivatives(work, _MOST, True)
    # As in `taylor.certified`: the first cumulant is zero at the centre, and inside, the second
    # one's bound is one for it too. Bounds are negated, so that all terms add up.
    c3, c4, c5, c6, _ = _cumulants(0.0, q2, q3, q4, q5, q6, q7, -1.0)
    _, _, _, _, rest = _cumulants(b2, b2, b3, b4, b5, b6, b7, 1.0)
    bend = curvature * r * r
    second = bend + b2
    swing, rounding = _swing_and_noise(work, b2)
    floor = math.sqrt(max((bend - swing) / (r * r), scale * scale))
    floor += max(abs(gradient) - second / r, 0.0)
    size = 1.0 + max(abs(value) - abs(gradient * r) - second, 0.0)
    noise = rounding / r / floor
    out[0], out[1], out[2], out[3] = centre, r, bend, rest
    out[4], out[5], out[6], out[7] = second, floor, size, noise
    out[8], out[9] = value, gradient * r
    out[10], out[11], out[12] = (bend - q2) / 2.0, -c3 / 6.0, -c4 / 24.0
    out[13], out[14] = -c5 / 120.0, -c6 / 720.0
    return rest / min(r * floor / (ORDER + 1), size), noise


@fused
def _split(mixture, levels, scale, tolerance, starts, widths, signs, smallest):
    """How many intervals (0: too many), with their starts, widths and signs, and their fields."""
    room, used = 4088, 0  # no power of two: rows would share places in the cache
    where, found = np.empty((3, room), np.int64), np.empty((_FIELDS, room))
    work, out = np.empty((8, mixture.shape[1])), np.empty(_FIELDS)
    stack = np.empty((_STACK, 2), np.int64)
    slack = tolerance / 8 * _FACTORIALS[ORDER + 1]
    for i in range(starts.shape[0]):
        stack[0, 0], stack[0, 1] = starts[i], widths[i]
        height = 1
        while height:
            height -= 1
            start, width = stack[height, 0], stack[height, 1]
            inner = np.float64(np.int32(start).view(np.float32))
            outer = np.float64(np.int32(start + width - 1).view(np.float32))
            miss, noise = _certify(mixture, levels, scale, inner, outer, signs[i], work, out)
            excess = max(miss / slack, noise / (tolerance / 16))
            good = miss / slack <= 1 and noise / (tolerance / 16) <= 1  # a NaN is not
            if good or width <= smallest or start == 0:
                if used == MAX_INTERVALS:
                    return 0, where, found
                if used == room:
                    room *= 2
                    more, fields = np.empty((3, room), np.int64), np.empty((_FIELDS, room))
                    for j in range(used):
                        for n in range(3):
                            more[n, j] = where[n, j]
                        for n in range(_FIELDS):
                            fields[n, j] = found[n, j]
                    where, found = more, fields
                if not good:
                    out[3] = np.inf
                where[0, used], where[1, used], where[2, used] = start, width, signs[i]
                for n in range(_FIELDS):
                    found[n, used] = out[n]
                used += 1
                continue
            power = 4
            for least in range(3, 0, -1):
                if excess <= 2.0 ** (ORDER * least):
                    power = least
            parts = min(1 << power, width // smallest)
            for part in range(parts - 1, -1, -1):
                stack[height, 1] = width // parts
                stack[height, 0] = start + part * (width // parts)
                height += 1
    return used, where, found


@inlined
def _quotients(a, q1, q, sign, out):
    """The derivatives of a quotient from those of its numerator a and denominator q at 0."""
    d0, q2, q3, q4, q5, q6, q7 = a[0], q[2], q[3], q[4], q[5], q[6], q[7]
    d1 = a[1] + sign * d0 * q1
    d2 = a[2] + sign * (d0 * q2 + 2.0 * d1 * q1)
    d3 = a[3] + sign * (d0 * q3 + 3.0 * d1 * q2 + 3.0 * d2 * q1)
    d4 = a[4] + sign * (d0 * q4 + 4.0 * d1 * q3 + 6.0 * d2 * q2 + 4.0 * d3 * q1)
    d5 = d0 * q5 + 5.0 * d1 * q4 + 10.0 * d2 * q3 + 10.0 * d3 * q2 + 5.0 * d4 * q1
    d5 = a[5] + sign * d5
    d6 = d0 * q6 + 6.0 * d1 * q5 + 15.0 * d2 * q4 + 20.0 * d3 * q3 + 15.0 * d4 * q2 + 6.0 * d5 * q1
    d6 = a[6] + sign * d6
    d7 = d0 * q7 + 7.0 * d1 * q6 + 21.0 * d2 * q5 + 35.0 * d3 * q4
    d7 = a[7] + sign * (d7 + 35.0 * d4 * q3 + 21.0 * d5 * q2 + 7.0 * d6 * q1)
    out[0], out[1], out[2], out[3] = d0, d1, d2, d3
    out[4], out[5], out[6], out[7] = d4, d5, d6, d7


@fused
def _curvature(mixture, levels, scale, centre, radius):
    """The rows that `taylor.curvature` returns (ORDER + 3, t)."""
    rows = np.empty((ORDER + 3, centre.shape[0]))
    work, bound, exact = np.empty((8, mixture.shape[1])), np.empty(_TOP), np.empty(_TOP)
    for i in range(centre.shape[0]):
        r = radius[i]
        _, _, curvature = expand(centre[i], r, mixture, levels, work)
        q = _derivatives(work, GAMMA, False)
        b = _derivatives(work, _MOST, True)
        for j in range(work.shape[1]):
            work[GAMMA, j] *= work[Y, j]
            work[_MOST, j] *= abs(work[Y, j])
        _quotients(_derivatives(work, GAMMA, False), 0.0, q, -1.0, exact)
        _quotients(_derivatives(work, _MOST, True), b[2], b, 1.0, bound)
        bend = curvature * r * r
        for n in range(ORDER + 1):
            rows[n, i] = ((bend if n == 0 else 0.0) + exact[n] / _FACTORIALS[n]) / (r * r)
        rows[ORDER + 1, i] = bound[ORDER + 1] / (r * r)
        rows[ORDER + 2, i] = max(bend - bound[1], scale * scale * r * r) / (r * r)
    return rows

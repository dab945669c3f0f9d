"""The certification of `taylor` on a CPU, compiled by numba (if it is installed).

The same formulas, one interval at a time and without temporary tensors: components whose bound on
gamma underflows are left out, and intervals are split depth first, so that they come out in order.
Stds lie between 1e-70 and 1e70 and centres within float32, so that no z overflows.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from swsmix._log_odds import FAR, LOG_SQRT_2PI
from swsmix.tables.exact import ExactMixture
from swsmix.tables.numba_loops import compiled as _kept
from swsmix.tables.numba_loops import inlined
from swsmix.tables.taylor import MAX_INTERVALS, ORDER, Ends, Intervals

_TOP = ORDER + 2  # derivatives 0 .. ORDER + 1
_FACTORIALS = np.array([float(math.factorial(n)) for n in range(_TOP)])
_SHARES = 1 / _FACTORIALS
_WAYS = np.array([[float(math.comb(n, k)) for k in range(_TOP)] for n in range(_TOP)])
_LEAST = -708.0  # exp of less is zero here
_E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12, _E13 = (
    1.0 / math.factorial(n) for n in range(3, 14)
)
_LOG_2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # log 2 = their sum
_FIELDS = 8 + ORDER + 1  # of an interval; see `_certify`
_STACK = 1024  # an interval has at most 16 parts, and is split at most 22 times


def _compiled(function: Any) -> Any:
    return _kept(function, fast={"contract"})  # x * y + z in one rounding


def _summed(function: Any) -> Any:
    return _kept(function, fast={"contract", "reassoc", "nsz", "nnan"})  # sums in any order


def split(
    mixture: ExactMixture,
    tolerance: float,
    start: Tensor,
    width: Tensor,
    sign: Tensor,
    ends: Ends,
    smallest: int,
) -> Intervals | None:
    """See `taylor.split`."""
    named = start.numpy(), width.numpy(), sign.numpy()
    where, found = _split(*_parameters(mixture), tolerance, *named, *ends, smallest)
    if not where.shape[1]:
        return None
    starts, widths, signs = torch.from_numpy(where)
    rows = torch.from_numpy(found)
    return Intervals(starts, widths, signs, *rows[:3], rows[8:], *rows[3:8])


def curvature(mixture: ExactMixture, intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    """See `taylor.curvature`."""
    centre, radius = intervals.centre.contiguous().numpy(), intervals.radius.contiguous().numpy()
    rows = torch.from_numpy(_curvature(*_parameters(mixture), centre, radius))
    return rows[:-2], rows[-2], rows[-1]


def _parameters(mixture: ExactMixture) -> tuple[Any, ...]:
    parts = (mixture.level, mixture.mean, mixture.std, mixture.precision, 1 / mixture.std)
    return torch.stack(parts).numpy(), mixture.levels, float(mixture.scale)


@inlined
def _beyond(w, j, r, z, mixture):
    """log pi_j N_j relative to the component r, far out; see `_log_odds`."""
    one = (w - mixture[1, r]) * ((mixture[2, r] - mixture[2, j]) / mixture[2, r]) / mixture[2, j]
    other = (mixture[1, r] - mixture[1, j]) / mixture[2, j]
    gap = z[j] - z[r]
    if abs(one) + abs(other) <= abs(z[j]) + abs(z[r]):
        gap = one + other
    return mixture[0, j] - max(0.5 * gap * (z[j] + z[r]), -1e300)


@_compiled
def _compare_far(w, z, odds, mixture):
    """The odds far out, where the squares of z lose their differences; see `_log_odds`."""
    r, closest = 0, np.inf
    for j in range(z.shape[0]):
        if mixture[0, j] > -np.inf and abs(z[j]) < closest:
            r, closest = j, abs(z[j])
    best, top = r, -np.inf
    for j in range(z.shape[0]):
        odd = _beyond(w, j, r, z, mixture)
        if odd > top:
            best, top = j, odd
    for j in range(z.shape[0]):
        odds[j] = _beyond(w, j, best, z, mixture)


@inlined
def _exp(x):
    """exp(x), x <= 700, to one unit of the last digit: unlike a library's, several x at a time."""
    power = np.floor(max(x, _LEAST) * 1.4426950408889634 + 0.5)
    rest = (max(x, _LEAST) - power * _LOG_2[0]) - power * _LOG_2[1]
    high = (((_E13 * rest + _E12) * rest + _E11) * rest + _E10) * rest + _E9
    high = (((high * rest + _E8) * rest + _E7) * rest + _E6) * rest + _E5
    taylor = ((((high * rest + _E4) * rest + _E3) * rest + 0.5) * rest + 1.0) * rest + 1.0
    scale = np.int64((np.int64(power) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return taylor * scale if x >= _LEAST else 0.0


@_summed
def _sum(numbers):
    total = 0.0
    for j in range(numbers.shape[0]):
        total += numbers[j]
    return total


@_summed
def _means(gamma, z, inverse, precision, slope):
    gradient = curvature = pull = 0.0
    for j in range(gamma.shape[0]):
        gradient += gamma[j] * (z[j] * inverse[j])
        curvature += gamma[j] * precision[j]
        pull += gamma[j] * slope[j]
    return gradient, curvature, pull


@_summed
def _swing_and_noise(x, y, most, noise, slack):
    swing = rounding = 0.0
    for j in range(x.shape[0]):
        if most[j] != 0.0:
            steep, bent = abs(x[j]), abs(y[j])
            swing += most[j] * bent * (steep + bent + slack)
            rounding += most[j] * (steep + bent) * noise[j]
    return swing, rounding


@_summed
def _largest(numbers):
    most = numbers[0]
    for j in range(numbers.shape[0]):
        most = max(most, numbers[j])
    return most


@inlined
def _find(numbers, wanted):
    j = 0
    while numbers[j] < wanted:
        j += 1
    return j


@_compiled
def _expand(w, radius, mixture, levels, work):
    """f, f' and a at a centre, and in the rows 3 .. 7 of `work` for each component:

    gamma, its slope and bend in units of the radius, the bound on gamma, and log gamma's rounding.
    """
    level, mean, std = mixture[0], mixture[1], mixture[2]
    precision, inverse = mixture[3], mixture[4]
    z, odds, slope, gamma = work[0], work[1], work[2], work[3]
    x, y, most, noise = work[4], work[5], work[6], work[7]
    num = z.shape[0]
    for j in range(num):
        z[j] = (w - mean[j]) / std[j]
        odds[j] = level[j] - 0.5 * z[j] * z[j]
    top = _largest(odds)
    if top < FAR:
        _compare_far(w, z, odds, mixture)
        top = _largest(odds)
    near = _find(odds, top)
    for j in range(num):
        odds[j] -= top
        gamma[j] = _exp(odds[j])
    total = _sum(gamma)
    log_total = math.log(total)
    value = 0.5 * z[near] * z[near] - level[near] + LOG_SQRT_2PI - log_total
    # Each component's own f' as a difference to the nearest one's, and in parts that do not cancel
    # far out; the smaller is exact.
    mean_r, std_r, z_r, inverse_r = mean[near], std[near], z[near], inverse[near]
    offset, pull_r = w - mean_r, z_r * inverse_r
    for j in range(num):
        one = offset * ((std_r - std[j]) * inverse[j] * inverse_r) * (inverse[j] + inverse_r)
        other = (mean_r - mean[j]) * inverse[j] * inverse[j]
        mine = z[j] * inverse[j]
        parts, whole = abs(one) + abs(other), abs(mine) + abs(pull_r)
        slope[j] = one + other if parts < whole else mine - pull_r
    for j in range(num):
        gamma[j] /= total
    gradient, curvature, pull = _means(gamma, z, inverse, precision, slope)
    for j in range(num):
        x[j] = (slope[j] - pull) * radius
    for j in range(num):
        y[j] = (precision[j] - curvature) * radius * radius
    for j in range(num):
        steep = abs(x[j])
        t = min((steep + 1e-300) / max(y[j], 1e-300), 1.0)  # where the exponent peaks
        exponent = odds[j] - log_total + t * (steep - 0.5 * y[j] * t)
        most[j] = _exp(min(exponent, 500.0))
    by_parts = value > -FAR
    for j in range(num):
        one = offset * ((std_r - std[j]) * inverse[j] * inverse_r)
        other = (mean_r - mean[j]) * inverse[j]
        whole = abs(z[j]) + abs(z_r)
        reach = min(abs(one) + abs(other), whole) * whole
        squares = z[j] * z[j] + z_r * z_r
        noise[j] = 2.0**-50 * (0.5 * (reach if by_parts else squares) + levels)
    return value, gradient, curvature


@inlined
def _add_derivatives(x, y, weight, sums):
    """Add weight h_n to each sum, h_n the n-th derivative of exp(x t + y t^2 / 2) at 0."""
    before, now = weight, weight * x
    sums[0] += before
    sums[1] += now
    for n in range(1, ORDER + 1):
        before, now = now, x * now + n * y * before
        sums[n + 1] += now


@_compiled
def _certify(mixture, levels, scale, inner, outer, sign, work, sums, out):
    """The fields of one interval, in `out`: as in `Intervals`, with the polynomial last.

    Also its bounds: `rest`, what it is measured by, and `noise`.
    """
    centre, r = sign * (inner + outer) / 2, (outer - inner) / 2
    value, gradient, curvature = _expand(centre, r, mixture, levels, work)
    gamma, x, y, most = work[3], work[4], work[5], work[6]
    q, bound, log, log_bound = sums[0], sums[1], sums[2], sums[3]
    q[:] = 0.0
    bound[:] = 0.0
    for j in range(most.shape[0]):
        if most[j] != 0.0:
            bent = abs(y[j])
            _add_derivatives(-x[j], -y[j], gamma[j], q)
            _add_derivatives(abs(x[j]) + bent, bent, most[j], bound)
    # Cumulants from moments, as in `taylor.certified`: those of the bounds are negated, so that
    # all terms add up.
    q[1], bound[1] = 0.0, bound[2]
    log[1], log_bound[1], log[2], log_bound[2] = q[1], bound[1], q[2], bound[2]
    for n in range(3, _TOP):
        exact, bounded = q[n], bound[n]
        for k in range(1, n):
            exact -= _WAYS[n - 1, k - 1] * (log[k] * q[n - k])
            bounded += _WAYS[n - 1, k - 1] * (log_bound[k] * bound[n - k])
        log[n], log_bound[n] = exact, bounded
    bend = curvature * r * r
    second = bend + bound[2]
    swing, rounding = _swing_and_noise(x, y, most, work[7], bound[1])
    floor = math.sqrt(max((bend - swing) / (r * r), scale * scale))
    floor += max(abs(gradient) - second / r, 0.0)
    size = 1.0 + max(abs(value) - abs(gradient * r) - second, 0.0)
    noise = rounding / r / floor
    rest = log_bound[ORDER + 1]
    out[0], out[1], out[2], out[3] = centre, r, bend, rest
    out[4], out[5], out[6], out[7] = second, floor, size, noise
    out[8], out[9] = value, gradient * r
    for n in range(2, ORDER + 1):
        out[8 + n] = -log[n] * _SHARES[n]
    out[10] += bend / 2
    return rest / min(r * floor / (ORDER + 1), size), noise


@inlined
def _float_of(bits):
    return np.float64(np.int32(bits).view(np.float32))


@_compiled
def _split(
    mixture, levels, scale, tolerance, starts, widths, signs, unit, begin, smallest
):  # fmt: skip
    """Start, width and sign of the intervals, and their fields; none if they are too many."""
    room, used = 4088, 0  # no power of two: rows would share places in the cache
    where, found = np.empty((3, room), np.int64), np.empty((_FIELDS, room))
    work, sums, out = np.empty((8, mixture.shape[1])), np.empty((4, _TOP)), np.empty(_FIELDS)
    stack = np.empty((_STACK, 2), np.int64)
    slack = tolerance / 8 * _FACTORIALS[ORDER + 1]
    for i in range(starts.shape[0]):
        stack[0, 0], stack[0, 1] = starts[i], widths[i]
        height = 1
        while height:
            height -= 1
            start, width = stack[height, 0], stack[height, 1]
            if unit > 0:
                inner = (start - 1) * unit + begin
                outer = inner + width * unit
            else:
                inner, outer = _float_of(start), _float_of(start + width - 1)
            miss, noise = _certify(
                mixture, levels, scale, inner, outer, signs[i], work, sums, out
            )
            excess = max(miss / slack, noise / (tolerance / 16))
            good = miss / slack <= 1 and noise / (tolerance / 16) <= 1  # a NaN is not
            if good or width <= smallest or start == 0:
                if used == MAX_INTERVALS:
                    return where[:, :0], found[:, :0]
                if used == room:
                    room *= 2
                    more, fields = np.empty((3, room), np.int64), np.empty((_FIELDS, room))
                    more[:, :used], fields[:, :used] = where, found
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
    return where[:, :used], found[:, :used]


@_compiled
def _curvature(mixture, levels, scale, centre, radius):
    """The rows that `taylor.curvature` returns (ORDER + 3, t)."""
    rows = np.empty((ORDER + 3, centre.shape[0]))
    work, sums = np.empty((8, mixture.shape[1])), np.empty((4, _TOP))
    for i in range(centre.shape[0]):
        r = radius[i]
        _, _, curvature = _expand(centre[i], r, mixture, levels, work)
        gamma, x, y, most = work[3], work[4], work[5], work[6]
        q, bound, a, a_bound = sums[0], sums[1], sums[2], sums[3]
        sums[:] = 0.0
        for j in range(most.shape[0]):
            if most[j] != 0.0:
                bent = abs(y[j])
                steep = abs(x[j]) + bent
                _add_derivatives(-x[j], -y[j], gamma[j], q)
                _add_derivatives(steep, bent, most[j], bound)
                _add_derivatives(-x[j], -y[j], gamma[j] * y[j], a)
                _add_derivatives(steep, bent, most[j] * bent, a_bound)
        bound[1] = bound[2]
        for n in range(1, _TOP):
            for k in range(n):
                a[n] -= _WAYS[n, k] * a[k] * q[n - k]
                a_bound[n] += _WAYS[n, k] * a_bound[k] * bound[n - k]
        bend = curvature * r * r
        for n in range(ORDER + 1):
            rows[n, i] = ((bend if n == 0 else 0.0) + a[n] / _FACTORIALS[n]) / (r * r)
        rows[ORDER + 1, i] = a_bound[ORDER + 1] / (r * r)
        rows[ORDER + 2, i] = max(bend - a_bound[1], scale * scale * r * r) / (r * r)
    return rows

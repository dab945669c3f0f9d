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
from swsmix.tables.numba_loops import compiled, inlined
from swsmix.tables.taylor import MAX_INTERVALS, ORDER, Ends, Intervals

_TOP = ORDER + 2  # derivatives 0 .. ORDER + 1
_FACTORIALS = np.array([float(math.factorial(n)) for n in range(_TOP)])
_WAYS = np.array([[float(math.comb(n, k)) for k in range(_TOP)] for n in range(_TOP)])
_LEAST = -746.0  # exp of less is zero
_FIELDS = 8 + ORDER + 1  # of an interval; see `_certify`
_STACK = 1024  # an interval has at most 16 parts, and is split at most 22 times


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
    parts = (mixture.level, mixture.mean, mixture.std, mixture.precision)
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


@compiled
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


@compiled
def _expand(w, radius, mixture, levels, work):
    """f, f' and a at a centre; then for each component that can be responsible on the interval:

    slope and bend in units of the radius, gamma, its bound `most`, and the rounding of log gamma,
    in the first rows of `work`. Also how many components these are.
    """
    _, mean, std, precision = mixture
    z, odds, slope = work[0], work[1], work[2]
    num, top, near = z.shape[0], -np.inf, 0
    for j in range(num):
        z[j] = (w - mean[j]) / std[j]
        odds[j] = mixture[0, j] - 0.5 * z[j] * z[j]
    for j in range(num):
        if odds[j] > top:
            top, near = odds[j], j
    if top < FAR:
        _compare_far(w, z, odds, mixture)
        top = -np.inf
        for j in range(num):
            if odds[j] > top:
                top, near = odds[j], j
    total = 0.0
    for j in range(num):
        odds[j] -= top
        work[3, j] = math.exp(odds[j]) if odds[j] > _LEAST else 0.0
        total += work[3, j]
    log_total = math.log(total)
    value = 0.5 * z[near] * z[near] - mixture[0, near] + LOG_SQRT_2PI - log_total
    gradient = curvature = pull = 0.0
    # Each component's own f' as a difference to the nearest one's, and in parts that do not cancel
    # far out; the smaller is exact.
    offset, z_r, inverse_r = w - mean[near], z[near], 1 / std[near]
    pull_r = z_r * inverse_r
    for j in range(num):
        inverse = 1 / std[j]
        one = offset * ((std[near] - std[j]) * inverse * inverse_r) * (inverse + inverse_r)
        other = (mean[near] - mean[j]) * inverse * inverse
        mine = z[j] * inverse
        parts, whole = abs(one) + abs(other), abs(mine) + abs(pull_r)
        slope[j] = one + other if parts < whole else mine - pull_r
        gamma = work[3, j] / total
        work[3, j] = gamma
        gradient += gamma * mine
        curvature += gamma * precision[j]
        pull += gamma * slope[j]
    live = 0
    for j in range(num):
        x, y = (slope[j] - pull) * radius, (precision[j] - curvature) * radius * radius
        steep = abs(x)
        t = 1.0  # where the exponent peaks
        if steep + 1e-300 < y:
            t = (steep + 1e-300) / y
        exponent = odds[j] - log_total + t * (steep - 0.5 * y * t)
        if exponent < _LEAST:
            continue
        one = offset * ((std[near] - std[j]) / std[j] * inverse_r)
        other = (mean[near] - mean[j]) / std[j]
        whole = abs(z[j]) + abs(z_r)
        noise = z[j] * z[j] + z_r * z_r
        if value > -FAR:
            noise = min(abs(one) + abs(other), whole) * whole
        work[4, live], work[5, live], work[6, live] = x, y, work[3, j]
        work[7, live] = math.exp(min(exponent, 500.0))
        work[8, live] = 2.0**-50 * (0.5 * noise + levels)
        live += 1
    return value, gradient, curvature, live


@inlined
def _add_derivatives(x, y, weight, sums):
    """Add weight h_n to each sum, h_n the n-th derivative of exp(x t + y t^2 / 2) at 0."""
    before, now = weight, weight * x
    sums[0] += before
    sums[1] += now
    for n in range(1, ORDER + 1):
        before, now = now, x * now + n * y * before
        sums[n + 1] += now


@compiled
def _certify(mixture, levels, scale, inner, outer, sign, work, sums, out):
    """The fields of one interval, in `out`: as in `Intervals`, with the polynomial last.

    Also its bounds: `rest`, what it is measured by, and `noise`.
    """
    centre, r = sign * (inner + outer) / 2, (outer - inner) / 2
    value, gradient, curvature, live = _expand(centre, r, mixture, levels, work)
    q, bound, log, log_bound = sums[0], sums[1], sums[2], sums[3]
    q[:] = 0.0
    bound[:] = 0.0
    for i in range(live):
        x, y = work[4, i], work[5, i]
        steep, bent = abs(x), abs(y)
        _add_derivatives(-x, -y, work[6, i], q)
        _add_derivatives(steep + bent, bent, work[7, i], bound)
    # Cumulants from moments, as in `taylor.certified`: those of the bounds are negated, so that
    # all terms add up.
    q[1], bound[1] = 0.0, bound[2]
    for n in range(1, _TOP):
        log[n], log_bound[n] = q[n], bound[n]
        if n > 2:
            for k in range(1, n):
                log[n] -= _WAYS[n - 1, k - 1] * log[k] * q[n - k]
                log_bound[n] += _WAYS[n - 1, k - 1] * log_bound[k] * bound[n - k]
    bend = curvature * r * r
    second = bend + bound[2]
    swing = noise = 0.0
    for i in range(live):
        steep, bent = abs(work[4, i]), abs(work[5, i])
        swing += work[7, i] * bent * (steep + bent + bound[1])
        noise += work[7, i] * (steep + bent) * work[8, i]
    floor = math.sqrt(max((bend - swing) / (r * r), scale * scale))
    floor += max(abs(gradient) - second / r, 0.0)
    size = 1.0 + max(abs(value) - abs(gradient * r) - second, 0.0)
    noise = noise / r / floor
    rest = log_bound[ORDER + 1]
    out[0], out[1], out[2], out[3] = centre, r, bend, rest
    out[4], out[5], out[6], out[7] = second, floor, size, noise
    out[8], out[9] = value, gradient * r
    for n in range(2, ORDER + 1):
        out[8 + n] = ((bend if n == 2 else 0.0) - log[n]) / _FACTORIALS[n]
    return rest / min(r * floor / (ORDER + 1), size), noise


@inlined
def _float_of(bits):
    return np.float64(np.int32(bits).view(np.float32))


@compiled
def _split(
    mixture, levels, scale, tolerance, starts, widths, signs, unit, begin, smallest
):  # fmt: skip
    """Start, width and sign of the intervals, and their fields; none if they are too many."""
    room, used = 2048, 0
    where, found = np.empty((3, room), np.int64), np.empty((_FIELDS, room))
    work, sums, out = np.empty((9, mixture.shape[1])), np.empty((4, _TOP)), np.empty(_FIELDS)
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


@compiled
def _curvature(mixture, levels, scale, centre, radius):
    """The rows that `taylor.curvature` returns (ORDER + 3, t)."""
    rows = np.empty((ORDER + 3, centre.shape[0]))
    work, sums = np.empty((9, mixture.shape[1])), np.empty((4, _TOP))
    for i in range(centre.shape[0]):
        r = radius[i]
        _, _, curvature, live = _expand(centre[i], r, mixture, levels, work)
        q, bound, a, a_bound = sums[0], sums[1], sums[2], sums[3]
        sums[:] = 0.0
        for j in range(live):
            x, y, gamma, most = work[4, j], work[5, j], work[6, j], work[7, j]
            steep, bent = abs(x), abs(y)
            _add_derivatives(-x, -y, gamma, q)
            _add_derivatives(steep + bent, bent, most, bound)
            _add_derivatives(-x, -y, gamma * y, a)
            _add_derivatives(steep + bent, bent, most * bent, a_bound)
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

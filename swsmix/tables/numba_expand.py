"""The mixture around many centres at once, compiled by numba (if it is installed).

The formulas of `ExactMixture.around` and `taylor`, for a block of intervals: one to a lane, so that
the processor takes several at a time whatever the number of components. Components of mixing 0 are
left out. Stds lie between 1e-18 and 1e18 and centres within float32, so that no z overflows.
"""

from __future__ import annotations

import math

import numpy as np

from swsmix._log_odds import FAR, LOG_SQRT_2PI
from swsmix.tables import recursions
from swsmix.tables.numba_compiled import compiled, fused, part
from swsmix.tables.numba_exp import exp
from swsmix.tables.taylor import ORDER

LANES = 32  # intervals in a block
TOP = ORDER + 2  # derivatives 0 .. ORDER + 1
_derivatives = part(recursions.derivatives)
# Rows of the mixture's parameters.
_LEVEL, MEAN, _STD, _INVERSE, _PRECISION = range(5)
# Where the numbers of a block lie, a lane after the other, in `work` (for each component) and in
# `lanes`: one array for many rows, since the compiler must know that they do not overlap.
_Z, _ODDS, _SLOPE, GAMMA, X, Y, MOST = range(0, 7 * LANES, LANES)
_ROW = 7 * LANES
(
    CENTRE, RADIUS, VALUE, GRADIENT, CURVATURE, SWING, BENT, ROUNDING,
    _HIGHEST, _MEAN, _STD_THERE, _INVERSE_THERE, _Z_THERE, _TOTAL, _LOG_TOTAL, _PULL,
) = range(0, 16 * LANES, LANES)  # fmt: skip


@compiled
def memory(mixture):
    """An even number of components, the last of mixing 0 if need be, and memory for `expand`.

    That is `work` (k, 7 LANES) and `lanes` (16 LANES,).
    """
    k = mixture.shape[1]
    even = np.empty((5, k + k % 2))
    even[:, -1] = mixture[:, 0]
    even[_LEVEL, -1] = -np.inf
    even[:, :k] = mixture
    return even, np.empty((k + k % 2, _ROW)), np.empty(16 * LANES)


@compiled
def _beyond(w, j, r, work, mixture, lane):
    """The log of pi_j N_j relative to the component r, far out; see `_log_odds`."""
    mean_r, std_r, std = mixture[MEAN, r], mixture[_STD, r], mixture[_STD, j]
    one = (w - mean_r) * ((std_r - std) / std_r) / std
    other = (mean_r - mixture[MEAN, j]) / std
    z, z_r = work[j, _Z + lane], work[r, _Z + lane]
    gap = z - z_r
    if abs(one) + abs(other) <= abs(z) + abs(z_r):
        gap = one + other
    return mixture[_LEVEL, j] - max(0.5 * gap * (z + z_r), -1e300)


@compiled
def _compare_far(w, work, mixture, lane):
    """The odds far out, where the squares of z lose their differences; see `_log_odds`.

    Returns:
        The largest.
    """
    r, closest, components = 0, np.inf, work.shape[0]
    for j in range(components):
        if mixture[_LEVEL, j] > -np.inf and abs(work[j, _Z + lane]) < closest:
            r, closest = j, abs(work[j, _Z + lane])
    for _ in range(2):
        best = r
        for j in range(components):
            work[j, _ODDS + lane] = _beyond(w, j, r, work, mixture, lane)
        for j in range(components):
            best = j if work[j, _ODDS + lane] > work[best, _ODDS + lane] else best
        if best == r:
            break
        r = best
    top = work[0, _ODDS + lane]
    for j in range(components):
        top = max(top, work[j, _ODDS + lane])
    return top


# Each of these loops is over the lanes, for two components: what they share is read once.


@part
def _component(mixture, j):
    return (
        mixture[_LEVEL, j], mixture[MEAN, j], mixture[_STD, j], mixture[_INVERSE, j],
        mixture[_PRECISION, j],
    )  # fmt: skip


@part
def _odds(row, i, centre, component):
    level, mean, std, _, _ = component
    z = (centre - mean) / std
    row[_Z + i], row[_ODDS + i] = z, level - 0.5 * z * z
    return row[_ODDS + i]


@fused
def _standardise(pair, lanes, one, other):
    for i in range(LANES):
        centre = lanes[CENTRE + i]
        odds, more = _odds(pair, i, centre, one), _odds(pair, i + _ROW, centre, other)
        odds = more if more > odds else odds
        lanes[_HIGHEST + i] = odds if odds > lanes[_HIGHEST + i] else lanes[_HIGHEST + i]


@part
def _gamma(row, i, top):
    odds = row[_ODDS + i] - top
    gamma = exp(odds)
    row[_ODDS + i], row[GAMMA + i] = odds, gamma
    return gamma


@fused
def _exponentiate(pair, lanes):
    for i in range(LANES):
        top = lanes[_HIGHEST + i]
        gamma = _gamma(pair, i, top)
        lanes[_TOTAL + i] += gamma + _gamma(pair, i + _ROW, top)


@part
def _pulls(row, at, i, lanes, component):
    """The component's own f' as a difference to the nearest one's, and its parts of the means.

    The difference also in parts that do not cancel far out; the smaller is exact.
    """
    _, mean, std, inverse, precision = component
    inverse_r, offset = lanes[_INVERSE_THERE + i], lanes[CENTRE + i] - lanes[_MEAN + i]
    along = offset * ((lanes[_STD_THERE + i] - std) * inverse * inverse_r) * (inverse + inverse_r)
    across = (lanes[_MEAN + i] - mean) * inverse * inverse
    mine, pull_r = row[_Z + at] * inverse, lanes[_Z_THERE + i] * inverse_r
    slope = mine - pull_r
    slope = along + across if abs(along) + abs(across) < abs(mine) + abs(pull_r) else slope
    gamma = row[GAMMA + at] * lanes[_TOTAL + i]
    row[_SLOPE + at], row[GAMMA + at] = slope, gamma
    return gamma * mine, gamma * precision, gamma * slope


@fused
def _average(pair, lanes, one, other):
    for i in range(LANES):
        gradient, curvature, pull = _pulls(pair, i, i, lanes, one)
        gradient_2, curvature_2, pull_2 = _pulls(pair, i + _ROW, i, lanes, other)
        lanes[GRADIENT + i] += gradient + gradient_2
        lanes[CURVATURE + i] += curvature + curvature_2
        lanes[_PULL + i] += pull + pull_2


@part
def _bounds(row, at, i, lanes, levels, component):
    """Slope and bend in units of the radius, the bound on gamma, and what they sum up to."""
    level, mean, std, inverse, precision = component
    r, curvature = lanes[RADIUS + i], lanes[CURVATURE + i]
    x, y = (row[_SLOPE + at] - lanes[_PULL + i]) * r, (precision - curvature) * r * r
    steep, bent = abs(x), abs(y)
    peak = (steep + 1e-300) / max(y, 1e-300)  # where the exponent peaks
    t = 1.0 if peak > 1.0 else peak
    exponent = row[_ODDS + at] - lanes[_LOG_TOTAL + i] + t * (steep - 0.5 * y * t)
    # A bound is not 0, but for a component of mixing 0. Small powers of small numbers would
    # leave the normal ones, which takes a hundred times as long; large ones come back.
    least = -600.0 if steep + bent <= 1.0 else -708.0
    exponent = least if exponent < least else exponent  # so that NaN stays NaN
    most = exp(500.0 if exponent > 500.0 else exponent)
    most = most if level > -np.inf else 0.0
    row[X + at], row[Y + at], row[MOST + at] = x, y, most
    mean_r, std_r, z, z_r = (
        lanes[_MEAN + i], lanes[_STD_THERE + i], row[_Z + at], lanes[_Z_THERE + i]
    )  # fmt: skip
    along = (lanes[CENTRE + i] - mean_r) * ((std_r - std) * inverse * lanes[_INVERSE_THERE + i])
    across, whole = (mean_r - mean) * inverse, abs(z) + abs(z_r)
    parts = abs(along) + abs(across)
    reach = (whole if whole < parts else parts) * whole
    reach = reach if lanes[VALUE + i] > -FAR else z * z + z_r * z_r
    noise = 2.0**-50 * (0.5 * reach + levels)  # how far rounding can carry log gamma
    steep, bent = steep if most != 0.0 else 0.0, bent if most != 0.0 else 0.0
    both, part = steep + bent, most * bent
    return part * both, part, most * both * noise


@fused
def _bound(pair, lanes, levels, one, other):
    for i in range(LANES):
        swing, bent, rounding = _bounds(pair, i, i, lanes, levels, one)
        swing_2, bent_2, rounding_2 = _bounds(pair, i + _ROW, i, lanes, levels, other)
        lanes[SWING + i] += swing + swing_2
        lanes[BENT + i] += bent + bent_2
        lanes[ROUNDING + i] += rounding + rounding_2


@fused
def expand(work, lanes, mixture, levels):
    """f, f' and a at the centres; the rows of `work` then describe the components.

    They are gamma, slope and bend in units of the radius, and the bound on gamma. In `lanes`, also
    sums that bound how the curvature swings, and how far rounding can carry f'.
    """
    components = work.shape[0]
    pairs = work.reshape(components // 2, 2 * _ROW)
    for i in range(LANES):
        lanes[_HIGHEST + i] = -np.inf
        lanes[_TOTAL + i] = lanes[GRADIENT + i] = lanes[CURVATURE + i] = lanes[_PULL + i] = 0.0
        lanes[SWING + i] = lanes[BENT + i] = lanes[ROUNDING + i] = 0.0
    for j in range(0, components, 2):
        one, other = _component(mixture, j), _component(mixture, j + 1)
        _standardise(pairs[j // 2], lanes, one, other)
    for i in range(LANES):
        if lanes[_HIGHEST + i] < FAR:
            lanes[_HIGHEST + i] = _compare_far(lanes[CENTRE + i], work, mixture, i)
        near, top = 0, lanes[_HIGHEST + i]
        while near < components - 1 and work[near, _ODDS + i] < top:
            near += 1
        lanes[_MEAN + i], lanes[_STD_THERE + i] = mixture[MEAN, near], mixture[_STD, near]
        lanes[_INVERSE_THERE + i], lanes[_Z_THERE + i] = mixture[_INVERSE, near], work[near, _Z + i]
        lanes[VALUE + i] = LOG_SQRT_2PI - mixture[_LEVEL, near]
    for j in range(0, components, 2):
        _exponentiate(pairs[j // 2], lanes)
    for i in range(LANES):
        z = lanes[_Z_THERE + i]
        lanes[_LOG_TOTAL + i] = math.log(lanes[_TOTAL + i])
        lanes[_TOTAL + i] = 1.0 / lanes[_TOTAL + i]
        lanes[VALUE + i] = 0.5 * z * z + lanes[VALUE + i] - lanes[_LOG_TOTAL + i]
    for j in range(0, components, 2):
        one, other = _component(mixture, j), _component(mixture, j + 1)
        _average(pairs[j // 2], lanes, one, other)
    for j in range(0, components, 2):
        one, other = _component(mixture, j), _component(mixture, j + 1)
        _bound(pairs[j // 2], lanes, levels, one, other)


@part
def _used(weight, power):
    """Where weights underflow, powers may still overflow."""
    return power if weight != 0.0 else 0.0


@part
def _add(sums, i, h, h_2, one, other, y, y_2):
    sums[i] += h + h_2
    sums[LANES + i] += one[0] + other[0]
    sums[2 * LANES + i] += one[1] + other[1]
    sums[3 * LANES + i] += one[2] + other[2]
    sums[4 * LANES + i] += one[3] + other[3]
    sums[5 * LANES + i] += one[4] + other[4]
    sums[6 * LANES + i] += one[5] + other[5]
    sums[7 * LANES + i] += one[6] + other[6]
    sums[8 * LANES + i] += y * h + y_2 * h_2
    sums[9 * LANES + i] += y * one[0] + y_2 * other[0]
    sums[10 * LANES + i] += y * one[1] + y_2 * other[1]
    sums[11 * LANES + i] += y * one[2] + y_2 * other[2]
    sums[12 * LANES + i] += y * one[3] + y_2 * other[3]
    sums[13 * LANES + i] += y * one[4] + y_2 * other[4]
    sums[14 * LANES + i] += y * one[5] + y_2 * other[5]
    sums[15 * LANES + i] += y * one[6] + y_2 * other[6]


@fused
def _add_derivatives(pair, sums):
    for i in range(LANES):
        j = i + _ROW
        h, h_2 = pair[GAMMA + i], pair[GAMMA + j]
        y, y_2 = _used(h, pair[Y + i]), _used(h_2, pair[Y + j])
        one = _derivatives(h, _used(h, -pair[X + i]), -y)
        other = _derivatives(h_2, _used(h_2, -pair[X + j]), -y_2)
        _add(sums, i, h, h_2, one, other, y, y_2)


@fused
def _add_bounds(pair, sums):
    for i in range(LANES):
        j = i + _ROW
        h, h_2 = pair[MOST + i], pair[MOST + j]
        y, y_2 = _used(h, abs(pair[Y + i])), _used(h_2, abs(pair[Y + j]))
        one = _derivatives(h, _used(h, abs(pair[X + i])) + y, y)
        other = _derivatives(h_2, _used(h_2, abs(pair[X + j])) + y_2, y_2)
        _add(sums, i, h, h_2, one, other, y, y_2)


@compiled
def derivatives(work, exact, bound):
    """The sums of gamma h_n, h_n the n-th derivative of exp(-x t - y t^2 / 2) at 0, n = 0 .. 7.

    Then those of gamma y h_n; each has a number per lane (16 LANES,). The bounds on them are those
    of exp((|x| + |y|) t + |y| t^2 / 2), with the bound on gamma, and |y|.
    """
    exact[:], bound[:] = 0.0, 0.0
    pairs = work.reshape(work.shape[0] // 2, 2 * _ROW)
    for j in range(pairs.shape[0]):
        _add_derivatives(pairs[j], exact)
        _add_bounds(pairs[j], bound)

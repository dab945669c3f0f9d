"""How a mixture's components differ around points, as parts of a GPU's kernels.

The formulas of `exact.ExactMixture.around` and `numba_certify`, for tiles of points (lanes) and
components: nothing is kept per component, so that K is free. Each pass evaluates z and exp again.
Components of mixing 0 take no part. exp, log and log2 are those of the GPU's library, in float64:
off by one unit of the last digit, as the processor's.
"""

from __future__ import annotations

import triton.language as tl

from swsmix._log_odds import FAR, LOG_SQRT_2PI
from swsmix.tables import recursions
from swsmix.tables.triton_loops import arithmetic, compiled

COMPONENTS = 16  # of a tile
_FAR, _LOG_SQRT_2PI = tl.constexpr(FAR), tl.constexpr(LOG_SQRT_2PI)


@compiled
def component(mixture, first, k, size: tl.constexpr):
    """Level, mean and std of some components (1, size); beyond the last, of mixing 0."""
    j = first + tl.arange(0, size)
    row, there = mixture + 3 * j, j < k
    level = tl.load(row, mask=there, other=float("-inf"))
    mean = tl.load(row + 1, mask=there, other=0.0)
    std = tl.load(row + 2, mask=there, other=1.0)
    return level[None, :], mean[None, :], std[None, :]


@compiled
def at(mixture, index):
    """Level, mean and std of each lane's component (lanes, 1)."""
    row = mixture + 3 * index
    return tl.load(row)[:, None], tl.load(row + 1)[:, None], tl.load(row + 2)[:, None]


@compiled
def _beyond(w, z, level, mean, std, mean_r, std_r, z_r):
    """The log of pi_j N_j relative to a component r, far out; see `_log_odds`."""
    one, other = (w - mean_r) * ((std_r - std) / std_r) / std, (mean_r - mean) / std
    by_parts = tl.abs(one) + tl.abs(other) <= tl.abs(z) + tl.abs(z_r)
    gap = tl.where(by_parts, one + other, z - z_r)
    return level - tl.maximum(0.5 * gap * (z + z_r), -1e300)


@compiled
def _odds(w, z, level, mean, std, far, any_far, mean_r, std_r, z_r):
    """What components are compared by: log pi_j N_j or, far out, relative to a component r."""
    log_odds = level - 0.5 * z * z
    if any_far:
        log_odds = tl.where(far, _beyond(w, z, level, mean, std, mean_r, std_r, z_r), log_odds)
    return log_odds


@compiled
def _best(w, mixture, k, relative, mean_r, std_r, z_r, lanes: tl.constexpr, size: tl.constexpr):
    """The most responsible component, the first of equals, and its log odds (lanes)."""
    most = tl.full((lanes, size), float("-inf"), tl.float64)
    index = tl.zeros((lanes, size), tl.int32)
    for first in range(0, k, size):
        level, mean, std = component(mixture, first, k, size)
        z = (w - mean) / std
        log_odds = _odds(w, z, level, mean, std, relative, relative, mean_r, std_r, z_r)
        better = log_odds > most
        most = tl.where(better, log_odds, most)
        index = tl.where(better, first + tl.arange(0, size)[None, :], index)
    top = tl.max(most, 1)
    return top, tl.min(tl.where(most == top[:, None], index, 1 << 30), 1)


@compiled
def _closest(w, mixture, k, lanes: tl.constexpr, size: tl.constexpr):
    """The live component of the smallest |z|, the first of equals (lanes)."""
    least = tl.full((lanes, size), float("inf"), tl.float64)
    index = tl.zeros((lanes, size), tl.int32)
    for first in range(0, k, size):
        level, mean, std = component(mixture, first, k, size)
        away = tl.where(level > float("-inf"), tl.abs((w - mean) / std), float("inf"))
        better = away < least
        least = tl.where(better, away, least)
        index = tl.where(better, first + tl.arange(0, size)[None, :], index)
    closest = tl.min(least, 1)
    return tl.min(tl.where(least == closest[:, None], index, 1 << 30), 1)


@compiled
def _slope(w, z, mean, std, mean_r, std_r, z_r):
    """Each component's own f' as a difference to the nearest one's, exact where it is small."""
    inverse, inverse_r = 1.0 / std, 1.0 / std_r
    one = (w - mean_r) * ((std_r - std) * inverse * inverse_r) * (inverse + inverse_r)
    other = (mean_r - mean) * inverse * inverse
    mine, pull_r = z * inverse, z_r * inverse_r
    by_parts = tl.abs(one) + tl.abs(other) < tl.abs(mine) + tl.abs(pull_r)
    return tl.where(by_parts, one + other, mine - pull_r)


@compiled
def around(w, mixture, k, lanes: tl.constexpr, size: tl.constexpr):
    """f, f' and a at points w (lanes, 1), and what `terms` needs besides.

    Far out the odds are relative to a component, `base`; which points are far out, each and any.
    `near` is the nearest component, `top` its log odds, `log_total` the log of the sum of all
    relative to it, `pull` the mean of `_slope`.
    """
    nothing = tl.zeros_like(w)
    top, near = _best(w, mixture, k, False, nothing, nothing + 1.0, nothing, lanes, size)
    out = top < _FAR
    far, any_far = out[:, None], tl.max(out.to(tl.int32), 0) > 0
    base = near
    if any_far:  # relative to the closest one, then to the most responsible of those
        closest = _closest(w, mixture, k, lanes, size)
        level, mean, std = at(mixture, closest)
        most, best = _best(w, mixture, k, True, mean, std, (w - mean) / std, lanes, size)
        base = tl.where(level >= most[:, None], closest[:, None], best[:, None])
        base = tl.max(base, 1)
        level, mean, std = at(mixture, base)
        most, best = _best(w, mixture, k, True, mean, std, (w - mean) / std, lanes, size)
        top, near = tl.where(out, most, top), tl.where(out, best, near)
    top = top[:, None]
    _, mean_b, std_b = at(mixture, base)
    z_b = (w - mean_b) / std_b
    level_r, mean_r, std_r = at(mixture, near)
    z_r = (w - mean_r) / std_r
    total = tl.zeros((lanes, size), tl.float64)
    gradient, curvature, pull = total, total, total
    for first in range(0, k, size):
        level, mean, std = component(mixture, first, k, size)
        z = (w - mean) / std
        gamma = tl.exp(_odds(w, z, level, mean, std, far, any_far, mean_b, std_b, z_b) - top)
        total += gamma
        gradient += gamma * (z / std)
        curvature += gamma * (1.0 / std / std)
        pull += gamma * _slope(w, z, mean, std, mean_r, std_r, z_r)
    total = tl.sum(total, 1)[:, None]
    gradient, curvature = (
        tl.sum(gradient, 1)[:, None] / total,
        tl.sum(curvature, 1)[:, None] / total,
    )
    pull, log_total = tl.sum(pull, 1)[:, None] / total, tl.log(total)
    value = 0.5 * z_r * z_r - level_r + _LOG_SQRT_2PI - log_total
    return value, gradient, curvature, far, any_far, base, near, top, log_total, pull


@compiled
def terms(
    w, r, level, mean, std, value, curvature, far, any_far, mean_b, std_b, mean_r, std_r, top,
    log_total, pull, levels,
):  # fmt: skip
    """Of each component around points: gamma, slope and bend in units of the radius r.

    Then the most that gamma can be within it, and how far rounding can carry log gamma.
    """
    z, z_b, z_r = (w - mean) / std, (w - mean_b) / std_b, (w - mean_r) / std_r
    log_gamma = _odds(w, z, level, mean, std, far, any_far, mean_b, std_b, z_b) - top - log_total
    x = (_slope(w, z, mean, std, mean_r, std_r, z_r) - pull) * r
    y = (1.0 / std / std - curvature) * r * r
    steep = tl.abs(x)
    t = tl.minimum((steep + 1e-300) / tl.maximum(y, 1e-300), 1.0)  # where the exponent peaks
    exponent = log_gamma + t * (steep - 0.5 * y * t)
    # See `numba_certify.expand`: a bound is 0 for components of mixing 0 alone.
    least = tl.where(steep + tl.abs(y) <= 1.0, -600.0, -708.0)
    most = tl.exp(tl.minimum(tl.maximum(exponent, least), 500.0))
    most = tl.where(exponent == exponent, most, exponent)  # a NaN stays one
    most = tl.where(level == float("-inf"), 0.0, most)
    one = (w - mean_r) * ((std_r - std) / std / std_r)
    whole = tl.abs(z) + tl.abs(z_r)
    reach = tl.minimum(tl.abs(one) + tl.abs((mean_r - mean) / std), whole) * whole
    reach = tl.where(value > -_FAR, reach, z * z + z_r * z_r)
    return tl.exp(log_gamma), x, y, most, (0.5 * reach + levels) * 2.0**-50


_derivatives = arithmetic(recursions.derivatives)


@compiled
def derivatives(h, u, v):
    """Derivatives 1 .. 7 of h exp(u t + v t^2 / 2) at 0; zeros where h is 0."""
    return _derivatives(h, tl.where(h == 0.0, 0.0, u), tl.where(h == 0.0, 0.0, v))

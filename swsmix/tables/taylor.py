"""Certified Taylor polynomials of f(w) = -log p(w), interval by interval.

On an interval c + t, |t| <= r, write p(c + t) / p(c) = exp(-u t - a t^2 / 2) q(t),
q(t) = sum_j gamma_j exp(-x_j t - y_j t^2 / 2), with slopes x and bends y centred under the
responsibilities gamma at c. Jensen: q >= 1. Hence gamma_j(c + t) <= gamma_j max_t exp(-x_j t -
y_j t^2 / 2), which bounds every derivative of f on the *whole* interval, so that no spike
hides between probes. Intervals are split until their polynomial is certified.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.exact import Bends, Evaluation, ExactMixture

ORDER = 6  # the highest derivative of f that an interval's polynomial carries
MAX_INTERVALS = 1 << 15  # a harder mixture is evaluated directly


class Ends(NamedTuple):
    """Where intervals lie: named by the bits of floats or, with a unit, by numbers on a grid."""

    unit: float = 0.0
    begin: float = 0.0  # the magnitude of the grid's number 1

    def of(self, start: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest magnitude of the intervals."""
        if self.unit:
            inner = (start.double() - 1) * self.unit + self.begin
            return inner, inner + width * self.unit
        inner, outer = torch.stack([start, start + width - 1]).int().view(torch.float32).double()
        return inner, outer


class Intervals(NamedTuple):
    """Taylor polynomials of f in s = (w - centre) / radius, and certified bounds."""

    start: Tensor  # magnitude bits of the first float (t,)
    width: Tensor  # how many floats (t,)
    sign: Tensor  # of its floats, 1 or -1 (t,)
    centre: Tensor  # c (t,)
    radius: Tensor  # r (t,)
    bend: Tensor  # a r^2 at the centre (t,)
    taylor: Tensor  # f^(n) r^n / n!, n = 0 .. ORDER (ORDER + 1, t)
    rest: Tensor  # bound on |f^(ORDER + 1)| r^(ORDER + 1) (t,); infinite: uncertified
    second: Tensor  # bound on |f''| r^2 (t,)
    floor: Tensor  # lower bound of |f'| + sqrt(a) (t,)
    size: Tensor  # lower bound of 1 + |f| (t,)
    noise: Tensor  # how far rounding can carry f', relative to the floor (t,)


def exponential_derivatives(x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
    """The sums of weight_j h_n, h_n the n-th derivative of exp(x_j t + y_j t^2 / 2) at 0."""
    before, now, sums = torch.ones_like(x), x, [weight.sum(1), (weight * x).sum(1)]
    for n in range(1, ORDER + 1):
        before, now = now, torch.addcmul(x * now, y, before, value=n)
        sums.append((weight * now).sum(1))
    return sums


def _bounded(
    p: Evaluation, bends: Bends, r: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Slopes and bends in units of the radius, their magnitudes, and the bound on gamma (t, k)."""
    x, y = bends.slope * r, bends.bend * r * r
    steep, bent = x.abs(), y.abs()
    t = ((steep + 1e-300) / y.clamp_min(1e-300)).clamp_max_(1.0)  # where the exponent peaks
    most = (p.log_gamma + t * (steep - 0.5 * y * t)).clamp_max_(500.0).exp_()
    for each in (x, y, steep, bent):  # where gamma underflows, powers may still overflow
        each.masked_fill_(most == 0, 0.0)
    return x, y, steep, bent, most


def certified(
    mixture: ExactMixture, start: Tensor, width: Tensor, sign: Tensor, ends: Ends
) -> Intervals:
    """The polynomials of intervals, and their bounds, in the order given."""
    inner, outer = ends.of(start, width)
    centre, radius = sign * (inner + outer) / 2, (outer - inner) / 2
    p = mixture.at(centre)
    bends = mixture.bends(centre, p)
    x, y, steep, bent, most = _bounded(p, bends, radius[:, None])
    pairs = (-x, steep + bent), (-y, bent), (p.log_gamma.exp(), most)
    sums = exponential_derivatives(*(torch.cat(pair) for pair in pairs))
    # One recursion gives cumulants from moments: those of q exactly, and their bounds from bounds
    # (negated, so that all terms add up). The first cumulant is zero at the centre: inside, the
    # second one's bound is one for it too.
    exact = len(centre)  # columns; the bounds follow
    q = torch.stack(sums)
    q[:, exact:].neg_()
    q[1, :exact], q[1, exact:] = 0.0, q[2, exact:]
    log = q.clone()
    for n in range(3, ORDER + 2):
        ways = q.new_tensor([math.comb(n - 1, k - 1) for k in range(1, n)])
        log[n] -= ways @ (log[1:n] * q[1:n].flip(0))
    taylor = -log[: ORDER + 1, :exact]
    taylor[0], taylor[1], bend = p.value, p.gradient * radius, p.curvature * radius**2
    taylor[2] += bend
    taylor /= q.new_tensor([math.factorial(n) for n in range(ORDER + 1)])[:, None]
    bound = -q[:3, exact:]
    second = bend + bound[2]
    swing = (most * bent * (steep + bent + bound[1][:, None])).sum(1)
    floor = ((bend - swing) / radius**2).clamp_min(mixture.scale**2).sqrt()
    floor = floor + (p.gradient.abs() - second / radius).clamp_min(0.0)
    size = 1 + (p.value.abs() - taylor[1].abs() - second).clamp_min(0.0)
    # Rounding acts as if each mixing proportion were off by a factor exp(noise).
    noise = (most * (steep + bent) * bends.noise).sum(1) / radius / floor
    rest = -log[-1, exact:]
    return Intervals(
        start, width, sign, centre, radius, bend, taylor, rest, second, floor, size, noise
    )


def _joined(parts: list[Intervals]) -> Intervals:
    if len(parts) == 1:
        return parts[0]
    return Intervals(*(torch.cat(each, -1) for each in zip(*parts, strict=True)))


def _chosen(intervals: Intervals, which: Tensor) -> Intervals:
    return Intervals(*(each.index_select(-1, which) for each in intervals))


def ranges(number: Tensor) -> tuple[Tensor, Tensor]:
    """0 .. number[i] - 1 for each i, in one vector, and the i of each entry."""
    owner = torch.arange(len(number), dtype=torch.int64, device=number.device)
    owner = owner.repeat_interleave(number)
    first = (number.cumsum(0) - number).index_select(0, owner)
    return torch.arange(len(owner), dtype=torch.int64, device=number.device) - first, owner


def curvature(mixture: ExactMixture, intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    """The polynomials of a(w) = sum_j gamma_j / sigma_j^2 in the same intervals.

    They are a^(n) r^n / n! for n = 0 .. ORDER (ORDER + 1, t). With them a bound on
    |a^(ORDER + 1)| r^(ORDER + 1) (t,), and a lower bound of a (t,).
    """
    if compiled := backends.numba_certify():
        found: tuple[Tensor, Tensor, Tensor] = compiled.curvature(mixture, intervals)
        return found
    rows = []
    for part, p in mixture.chunks(intervals.centre):
        radius = intervals.radius[part]
        bends = mixture.bends(intervals.centre[part], p)
        x, y, steep, bent, most = _bounded(p, bends, radius[:, None])
        pairs = (-x, steep + bent), (-y, bent), (p.log_gamma.exp(), most)
        slope, bend, gamma = (torch.cat(pair) for pair in pairs)
        exact = len(radius)  # columns; the bounds follow
        q = torch.stack(exponential_derivatives(slope, bend, gamma))
        weight = gamma * torch.cat([y, bent])
        a = torch.stack(exponential_derivatives(slope, bend, weight))
        q[1, exact:] = q[2, exact:]
        q[:, exact:].neg_()  # so that all terms of the bounds add up
        for n in range(1, ORDER + 2):
            ways = q.new_tensor([math.comb(n, k) for k in range(n)])
            a[n] -= ways @ (a[:n] * q[1 : n + 1].flip(0))
        factorials = q.new_tensor([math.factorial(n) for n in range(ORDER + 1)])
        taylor, bound = a[: ORDER + 1, :exact] / factorials[:, None], a[:, exact:]
        taylor[0] += intervals.bend[part]
        low = torch.maximum(intervals.bend[part] - bound[1], mixture.scale**2 * radius**2)
        rows.append(torch.cat([taylor, bound[-1:], low[None]]))
    all_rows = torch.cat(rows, 1)
    all_rows /= intervals.radius**2
    return all_rows[:-2], all_rows[-2], all_rows[-1]


def split(
    mixture: ExactMixture,
    tolerance: float,
    start: Tensor,
    width: Tensor,
    sign: Tensor,
    *,
    ends: Ends,
    smallest: int,
) -> Intervals | None:
    """Split intervals until their bounds are an eighth of the tolerance; compiled where possible.

    The further a bound misses, the more parts. Those that miss at the smallest width stay
    uncertified (infinite `rest`). The interval that starts at 0 is never split.

    Returns:
        The intervals, negative before positive ones, each by start, or None if there are too many.
    """
    if compiled := backends.numba_certify():
        found: Intervals | None = compiled.split(
            mixture, tolerance, start, width, sign, ends, smallest
        )
        return found
    done: list[Intervals] = []
    while len(start):
        if len(start) + sum(len(each.start) for each in done) > MAX_INTERVALS:
            return None
        batches = zip(*(each.split(mixture.rows) for each in (start, width, sign)), strict=True)
        tried = _joined([certified(mixture, s, n, sides, ends) for s, n, sides in batches])
        slack = tolerance / 8 * math.factorial(ORDER + 1)
        allowed = torch.minimum(tried.radius * tried.floor / (ORDER + 1), tried.size)
        excess = torch.maximum(tried.rest / allowed / slack, tried.noise / (tolerance / 16))
        good = excess <= 1
        last = good | (width <= smallest) | (start == 0)
        tried.rest[~good & last] = math.inf
        done.append(_chosen(tried, last.nonzero()[:, 0]))
        rest = (~last).nonzero()[:, 0]
        start, width, sign, excess = (each[rest] for each in (start, width, sign, excess))
        power = excess.nan_to_num(math.inf, math.inf).log2().div(ORDER).ceil().clamp(1, 4).long()
        parts = torch.minimum(1 << power, width // smallest)
        index, owner = ranges(parts)
        width = (width // parts)[owner]
        start, sign = start[owner] + index * width, sign[owner]
    joined = _joined(done)
    return _chosen(joined, (joined.start + (joined.sign > 0) * (1 << 31)).argsort())

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
from swsmix.tables.exact import Around, ExactMixture

ORDER = 6  # the highest derivative of f that an interval's polynomial carries
MAX_INTERVALS = 1 << 15  # a harder mixture is evaluated directly


def ends(start: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest magnitude of intervals of floats."""
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
    curved: Tensor | None = None  # what `curvature` gives, if it is known (ORDER + 3, t)


FACTORIALS = torch.tensor(
    [float(math.factorial(n)) for n in range(ORDER + 2)], dtype=torch.float64, device="cpu"
)


def exponential_derivatives(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Terms weight h_n, n = 0 .. ORDER + 1; h_n is exp(x t + y t^2 / 2)'s n-th derivative at 0."""
    rows = weight.new_empty(ORDER + 2, *weight.shape)
    rows[0] = weight
    torch.mul(weight, x, out=rows[1])
    for n in range(1, ORDER + 1):
        torch.mul(x, rows[n], out=rows[n + 1]).addcmul_(y, rows[n - 1], value=n)
    return rows


class _Bounded(NamedTuple):
    """Of each component (k, t): slope and bend in units of the radius, and bounds over all of it.

    Both in one tensor (k, 2 t): what is exact at the centre in the first half, bounds in the other.
    """

    slope: Tensor  # of the exponent: -x, then |x| + |y|
    bend: Tensor  # of the exponent: -y, then |y|
    weight: Tensor  # gamma, then the most that it can be
    half: int  # t

    def sums(self, weight: Tensor) -> Tensor:
        """The sums over the components of weight h_n (ORDER + 2, 2 t)."""
        return exponential_derivatives(self.slope, self.bend, weight).sum(1)


def _bounded(p: Around, r: Tensor) -> _Bounded:
    x, y = p.slope * r, p.bend * (r * r)
    steep, bent = x.abs(), y.abs()
    t = (steep + 1e-300).div_(y.clamp_min(1e-300)).clamp_max_(1.0)  # where the exponent peaks
    most = torch.addcmul(steep, y, t, value=-0.5).mul_(t).add_(p.log_gamma)
    most.clamp_max_(500.0).exp_()
    if bool((gone := most == 0).any()):  # where gamma underflows, powers may still overflow
        for each in (x, y, steep, bent):
            each.masked_fill_(gone, 0.0)
    slope, bend = torch.cat([x.neg_(), steep.add_(bent)], 1), torch.cat([y.neg_(), bent], 1)
    return _Bounded(slope, bend, torch.cat([p.gamma, most], 1), len(r))


def _ways(n: int) -> Tensor:
    """The binomial coefficients n over k for k = 0 .. n - 1."""
    ways = [float(math.comb(n, k)) for k in range(n)]
    return torch.tensor(ways, dtype=torch.float64, device="cpu")


_WAYS = [_ways(n) for n in range(ORDER + 2)]


def certified(mixture: ExactMixture, start: Tensor, width: Tensor, sign: Tensor) -> Intervals:
    """The polynomials of intervals, and their bounds, in the order given."""
    inner, outer = ends(start, width)
    centre, radius = sign * (inner + outer) / 2, (outer - inner) / 2
    p = mixture.around(centre)
    b = _bounded(p, radius)
    # One recursion gives cumulants from moments: those of q exactly, and their bounds from bounds
    # (negated, so that all terms add up). The first cumulant is zero at the centre: inside, the
    # second one's bound is one for it too.
    q, exact = b.sums(b.weight), b.half  # columns; the bounds follow
    q[:, exact:].neg_()
    q[1, :exact], q[1, exact:] = 0.0, q[2, exact:]
    log, back = q.clone(), q.flip(0)
    for n in range(3, ORDER + 2):
        log[n] -= _WAYS[n - 1] @ (log[1:n] * back[ORDER + 2 - n : ORDER + 1])
    taylor = -log[: ORDER + 1, :exact]
    bend = p.curvature * radius**2
    taylor[0], taylor[1] = p.value, p.gradient * radius
    taylor[2] += bend
    taylor /= FACTORIALS[:-1, None]
    bound = -q[:3, exact:]
    second = bend + bound[2]
    steep, bent, most = b.slope[:, exact:], b.bend[:, exact:], b.weight[:, exact:]
    pull = most * steep
    swing = (pull.add(most * bound[1])).mul_(bent).sum(0)
    floor = ((bend - swing) / radius**2).clamp_min(mixture.scale**2).sqrt()
    floor = floor + (p.gradient.abs() - second / radius).clamp_min(0.0)
    size = 1 + (p.value.abs() - taylor[1].abs() - second).clamp_min(0.0)
    # Rounding acts as if each mixing proportion were off by a factor exp(noise).
    noise = pull.mul_(p.noise).sum(0) / radius / floor
    rest = -log[-1, exact:]
    return Intervals(
        start, width, sign, centre, radius, bend, taylor, rest, second, floor, size, noise
    )


def _joined(parts: list[Intervals]) -> Intervals:
    if len(parts) == 1:
        return parts[0]
    return Intervals(
        *(torch.cat(each, -1) for each in zip(*(part[:-1] for part in parts), strict=True))
    )


def _chosen(intervals: Intervals, which: Tensor) -> Intervals:
    return Intervals(*(each.index_select(-1, which) for each in intervals[:-1]))


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
    if (found := intervals.curved) is not None:
        return found[:-2], found[-2], found[-1]
    rows = []
    for centre, radius, middle in zip(
        *(
            each.split(mixture.rows)
            for each in (intervals.centre, intervals.radius, intervals.bend)
        ),
        strict=True,
    ):
        b = _bounded(mixture.around(centre), radius)
        exact = b.half  # columns; the bounds follow
        q = b.sums(b.weight)
        weight = b.weight * b.bend
        weight[:, :exact].neg_()
        a = b.sums(weight)
        q[1, exact:] = q[2, exact:]
        q[:, exact:].neg_()  # so that all terms of the bounds add up
        back = q.flip(0)
        for n in range(1, ORDER + 2):
            a[n] -= _WAYS[n] @ (a[:n] * back[ORDER + 1 - n : ORDER + 1])
        taylor = a[: ORDER + 1, :exact] / FACTORIALS[:-1, None]
        taylor[0] += middle
        low = torch.maximum(middle - a[1, exact:], mixture.scale**2 * radius**2)
        rows.append(torch.cat([taylor, a[-1:, exact:], low[None]]))
    all_rows = torch.cat(rows, 1)
    all_rows /= intervals.radius**2
    return all_rows[:-2], all_rows[-2], all_rows[-1]


def split(
    mixture: ExactMixture,
    tolerance: float,
    start: Tensor,
    width: Tensor,
    sign: Tensor,
    smallest: int,
) -> Intervals | None:
    """Split intervals until their bounds are an eighth of the tolerance; compiled where possible.

    The further a bound misses, the more parts. Those that miss at the smallest width stay
    uncertified (infinite `rest`). The interval that starts at 0 is never split.

    Returns:
        The intervals, negative before positive ones, each by start, or None if there are too many.
    """
    if compiled := backends.numba_certify():
        found: Intervals | None = compiled.split(mixture, tolerance, start, width, sign, smallest)
        return found
    every: list[Intervals] = []
    kept: list[Tensor] = []
    total = 0  # of those that are kept
    while len(start):
        if len(start) + total > MAX_INTERVALS:
            return None
        batches = zip(*(each.split(mixture.rows) for each in (start, width, sign)), strict=True)
        tried = _joined([certified(mixture, s, n, sides) for s, n, sides in batches])
        slack = tolerance / 8 * math.factorial(ORDER + 1)
        allowed = torch.minimum(tried.radius * tried.floor / (ORDER + 1), tried.size)
        excess = torch.maximum(tried.rest / allowed / slack, tried.noise / (tolerance / 16))
        good = excess <= 1
        last = good | (width <= smallest) | (start == 0)
        tried.rest[~good & last] = math.inf
        every.append(tried)
        kept.append(last)
        rest = (~last).nonzero()[:, 0]
        total += len(last) - len(rest)
        start, width, sign, excess = (each[rest] for each in (start, width, sign, excess))
        power = excess.nan_to_num(math.inf, math.inf).log2().div(ORDER).ceil().clamp(1, 4).long()
        parts = torch.minimum(1 << power, width // smallest)
        index, owner = ranges(parts)
        width = (width // parts)[owner]
        start, sign = start[owner] + index * width, sign[owner]
    joined, which = _joined(every), torch.cat(kept).nonzero()[:, 0]
    place = (joined.start + (joined.sign > 0) * (1 << 31)).index_select(0, which)
    return _chosen(joined, which.index_select(0, place.argsort()))

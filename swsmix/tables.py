"""The mixture's scalar functions in O(N), whatever the number of components.

The prior acts on each weight alone: f(w) = -log p(w) and f'(w) are functions of *one* real
variable. They are tabulated once per mixture and looked up once per weight.

1. **Address.** A float32 is its own address. Its upper 16 bits (a bfloat16) name a *block*, cut
   into 2^0 to 2^16 equal *cells*: log-spaced around zero, where a pruned net's spike sits, and
   down to single floats, where nothing is left to approximate.
2. **Certify.** On an interval c + t, |t| <= r, write p(c + t) / p(c) = exp(-u t - a t^2 / 2) q(t),
   q(t) = sum_j gamma_j exp(-x_j t - y_j t^2 / 2), with slopes x and bends y centred under the
   responsibilities gamma at c. Jensen: q >= 1. Hence gamma_j(c + t) <= gamma_j max_t exp(-x_j t -
   y_j t^2 / 2), which bounds every derivative of f on the *whole* interval: no spike hides
   between probes. Intervals are split until a Taylor polynomial provably holds, and a cell is a
   straight piece of one.
3. **Look up.** A weight costs one gather for its block, two for its line and a few integer
   operations, in cache-sized chunks: no memory grows with N.
4. **Count.** The value and the EM moments need only the number, the sum and the sum of squares of
   the weights in each cell: a histogram, then (intervals x K) work.

The mathematics is in float64 and log space, the arithmetic per weight in float32. Weights in 16
bits have tables of all their 65,536 values. Evaluated directly, a chunk at a time: few weights,
float64 weights, weights far beyond the mixture, weights between narrow components where f' jumps
from one float to the next, and mixtures that would need too many cells.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

CHUNK = 1 << 17  # weights at a time: their scratch stays in the cache
DIRECT = 1 << 16  # N x K up to which direct evaluation is about as fast
ORDER = 6  # the highest derivative of f that an interval's polynomial carries
MAX_INTERVALS, MAX_CELLS = 1 << 15, 1 << 21  # a harder mixture is evaluated directly
_COUNT = 38  # the bits of a sum of 2^22 numbers, below their count


P = ParamSpec("P")
T = TypeVar("T")


def _eager(method: Callable[P, T]) -> Callable[P, T]:
    """A graph break in torch.compile."""
    return cast(Callable[P, T], torch.compiler.disable(method))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Outside autograd and autocast, and in one thread.

    The precision here is explicit. Many short operations on cached chunks gain nothing from a
    second thread, but wait for it: up to a hundred times longer, when other processes hold it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _plain(method: Callable[P, T]) -> Callable[P, T]:
    """Under the conditions of `_alone`, and a graph break in torch.compile."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _alone():
            return method(*args, **kwargs)

    return _eager(wrapped)


class Error(NamedTuple):
    """Certified bounds for any finite float32 w; for `value`, on average over a cell's weights.

    |error of f'| <= gradient (|f'(w)| + sqrt(a(w)))      |error of f| <= value (1 + |f(w)|)

    sqrt(a), the local 1 / std, is the absolute floor: at a centre f' is zero.
    """

    gradient: float
    value: float


# -- direct evaluation ------------------------------------------------------------------------


class _Posterior(NamedTuple):
    """What the mixture is at some weights."""

    value: Tensor  # f = -log p (n,)
    gradient: Tensor  # f' = sum gamma (w - mu) / sigma^2 (n,)
    curvature: Tensor  # a = sum gamma / sigma^2 (n,)
    log_gamma: Tensor  # log responsibilities (n, k)
    slope: Tensor  # x: each component's own f', less their mean (n, k)
    bend: Tensor  # y: each component's own f'', less their mean (n, k)


class _Mixture:
    """The mixture in float64, relative to its widest component, so that tails do not cancel."""

    def __init__(self, mixing: Tensor, mean: Tensor, std: Tensor) -> None:
        self.mixing, self.mean, self.std = (t.detach().double() for t in (mixing, mean, std))
        scale = 1 / self.std
        log_norm = self.mixing.log() + scale.log() - 0.5 * math.log(2 * math.pi)
        widest = torch.where(self.mixing > 0, self.std, 0.0).argmax()
        self.centre, self.scale, self.log_norm = self.mean[widest], scale[widest], log_norm[widest]
        self.log_ratio, self.d_scale = log_norm - self.log_norm, scale - self.scale
        self.shift, self.d_bend = scale * (self.centre - self.mean), scale**2 - self.scale**2
        self.shift_slope, self.precision = scale * self.shift, scale**2
        self.rows = max(1, (1 << 15) // len(mixing))

    def at(self, w: Tensor) -> _Posterior:
        offset = (w.double() - self.centre)[:, None]
        z = offset * self.scale
        dz = torch.addcmul(self.shift, offset, self.d_scale)  # z_j - z of the widest
        log_gamma = torch.addcmul(self.log_ratio, dz, dz + 2 * z, value=-0.5)
        top = log_gamma.amax(1, keepdim=True)  # first: far out, log 2 would vanish beside it
        log_gamma -= top
        gamma = log_gamma.exp()
        total = gamma.sum(1, keepdim=True)
        gamma /= total
        log_gamma -= total.log()
        pull = (w.double()[:, None] - self.mean).mul_(self.precision)  # exact at the centres
        slope = torch.addcmul(self.shift_slope, offset, self.d_bend)
        mean_slope, mean_bend = (gamma * slope).sum(1, True), (gamma @ self.d_bend)[:, None]
        return _Posterior(
            (0.5 * z * z - self.log_norm - top - total.log())[:, 0],
            pull.mul_(gamma).sum(1),
            (self.scale**2 + mean_bend)[:, 0],
            log_gamma,
            slope - mean_slope,
            self.d_bend - mean_bend,
        )

    def chunks(self, w: Tensor) -> Iterator[tuple[slice, _Posterior]]:
        for start in range(0, len(w), self.rows):
            part = slice(start, start + self.rows)
            yield part, self.at(w[part])

    def slopes(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative f' and a, each (n,)."""
        out = self.mean.new_empty(2, len(w))
        for part, p in self.chunks(w):
            out[0, part], out[1, part] = p.gradient, p.curvature
        return out[0], out[1]

    def sums(self, w: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of weights (n,), each counted `mass` times."""
        mass = self.mean.new_ones(()).expand(len(w)) if mass is None else mass
        if bad := int(mass[~w.isfinite()].sum()):
            total = int(mass.sum())
            raise ValueError(f"want finite weights, got {bad} infinite or NaN ones among {total}")
        value, moments = self.mean.new_zeros(()), self.mean.new_zeros(3, len(self.mean))
        for part, p in self.chunks(w):
            terms, away = p.log_gamma.exp() * mass[part, None], w[part, None].double() - self.mean
            value += p.value @ mass[part]
            for moment in moments:
                moment += terms.sum(0)
                terms *= away
        return value, moments


# -- certified polynomials --------------------------------------------------------------------


class _Intervals(NamedTuple):
    """Taylor polynomials of f in s = (w - centre) / radius, and what is certain about them."""

    start: Tensor  # magnitude bits of the first float (t,)
    width: Tensor  # how many floats (t,)
    sign: Tensor
    centre: Tensor
    radius: Tensor
    bend: Tensor  # a r^2 at the centre (t,)
    taylor: Tensor  # f^(n) r^n / n!, n = 0 .. ORDER (ORDER + 1, t)
    rest: Tensor  # bound on |f^(ORDER + 1)| r^(ORDER + 1) (t,)
    second: Tensor  # bound on |f''| r^2 (t,)
    floor: Tensor  # lower bound of |f'| + sqrt(a) (t,)
    size: Tensor  # lower bound of 1 + |f| (t,)


def _recursion(x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
    """The sums of weight_j h_n, h_n the n-th derivative of exp(x_j t + y_j t^2 / 2) at 0."""
    before, now, sums = torch.ones_like(x), x, [weight.sum(1), (weight * x).sum(1)]
    for n in range(1, ORDER + 1):
        before, now = now, torch.addcmul(x * now, y, before, value=n)
        sums.append((weight * now).sum(1))
    return sums


def _certified(mixture: _Mixture, start: Tensor, width: Tensor, sign: Tensor) -> _Intervals:
    """The polynomials of some intervals of floats, and their bounds."""
    inner, outer = _ends(start, width)
    centre, radius = sign * (inner + outer) / 2, (outer - inner) / 2
    p, r = mixture.at(centre), radius[:, None]
    x, y = p.slope * r, p.bend * r * r
    steep, bent = x.abs(), y.abs()
    t = ((steep + 1e-300) / y.clamp_min(1e-300)).clamp_max_(1.0)  # where the exponent peaks
    most = (p.log_gamma + t * (steep - 0.5 * y * t)).clamp_max_(500.0).exp_()
    for each in (x, y, steep, bent):  # where nothing is left, powers may still overflow
        each.masked_fill_(most == 0, 0.0)
    pairs = (-x, steep + bent), (-y, bent), (p.log_gamma.exp(), most)
    sums = _recursion(*(torch.cat(pair) for pair in pairs))
    # One recursion from moments to cumulants: of q exactly, and, with -bounds for moments, of
    # -bounds. The first cumulant is zero at the centre, hence at most the second one inside.
    exact = len(centre)
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
    return _Intervals(
        start, width, sign, centre, radius, bend, taylor, -log[-1, exact:], second, floor, size
    )


def _ends(start: Tensor, width: Tensor) -> Tensor:
    """The smallest and the largest magnitude of intervals of floats (2, t)."""
    return torch.stack([start, start + width - 1]).int().view(torch.float32).double()


def _joined(parts: list[_Intervals]) -> _Intervals:
    if len(parts) == 1:
        return parts[0]
    return _Intervals(*(torch.cat(each, -1) for each in zip(*parts, strict=True)))


def _chosen(found: _Intervals, which: Tensor) -> _Intervals:
    return _Intervals(*(each.index_select(-1, which) for each in found))


def _ranges(number: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers 0 .. number[i] - 1 for each i in one row, and i beside it."""
    owner = torch.arange(len(number), device=number.device).repeat_interleave(number)
    first = (number.cumsum(0) - number).index_select(0, owner)
    return torch.arange(len(owner), device=number.device) - first, owner


def _intervals(mixture: _Mixture, tolerance: float) -> _Intervals | None:
    """The floats in intervals with their polynomials.

    They start as an interval around zero and half octaves up to 8 times the mixture's reach, and
    are split, by how far their bounds miss, until these meet an eighth of the tolerance. Those that
    do not with 64 floats left (between narrow components far apart) stay open: infinite `rest`.

    Returns:
        The intervals in the order of the cells, or None if there are too many.
    """
    alive = mixture.mixing > 0
    std, far = mixture.std[alive].min().item(), mixture.mean[alive].abs().max().item()
    reach = far + 16 * mixture.std[alive].max().item()
    # f'' is at most (far / std^2)^2 in the middle of two components: f' is constant below 2^zero.
    zero = math.frexp(std * (std / max(far, std)) ** 2)[1] + 126 - 21
    zero = min(max(zero, 1), 250)
    top = min(max(math.frexp(reach)[1] + 126 + 4, zero + 1), 255)
    halves = [0, *range(2 * zero, 2 * top + 1)]
    edges = torch.tensor(halves, device=alive.device) << 22
    start, width = edges[:-1].repeat(2), edges.diff().repeat(2)
    sign = torch.ones_like(start)
    sign[: len(sign) // 2] = -1
    done: list[_Intervals] = []
    while len(start):
        if len(start) + sum(len(each.start) for each in done) > MAX_INTERVALS:
            return None
        batches = zip(*(each.split(mixture.rows) for each in (start, width, sign)), strict=True)
        found = _joined([_certified(mixture, *batch) for batch in batches])
        slack = tolerance / 8 * math.factorial(ORDER + 1)
        room = torch.minimum(found.radius * found.floor / (ORDER + 1), found.size)
        excess = found.rest / room / slack
        good = excess <= 1
        last = good | (width <= 64) | (start == 0)
        found.rest[~good & last] = math.inf
        done.append(_chosen(found, last.nonzero()[:, 0]))
        rest = (~last).nonzero()[:, 0]
        start, width, sign, excess = (each[rest] for each in (start, width, sign, excess))
        power = excess.nan_to_num(math.inf, math.inf).log2().div(ORDER).ceil().clamp(1, 4).long()
        parts = torch.minimum(1 << power, width >> 6)
        index, owner = _ranges(parts)
        width = (width // parts)[owner]
        start, sign = start[owner] + index * width, sign[owner]
    found = _joined(done)
    return _chosen(found, (found.start + (found.sign > 0) * (1 << 31)).argsort())


# -- cells ------------------------------------------------------------------------------------


class _Cells:
    """The lines, cell by cell, and the way from a float32 to its cell.

    A float is in block (bits >> 16) + 32768. In a block of 2^(16 - shift) cells, the first of them
    `first`, its cell is first + (low >> shift) with low = bits & 65535, and f' = level + step *
    number. Its number is low or, where that would round too coarsely, low & (2^shift - 1), from
    the cell's own start. Tiny floats share one cell; so do huge ones, infinities and NaN. That one
    and open cells have level NaN, which means: directly.
    """

    def __init__(self, mixture: _Mixture, found: _Intervals, tolerance: float) -> None:
        self.mixture, self.found, device = mixture, found, found.start.device
        n = torch.arange(3, ORDER + 1, device=device)[:, None]
        third = (n * (n - 1) * (n - 2) * 1.5 ** (n - 3) * found.taylor[3:].abs()).sum(0)
        third = third + found.rest / math.factorial(ORDER - 2)
        # On an m-th part of its interval a line misses f' by line / m^2 and rounding / m.
        line = third / (2 * found.radius * found.floor)
        rounding = found.second / (found.radius * found.floor) * 2.0**-22
        need = torch.maximum((line * (1.5 / tolerance)).sqrt(), rounding * (8 / tolerance))
        need = need.clamp_min(1.0).log2().ceil().nan_to_num(0.0, 0.0, 0.0)
        # Of a whole block, counted in its interval's length, which may be shorter.
        coarse = (rounding * (1 << 16) / found.width)[found.start > 0].nan_to_num(0.0)
        self.whole = bool(coarse.max() <= tolerance / 8)
        shift = found.width.double().log2().floor() - need
        self.open = found.rest.isinf() | (shift < 2)
        shift = shift.masked_fill_(self.open, 6.0).clamp_max_(16.0).long()

        # Of each sign: a block for the tiny, those that the intervals cover, one for the rest.
        low = int(found.start[found.start > 0].min()) >> 16
        number = (int((found.start + found.width).max()) >> 16) - low + 2
        block = torch.where(found.start > 0, (found.start >> 16) - low + 1, 0)
        block += (found.sign > 0) * number
        shifts = torch.full((2 * number,), 17, device=device)
        shifts.scatter_reduce_(0, block, shift, "amin")
        blocks = torch.arange(2 * number, device=device)
        shifts = shifts[torch.where(shifts < 17, blocks, 0).cummax(0).values]
        shifts[number - 1 :: number] = 16
        first = (1 << (16 - shifts)).cumsum(0) - (1 << (16 - shifts))
        index, home = _ranges(1 << (16 - shifts))
        self.total = len(home)
        if self.total > MAX_CELLS:
            return
        magnitude = (torch.arange(1 << 15, device=device) - (low - 1)).clamp(0, number - 1)
        packed = ((first << 5) | shifts).int()
        self.block = torch.cat([packed[magnitude], packed[magnitude + number]])

        mark = torch.zeros_like(home)
        mark[first[block] + ((found.start & 0xFFFF) >> shifts[block])] = 1
        self.owner = mark.cumsum(0) - 1
        away, width = home % number, (1 << shifts).index_select(0, home)
        begin = index * width
        inner, outer = _ends(((away + low - 1) << 16) + begin, width) * (away > 0)
        inner[home < number], outer[home < number] = -inner[home < number], -outer[home < number]
        unit = 1 / found.radius.index_select(0, self.owner)
        # In units of the interval, as is all below.
        self.inner = (inner - found.centre.index_select(0, self.owner)) * unit
        self.ulp = (outer - inner) * unit / (width - 1).clamp_min(1)
        self.middle = self.inner + self.ulp * (width - 1) / 2
        self.shut = ~(self.open.index_select(0, self.owner) | (away == number - 1))
        if self.whole:  # numbers count from the block's start
            self.inner -= self.ulp * begin
        order = torch.arange(1, ORDER + 1, device=device)[:, None]
        self.gradient = self.lines(found.taylor[1:] * order / found.radius)

        part = ((1 << shift) - 1) / (found.width - 1).clamp_min(1)
        rounding = coarse.max() if self.whole else rounding * part
        rest = found.rest / math.factorial(ORDER + 1)
        miss = line * part**2 + rounding + rest * (ORDER + 1) / found.floor / found.radius
        value = (third * part**3 + rest) / found.size
        tiny = found.start == 0  # counts as zero
        miss[tiny] = (found.second / found.radius / found.floor * 2)[tiny]
        value[tiny] = (found.taylor[1].abs() + found.second)[tiny] * 2
        most = torch.stack([miss + 2.0**-22, value])[:, ~self.open].amax(1)
        self.error = Error(*most.tolist())

    def lines(self, taylor: Tensor) -> tuple[Tensor, Tensor]:
        """Level and step of the tangents at the cells' middles of the intervals' polynomials."""
        s = self.middle
        level, slope = torch.zeros_like(s), torch.zeros_like(s)
        for row in taylor.flip(0):
            slope = torch.addcmul(level, slope, s)
            level = torch.addcmul(row.index_select(0, self.owner), level, s)
        level = (level + slope * (self.inner - s)).masked_fill_(~self.shut, math.nan)
        return level.float(), (slope * self.ulp).float()

    @functools.cached_property
    def curvature(self) -> tuple[Tensor, Tensor]:
        """The lines of a(w) = sum_j gamma_j / sigma_j^2, from its derivatives n = 0 .. ORDER."""
        rows = []
        for part, p in self.mixture.chunks(self.found.centre):
            r = self.found.radius[part, None]
            gamma = p.log_gamma.exp()
            x, y = (each.masked_fill(gamma == 0, 0.0) for each in (p.slope * r, p.bend * r * r))
            q = torch.stack(_recursion(-x, -y, gamma))
            a = torch.stack(_recursion(-x, -y, gamma * y))
            for n in range(1, ORDER + 1):
                ways = q.new_tensor([math.comb(n, k) for k in range(n)])
                a[n] -= ways @ (a[:n] * q[1 : n + 1].flip(0))
            factorials = q.new_tensor([math.factorial(n) for n in range(ORDER + 1)])
            rows.append(a[: ORDER + 1] / factorials[:, None])
        taylor = torch.cat(rows, 1)
        taylor[0] += self.found.bend
        return self.lines(taylor / self.found.radius**2)

    def room(self, w: Tensor) -> list[Tensor]:
        """Scratch memory for a chunk, reused so that it stays in the cache."""
        kinds = [torch.int32] * 4 + [torch.int64] + [torch.float32] * 4
        return [torch.empty(min(len(w), CHUNK), dtype=kind, device=w.device) for kind in kinds]

    def find(self, w: Tensor, room: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The cell of each float32 weight, and its number."""
        low, block, shift, part, cell = (each[: len(w)] for each in room[:5])
        bits = w.view(torch.int32)
        torch.bitwise_and(bits, 0xFFFF, out=low)
        torch.bitwise_right_shift(bits, 16, out=shift).add_(1 << 15)
        torch.index_select(self.block, 0, shift, out=block)
        torch.bitwise_and(block, 31, out=shift)
        torch.bitwise_right_shift(low, shift, out=part)
        cell.copy_(block.bitwise_right_shift_(5).add_(part))
        return cell, low if self.whole else low.sub_(part.bitwise_left_shift_(shift))

    def at(
        self, w: Tensor, cell: Tensor, number: Tensor, room: list[Tensor], curvature: bool = False
    ) -> list[Tensor]:
        """The derivative f' of the weights and, if asked for, a, in scratch memory."""
        count, steps, *values = (each[: len(w)] for each in room[5:])
        count.copy_(number)
        kinds = [self.gradient, self.curvature] if curvature else [self.gradient]
        for value, (level, step) in zip(values, kinds, strict=False):
            torch.index_select(level, 0, cell, out=value)
            torch.index_select(step, 0, cell, out=steps)
            value.addcmul_(steps, count)
        if bool(values[0].sum().isnan()):
            gaps = values[0].isnan().nonzero()[:, 0]
            for value, exact in zip(values, self.mixture.slopes(w[gaps]), strict=False):
                value[gaps] = exact.float()
        return values[: len(kinds)]


class _Histogram:
    """Of each cell's weights: how many, and the sums of their numbers and squares, exactly.

    The squares are those of number - 2^15: they fit into 32 bits, where arithmetic is fast.
    """

    def __init__(self, cells: _Cells, n: int) -> None:
        self.cells, self.pending = cells, 0
        self.room = torch.empty(min(n, CHUNK), dtype=torch.int64, device=cells.block.device)
        self.count, self.first, self.second, self.packed = torch.zeros(
            4, cells.total, dtype=torch.int64, device=cells.block.device
        )

    def add_(self, cell: Tensor, number: Tensor) -> None:
        if self.pending + len(cell) > 1 << 22:
            self.unpack_()
        self.pending += len(cell)
        wide = self.room[: len(cell)]
        self.packed.scatter_add_(0, cell, wide.copy_(number).add_(1 << _COUNT))
        off = number - (1 << 15)
        self.second.scatter_add_(0, cell, wide.copy_(off.mul_(off)))

    def unpack_(self) -> None:
        self.count += self.packed >> _COUNT
        self.first += self.packed & ((1 << _COUNT) - 1)
        self.packed.zero_()
        self.pending = 0

    def sums(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of the weights w, all of which have been added.

        Two points of equal mass stand for a cell's weights: same count, mean and second moment.
        gamma_j(c + t) = gamma_j exp(-x_j t - y_j t^2 / 2) / q(t), so that the moments need the sums
        of t^n / q(t) in each interval, in which the components do not appear.

        Returns:
            The value, and count, first and second.
        """
        self.unpack_()
        cells, found, mixture = self.cells, self.cells.found, self.cells.mixture
        used = (self.count * cells.shut).nonzero()[:, 0]
        raw = self.count, self.first, self.second
        count, first, second = (each.index_select(0, used).double() for each in raw)
        first /= count
        spread = (second / count - (first - (1 << 15)) ** 2).clamp_min_(0.0).sqrt_() * cells.ulp[
            used
        ]
        s = cells.inner[used] + cells.ulp[used] * first
        s, mass, owner = (
            torch.cat([s - spread, s + spread]),
            (count / 2).repeat(2),
            cells.owner[used],
        )
        busy, owner = owner.unique_consecutive(return_inverse=True)
        owner, taylor = owner.repeat(2), found.taylor[:, busy]
        rise = torch.zeros_like(s)  # f(c + t) - f(c)
        for row in taylor[1:].flip(0):
            rise = (rise + row.index_select(0, owner)) * s
        value = (rise + taylor[0].index_select(0, owner)) @ mass
        term = (rise - (taylor[1][owner] + 0.5 * found.bend[busy][owner] * s) * s).exp_() * mass
        powers = taylor.new_zeros(ORDER + 3, len(busy))
        for row in powers:
            row.index_add_(0, owner, term)
            term = term * s
        moments = taylor.new_zeros(3, len(mixture.mean))
        for part, p in mixture.chunks(found.centre[busy]):
            r, gamma = found.radius[busy][part, None], p.log_gamma.exp()
            gone = gamma < 1e-100
            x, y = (each.masked_fill_(gone, 0.0) for each in (p.slope * r, p.bend * r * r))
            sums = [torch.zeros_like(x) for _ in range(3)]
            before, now = torch.zeros_like(x), torch.ones_like(x)
            for n in range(ORDER + 1):
                for m in range(3):
                    sums[m].addcmul_(now, powers[n + m, part, None], value=1 / math.factorial(n))
                before, now = now, -torch.addcmul(x * now, y, before, value=n)
            away = found.centre[busy][part, None] - mixture.mean
            zeroth, first, second = sums[0], sums[1] * r, sums[2] * r * r
            moments[0] += (gamma * zeroth).sum(0)
            moments[1] += (gamma * (away * zeroth + first)).sum(0)
            moments[2] += (gamma * (away * (away * zeroth + 2 * first) + second)).sum(0)
        if int(self.count.sum() - self.count[used].sum()):  # somewhere a weight is not in a cell
            room = cells.room(w)
            gaps = [part[~cells.shut[cells.find(part, room)[0]]] for part in w.split(CHUNK)]
            more = mixture.sums(torch.cat(gaps))
            value, moments = value + more[0], moments + more[1]
        return value, moments


# -- the public face --------------------------------------------------------------------------


@contextlib.contextmanager
def _flat(target: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Tensors of one shape in one dimension, in the target's memory order; it may be written to."""
    strides = target.stride()
    order = sorted(range(len(strides)), key=lambda d: -strides[d])
    views = [each.detach().permute(order) for each in (target, *others)]
    flat = [view.reshape(-1) for view in views]
    yield flat
    if flat[0].data_ptr() != target.data_ptr():  # a copy, because its memory has gaps
        views[0].copy_(flat[0].view(views[0].shape))


def _all_halves(dtype: torch.dtype, device: torch.device) -> Tensor:
    """All the 65,536 values of a 16-bit type, in the order of their bits."""
    return torch.arange(1 << 16, device=device).to(torch.int16).view(dtype)


Moments = tuple[Tensor, Tensor, Tensor]  # sum_i gamma_ij (w_i - mu_j)^n, n = 0, 1, 2, each (k,)


class Full(NamedTuple):
    """All that `Tables` knows of some weights."""

    value: Tensor
    gradient: Tensor
    moments: Moments


class Tables:
    """A mixture's f(w) = -log p(w), its derivative and its EM moments, for many weights.

    Made by `build` or `direct`. Weights of any shape and memory order, in float16, bfloat16,
    float32 or float64. Where a weight is infinite or NaN, so is its gradient (NaN); sums over such
    weights are refused.

    Example:
        >>> tables = build(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.ones(2))
        >>> tables.gradient(torch.tensor([0.5, -9.0]))
        tensor([ 0.0000, -9.0001])
    """

    def __init__(self, mixture: _Mixture, tolerance: float) -> None:
        self._mixture, self._tolerance = mixture, tolerance
        self._half: dict[torch.dtype, tuple[Tensor, ...]] = {}

    @functools.cached_property
    def _cells(self) -> _Cells | None:
        if not self._tolerance:
            return None
        found = _intervals(self._mixture, self._tolerance)
        cells = None if found is None else _Cells(self._mixture, found, self._tolerance)
        return cells if cells is not None and cells.total <= MAX_CELLS else None

    @property
    @_plain
    def error(self) -> Error:
        """Certified error bounds for float32 weights; of direct evaluation, its rounding."""
        return self._cells.error if self._cells else Error(gradient=2.0**-23, value=2.0**-40)

    def _cells_for(self, w: Tensor) -> _Cells | None:
        few = w.numel() * len(self._mixture.mean) <= DIRECT
        return None if few or w.dtype != torch.float32 else self._cells

    def _slopes(
        self, w: Tensor, histogram: _Histogram | None = None, a: bool = False
    ) -> Iterator[Any]:
        """Chunk by chunk of flat weights: its place, f' and, if asked for, a."""
        cells = self._cells_for(w)
        room = cells.room(w) if cells else []
        for start in range(0, len(w), CHUNK):
            part = slice(start, start + CHUNK)
            if cells:
                found = cells.find(w[part], room)
                if histogram:
                    histogram.add_(*found)
                yield part, *cells.at(w[part], *found, room, a)
            elif w.dtype.itemsize == 2:
                bits = w[part].view(torch.uint16).long()
                yield part, *(each.index_select(0, bits) for each in self._halves(w.dtype)[: 1 + a])
            else:
                yield part, *self._mixture.slopes(w[part])[: 1 + a]

    def _halves(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The derivative f' and a of all the values of a 16-bit type, by their bits."""
        if dtype not in self._half:
            slopes = self._mixture.slopes(_all_halves(dtype, self._mixture.mean.device))
            self._half[dtype] = tuple(each.float() for each in slopes)
        return self._half[dtype]

    def _sums(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of flat weights."""
        if cells := self._cells_for(w):
            histogram, room = _Histogram(cells, len(w)), cells.room(w)
            for part in w.split(CHUNK):
                histogram.add_(*cells.find(part, room))
            return histogram.sums(w)
        if w.dtype.itemsize == 2 and len(w) > 1 << 12:
            count = torch.zeros(1 << 16, dtype=torch.int64, device=w.device)
            for part in w.split(CHUNK):
                count += torch.bincount(part.view(torch.uint16).int(), minlength=1 << 16)
            used = count.nonzero()[:, 0]
            return self._mixture.sums(_all_halves(w.dtype, w.device)[used], count[used].double())
        return self._mixture.sums(w)

    @_plain
    def value(self, w: Tensor) -> Tensor:
        """R = sum_i f(w_i), in nats.

        Returns:
            A float64 scalar.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        with _flat(w) as (flat,):
            return self._sums(flat)[0]

    @_plain
    def moments(self, w: Tensor) -> Moments:
        """The moments of the responsibilities for the weights, centred on the means.

        Returns:
            count, first and second (k,), in float64.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        with _flat(w) as (flat,):
            count, first, second = self._sums(flat)[1]
        return count, first, second

    @_plain
    def gradient(self, w: Tensor, out: Tensor | None = None) -> Tensor:
        """dR/dw_i = f'(w_i) = sum_j gamma_ij (w_i - mu_j) / sigma_j^2.

        Returns:
            The gradient, of w's shape and type, in `out` if given.
        """
        out = torch.empty_like(w, requires_grad=False) if out is None else out
        with _flat(out, w) as (target, flat):
            for part, gradient in self._slopes(flat):
                target[part].copy_(gradient)
        return out

    @_plain
    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float) -> None:
        """Add scale * dR/dw to `grad`, in place, with no memory that grows with N.

        Args:
            grad: a tensor of w's shape.
            w: the weights.
            scale: tau / num_data, as a rule.
        """
        with _flat(grad, w) as (target, flat):
            for part, gradient in self._slopes(flat):
                target[part].add_(gradient, alpha=scale)

    @_plain
    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/dw.

        Returns:
            What `value` and `gradient` return, from one pass.
        """
        value, gradient, _ = self.full(w)
        return value, gradient

    @_plain
    def full(self, w: Tensor, out: Tensor | None = None) -> Full:
        """The value, the gradient (in `out` if given) and the moments.

        Returns:
            What `value`, `gradient` and `moments` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        gradient = torch.empty_like(w, requires_grad=False) if out is None else out
        with _flat(gradient, w) as (target, flat):
            cells = self._cells_for(flat)
            histogram = _Histogram(cells, len(flat)) if cells else None
            for part, each in self._slopes(flat, histogram):
                target[part].copy_(each)
            value, moments = histogram.sums(flat) if histogram else self._sums(flat)
        return Full(value, gradient, (moments[0], moments[1], moments[2]))

    @_plain
    def proximal_(self, w: Tensor, at: Tensor, step: float | Tensor, scale: float) -> None:
        """The proximal step of EM's quadratic majoriser, stable for every sigma and step size.

            w <- (w + t b) / (1 + t a) = w + t (a (at - w) - f'(at)) / (1 + t a),  t = step * scale
            a = sum_j gamma_j / sigma_j^2,  b = sum_j gamma_j mu_j / sigma_j^2 = a at - f'(at)

        Args:
            w: the weights, changed in place.
            at: the weights whose responsibilities gamma count: w itself, or before the data step.
            step: the step size, or one for each weight.
            scale: tau / num_data, as a rule.
        """
        each = step if isinstance(step, Tensor) and step.dim() else w.new_empty(()).expand_as(w)
        with _flat(w, at, each.expand_as(w)) as (target, where, each):
            for part, gradient, a in self._slopes(where, a=True):
                t = (each[part] if isinstance(step, Tensor) and step.dim() else step) * scale
                pull = (where[part] - target[part]).to(a.dtype).mul_(a).sub_(gradient).mul_(t)
                target[part].add_(pull.div_(a.mul_(t).add_(1.0)))


def build(mixing: Tensor, mean: Tensor, std: Tensor, *, tolerance: float = 1e-5) -> Tables:
    """The tables of a mixture, made when many weights first need them.

    Args:
        mixing: pi (k,), entries may be zero.
        mean: mu (k,).
        std: sigma (k,).
        tolerance: what the certified bounds of the gradient and the value must meet.

    Returns:
        The tables, to be used until the mixture changes.

    Example:
        >>> tables = build(torch.tensor([0.9, 0.1]), torch.zeros(2), torch.tensor([1e-3, 0.1]))
        >>> tables.error.gradient < 1e-5
        True
    """
    return Tables(_Mixture(mixing, mean, std), tolerance)


def direct(mixing: Tensor, mean: Tensor, std: Tensor) -> Tables:
    """The same operations without tables: O(N K) in float64, a bounded chunk at a time.

    Args:
        mixing: pi (k,), entries may be zero.
        mean: mu (k,).
        std: sigma (k,).

    Returns:
        Exact `Tables`.
    """
    return Tables(_Mixture(mixing, mean, std), tolerance=0.0)


class _NegLogPrior(torch.autograd.Function):
    """R with its derivatives by their formulas, so that the graph holds nothing of size N x K."""

    @staticmethod
    def forward(
        ctx: Any, tables: Tables, w: Tensor, mixing: Tensor, mean: Tensor, std: Tensor
    ) -> Tensor:
        with _alone(), _flat(w) as (flat,):
            value, moments = tables._sums(flat)
        ctx.tables = tables
        ctx.save_for_backward(w, mixing, mean, std, moments)
        return value.to(torch.promote_types(w.dtype, mean.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        w, mixing, mean, std, (count, first, second) = ctx.saved_tensors
        slope = None
        if ctx.needs_input_grad[1]:
            slope = torch.zeros_like(w)
            ctx.tables.add_gradient_(slope, w, float(above))
        parts = (
            -count / torch.where(mixing > 0, mixing, math.inf).double(),
            -first / std.double() ** 2,
            count / std.double() - second / std.double() ** 3,
        )
        return None, slope, *((above * part).to(mean.dtype) for part in parts)


@_eager
def neg_log_prior(
    w: Tensor, mixing: Tensor, mean: Tensor, std: Tensor, tables: Tables | None = None
) -> Tensor:
    """R(w) = -sum_i log p(w_i), differentiable (once) in all four, without N x K memory.

        dR/dw_i = f'(w_i),  dR/dpi_j = -count_j / pi_j (0 where pi_j is),
        dR/dmu_j = -first_j / sigma_j^2,  dR/dsigma_j = count_j / sigma_j - second_j / sigma_j^3

    Args:
        w: the weights, any shape.
        mixing: pi (k,).
        mean: mu (k,).
        std: sigma (k,).
        tables: the mixture's tables, if they are at hand.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: if weights are infinite or NaN.
    """
    tables = build(mixing, mean, std) if tables is None else tables
    value: Tensor = _NegLogPrior.apply(tables, w, mixing, mean, std)  # type: ignore[no-untyped-call]
    return value

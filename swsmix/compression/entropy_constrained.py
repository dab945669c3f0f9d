"""Values for weights by rate and distortion: as many as pay for themselves.

A mixture whose components share one std s assigns a weight to the component with the least

    (w - c_j)^2 + lambda b_j,   b_j = -log2 pi_j,   lambda = 2 s^2 ln 2,

the squared error plus lambda for each bit of its code: the maximum a posteriori assignment *is*
entropy-constrained scalar quantisation (Chou, Lookabaugh & Gray 1989). lambda says what a bit is
worth; the number of values follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix._histogram import chunks
from swsmix.mixture import GaussianMixture

Array = np.ndarray[Any, np.dtype[Any]]
_FINE = 1 << 16  # cells of the histogram that stands for the weights
_SAMPLE = 1 << 14  # weights that say where most of them lie
_WIDE = 4.0  # the fine cells reach so many times beyond the range of most weights
_STEPS = 200
_STILL = 1e-7  # relative change of the cost at which the values stand still


class Histogram(NamedTuple):
    """Weights as cells that are much narrower than the distances of values.

    Attributes:
        size: how many weights each cell has (c,).
        mean: their mean (c,), ascending.
    """

    size: Float[Tensor, " c"]
    mean: Float[Tensor, " c"]

    @property
    def spread(self) -> float:
        """The largest weight less the smallest, or the magnitude of equal ones."""
        width = (self.mean[-1] - self.mean[0]).item()
        return width or self.mean[0].abs().item() or 1.0

    @property
    def zeros(self) -> float:
        """The share of weights that are exactly 0."""
        return (self.size[self.mean == 0.0].sum() / self.size.sum()).item()


def histogram(flat: Sequence[Tensor], cells: int = _FINE) -> Histogram:
    """The weights as cells, in O(N) and little memory.

    The cells are equally wide where most weights are; the few far away have cells of their own, so
    that one giant weight does not make all cells wide. Exact zeros are a cell too.

    Args:
        flat: finite weights, as vectors.
        cells: how many, in the range of most weights.

    Returns:
        The cells that have weights.

    Example:
        >>> histogram([torch.tensor([0.0, 1.0, 1.0])]).size
        tensor([1., 2.], dtype=torch.float64)
    """
    ends = [part.aminmax() for part in chunks(flat) if len(part)]
    low, high = _range_of_most(flat)
    low = max(low, min(float(end.min) for end in ends))
    high = min(high, max(float(end.max) for end in ends))
    unit = (high - low) / (cells - 1) or 1.0
    count, total = torch.zeros(2, cells, dtype=torch.float64, device="cpu")
    zeros, far = 0, []
    for part in chunks(flat):
        x = part.double()
        zeros += len(x) - int(x.count_nonzero())
        outside = (x < low) | (x > high)
        if outside.any():
            far.append(x[outside])
            x = x[~outside]
        index = x.sub(low).div_(unit).round_().long()
        count += torch.bincount(index, minlength=cells)
        total += torch.bincount(index, x, minlength=cells)
    if zeros and low <= 0.0 <= high:
        count[round(-low / unit)] -= zeros
        count, total = torch.cat([count, count.new_tensor([zeros])]), torch.cat([total, total[:1]])
        total[-1] = 0.0
    used = count > 0
    size, mean = count[used], total[used] / count[used]
    if far:
        values, numbers = torch.cat(far).unique(return_counts=True)
        size, mean = torch.cat([size, numbers.double()]), torch.cat([mean, values])
    order = mean.argsort()
    return Histogram(size[order], mean[order])


def _range_of_most(flat: Sequence[Tensor]) -> tuple[float, float]:
    """A range that is much wider than that of all but a thousandth of the weights."""
    total = sum(len(w) for w in flat)
    step = max(total // _SAMPLE, 1)
    sample = torch.cat([w[::step].cpu().double() for w in flat]).sort().values
    edge = len(sample) // 1000
    low, high = sample[edge].item(), sample[len(sample) - 1 - edge].item()
    wide = _WIDE * (high - low) if edge else 0.0
    return (low - wide, high + wide) if wide else (-math.inf, math.inf)


class Codebook(NamedTuple):
    """Values that pay for themselves.

    Attributes:
        values: c (k,), ascending, in float64.
        bits: b = -log2 of each value's share (k,).
        lam: lambda, the squared error that a bit is worth; above 0.
    """

    values: Float[Tensor, " k"]
    bits: Float[Tensor, " k"]
    lam: float

    def mixture(self) -> GaussianMixture:
        """The mixture of one std whose most responsible components are the values chosen."""
        share = torch.exp2(-self.bits)
        std = math.sqrt(self.lam / (2.0 * math.log(2.0)))
        return GaussianMixture(share / share.sum(), self.values, torch.full_like(share, std))

    def boundaries(self) -> tuple[Int[Tensor, " r"], Float[Tensor, " r_less_1"]]:
        """The values that some weight would choose, and where one takes over from the next."""
        index, cuts = boundaries_of(self.values.numpy(), self.bits.numpy(), self.lam)
        return torch.from_numpy(index), torch.from_numpy(cuts)

    def assign(self, w: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The index of the value of least squared error + lambda * bits, for each weight."""
        index, cuts = self.boundaries()
        return index[torch.bucketize(w.detach().double().cpu(), cuts)]

    def outcome(self, weights: Histogram) -> tuple[float, float]:
        """What the values make of weights: the order-0 entropy and the squared error, of all."""
        index, cuts = self.boundaries()
        cells = torch.searchsorted(cuts, weights.mean)
        n = torch.bincount(cells, weights.size, minlength=len(index))
        n = n[n > 0]
        error = weights.size @ (weights.mean - self.values[index[cells]]).square()
        return float(-(n @ (n / n.sum()).log2())) + 0.0, error.item()


def step_of(lam: float) -> float:
    """The step of a uniform grid at which a bit is worth lambda, at high rates.

    Its error is step^2 / 12, and each bit divides that by 4: lambda = (ln 2 / 6) step^2.

    Example:
        >>> round(step_of(math.log(2.0) / 6.0), 6)
        1.0
    """
    return math.sqrt(6.0 * lam / math.log(2.0))


def fit(
    weights: Histogram,
    lam: float,
    *,
    zero: bool = False,
    value_bits: float = 0.0,
    start: Codebook | None = None,
) -> Codebook:
    """The values that minimise squared error + lambda * bits, from a uniform grid.

    The grid spans all weights, so that none is clipped. Values move to the means of their weights,
    and those whose bits cost more than they save in error lose theirs and go. Where nothing moves
    any more, a value goes if the bits that this saves are worth the error that it makes.

    Args:
        weights: the weights.
        lam: lambda, the squared error that a bit is worth, in squared units of the weights.
        zero: one value is exactly 0, and stays.
        value_bits: what a value costs in the codebook, in bits.
        start: values to begin with, instead of the grid; none is added to them.

    Returns:
        The values with their code lengths under the order-0 entropy.

    Raises:
        ValueError: if lambda is not positive and finite.

    Example:
        >>> book = fit(histogram([torch.linspace(-1.0, 1.0, 10_001)]), 0.02)
        >>> book.values.round(decimals=2).tolist()
        [-0.8, -0.4, 0.0, 0.4, 0.8]
    """
    if not 0.0 < lam < math.inf:
        raise ValueError(f"lambda must be positive and finite; got {lam}")
    sums = _Sums.of(weights)
    if start is None:
        values = _grid(weights, lam)
        values = np.union1d(values, [0.0]) if zero else values
        bits = np.zeros(len(values))
    else:
        values, bits = start.values.numpy(), start.bits.numpy()
    pinned = (values == 0.0) & zero
    while True:
        values, bits, cells, pinned = _settle(sums, values, bits, pinned, lam)
        goes = _not_worth_it(sums, values, bits, cells, pinned, lam, value_bits)
        if not goes.any():
            return Codebook(torch.from_numpy(values), torch.from_numpy(bits), lam)
        values, bits, pinned = values[~goes], bits[~goes], pinned[~goes]


def _grid(weights: Histogram, lam: float) -> Array:
    """The values of a uniform grid that are the nearest to some weight."""
    mean = weights.mean.numpy()
    # No finer than the cells, nor so coarse that squares leave the doubles.
    finest = 2.0 * float(np.median(np.diff(mean))) if len(mean) > _FINE // 16 else 0.0
    finest = max(finest, 2.0**-45 * float(np.abs(mean).max()))
    step = min(max(step_of(lam), finest), 4.0 * weights.spread)
    found: Array = np.unique(np.round(mean / step) * step)
    return found


class _Sums(NamedTuple):
    """The cells' running numbers, sums and sums of squares: those of a range are differences."""

    mean: Array
    powers: Array  # (3, c + 1)

    @classmethod
    def of(cls, weights: Histogram) -> _Sums:
        size, mean = weights.size.numpy(), weights.mean.numpy()
        powers = np.zeros((3, len(mean) + 1))
        np.cumsum([size, size * mean, size * mean * mean], axis=1, out=powers[:, 1:])
        return cls(mean, powers)

    def of_ranges(self, cells: Array) -> Array:
        """Number, sum and sum of squares (3, k) of ranges of cells (2, k)."""
        found: Array = self.powers[:, cells[1]] - self.powers[:, cells[0]]
        return found


def boundaries_of(c: Array, bits: Array, lam: float) -> tuple[Array, Array]:
    """The values that are chosen, and the weights at which the next takes over.

    The costs less w^2 are straight lines in w, of slope -2 c_j: their lower envelope.
    """
    cuts = 0.5 * (c[:-1] + c[1:]) + 0.5 * lam * np.diff(bits) / np.diff(c)
    if (cuts[1:] > cuts[:-1]).all():
        return np.arange(len(c)), cuts
    value, price = c.tolist(), (0.5 * lam * bits).tolist()
    chosen: list[int] = []
    ends: list[float] = []
    for j in range(len(value)):
        while chosen:
            i = chosen[-1]
            cut = 0.5 * (value[i] + value[j]) + (price[j] - price[i]) / (value[j] - value[i])
            if not ends or cut > ends[-1]:
                ends.append(cut)
                break
            chosen.pop()
            ends.pop()
        chosen.append(j)
    return np.array(chosen), np.array(ends)


def _settle(
    sums: _Sums, values: Array, bits: Array, pinned: Array, lam: float
) -> tuple[Array, Array, Array, Array]:
    """Values and bits moved until they stand still, the range of cells (2, k) of each, pinned."""
    total, last, before = sums.powers[0, -1], math.inf, None
    for _ in range(_STEPS):
        index, cuts = boundaries_of(values, bits, lam)
        edge = np.searchsorted(sums.mean, cuts, side="right")
        cells = np.zeros((2, len(values)), np.int64)
        cells[0, index] = np.concatenate([[0], edge])
        cells[1, index] = np.concatenate([edge, [len(sums.mean)]])
        kept = (cells[1] > cells[0]) | pinned
        cells, pinned = cells[:, kept], pinned[kept]
        n, s1, s2 = sums.of_ranges(cells)
        # The mean of one cell exactly, so that weights of few values keep them.
        one = sums.mean[np.minimum(cells[0], len(sums.mean) - 1)]
        values = np.where(cells[1] - cells[0] == 1, one, s1 / np.maximum(n, 0.5))
        values = np.where(pinned, 0.0, values)
        bits = np.maximum(-np.log2(np.maximum(n, 0.5) / total), 0.0)
        if pinned.any():  # 0 stays where it is, which others may pass
            other = pinned | (values != 0.0)
            order = np.argsort(values[other], kind="stable")
            values, bits, pinned = values[other][order], bits[other][order], pinned[other][order]
            cells, n, s1, s2 = (a[..., other][..., order] for a in (cells, n, s1, s2))
        cost = float(_error(n, s1, s2, pinned).sum() + lam * (n * bits).sum())
        still = before is not None and np.array_equal(cells, before)
        if still or last - cost <= _STILL * cost:
            break
        last, before = cost, cells
    return values, bits, cells, pinned


def _error(n: Array, s1: Array, s2: Array, pinned: Array) -> Array:
    """The squared error about the mean, or about 0 where the value is pinned."""
    about: Array = s2 - np.where(pinned, 0.0, s1 * s1 / np.maximum(n, 0.5))
    return np.maximum(about, 0.0)


def _not_worth_it(
    sums: _Sums,
    values: Array,
    bits: Array,
    cells: Array,
    pinned: Array,
    lam: float,
    value_bits: float,
) -> Array:
    """Values whose cells would cost less among their neighbours; no two share a neighbour."""
    k = len(values)
    goes = np.zeros(k, bool)
    if k < 2:
        return goes
    i, j = np.maximum(np.arange(k) - 1, 0), np.minimum(np.arange(k) + 1, k - 1)
    # Where the neighbours meet if the value is gone; at the ends all goes to the only neighbour.
    gap = np.where(values[j] > values[i], values[j] - values[i], 1.0)
    cut = 0.5 * (values[i] + values[j]) + 0.5 * lam * (bits[j] - bits[i]) / gap
    meet = np.clip(np.searchsorted(sums.mean, cut, side="right"), cells[0], cells[1])
    meet[0], meet[-1] = cells[0, 0], cells[1, -1]
    old = sums.of_ranges(cells)
    left = sums.of_ranges(np.stack([cells[0], meet]))
    right = sums.of_ranges(np.stack([meet, cells[1]]))
    left[:, 0] = right[:, -1] = 0.0

    def parts(s: Array, p: Array) -> Array:
        """Squared error, less lambda * n log2 n."""
        found: Array = _error(s[0], s[1], s[2], p) - lam * s[0] * np.log2(np.maximum(s[0], 1.0))
        return found

    own = parts(old, pinned)
    merged = np.zeros(k)
    merged[1:] += (parts(old[:, i] + left, pinned[i]) - own[i])[1:]
    merged[:-1] += (parts(old[:, j] + right, pinned[j]) - own[j])[:-1]
    gain = own - merged + lam * value_bits
    gain[pinned] = -1.0
    least = 1e-13 * float(np.abs(sums.powers[2, -1])) + 1e-9 * lam
    for one in np.argsort(-gain):
        if gain[one] <= least:
            break
        goes[one] = not goes[max(one - 2, 0) : one + 3].any()
    return goes

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
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix._histogram import chunks
from swsmix.mixture import GaussianMixture

_FINE = 1 << 16  # cells of the histogram that stands for the weights
_STEPS = 60
_STILL = 1e-6  # relative change of the cost at which the values stand still


class Histogram(NamedTuple):
    """Weights as cells of one width, that is much smaller than the distances of values.

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


def histogram(flat: Sequence[Tensor], cells: int = _FINE) -> Histogram:
    """The weights as cells, in O(N) and little memory.

    Args:
        flat: finite weights, as vectors.
        cells: how many, between the smallest and the largest weight.

    Returns:
        The cells that have weights.

    Example:
        >>> histogram([torch.tensor([0.0, 1.0, 1.0])]).size
        tensor([1., 2.], dtype=torch.float64)
    """
    ends = [part.aminmax() for part in chunks(flat) if len(part)]
    low = min(float(end.min) for end in ends)
    high = max(float(end.max) for end in ends)
    unit = (high - low) / (cells - 1) or 1.0
    count, total = torch.zeros(2, cells, dtype=torch.float64, device="cpu")
    for part in chunks(flat):
        x = part.double()
        index = ((x - low) / unit).round().long()
        count += torch.bincount(index, minlength=cells)
        total += torch.bincount(index, x, minlength=cells)
    used = count > 0
    return Histogram(count[used], total[used] / count[used])


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
        """The values that some weight would choose, and where one takes over from the next.

        The costs less w^2 are straight lines in w, of slope -2 c_j: their lower envelope.
        """
        c, height = self.values.tolist(), (self.values.square() + self.lam * self.bits).tolist()
        chosen: list[int] = []
        cuts: list[float] = []
        for j in range(len(c)):
            while chosen:
                i = chosen[-1]
                cut = (height[j] - height[i]) / (2.0 * (c[j] - c[i]))
                if not cuts or cut > cuts[-1]:
                    break
                chosen.pop()
                cuts.pop()
            if chosen:
                cuts.append(cut)
            chosen.append(j)
        index = torch.tensor(chosen, dtype=torch.int64, device="cpu")
        return index, torch.tensor(cuts, dtype=torch.float64, device="cpu")

    def assign(self, w: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The index of the value of least squared error + lambda * bits, for each weight."""
        index, cuts = self.boundaries()
        return index[torch.bucketize(w.detach().double().cpu(), cuts)]


def step_of(lam: float) -> float:
    """The step of a uniform grid at which a bit is worth lambda, at high rates.

    Its error is step^2 / 12, and each bit divides that by 4: lambda = (ln 2 / 6) step^2.

    Example:
        >>> round(step_of(math.log(2.0) / 6.0), 6)
        1.0
    """
    return math.sqrt(6.0 * lam / math.log(2.0))


def fit(weights: Histogram, lam: float, *, zero: bool = False) -> Codebook:
    """The values that minimise squared error + lambda * bits, from a uniform grid.

    The grid spans all weights, so that none is clipped. Values move to the means of their weights,
    and those whose bits cost more than they save in error lose theirs and go.

    Args:
        weights: the weights.
        lam: lambda, the squared error that a bit is worth, in squared units of the weights.
        zero: one value is exactly 0, and stays.

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
    count, mean = weights
    # No finer than the cells, nor so coarse that squares leave the doubles.
    step = min(max(step_of(lam), 2.0 * weights.spread / _FINE), 4.0 * weights.spread)
    values = ((mean / step).round() * step).unique()
    if zero:
        values = torch.cat([values, values.new_zeros(1)]).unique()
    book, last = Codebook(values, torch.zeros_like(values), lam), math.inf
    for number in range(_STEPS):
        index = book.assign(mean)
        cost = float(count @ ((mean - book.values[index]).square() + lam * book.bits[index]))
        size, total = torch.zeros(2, len(book.values), dtype=torch.float64, device="cpu")
        size.index_add_(0, index, count)
        total.index_add_(0, index, count * mean)
        kept = size > 0
        if zero:
            kept |= book.values == 0.0
        stays = (book.values[kept] == 0.0) & zero
        size, total = size[kept], total[kept]
        values = torch.where(stays, 0.0, total / size.clamp_min(1e-300))
        bits = -torch.log2(size.clamp_min(0.5) / count.sum())
        order = values.argsort()
        book = Codebook(values[order], bits[order].clamp_min(0.0), lam)
        if number > 1 and last - cost <= _STILL * abs(cost):
            break
        last = cost
    return book

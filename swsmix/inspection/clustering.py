"""Whether weights are clustered at all, and in how many values: by exact k-means of a sample.

The best K intervals of the sorted weights are found for every K at once (Wang & Song 2011). Those
with very few weights are left aside. Weights are *clustered* in K values if, for one K,

- there is a gap between each two neighbours: the middle third of the way between their centres
  holds fewer than `GAP` times as many weights as the smaller of the two (evenly spread weights: a
  third),
- each cluster is narrower than evenly spread weights there would be by chance,
  (n - 1) log(gap / (sqrt(12) std)) > `CHANCE` nats for n weights, and
- the values leave less than 1 / K^2 of the variance, what they leave of evenly spread weights.

Of the K for which this holds, the one with the least variance left times K^2 is the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swsmix._kmeans import intervals
from swsmix.start import subsample

GAP, CHANCE = 0.2, 10.0
MOST = 64  # the largest K, but for weights that have exactly so many values:
MOST_EQUAL = 256
_EACH = 8  # weights per value, but for the most frequent one
_SAMPLE, _CELLS = 100_000, 512
_ROUNDING = 1e-12  # of a variance: what differences of sums leave of equal weights
_SAMPLE_OF_MANY, _CELLS_OF_MANY, _MOST_OF_MANY = 20_000, 256, 32


@dataclass(frozen=True)
class Clustering:
    """Whether weights are clustered.

    Attributes:
        num_values: in how many values; 0 if they are not clustered.
        asked: K, the number of values of which `cost` tells.
        cost: the share of the variance that K values leave.
        alone: how many of the tensors are clustered each by itself, if all together are not.
        of: the number of tensors.

    Example:
        >>> print(clustering([torch.randn(10_000, generator=torch.Generator().manual_seed(0))]))
        not clustered: 7 values would cost 4.5 % of the variance
    """

    num_values: int
    asked: int
    cost: float
    alone: int = 0
    of: int = 1

    def __bool__(self) -> bool:
        """Whether they are."""
        return self.num_values > 0

    def __str__(self) -> str:
        """The verdict, in a line."""
        values = f"{self.asked} value{'s' * (self.asked != 1)}"
        cost = _percent(self.cost)
        if self:
            return f"clustered: {values} cost{'s' * (self.asked == 1)} {cost} of the variance"
        if self.alone:
            return (
                f"not clustered together: {values} would cost {cost} of the variance; but "
                f"{self.alone} of {self.of} tensors are, each by itself: "
                "`swsmix inspect --per-tensor`"
            )
        return f"not clustered: {values} would cost {cost} of the variance"


def clustering(flat: Sequence[Tensor], asked: int = 7) -> Clustering:
    """Find out whether weights are clustered, by a sample of them.

    Args:
        flat: the weights, finite, as vectors.
        asked: K, to tell what K values would cost if they are not.

    Returns:
        The verdict; where they are clustered, `asked` is the number of values.
    """
    number, cost = _look(subsample(flat, 0, most=_SAMPLE), asked, MOST, _CELLS)
    if number:
        return Clustering(number, number, cost, of=len(flat))
    alone = 0
    if len(flat) > 1:
        size = _SAMPLE_OF_MANY
        for w in flat:
            part = subsample([w], 0, most=size)
            alone += _look(part, asked, _MOST_OF_MANY, _CELLS_OF_MANY)[0] > 0
    return Clustering(0, asked, cost, alone, len(flat))


def variance_left(flat: Sequence[Tensor], k: int) -> float:
    """The share of the variance that the best k values leave, of a sample of very many weights.

    Args:
        flat: the weights, finite, as vectors.
        k: the number of values.

    Returns:
        The share, 0 if the weights have at most k values.

    Example:
        >>> round(variance_left([torch.tensor([0.0, 0.0, 1.0, 2.0])], 2), 3)  # 0.5 of 2.75
        0.182
    """
    x = subsample(flat, 0, most=_SAMPLE_OF_MANY).double().cpu().sort().values
    x = x - x.mean()
    scale = x.abs().max().item()
    if scale == 0.0:
        return 0.0
    x = x / scale  # so that squares do not overflow
    sums, squares = (torch.cat([x.new_zeros(1), s.cumsum(0)]) for s in (x, x.square()))
    *_, ends = intervals(x, sums, k, _CELLS_OF_MANY)
    within = squares[ends].diff() - sums[ends].diff().square() / ends.diff().double()
    share = (within.clamp_min(0.0).sum() / squares[-1]).item()
    return share if share > _ROUNDING else 0.0


def _look(w: Tensor, asked: int, most: int, cells: int) -> tuple[int, float]:
    """The number of values, or 0, and the share of the variance that so many leave, or `asked`."""
    x = w.double().cpu().sort().values
    x = x - x.mean()
    scale = x.abs().max().item()
    if scale == 0.0:
        return 1, 0.0
    x = x / scale  # so that squares do not overflow
    equal = x.unique(return_counts=True)[1].sort().values
    if len(equal) <= MOST_EQUAL and equal[:-1].sum() >= _EACH * (len(equal) - 1):
        return len(equal), 0.0
    sums, squares = (torch.cat([x.new_zeros(1), s.cumsum(0)]) for s in (x, x.square()))
    few = max(3, min(20, len(x) // 200))
    best, number, left, cost = 1.0, 0, 0.0, 1.0
    for k, ends in enumerate(intervals(x, sums, max(most, asked), cells), 1):
        size, total = ends.diff().double(), sums[ends].diff()
        within = (squares[ends].diff() - total.square() / size).clamp_min(0.0)
        if k <= asked:
            cost = (within.sum() / squares[-1]).item()
        used = size >= few
        kept = int(used.sum())
        if k > most or kept < 2:
            continue
        centre, size, within = (total / size)[used], size[used], within[used]
        apart = size @ (centre - size @ centre / size.sum()).square()
        share = within.sum() / (within.sum() + apart)
        if share * kept**2 < best and _stand_apart(x, centre, size, within):
            best, number, left = (share * kept**2).item(), kept, share.item()
    return (number, left) if number else (0, cost)


def _stand_apart(x: Tensor, centre: Tensor, size: Tensor, within: Tensor) -> bool:
    """Whether each cluster of the sorted numbers is narrow, with a gap to its neighbours."""
    gap = centre.diff()
    third = gap / 3.0
    inside = torch.searchsorted(x, centre[1:] - third) - torch.searchsorted(x, centre[:-1] + third)
    if (inside >= GAP * torch.minimum(size[1:], size[:-1])).any():
        return False
    nearest = torch.minimum(*(torch.nn.functional.pad(gap, p, value=torch.inf) for p in _ENDS))
    narrower = 0.5 * (nearest.square() * size / (12.0 * within).clamp_min(1e-300)).log()
    return bool(((size - 1.0) * narrower > CHANCE).all())


_ENDS = (1, 0), (0, 1)


def _percent(share: float) -> str:
    return f"{100.0 * share:.2g} %" if share >= 5e-5 or share == 0.0 else "less than 0.01 %"

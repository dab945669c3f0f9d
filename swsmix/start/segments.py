"""The best partition of cells into k Gaussians: by dynamic programming, and by merging.

The cost of a partition is its *classification likelihood* (Symons 1981; Celeux & Govaert 1995),

    sum_j n_j / 2 log(s_j^2 + floor^2) - n_j log n_j   [nats],

which sees a narrow spike beside a wide component, where sums of squares do not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.start.cells import Cells, cost, union_of


class Partitions(NamedTuple):
    """The cheapest partitions of the line into 1, 2, ... segments.

    Attributes:
        cells: what was cut.
        cost: the cost of the best one of 1, 2, ... segments (k,), in nats.
        begins: the begin of the last segment up to each end, for 1, 2, ... segments.
    """

    cells: Cells
    cost: Float[Tensor, " k"]
    begins: list[Tensor]

    def segments(self, k: int) -> Cells:
        """The weights of each of the best k segments."""
        ends = [len(self.cells)]
        for begin in reversed(self.begins[:k]):
            ends.append(int(begin[ends[-1]]))
        size = torch.tensor(ends[::-1], dtype=torch.int64, device="cpu").diff()
        owner = torch.arange(k, dtype=torch.int64, device="cpu").repeat_interleave(size)
        return pooled(self.cells, torch.nn.functional.one_hot(owner, k).double())


def best_partitions(cells: Cells, most: int) -> Partitions:
    """The cheapest partitions into 1 to `most` segments, by dynamic programming.

    Bellman's recursion over the end of the last segment (Wang & Song 2011, with this cost): exact
    for the cells, O(most c^2) for c of them; `most` may not be larger than c.
    """
    size = len(cells)
    table = torch.cat([_costs(cells, begin) for begin in range(0, size, _BLOCK)]).T.contiguous()
    best = torch.full((size + 1,), torch.inf, dtype=torch.float64, device="cpu")
    best[0] = 0.0
    costs, begins = [], []
    for _ in range(most):
        # A segment begins before its end: of the ends of a block, only these begins are looked at.
        ends = range(_BLOCK, size + _BLOCK, _BLOCK)
        parts = [(table[e - _BLOCK : e, :e] + best[:-1][:e]).min(1) for e in ends]
        best = torch.cat([best.new_tensor([torch.inf]), *(part.values for part in parts)])
        begin = torch.cat([torch.zeros_like(parts[0].indices[:1]), *(p.indices for p in parts)])
        costs.append(best[-1])
        begins.append(begin)
    return Partitions(cells, torch.stack(costs), begins)


_BLOCK = 64


def _costs(cells: Cells, begin: int) -> Float[Tensor, "b c"]:
    """The costs of the segments from a block of cells up to and with each cell; inf if empty."""
    after = cells.having(cells.values[:, begin:])
    # About the segment's first cell, so that narrow segments far from zero keep their digits.
    off = after.mean - after.mean[:_BLOCK, None]
    inside = torch.ones_like(off, dtype=torch.bool).triu_()
    count = (after.count * inside).cumsum_(1)
    first = (after.count * off * inside).cumsum_(1)
    second = ((after.scatter + after.count * off.square_()) * inside).cumsum_(1)
    scatter = (second - first.square_() / count).clamp_min_(0.0)
    own = cost(cells.having(torch.stack([count, first, scatter])))
    own = own.masked_fill_(~inside, torch.inf)
    return torch.nn.functional.pad(own, (begin, 0), value=torch.inf)


def pooled(cells: Cells, share: Float[Tensor, "c k"]) -> Cells:
    """The cells' weights by groups that own shares of them: one count, mean and scatter each.

    Returns:
        The groups.
    """
    weight = share * cells.count[:, None]
    count = weight.sum(0)
    # About the heaviest cell of each group, for narrow groups far from zero.
    origin = cells.mean[weight.argmax(0)]
    mean = origin + (weight * (cells.mean[:, None] - origin)).sum(0) / count
    between = (weight * (cells.mean[:, None] - mean).square()).sum(0)
    within = (share * cells.scatter[:, None]).sum(0)
    return cells.having(torch.stack([count, mean, between + within]))


def merged(groups: Cells, k: int = 1, *, price: float = torch.inf) -> Cells:
    """Groups merged, the cheapest pair first, neighbours or not.

    Of more segments than components this makes nested shapes: what lies on both sides of a spike
    becomes one slab.

    Args:
        groups: counts, means and scatters to merge.
        k: the number of groups to end with, at the least.
        price: end before a merger that costs as much, in nats.

    Returns:
        The groups.
    """
    while len(groups) > k:
        values = groups.values
        union, own = union_of(groups.having(values[:, :, None]), groups), cost(groups)
        loss = (cost(union) - own[:, None] - own).fill_diagonal_(torch.inf)
        i, j = divmod(int(loss.argmin()), len(own))
        if loss[i, j] >= price:
            break
        values = values.clone()
        values[:, i] = union.values[:, i, j]
        groups = groups.having(torch.cat([values[:, :j], values[:, j + 1 :]], 1))
    return groups.having(groups.values[:, groups.mean.argsort()])


def divided(groups: Cells, k: int) -> Cells:
    """More groups of the same density: the one of the largest scatter is halved, again and again.

    The halves of a Gaussian of std s are put s sqrt(2 / pi) to both sides: together they have its
    mean and its scatter. A cluster, whose neighbours are more than six of its stds away, is not
    halved: its weights share one value. So the groups may be fewer than k.
    """
    while len(groups) < k:
        values = groups.values
        std = (groups.scatter / groups.count).sqrt()
        gap = (groups.mean[:, None] - groups.mean).abs().fill_diagonal_(torch.inf).amin(1)
        loose = (gap < _APART * std) | (len(groups) == 1)
        if not loose.any():
            return groups
        widest = int(groups.scatter.where(loose, -1.0).argmax())
        count, mean, scatter = values[:, widest]
        off = (scatter / count * 2.0 / torch.pi).sqrt()
        share = (1.0 - 2.0 / torch.pi) * scatter / 2.0
        halves = [torch.stack([count / 2.0, mean + side * off, share]) for side in (-1.0, 1.0)]
        others = [values[:, :widest], values[:, widest + 1 :]]
        groups = groups.having(torch.cat([others[0], torch.stack(halves, 1), others[1]], 1))
    return groups


_APART = 6.0  # stds between a cluster and what is next to it

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

from swsmix._cells import Cells, cost, union_of


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
    table = _cost_table(cells)
    best = torch.full((len(table),), torch.inf, dtype=torch.float64, device="cpu")
    best[0] = 0.0
    costs, begins = [], []
    for _ in range(most):
        best, begin = (table + best).min(1)
        costs.append(best[-1])
        begins.append(begin)
    return Partitions(cells, torch.stack(costs), begins)


def _cost_table(cells: Cells) -> Float[Tensor, "c1 c1"]:
    """The cost of the segment from cell `column` up to but without cell `row`; inf if empty."""
    size = len(cells)
    # About the segment's first cell, so that narrow segments far from zero keep their digits.
    inside = torch.ones(size, size, dtype=torch.bool, device="cpu").triu_()
    off = cells.mean - cells.mean[:, None]
    count = (cells.count * inside).cumsum_(1)
    first = (cells.count * off * inside).cumsum_(1)
    second = ((cells.scatter + cells.count * off.square_()) * inside).cumsum_(1)
    scatter = (second - first.square_() / count).clamp_min_(0.0)
    table = torch.full((size + 1, size + 1), torch.inf, dtype=torch.float64, device="cpu")
    own = cost(cells.having(torch.stack([count, first, scatter])))
    table[1:, :-1] = own.masked_fill_(~inside, torch.inf).T
    return table


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
    mean and its scatter.
    """
    while len(groups) < k:
        values = groups.values
        widest = int(groups.scatter.argmax())
        count, mean, scatter = values[:, widest]
        off = (scatter / count * 2.0 / torch.pi).sqrt()
        share = (1.0 - 2.0 / torch.pi) * scatter / 2.0
        halves = [torch.stack([count / 2.0, mean + side * off, share]) for side in (-1.0, 1.0)]
        others = [values[:, :widest], values[:, widest + 1 :]]
        groups = groups.having(torch.cat([others[0], torch.stack(halves, 1), others[1]], 1))
    return groups

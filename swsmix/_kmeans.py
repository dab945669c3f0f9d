"""k-means of numbers: a cluster is an interval of the sorted numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_CELLS = 512
_STEPS = 1000


def kmeans(w: Float[Tensor, " n"], k: int, *, zero: bool = False) -> Float[Tensor, " j"]:
    """The centres of k clusters with the least sum of squares, ascending.

    Sorted, the numbers are joined into at least 512 and at least 4 k cells, at equal ranks and at
    the widest gaps. The best k intervals of cells are found by dynamic programming (Wang & Song
    2011), which is exact for no more different numbers than cells; otherwise Lloyd's algorithm
    on all numbers follows. No cluster is left without numbers, and there is no randomness.

    Args:
        w: at least one number, finite.
        k: the number of clusters, at least 1.
        zero: one of the centres is exactly 0, whatever the mean of its numbers, if it has any.

    Returns:
        The centres, in float64 on the CPU; fewer than k only of fewer different numbers.

    Example:
        >>> kmeans(torch.tensor([0.0, 0.1, 5.0, 5.2, 9.0]), 3)
        tensor([0.0500, 5.1000, 9.0000], dtype=torch.float64)
    """
    x = w.detach().double().cpu().sort().values
    origin = 0.0 if zero else x.mean().item()  # about it, differences of sums keep their digits
    x = x - origin
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    cuts = _cells(x, max(_CELLS, 4 * k))
    if len(cuts) - 1 > k - zero:
        centre = _best_intervals(x, sums, cuts, k, zero)
    else:  # each different number is a cluster
        centre = x[cuts[:-1]]
        centre = torch.cat([centre, centre.new_zeros(int(zero))]).unique()
    return _lloyd(x, sums, centre, zero) + origin


def intervals(x: Float[Tensor, " n"], sums: Tensor, k: int, cells: int) -> Iterator[Tensor]:
    """The ends of the best 1, 2, ... k intervals of cells of sorted numbers.

    Args:
        x: the numbers, ascending, about their mean.
        sums: their cumulative sums, from 0 on (n + 1,).
        k: the largest number of intervals.
        cells: the number of cells.

    Yields:
        Where the intervals end, from 0 to n (j + 1,); no more than there are cells.
    """
    cuts = _cells(x, cells)
    cost = _sums_of_squares(x, sums, cuts)
    least = x.new_full((len(cuts),), torch.inf)
    least[0] = 0.0
    begins: list[Tensor] = []
    for _ in range(min(k, len(cuts) - 1)):
        least, begin = (cost + least).min(1)
        begins.append(begin)
        ends = [len(cuts) - 1]
        for begin in reversed(begins):
            ends.append(int(begin[ends[-1]]))
        yield cuts[ends[::-1]]


def _sums_of_squares(x: Tensor, sums: Tensor, cuts: Tensor) -> Tensor:
    """About their mean, of the numbers from cut `column` to cut `row`; inf if there are none."""
    total, square = sums[cuts], torch.cat([x.new_zeros(1), x.square().cumsum(0)])[cuts]
    size = (cuts[:, None] - cuts).double()
    cost = (square[:, None] - square) - (total[:, None] - total).square() / size.clamp_min(1.0)
    return cost.masked_fill_(size <= 0.0, torch.inf)


def _cells(x: Tensor, most: int) -> Tensor:
    """The ends of at most so many cells of sorted numbers; equal numbers share a cell."""
    new = (x.diff() > 0).nonzero().reshape(-1) + 1
    if len(new) >= most:
        widest = x.diff().topk(most // 4).indices + 1
        number = most - len(widest)
        ranks = torch.linspace(0, len(x) - 1, number, dtype=torch.float32, device="cpu").long()[1:]
        at = torch.cat([widest, new[torch.searchsorted(new, ranks).clamp_max(len(new) - 1)]])
        new = at.unique()
    return torch.cat([new.new_zeros(1), new, new.new_full((1,), len(x))])


def _best_intervals(x: Tensor, sums: Tensor, cuts: Tensor, k: int, zero: bool) -> Tensor:
    """The centres of the k intervals of cells with the least sum of squares."""
    total, square = sums[cuts], torch.cat([x.new_zeros(1), x.square().cumsum(0)])[cuts]
    about_mean = _sums_of_squares(x, sums, cuts)
    about_zero = square[:, None] - square  # from the column to the row
    about_zero.masked_fill_(cuts[:, None] < cuts, torch.inf)  # that of 0 may be empty
    # The least cost up to each end without an interval about 0 (free), and with one (used).
    free = x.new_full((len(cuts),), torch.inf)
    used, steps = free.clone(), []
    free[0] = 0.0
    for _ in range(k):
        a, a_begin = (about_mean + free).min(1)
        if zero:
            b, b_begin = (about_mean + used).min(1)
            c, c_begin = (about_zero + free).min(1)
            steps.append((a_begin, torch.where(c < b, c_begin, b_begin), c < b))
            used = torch.minimum(b, c)
        else:
            steps.append((a_begin, a_begin, a < 0.0))
        free = a
    centre, end = [], len(cuts) - 1
    for a_begin, begin, is_zero in reversed(steps):
        begin_here = int((begin if zero else a_begin)[end])
        if zero and is_zero[end]:
            centre.append(x.new_zeros(()))
            zero = False
        else:
            centre.append((total[end] - total[begin_here]) / (cuts[end] - cuts[begin_here]))
        end = begin_here
    return torch.stack(centre).sort().values


def _lloyd(x: Tensor, sums: Tensor, centre: Tensor, zero: bool) -> Tensor:
    """Each centre to the mean of its numbers, until none moves or one would lose them all."""
    before, ends = centre, x.new_zeros(0).long()
    for _ in range(_STEPS):
        cuts = torch.searchsorted(x, (centre[1:] + centre[:-1]) / 2)
        last, ends = ends, torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(x))])
        fixed = (centre == 0.0) & zero
        if ((ends.diff() == 0) & ~fixed).any():
            return before
        if torch.equal(ends, last):
            break
        before = centre
        centre = ((sums[ends[1:]] - sums[ends[:-1]]) / ends.diff()).masked_fill(fixed, 0.0)
    return centre

"""The weights as a few hundred cells: count, mean and scatter, fine where the density changes.

Sorted weights are cut at equal ranks, at the widest gaps and at log-spaced distances from zero;
then neighbours whose union costs the least likelihood are joined. What is fitted to cells costs the
same for a thousand weights as for a billion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
_FINE = 1 << 14  # cells before neighbours are joined
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Cells:
    """Groups of weights, or pairs of groups: their number, mean and scatter.

    Attributes:
        values: count n >= 1, mean, and scatter sum (w - mean)^2 (3, ...), in float64 on the CPU;
            the scatter includes the rounding of the weights' dtype.
        floor: the smallest std that is told from equal weights.
        spread: the range of all weights, or their magnitude if they are all equal.
    """

    values: Float[Tensor, " 3 *c"]
    floor: float
    spread: float

    def __len__(self) -> int:
        """The number of groups."""
        return self.values.shape[1]

    @property
    def count(self) -> Float[Tensor, "*c"]:
        """The number of weights of each group."""
        return self.values[0]

    @property
    def mean(self) -> Float[Tensor, "*c"]:
        """Their mean."""
        return self.values[1]

    @property
    def scatter(self) -> Float[Tensor, "*c"]:
        """Their sum of (w - mean)^2."""
        return self.values[2]

    def having(self, values: Float[Tensor, " 3 *c"]) -> Cells:
        """Other groups of the same weights."""
        return replace(self, values=values)


def cells_of(w: Float[Tensor, " n"], most: int) -> Cells:
    """All weights as at most so many cells.

    Args:
        w: the weights, finite, at least one.
        most: the largest number of cells.

    Returns:
        The cells; equal weights are never in different ones.
    """
    rounding = torch.finfo(w.dtype).eps
    w = w.detach().cpu()
    x = np.sort((w if w.dtype in {torch.float32, torch.float64} else w.float()).numpy())
    with np.errstate(over="ignore"):  # the whole range of a type; an infinite gap is a gap
        gaps = x[1:] - x[:-1]
    few = np.count_nonzero(gaps) < _FINE
    cuts = np.concatenate([[0], np.flatnonzero(gaps) + 1 if few else _cuts(x, gaps), [len(x)]])
    count = np.diff(cuts).astype(np.float64)
    mean = np.add.reduceat(x, cuts[:-1], dtype=np.float64) / count
    # A number of p binary digits stands for an interval: its variance is ulp^2 / 12.
    ulp = rounding * np.exp2(np.floor(np.log2(np.maximum(np.abs(mean), 1e-300)))) * (mean != 0)
    scatter = _scatter(x, cuts, mean) + count * ulp**2 / 12.0
    values = torch.from_numpy(np.stack([count, mean, scatter]))
    return _joined(Cells(values, *_scales(mean)), most)


def cells_for(k: int) -> int:
    """How many cells are fine enough for k components."""
    return max(256, 32 * k)


def _cuts(x: Array, gaps: Array) -> Array:
    """Where sorted numbers are cut, a subset of the places where they change."""
    below, above = np.searchsorted(x, 0.0), np.searchsorted(x, 0.0, side="right")
    nearest = [abs(float(v)) for v in (*x[max(below - 1, 0) : below], *x[above : above + 1])]
    top = max(abs(float(x[0])), abs(float(x[-1])))
    distance = np.geomspace(max(min(nearest), 1e-12 * top), top, _FINE // 8)
    at = x[np.linspace(0, len(x) - 1, _FINE // 2).astype(np.int64)]
    at, runs = np.unique(at, return_counts=True)
    first = np.searchsorted(x, np.concatenate([at, -distance, distance]).astype(x.dtype))
    last = np.searchsorted(x, at[runs > 1], side="right")  # equal weights have a cell of their own
    cuts: Array = np.unique(np.concatenate([_widest(gaps, _FINE // 4) + 1, first, last]))
    return cuts[(cuts > 0) & (cuts < len(x))]


def _widest(gaps: Array, number: int) -> Array:
    """Where the so many widest gaps are, found in a small part of them."""
    block = max(len(gaps) // (4 * number), 1)
    top = np.maximum.reduceat(gaps, np.arange(0, len(gaps), block))
    least = np.partition(top, -number)[-number]
    wide = np.flatnonzero(gaps >= least if least > 0 else gaps)
    return wide[np.argpartition(gaps[wide], -number)[-number:]]


def _scatter(x: Array, cuts: Array, mean: Array) -> Array:
    """Sum of (x - mean)^2 over each cell, in parts of bounded size."""
    scatter = np.zeros(len(mean))
    begin = 0
    while begin < len(mean):
        end = max(int(np.searchsorted(cuts, cuts[begin] + _CHUNK, side="right")) - 1, begin + 1)
        size = np.diff(cuts[begin : end + 1])
        off = x[cuts[begin] : cuts[end]] - np.repeat(mean[begin:end], size)
        scatter[begin:end] = np.add.reduceat(off * off, cuts[begin:end] - cuts[begin])
        begin = end
    return scatter


def _scales(mean: Array) -> tuple[float, float]:
    """A std far below what separates the cells, above 0, and the range."""
    low, high = np.quantile(mean, [0.25, 0.75])
    spread = float(np.ptp(mean) or np.abs(mean).max() or 1.0)
    narrow = [s for s in (high - low, mean.std()) if s > 0.0]
    return max(1e-7 * float(min(narrow, default=spread)), 1e-150), spread


def _joined(cells: Cells, most: int) -> Cells:
    """Neighbours joined, cheapest first, until at most so many cells are left."""
    while (over := len(cells) - most) > 0:
        union = union_of(cells.having(cells.values[:, :-1]), cells.having(cells.values[:, 1:]))
        own = cost(cells)
        loss = cost(union) - own[1:] - own[:-1]
        # Local minima only: a cell is joined once a round.
        low = loss.kthvalue(min(over, len(loss) // 3 + 1)).values
        before, after = (torch.nn.functional.pad(loss, p, value=torch.inf) for p in _SHIFTS)
        least = (loss <= low) & (loss < before[:-1]) & (loss <= after[1:])
        first = least.nonzero()[:over, 0]
        first = first if len(first) else loss.argmin().reshape(1)
        keep = torch.ones(len(own), dtype=torch.bool, device="cpu").index_fill_(0, first + 1, False)
        joined = cells.values.index_copy(1, first, union.values[:, first])
        cells = cells.having(joined[:, keep])
    return cells


_SHIFTS = (1, 0), (0, 1)


def union_of(one: Cells, other: Cells) -> Cells:
    """The pooled weights of pairs of groups, whose shapes broadcast."""
    count = one.count + other.count
    gap = other.mean - one.mean
    between = one.count * other.count / count * gap.square()
    mean = one.mean + other.count / count * gap
    return one.having(torch.stack([count, mean, one.scatter + other.scatter + between]))


def cost(groups: Cells) -> Tensor:
    """What each group costs in the integrated classification likelihood, in nats.

    -log of the groups' weights under one Gaussian each, its mean (uniform over the range r) and
    its std (uniform in log s from the floor to r) integrated out, and of their share in a uniform
    Dirichlet (Biernacki, Celeux & Govaert 2010), with S the scatter and m = n - 1:

        log(2 r log(r / floor)) + log(n) / 2 + m / 2 log(pi S) - lgamma(m / 2) - lgamma(n + 1),

    and log(r) - lgamma(2) for one weight, which says nothing of a std.
    """
    count, spread = groups.count, groups.spread
    degrees = 0.5 * (count - 1.0).clamp_min(1.0)
    scatter = torch.pi * (groups.scatter + count * groups.floor**2)
    several = math.log(2.0 * math.log(spread / groups.floor)) + 0.5 * count.log()
    several = several + degrees * scatter.log() - degrees.lgamma()
    fit = torch.where(count > 1.0, several, 0.0) + math.log(spread)
    return fit - (count + 1.0).lgamma()

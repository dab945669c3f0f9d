"""Sums over the weights of each cell, as integers: they give the value and the EM moments."""

from __future__ import annotations

import torch
from torch import Tensor

from swsmix.tables.cells import Cells
from swsmix.tables.scratch import chunk_on
from swsmix.tables.taylor import FACTORIALS, ORDER, exponential_derivatives

# 2^22 numbers, each below 2^16, sum to less than 2^38: their count fits above that, in one int64.
PACKED, COUNT = 1 << 22, 38


class CellHistogram:
    """How many weights each cell has, and the sums of their numbers and squares, exactly.

    The squares are those of number - 2^(bits - 1): they fit into 32 bits, where arithmetic is fast.
    Count and sum of numbers are added as one integer (`packed`).

    Args:
        cells: the cells.
        n: how many weights will be added, for the size of the scratch memory.
    """

    def __init__(self, cells: Cells, n: int) -> None:
        self.cells, self.pending = cells, 0
        total, device = cells.total, cells.device
        n = min(n, chunk_on(device))
        self.scratch, self.wide = torch.empty(2, n, dtype=torch.int64, device=device)
        self.half = 1 << (cells.address.bits - 1)
        self.count, self.first, self.second, self.packed = torch.zeros(
            4, total, dtype=torch.int64, device=device
        )

    def add_(self, cell: Tensor, number: Tensor) -> None:
        """Count a chunk by what `address.find` gave; `number` is overwritten."""
        if self.pending + len(cell) > PACKED:
            self.unpack_()
        self.pending += len(cell)
        where, wide = self.wide[: len(cell)].copy_(cell), self.scratch[: len(cell)]
        self.packed.scatter_add_(0, where, wide.copy_(number).add_(1 << COUNT))
        number.sub_(self.half)
        self.second.scatter_add_(0, where, wide.copy_(number.mul_(number)))

    def unpack_(self) -> None:
        """Move the packed counts to `count` and `first`."""
        self.count += self.packed >> COUNT
        self.first += self.packed & ((1 << COUNT) - 1)
        self.packed.zero_()
        self.pending = 0

    def sums(self) -> tuple[Tensor, Tensor, bool]:
        """The value and the moments (3, k) of the weights in certified cells, on the CPU.

        The last result says whether weights outside them are missing.
        """
        self.unpack_()
        intervals = self.cells.intervals
        s, mass, owner = self._points()
        used, owner = owner.unique_consecutive(return_inverse=True)
        owner, taylor = owner.repeat(2), intervals.taylor[:, used]
        rise = torch.zeros_like(s)  # f(c + t) - f(c)
        for row in taylor[1:].flip(0):
            rise = (rise + row.index_select(0, owner)) * s
        value = (rise + taylor[0].index_select(0, owner)) @ mass
        bend = intervals.bend[used]
        term = (rise - (taylor[1][owner] + 0.5 * bend[owner] * s) * s).exp_() * mass
        powers = taylor.new_zeros(ORDER + 3, len(used))
        for row in powers:
            row.index_add_(0, owner, term)
            term = term * s
        missing = (self.count * ~self.cells.certified).any()
        return value, self._moments(powers, used), bool(missing)

    def _points(self) -> tuple[Tensor, Tensor, Tensor]:
        """Two points of equal mass for each cell's weights: same count, mean and second moment.

        The points in s, their masses, and the interval of each pair.
        """
        runs = self.cells.runs
        used = (self.count * self.cells.certified).nonzero()[:, 0]
        raw = self.count, self.first, self.second
        count, first, second = (each.index_select(0, used).cpu().double() for each in raw)
        used = used.cpu()
        first /= count
        spread = (second / count - (first - self.half) ** 2).clamp_min_(0.0).sqrt_()
        index, run = (each.index_select(0, used) for each in self.cells.place)
        ulp = runs.ulp.index_select(0, run)
        spread *= ulp
        s = index * runs.slide.index_select(0, run) + runs.inner.index_select(0, run)
        s.addcmul_(ulp, first)
        return torch.cat([s - spread, s + spread]), (count / 2).repeat(2), runs.owner[run]

    def _moments(self, powers: Tensor, used: Tensor) -> Tensor:
        """The moments (3, k) from the sums of s^n / q in the used intervals.

        gamma_j(c + t) = gamma_j exp(-x_j t - y_j t^2 / 2) / q(t), so that the components do not
        appear in the sums over the weights.
        """
        intervals, mixture = self.cells.intervals, self.cells.mixture
        moments = powers.new_zeros(3, len(mixture.mean))
        centres, radii = intervals.centre[used], intervals.radius[used]
        for first in range(0, len(used), mixture.rows):
            part = slice(first, first + mixture.rows)
            centre, r, power = centres[part], radii[part], powers[:, part]
            p = mixture.around(centre)
            x, y, gamma = p.slope.mul_(-r), p.bend.mul_(-r * r), p.gamma
            if bool((gone := gamma < 1e-100).any()):
                x, y = x.masked_fill_(gone, 0.0), y.masked_fill_(gone, 0.0)
            h = exponential_derivatives(x, y, gamma)[: ORDER + 1]
            h /= FACTORIALS[:-1, None, None]
            # sums[m] = sum_n h_n / n! * sum_i s_i^(n + m) / q
            zeroth, first_, second = (
                (h * power[m : m + ORDER + 1, None]).sum(0) * r**m for m in range(3)
            )
            offset = centre - mixture.mean[:, None]
            moments[0] += zeroth.sum(1)
            moments[1] += (offset * zeroth + first_).sum(1)
            moments[2] += (offset * (offset * zeroth + 2 * first_) + second).sum(1)
        return moments

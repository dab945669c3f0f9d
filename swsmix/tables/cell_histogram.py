"""Sums over the weights of each cell, as integers: they give the value and the EM moments."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.cells import PART, Cells
from swsmix.tables.exact import Around
from swsmix.tables.scratch import chunk_on
from swsmix.tables.taylor import FACTORIALS, ORDER, exponential_derivatives

# 2^22 numbers, each below 2^16, sum to less than 2^38: their count fits above that, in one int64.
PACKED, COUNT = 1 << 22, 38


class CellHistogram:
    """How many weights each part of a cell has, and the sums of their numbers and squares, exactly.

    A cell has 2^fine parts of 2^PART numbers, at least as many as it has floats. The squares are
    those of number - 2^(PART - 1): they fit into 32 bits, where arithmetic is fast. Count and sum
    of numbers are added as one integer (`add_packed_`).

    Args:
        cells: the cells.
        n: how many weights will be added, for the size of the scratch memory.
    """

    def __init__(self, cells: Cells, n: int) -> None:
        self.cells, self.pending, self._most = cells, 0, min(n, chunk_on(cells.device))
        total = len(cells.certified) << cells.fine
        self.count, self.first, self.second = torch.zeros(
            3, total, dtype=torch.int64, device=cells.device
        )

    @functools.cached_property
    def _packed(self) -> Tensor:
        return torch.zeros_like(self.count)

    @functools.cached_property
    def _scratch(self) -> Tensor:
        return torch.empty(2, self._most, dtype=torch.int64, device=self.count.device)

    def add_(self, cell: Tensor, number: Tensor, shift: Tensor) -> None:
        """Count a chunk by what `address.find` gave, which is overwritten."""
        if self.pending + len(cell) > PACKED:
            self.unpack_()
        self.pending += len(cell)
        torch.bitwise_left_shift(number, shift.neg_().add_(PART + self.cells.fine), out=number)
        cell.bitwise_left_shift_(self.cells.fine).add_(
            torch.bitwise_right_shift(number, PART, out=shift)
        )
        number.bitwise_and_((1 << PART) - 1)
        wide, where = self._scratch[:, : len(cell)]
        where.copy_(cell)
        self._packed.scatter_add_(0, where, wide.copy_(number).add_(1 << COUNT))
        number.sub_(1 << (PART - 1))
        self.second.scatter_add_(0, where, wide.copy_(number.mul_(number)))

    def merge_(self, other: CellHistogram) -> None:
        """Add what another histogram over the same cells has counted."""
        other.unpack_()
        self.count += other.count
        self.first += other.first
        self.second += other.second

    def add_packed_(self, packed: Tensor) -> None:
        """Add counts and sums of numbers that are one integer each."""
        self.count += packed >> COUNT
        self.first += packed & ((1 << COUNT) - 1)

    def unpack_(self) -> None:
        """Move the packed counts to `count` and `first`."""
        if self.pending:
            self.add_packed_(self._packed)
            self._packed.zero_()
            self.pending = 0

    def sums(self) -> tuple[Tensor, Tensor, bool]:
        """The value and the moments (3, k) of the weights in certified cells.

        They are on the CPU, or on the GPU if it cut the cells. The last result says whether weights
        outside certified cells are missing.
        """
        self.unpack_()
        if on_gpu := backends.triton_sums(self.cells.intervals.centre.device):
            found: tuple[Tensor, Tensor, bool]
            found = on_gpu.sums(self.cells, self.count, self.first, self.second)
            return found
        raw: tuple[Tensor, ...] = self.count, self.first, self.second
        if self.count.device.type != "cpu":
            raw = torch.stack(raw).cpu().unbind()  # in one transfer
        if numba := backends.numba_sums():
            total, powers, missing = numba.powers(self.cells.here, *raw)
            used = powers[0].nonzero()[:, 0]
            return powers.new_tensor(total), self._moments(powers[:, used], used), missing
        intervals = self.cells.here.intervals
        s, mass, owner = self._points(raw)
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
        missing = bool((self._by_cell(raw[0]) * ~self.cells.here.geometry.certified[:, None]).any())
        return value, self._moments(powers, used), missing

    def _points(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Two points of equal mass for each cell's weights: same count, mean and second moment.

        The points in s, their masses, and the interval of each pair.
        """
        geometry, fine = self.cells.here.geometry, self.cells.fine
        used = (self._by_cell(raw[0]) * geometry.certified[:, None]).view(-1).nonzero()[:, 0]
        count, first, second = (each.index_select(0, used).double() for each in raw)
        cell, part = used >> fine, used & ((1 << fine) - 1)
        width = geometry.width.index_select(0, cell)
        unit = geometry.ulp.index_select(0, cell) * width * 2.0 ** -(PART + fine)
        first /= count
        middle = 1 << (PART - 1)
        spread = (second / count - (first - middle) ** 2).clamp_min_(0.0).sqrt_() * unit
        s = geometry.inner.index_select(0, cell) + unit * (first + (part << PART))
        owner = geometry.owner.index_select(0, cell)
        return torch.cat([s - spread, s + spread]), (count / 2).repeat(2), owner

    def _by_cell(self, counts: Tensor) -> Tensor:
        return counts.view(-1, 1 << self.cells.fine)

    def _moments(self, powers: Tensor, used: Tensor) -> Tensor:
        """The moments (3, k) from the sums of s^n / q in the used intervals.

        gamma_j(c + t) = gamma_j exp(-x_j t - y_j t^2 / 2) / q(t), so that the components do not
        appear in the sums over the weights.
        """
        intervals, mixture = self.cells.here.intervals, self.cells.here.mixture
        centres, radii = intervals.centre[used], intervals.radius[used]
        if numba := backends.numba_sums():
            compiled: Tensor = numba.moments(mixture, centres, radii, powers)
            return compiled
        moments = powers.new_zeros(3, len(mixture.mean))
        for start in range(0, len(used), mixture.rows):
            part = slice(start, start + mixture.rows)
            p, offset = mixture.around(centres[part]), centres[part] - mixture.mean[:, None]
            _add_moments_(moments, p, offset, radii[part], powers[:, part])
        return moments


def _add_moments_(moments: Tensor, p: Around, offset: Tensor, r: Tensor, powers: Tensor) -> None:
    """Add the moments of the weights in some intervals, whose centres are offset from the means."""
    x, y, gamma = -p.slope * r, -p.bend * (r * r), p.gamma
    gone = gamma < 1e-100  # slopes and bends may overflow
    x, y = x.masked_fill_(gone, 0.0), y.masked_fill_(gone, 0.0)
    h = exponential_derivatives(x, y, gamma)[: ORDER + 1]
    h /= FACTORIALS[:-1, None, None]
    # sums[m] = sum_n h_n / n! * sum_i s_i^(n + m) / q
    zeroth, first, second = ((h * powers[m : m + ORDER + 1, None]).sum(0) * r**m for m in range(3))
    moments[0] += zeroth.sum(1)
    moments[1] += (offset * zeroth + first).sum(1)
    moments[2] += (offset * (offset * zeroth + 2 * first) + second).sum(1)


def least_for(histogram: CellHistogram | None) -> int:
    """Weights for each thread: each has a histogram, and with many cells that costs a lot."""
    return 0 if histogram is None else 8 * len(histogram.count)

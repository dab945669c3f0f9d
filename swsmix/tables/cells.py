"""Cubic pieces of f' and a, cell by cell: what the tables look up for a weight."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables import taylor as polynomials
from swsmix.tables.address import Address
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch, chunk_on
from swsmix.tables.taylor import ORDER, Intervals

Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights -> f' and a
PART = 16  # log2 of the numbers in a part of a cell, by which the sums count its weights
FINE = 4  # log2 of the parts of a cell, at most


class ErrorBounds(NamedTuple):
    """Certified bounds for any finite float32 w; for `value`, on average over a cell's weights.

    |error of f'| <= gradient (|f'(w)| + sqrt(a(w)))      |error of f| <= value (1 + |f(w)|)
    |error of a| <= curvature a(w)

    The absolute part is in units of sqrt(a), the local 1 / std, since f' is zero at a centre. The
    curvature a only scales the proximal step, whose fixed points are where f' and the data's
    gradient cancel.

    Without cells they are those of the direct evaluation, derived in `exact`. Its `gradient` holds
    while |f| stays below about 6e4, that is |w - mu| / sigma below 300. Further out it holds where
    one component is responsible; where several are, far from all of them, rounding alone decides
    between them, and the bound is the one that `exact` states.
    """

    gradient: float
    value: float
    curvature: float


class Refinement(NamedTuple):
    """How finely to cut intervals, each (t,). On an m-th part, f' is off by cubic / m^4."""

    cubic: Tensor  # the error of one cubic piece, relative to the floor
    rounding: Tensor  # of float32 numbers across the interval, relative to the floor
    third: Tensor  # bound on |f'''| r^3
    parts: Tensor  # log2 of the number of parts
    fine: int  # log2 of the parts of such a part in which the sums count weights


def _bound(taylor: Tensor, rest: Tensor, order: int) -> Tensor:
    """On |g^(order)| r^order, for a polynomial g that is off by rest (t / r)^(ORDER + 1)."""
    ways = _ways(len(taylor), order)
    return ways @ taylor[order:].abs() + rest / math.factorial(ORDER + 1 - order)


@functools.cache
def _ways(terms: int, order: int) -> Tensor:
    ways = [math.perm(n, order) * 1.5 ** (n - order) for n in range(order, terms)]
    return torch.tensor(ways, dtype=torch.float64, device="cpu")


def refinement_for(intervals: Intervals, tolerance: float) -> Refinement:
    """How finely to cut the intervals for cubics within the tolerance; 1 part if uncertified.

    Economised (`_economised`), a cubic misses f' on a part of half width h by |f^(5)| h^4 / 192,
    and by what the fifth power adds: within 1 / 170 together. In float32 it is off by less than 8
    roundings of each of its terms.
    """
    if compiled := backends.numba_cells():
        return Refinement(*compiled.refinement(intervals, tolerance))
    radius, floor, third = intervals.radius, intervals.floor, _bound(*_f(intervals), 3)
    cubic = _bound(*_f(intervals), 5) / (170 * radius * floor)
    swing = 2 * intervals.second + 2 * third + 1.5 * _bound(*_f(intervals), 4)
    rounding = swing / (radius * floor) * 2.0**-21
    least = torch.maximum((cubic * (4 / tolerance)) ** 0.25, rounding * (8 / tolerance))
    by_value = (third / intervals.size * (8 / tolerance)) ** (1 / 3)
    finer = torch.arange(FINE + 1, dtype=torch.float64, device="cpu")[:, None]
    parts = torch.maximum(least, by_value * torch.exp2(-finer)).clamp_min(1.0)
    parts = parts.log2().ceil().nan_to_num(0.0, 0.0, 0.0)
    # To make a cell costs about as much as to sum over eight parts.
    cost = torch.exp2(parts).sum(1) * (torch.exp2(finer[:, 0]) + 8.0)
    fine = int(cost.argmin())
    return Refinement(cubic, rounding, third, parts[fine], fine)


def _f(intervals: Intervals) -> tuple[Tensor, Tensor]:
    return intervals.taylor, intervals.rest


class CellGeometry(NamedTuple):
    """Where the cells lie in their intervals, in s = (w - centre) / radius; each (cells,)."""

    owner: Tensor  # the interval
    inner: Tensor  # s of number 0
    ulp: Tensor  # s from one number to the next
    width: Tensor  # how many numbers
    certified: Tensor  # whether the piece is within the bounds; other weights: exactly


class Cells:
    """The pieces f' = c0 + c1 x + c2 x^2 + c3 x^3 of all cells, x a float's number in its cell.

    c0 is NaN where none is certified. The weights may be on a GPU; the pieces are made there. The
    mixture, intervals and the rest are there too if it cut the cells (`triton_cutting`), and else
    on the CPU.

    Args:
        mixture: the mixture.
        intervals: its intervals.
        address: the way from a weight to its cell.
        geometry: where the cells lie.
        refined: how finely the intervals had to be cut.
        shift: log2 of the floats in the cells of each interval (t,).
        device: where the weights are.
    """

    def __init__(
        self,
        mixture: ExactMixture,
        intervals: Intervals,
        address: Address,
        geometry: CellGeometry,
        refined: Refinement,
        shift: Tensor,
        device: torch.device,
    ) -> None:
        self.mixture, self.intervals, self.address = mixture, intervals, address
        self.geometry, self.device = geometry, device
        self.certified = geometry.certified.to(device)
        self._refined, self._shift = refined, shift
        self.fine = refined.fine  # log2 of the parts of a cell in which the sums count weights

    def _pieces(self, *taylors: Tensor) -> Tensor:
        """The cubics of the intervals' polynomials, in float32, by the weights.

        They are (cells, 4), or by turns those of several polynomials.
        """
        on_gpu, compiled = backends.triton_cells(self.device), backends.numba_cells()
        if compiled and not on_gpu:
            cubics: Tensor = compiled.pieces(taylors, _CHEBYSHEV, *self.geometry)
            return cubics.to(self.device)
        if on_gpu:
            there = [taylor.to(self.device) for taylor in taylors]
            each = [on_gpu.pieces(taylor, *self._geometry_there) for taylor in there]
        else:
            each = [self._cubics(taylor) for taylor in taylors]
        return torch.stack(each, 2).flatten(1)

    def _cubics(self, taylor: Tensor) -> Tensor:
        at = self.geometry
        half = 0.5 * at.ulp * (at.width - 1)
        rows = _shifted(list(taylor.index_select(1, at.owner)), at.inner + half)
        rows = _shifted(_economised(rows, half), -half)
        scale = torch.ones_like(half)
        for n in range(1, 4):
            scale = scale * at.ulp
            rows[n] = rows[n] * scale
        rows[0] = rows[0].masked_fill(~at.certified, math.nan)
        return torch.stack(rows, 1).float().to(self.device)

    @functools.cached_property
    def _geometry_there(self) -> CellGeometry:
        return CellGeometry(*(each.to(self.device) for each in self.geometry))

    @functools.cached_property
    def _slope(self) -> Tensor:
        radius = self.intervals.radius
        order = torch.arange(1, ORDER + 1, dtype=torch.int64, device=radius.device)[:, None]
        return self.intervals.taylor[1:] * order / radius

    @functools.cached_property
    def _curvature(self) -> tuple[Tensor, Tensor, Tensor]:
        device = self.intervals.centre.device
        if on_gpu := backends.triton_certify(device):
            found: tuple[Tensor, Tensor, Tensor] = on_gpu.curvature(self.mixture, self.intervals)
            return found
        rows, rest, low = polynomials.curvature(self.here.mixture, self.here.intervals)
        return rows.to(device), rest.to(device), low.to(device)

    @property
    def here(self) -> Cells:
        """These cells with all that the sums and the bounds need on the CPU."""
        return self if self.intervals.centre.device.type == "cpu" else self._fetched

    @functools.cached_property
    def _fetched(self) -> Cells:
        twin = copy.copy(self)
        twin.mixture = self.mixture.cpu()
        twin.intervals = Intervals(*(each.cpu() for each in self.intervals[:-1]))
        twin.geometry = CellGeometry(*(each.cpu() for each in self.geometry))
        cubic, rounding, third, parts = (each.cpu() for each in self._refined[:-1])
        twin._refined = Refinement(cubic, rounding, third, parts, self.fine)
        twin._shift = self._shift.cpu()
        return twin

    @functools.cached_property
    def pieces(self) -> Tensor:
        """The pieces of f' (cells, 4)."""
        return self._pieces(self._slope)

    @functools.cached_property
    def curvature_pieces(self) -> Tensor:
        """The pieces of a (cells, 4)."""
        return self._pieces(self._curvature[0])

    @functools.cached_property
    def both_pieces(self) -> Tensor:
        """The pieces of f' and of a by turns (cells, 8): one line of the cache for both."""
        return self._pieces(self._slope, self._curvature[0])

    @functools.cached_property
    def error(self) -> ErrorBounds:
        """The worst bounds over the certified intervals."""
        if self.here is not self:
            vars(self.here)["_curvature"] = tuple(each.cpu() for each in self._curvature)
            return self.here.error
        intervals, refined = self.intervals, self._refined
        # The largest share of an interval that a cell takes; the tiny floats count as zero.
        tiny, part = intervals.start == 0, (1 << self._shift) - 1.0
        part = torch.where(tiny, 1.0, part / (intervals.width - 1).clamp_min(1))
        rest, floor = intervals.rest / math.factorial(ORDER + 1), intervals.floor
        gradient = refined.cubic * part**4 + refined.rounding * part
        gradient = gradient + rest * (ORDER + 1) / floor / intervals.radius + intervals.noise
        gradient[tiny] = (intervals.second / intervals.radius / floor * 2)[tiny]
        value = (refined.third * (part * 2.0**-self.fine) ** 3 + rest) / intervals.size
        value[tiny] = (intervals.taylor[1].abs() + intervals.second)[tiny] * 2
        taylor, rest, low = self._curvature
        n = torch.arange(1, 4, dtype=torch.float64, device="cpu")
        bounds = [_bound(taylor, rest, order) for order in (1, 2, 3)]
        swing = (2.0**-21 * 2.0**n) @ torch.stack([b * part**i for i, b in enumerate(bounds, 1)])
        miss = _bound(taylor, rest, 4) * part**4 / 160 + rest / math.factorial(ORDER + 1)
        curvature = (miss + swing) / low + 2.0**-20
        rows = gradient + 2.0**-21, value + self.mixture.rounding, curvature
        certified = ~intervals.rest.isinf()
        return ErrorBounds(*torch.stack(rows)[:, certified].amax(1).tolist())

    def slopes(
        self, w: Tensor, place: tuple[Tensor, Tensor, Tensor], scratch: Scratch, uncertified: Slopes
    ) -> list[Tensor]:
        """The gradient f' of a chunk and, if the scratch memory is for it, the curvature a.

        Args:
            w: the chunk.
            place: from `address.find`.
            scratch: the scratch memory; the results lie in it.
            uncertified: evaluates the weights for which no piece is certified.
        """
        cell, number, _ = place
        x = scratch.floats[0, : len(w)].copy_(number)
        gathered, values = scratch.pieces[: len(w)], []
        for table, out in zip(
            [self.pieces, *([self.curvature_pieces] if scratch.curvature else [])],
            scratch.floats[1:, : len(w)],
            strict=False,
        ):
            # Gathered as one complex number: one look-up instead of four.
            torch.index_select(table.view(torch.complex128)[:, 0], 0, cell, out=gathered)
            c0, c1, c2, c3 = gathered.view(torch.float32).view(len(w), 4).unbind(1)
            torch.addcmul(c2, c3, x, out=out)
            torch.addcmul(c1, out, x, out=out)
            values.append(torch.addcmul(c0, out, x, out=out))
        if bool(values[0].sum().isnan()):
            gaps = values[0].isnan().nonzero()[:, 0]
            for value, exact in zip(values, uncertified(w[gaps]), strict=False):
                value[gaps] = exact.float()
        return values

    def gaps(self, w: Tensor) -> Tensor:
        """The indices of the flat weights for which no piece is certified."""
        scratch, indices, size = Scratch(len(w), w.device), [], chunk_on(w.device)
        for start in range(0, len(w), size):
            cell, *_ = self.address.find(w[start : start + size], scratch)
            indices.append((~self.certified.index_select(0, cell)).nonzero()[:, 0] + start)
        return torch.cat(indices)


def _shifted(rows: list[Tensor], by: Tensor) -> list[Tensor]:
    """The coefficients, lowest first, of a polynomial in s as those in s - by."""
    rows = list(rows)
    for done in range(len(rows) - 1):
        for n in range(len(rows) - 2, done - 1, -1):
            rows[n] = torch.addcmul(rows[n], rows[n + 1], by)
    return rows


def _economised(rows: list[Tensor], half: Tensor) -> list[Tensor]:
    """The cubic that misses a polynomial least on [-half, half], but for terms of a higher order.

    Each power n > 3 is replaced by what T_n, Chebyshev's polynomial, leaves of it: it misses by
    half^n / 2^(n - 1).
    """
    rows = list(rows)
    while len(rows) > 4:
        top, n = rows.pop(), len(rows)
        for m in range(n % 2, n, 2):
            factor = float(_CHEBYSHEV[n, m])
            rows[m] = torch.addcmul(rows[m], top, half ** (n - m), value=-factor)
    return rows


def _monic(n: int) -> list[float]:
    """The coefficients of T_n / 2^(n - 1), which ends with s^n."""
    chebyshev = np.polynomial.chebyshev.cheb2poly([0.0] * n + [1.0]) / 2.0 ** (n - 1)
    return [float(each) for each in chebyshev] + [0.0] * (ORDER - n)


_CHEBYSHEV = torch.tensor([_monic(n) for n in range(ORDER + 1)], dtype=torch.float64, device="cpu")

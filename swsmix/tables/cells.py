"""Straight pieces of f' and a, cell by cell: what the tables look up for a weight."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables import taylor as polynomials
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch, chunk_on
from swsmix.tables.taylor import ORDER, Intervals, ranges

Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights -> f' and a


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
    """How finely to cut intervals, each (t,). On an m-th part, f' is off by line / m^2."""

    third: Tensor  # bound on |f'''| r^3
    line: Tensor  # the error of one tangent, relative to the floor
    rounding: Tensor  # of float32 numbers across the interval, relative to the floor
    parts: Tensor  # log2 of the number of parts


def refinement_for(intervals: Intervals, tolerance: float) -> Refinement:
    """How finely to cut the intervals for tangents within the tolerance; 1 part if uncertified."""
    n = torch.arange(3, ORDER + 1, dtype=torch.int64, device="cpu")[:, None]
    third = (n * (n - 1) * (n - 2) * 1.5 ** (n - 3) * intervals.taylor[3:].abs()).sum(0)
    third = third + intervals.rest / math.factorial(ORDER - 2)
    line = third / (2 * intervals.radius * intervals.floor)
    rounding = intervals.second / (intervals.radius * intervals.floor) * 2.0**-22
    parts = torch.maximum((line * (1.5 / tolerance)).sqrt(), rounding * (8 / tolerance))
    parts = parts.clamp_min(1.0).log2().ceil().nan_to_num(0.0, 0.0, 0.0)
    return Refinement(third, line, rounding, parts)


@runtime_checkable
class Address(Protocol):
    """The way from a float32 to its cell."""

    bits: int  # a cell has at most 2^bits numbers

    def find(self, w: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """The cell of each weight, its number there, and its coordinate on the cell's line."""
        ...


class CellRuns(NamedTuple):
    """Runs of cells of one size in one interval, in s = (w - centre) / radius; each (runs,).

    The middle of the i-th cell of a run is at middle + i * stride, its number 0 at inner +
    i * slide. From its middle to its coordinate 0 it is back + i * drift.
    """

    cells: Tensor  # how many cells
    owner: Tensor  # the interval
    middle: Tensor
    stride: Tensor
    inner: Tensor
    slide: Tensor
    back: Tensor
    drift: Tensor
    ulp: Tensor  # s from one number to the next
    certified: Tensor  # whether the lines are within the bounds; else weights are evaluated exactly


class CellErrors(NamedTuple):
    """What is certified about the cells of each interval, each (t,)."""

    line: Tensor  # error of f', relative to |f'| + sqrt(a)
    value: Tensor  # error of f, relative to 1 + |f|
    part: Tensor  # the largest share of the interval that a cell takes


class Cells:
    """The lines f' = level + step * coordinate of all cells; level is NaN where none is certified.

    Many short operations certify them, on the CPU. The weights and the lines may be on a GPU.

    Args:
        mixture: the mixture.
        intervals: its intervals.
        address: the way from a weight to its cell.
        runs: where the cells lie, in their order.
        errors: says what is certified about them.
        device: where the weights are.
    """

    def __init__(
        self,
        mixture: ExactMixture,
        intervals: Intervals,
        address: Address,
        runs: CellRuns,
        errors: Callable[[], CellErrors],
        device: torch.device,
    ) -> None:
        self.mixture, self.intervals, self.address = mixture, intervals, address
        self.runs, self.device, self._errors = runs, device, errors
        self.total = int(runs.cells.sum())
        order = torch.arange(1, ORDER + 1, dtype=torch.int64, device="cpu")[:, None]
        self._gradient = self._lines(intervals.taylor[1:] * order / intervals.radius)
        self.lines = self._gradient.to(device)

    @functools.cached_property
    def place(self) -> tuple[Tensor, Tensor]:
        """Each cell's number in its run, and the run; on the CPU."""
        return ranges(self.runs.cells)

    @functools.cached_property
    def certified(self) -> Tensor:
        """Whether a line is certified for each cell (cells,)."""
        return self.runs.certified.repeat_interleave(self.runs.cells).to(self.device)

    def _lines(self, taylor: Tensor) -> Tensor:
        """Level and step of the polynomials' tangents at the middle of each cell (cells, 2)."""
        if compiled := backends.numba_cut():
            found: Tensor = compiled.lines(taylor, self.runs, self.total)
            return found
        runs, (index, run) = self.runs, self.place
        s = (index * runs.stride.index_select(0, run)).add_(runs.middle.index_select(0, run))
        level, slope = torch.zeros_like(s), torch.zeros_like(s)
        for row in taylor.index_select(1, runs.owner).flip(0):
            slope.mul_(s).add_(level)
            level.mul_(s).add_(row.index_select(0, run))
        back = (index * runs.drift.index_select(0, run)).add_(
            runs.back.masked_fill(~runs.certified, math.nan).index_select(0, run)
        )
        level.addcmul_(slope, back)
        return torch.stack([level.float(), slope.mul_(runs.ulp.index_select(0, run)).float()], 1)

    @functools.cached_property
    def _curvature(self) -> tuple[Tensor, Tensor, Tensor]:
        return polynomials.curvature(self.mixture, self.intervals)

    @functools.cached_property
    def both_lines(self) -> Tensor:
        """Level and step of f', then of a (cells, 4)."""
        return torch.cat([self._gradient, self._lines(self._curvature[0])], 1).to(self.device)

    @functools.cached_property
    def error(self) -> ErrorBounds:
        """The worst bounds over the certified intervals."""
        (line, value, part), (taylor, rest, low) = self._errors(), self._curvature
        certified = ~self.intervals.rest.isinf()
        n = torch.arange(2, ORDER + 1, dtype=torch.int64, device="cpu")[:, None]
        bent = (n * (n - 1) * 1.5 ** (n - 2) * taylor[2:].abs()).sum(0)
        bent = bent + rest / math.factorial(ORDER - 1)
        miss = bent * part**2 / 2 + rest / math.factorial(ORDER + 1)
        slope = taylor[1].abs() + bent
        curvature = (miss + slope * part * 2.0 ** (1 - self.address.bits)) / low + 2.0**-20
        bounds = torch.stack([line + 2.0**-22, value + self.mixture.rounding, curvature])
        return ErrorBounds(*bounds[:, certified].amax(1).tolist())

    def slopes(
        self, w: Tensor, place: tuple[Tensor, Tensor, Tensor], scratch: Scratch, uncertified: Slopes
    ) -> list[Tensor]:
        """The gradient f' of a chunk and, if the scratch memory has space for it, a.

        Args:
            w: the chunk.
            place: from `address.find`.
            scratch: the scratch memory; the results lie in it.
            uncertified: evaluates the weights for which no line is certified.
        """
        cell, _, coordinate = place
        curved = scratch.lines.dtype == torch.complex128
        lines = scratch.lines[: len(w)]
        # Gathered as one complex number: one look-up instead of two or four.
        table = (self.both_lines if curved else self.lines).view(lines.dtype)[:, 0]
        torch.index_select(table, 0, cell, out=lines)
        parts = lines.view(torch.float32).view(len(w), 4 if curved else 2).unbind(1)
        values = [
            torch.addcmul(level, step, coordinate, out=out[: len(w)])
            for level, step, out in zip(parts[::2], parts[1::2], scratch.floats[1:], strict=False)
        ]
        if bool(values[0].sum().isnan()):
            gaps = values[0].isnan().nonzero()[:, 0]
            for value, exact in zip(values, uncertified(w[gaps]), strict=False):
                value[gaps] = exact.float()
        return values

    def gaps(self, w: Tensor) -> Tensor:
        """The indices of the flat weights for which no line is certified."""
        scratch, indices, size = Scratch(len(w), w.device), [], chunk_on(w.device)
        for start in range(0, len(w), size):
            cell, *_ = self.address.find(w[start : start + size], scratch)
            indices.append((~self.certified.index_select(0, cell)).nonzero()[:, 0] + start)
        return torch.cat(indices)

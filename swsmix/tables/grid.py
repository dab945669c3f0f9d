"""Cells of one width, for soft mixtures: a multiplication finds them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swsmix.tables.cells import CellErrors, CellRuns, Cells, Refinement, refinement_for
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch
from swsmix.tables.taylor import ORDER, Ends, Intervals, split

_UNITS, _FEWEST = 16, 15  # log2 of the most cells, and of the fewest numbers in a cell


class GridAddress:
    """Cells of width h = 2^bits / scale around zero; the first and last take what lies beyond.

    A weight's number in its cell is exact to one part in 2^bits, however close to zero it is.

    Args:
        cells: log2 of the number of cells.
        scale: numbers per unit of w, a power of two.
        absolute: whether coordinates count from zero instead of the cell's own start.
    """

    def __init__(self, cells: int, scale: float, absolute: bool) -> None:
        self.bits, self.scale, self.absolute = _bits(cells), scale, absolute
        self.half = 1 << (cells - 1)

    def find(self, w: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """See `cells.Address`; the results lie in scratch memory."""
        number, cell = (each[: len(w)] for each in scratch.ints[:2])
        coordinate = torch.mul(w, self.scale, out=scratch.floats[0, : len(w)])
        # What does not fit, NaN too, becomes the largest or the smallest integer.
        number.copy_(coordinate).clamp_(-self.half << self.bits, (self.half << self.bits) - 1)
        torch.bitwise_right_shift(number, self.bits, out=cell).add_(self.half)
        number.bitwise_and_((1 << self.bits) - 1)
        return cell, number, coordinate if self.absolute else coordinate.copy_(number)


def _bits(cells: int) -> int:
    return min(16, _UNITS + _FEWEST - cells)


def grid_cells(mixture: ExactMixture, tolerance: float, device: torch.device) -> Cells | None:
    """The cells of a soft mixture, out to 16 of its widest stds beyond its means.

    Args:
        mixture: the mixture, on the CPU.
        tolerance: the most that the certified bounds may be.
        device: where the weights are.

    Returns:
        The cells, or None if 65,536 of them are too few.
    """
    std, widest, far = mixture.extent
    half = 2.0 ** math.frexp(far + 16 * widest)[1]
    if not 0 < half / std < 2**9 or not 1e-30 < half < 1e30:
        return None  # a straight piece takes about 0.01 std
    unit = half * 2.0 ** (1 - _UNITS)

    first = min(max(math.frexp(2 * half / std)[1] + 2, 4), 10)  # of intervals about one std wide
    width = torch.full((1 << first,), 1 << (_UNITS - first), dtype=torch.int64, device="cpu")
    start = (
        torch.arange(1 << first, dtype=torch.int64, device="cpu") * width + 1
    )  # 0 would never be split
    sign = torch.ones_like(start)
    intervals = split(mixture, tolerance, start, width, sign, ends=Ends(unit, -half), smallest=1)
    if intervals is None or bool(intervals.rest.isinf().any()):
        return None
    needed = refinement_for(intervals, tolerance)
    # A number's own error, relative to one part: in f, and in f' if it counts from the cell.
    swing = (intervals.taylor[1].abs() + intervals.second) / intervals.size
    pull = intervals.second / (intervals.radius * intervals.floor)
    fine = (torch.maximum(swing, pull) * 2.0 ** (2 - _FEWEST) / tolerance).clamp_min(1.0)
    parts = torch.maximum(needed.parts, fine.log2().ceil())
    level = int((intervals.width.double().log2() - parts).min())  # log2 of the units in a cell
    if level < 0:
        return None
    cells = _UNITS - level
    coarse = needed.rounding * half / intervals.radius / 2
    absolute = bool(coarse.max() <= tolerance / 8)
    address = GridAddress(cells, 2.0 ** _bits(cells) / (unit * 2**level), absolute)
    part = 2.0**level / intervals.width
    return Cells(
        mixture,
        intervals,
        address,
        _runs(intervals, address, level, unit * 2**level),
        lambda: _errors(intervals, needed, part, (swing, pull), address, coarse.max()),
        device,
    )


def _runs(intervals: Intervals, address: GridAddress, level: int, width: float) -> CellRuns:
    """Where the cells, each of a width, lie: the first and the last one are runs of their own."""
    total = 2 * address.half
    first = (intervals.start - 1) >> level
    owner = torch.arange(len(first), dtype=torch.int64, device="cpu")
    # The ends come first: where an interval is a single cell, they are left with no cells.
    first = torch.cat([first.new_tensor([1, total - 1]), first])
    owner = torch.cat([owner[:1], owner[-1:], owner])
    first, order = first.sort(stable=True)
    cells = torch.cat([first, first.new_tensor([total])]).diff()
    used = cells > 0
    first, owner, cells = first[used], owner[order][used], cells[used]
    radius, centre = intervals.radius[owner], intervals.centre[owner]
    inner, stride = (
        (first.double() * width - address.half * width - centre) / radius,
        width / radius,
    )
    certified = (first > 0) & (first < total - 1)
    return CellRuns(
        cells=cells,
        owner=owner,
        middle=inner + stride / 2,
        stride=stride,
        inner=inner,
        slide=stride,
        back=-centre / radius - inner - stride / 2 if address.absolute else -stride / 2,
        drift=-stride if address.absolute else torch.zeros_like(stride),
        ulp=stride * 2.0**-address.bits,
        certified=certified,
    )


def _errors(
    intervals: Intervals,
    needed: Refinement,
    part: Tensor,
    by_number: tuple[Tensor, Tensor],
    address: GridAddress,
    coarse: Tensor,
) -> CellErrors:
    """The certified errors; `by_number` is what a number's error changes in f and in f'."""
    swing, pull = by_number
    truncation = part * 2.0 ** (1 - address.bits)  # a number's error in s
    rounding = coarse if address.absolute else needed.rounding * part + truncation * pull
    rest = intervals.rest / math.factorial(ORDER + 1)
    line = needed.line * part**2 + rounding
    line = line + rest * (ORDER + 1) / intervals.floor / intervals.radius + intervals.noise
    value = (needed.third * part**3 + rest) / intervals.size + truncation * swing
    return CellErrors(line, value, part)

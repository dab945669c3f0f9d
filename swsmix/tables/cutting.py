"""The cells of a mixture: certified intervals of floats, cut as finely as the tolerance asks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.address import CELL_BITS, Address
from swsmix.tables.cells import PART, CellGeometry, Cells, refinement_for
from swsmix.tables.exact import ExactMixture
from swsmix.tables.taylor import Intervals, ends, ranges, split

MAX_PARTS = 1 << 21  # of cells, all together; a harder mixture is evaluated directly
SMALLEST = 64  # floats in the shortest interval
# log2 of the floats in a block: short ones where components are narrow, for fewer cells; long ones
# where there are few cells in any case, so that the entries that weights need stay in the nearest
# cache. A block that has one cell must be no longer than the longest cell.
SHORT, LONG, FEW = 14, 16, 1 << 13
assert LONG <= PART


def cut(mixture: ExactMixture, tolerance: float, device: torch.device) -> Cells | None:
    """The cells of a mixture.

    Tiny floats share one cell; so do huge ones, infinities and NaN. In the latter cell, and where
    no polynomial meets the tolerance, no cubic is certified.

    Args:
        mixture: the mixture, on the CPU.
        tolerance: the most that the certified bounds may be.
        device: where the weights are.

    Returns:
        The cells, or None if there would be too many.
    """
    intervals = _intervals(mixture, tolerance)
    if intervals is None:
        return None
    needed = refinement_for(intervals, tolerance)
    whole = intervals.width.double().log2().floor()
    shift = whole - needed.parts
    uncertified = intervals.rest.isinf() | (shift < 2)
    intervals.rest.masked_fill_(uncertified, math.inf)
    # A part has at most as many floats as the histogram has numbers.
    most = PART + needed.fine
    shift = torch.where(uncertified, whole, shift).clamp_max_(most).long()
    spans = _spans(intervals, shift, most, SHORT)
    if spans.cells < FEW:
        spans = _spans(intervals, shift, most, LONG)
    if spans.cells << needed.fine > MAX_PARTS:
        return None
    entries, geometry = _laid_out(intervals, spans, uncertified)
    return Cells(
        mixture,
        intervals,
        Address(entries.to(device), spans.low),
        geometry,
        needed,
        spans.shift[spans.of_interval],
        device,
    )


def _intervals(mixture: ExactMixture, tolerance: float) -> Intervals | None:
    """Certified intervals of floats; those that miss the tolerance at 64 floats stay uncertified.

    They start as one interval around zero and half octaves up to 8 times the mixture's reach.
    None if there are too many.
    """
    std, widest, far = mixture.extent
    reach = far + 16 * widest
    # f'' is at most (far / std^2)^2 in the middle of two components: f' is constant below 2^zero.
    zero = math.frexp(std * (std / max(far, std)) ** 2)[1] + 126 - 21
    zero = min(max(zero, 1), 250)
    top = min(max(math.frexp(reach)[1] + 126 + 4, zero + 1), 255)
    halves = 2 * (top - zero) + 1  # intervals of each sign
    start = torch.arange(2 * zero - 1, 2 * top, dtype=torch.int64, device="cpu").repeat(2) << 22
    width, sign = torch.full_like(start, 1 << 22), torch.ones_like(start)
    start[::halves], width[::halves], sign[:halves] = 0, zero << 23, -1
    return split(mixture, tolerance, start, width, sign, SMALLEST)


class Spans(NamedTuple):
    """Runs of floats with cells of one size: an interval, or all those within one block.

    Of each sign, by magnitude: one cell for the tiny, the spans of the intervals, one cell for the
    rest. Each (spans,).
    """

    low: int  # log2 of the floats in a block
    start: Tensor  # magnitude bits of the first float
    width: Tensor  # how many floats
    negative: Tensor  # whether its floats are
    shift: Tensor  # log2 of the floats in a cell
    first: Tensor  # the first cell
    alone: Tensor  # whether one cell holds all of it
    of_interval: Tensor  # the span of each interval (t,)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return int(self.first[-1]) + 1


def _spans(intervals: Intervals, shift: Tensor, most: int, low: int) -> Spans:
    """The spans of intervals that need cells of at most 2^shift floats."""
    if compiled := backends.numba_cells():
        return Spans(low, *compiled.spans(intervals, shift, most, low))
    begin, negative, tiny = intervals.start, intervals.sign < 0, intervals.start == 0
    block = 1 << low
    wide = tiny | (intervals.width >= block)
    start = torch.where(wide, begin, begin & -block)
    width = torch.where(wide, intervals.width, block)
    shift = torch.where(tiny, most, shift)
    new = (start != start.roll(1)) | tiny
    index, last = new.cumsum(0) - 1, tiny.roll(-1)
    index += (negative.logical_not()).long()  # the rest of the negative ones comes between
    of_span = torch.empty(int(index[-1]) + 2, dtype=torch.int64, device="cpu")
    of_span[index] = torch.arange(len(index), dtype=torch.int64, device="cpu")
    rest = index[last] + 1
    of_span[rest] = last.nonzero()[:, 0]
    start, width, negative = start[of_span], width[of_span], negative[of_span]
    start[rest] += width[rest]
    width[rest] = (1 << 31) - start[rest]
    shifts = torch.full_like(start, most).scatter_reduce_(0, index, shift, "amin")
    alone = start == 0
    alone[rest] = True
    cells = torch.where(alone, 1, width >> shifts)
    return Spans(low, start, width, negative, shifts, cells.cumsum(0) - cells, alone, index)


def _laid_out(
    intervals: Intervals, spans: Spans, uncertified: Tensor
) -> tuple[Tensor, CellGeometry]:
    """The entries of `Address`, and where the cells lie in their intervals."""
    home = spans.of_interval
    ahead = (intervals.start - spans.start[home]) >> spans.shift[home]
    begins = spans.first[home] + ahead  # each interval's first cell
    if compiled := backends.numba_cells():
        entries, *geometry = compiled.laid_out(intervals, spans, begins, uncertified)
        return entries, CellGeometry(*geometry)
    return _entries(spans), _geometry(intervals, spans, begins, uncertified)


def _entries(spans: Spans) -> Tensor:
    """See `Address`."""
    whole, negative = (1 << CELL_BITS) - 1, spans.negative.long() << 31
    blocks = spans.width >> spans.low
    base = spans.first - ((spans.start - negative) >> spans.shift)
    entries = (((base & whole) << 5) | spans.shift).int().repeat_interleave(blocks)
    ends = blocks.cumsum(0)
    for span in spans.alone.nonzero()[:, 0].tolist():  # of which there are four
        bits = torch.arange(int(blocks[span]), dtype=torch.int64, device="cpu") << spans.low
        shift = int(spans.shift[span])
        place = int(spans.first[span]) - ((bits + int(spans.start[span] - negative[span])) >> shift)
        end = int(ends[span])
        entries[end - len(bits) : end] = ((place & whole) << 5) | shift
    return entries


def _geometry(
    intervals: Intervals, spans: Spans, begins: Tensor, uncertified: Tensor
) -> CellGeometry:
    index, home = ranges(spans.first.diff(append=spans.first.new_tensor([spans.cells])))
    mark = torch.zeros_like(home)
    mark[begins] = 1
    owner = mark.cumsum(0) - 1
    alone, width = spans.alone[home], (1 << spans.shift).index_select(0, home)
    magnitudes = ends(torch.where(alone, 0, spans.start[home] + index * width), width)
    inner, outer = (end * ~alone for end in magnitudes)  # the tiny count as zero
    negative = spans.negative[home]
    inner[negative], outer[negative] = -inner[negative], -outer[negative]
    unit = 1 / intervals.radius.index_select(0, owner)
    centre = intervals.centre.index_select(0, owner)
    inner = (inner - centre) * unit
    ulp = (outer * unit - centre * unit - inner) / (width - 1).clamp_min(1)
    certified = ~(uncertified.index_select(0, owner) | (alone & (spans.start[home] > 0)))
    return CellGeometry(owner, inner, ulp, width, certified)

"""The cells of a mixture: certified intervals of floats, cut as finely as the tolerance asks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.address import MOST, Address
from swsmix.tables.cells import (
    PART,
    CellErrors,
    CellGeometry,
    Cells,
    Refinement,
    refinement_for,
)
from swsmix.tables.exact import ExactMixture
from swsmix.tables.taylor import ORDER, Intervals, ends, ranges, split

MAX_PARTS = 1 << 21  # of cells, all together; a harder mixture is evaluated directly
_LOW = (16, 17, 18, MOST)  # log2 of the floats in a block, to choose from
_SMALLEST = 64  # floats in the shortest interval


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
    shift = intervals.width.double().log2().floor() - needed.parts
    uncertified = intervals.rest.isinf() | (shift < 2)
    intervals.rest.masked_fill_(uncertified, math.inf)
    # A part has at most as many floats as the histogram has numbers.
    most = PART + needed.fine
    shift = shift.masked_fill_(uncertified, 6.0).clamp_max_(most).long()
    options = (_blocks(intervals, shift, low, most) for low in _LOW)
    blocks = min(options, key=lambda each: each.cost)
    if int(blocks.first[-1]) << needed.fine > MAX_PARTS:
        return None
    return Cells(
        mixture,
        intervals,
        Address(blocks.packed().to(device), blocks.low),
        _geometry(intervals, blocks, uncertified),
        _errors(intervals, needed, blocks),
        needed.fine,
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
    return split(mixture, tolerance, start, width, sign, _SMALLEST)


class _Blocks(NamedTuple):
    """Blocks of floats: of each sign one for the tiny, those of the intervals, one for the rest."""

    low: int  # log2 of the floats in a block
    start: int  # the upper bits of the first interval's magnitudes
    number: int  # how many blocks each sign has
    shift: Tensor  # log2 of the floats per cell (blocks,)
    first: Tensor  # each block's first cell (blocks,)
    of_interval: Tensor  # the block in which each interval starts (t,)

    @property
    def cost(self) -> int:
        """How many cells there are, and entries: four are made as fast as the cubic of a cell."""
        return (1 << (30 - self.low)) + int(self.first[-1])

    def packed(self) -> Tensor:
        """The entries first << 5 | shift of all upper bits."""
        magnitude = torch.arange(1 << (31 - self.low), dtype=torch.int64, device="cpu")
        magnitude = (magnitude - (self.start - 1)).clamp_(0, self.number - 1)
        entries = ((self.first << 5) | self.shift).int()
        return torch.cat([entries[magnitude], entries[magnitude + self.number]])


def _blocks(intervals: Intervals, shift: Tensor, low: int, most: int) -> _Blocks:
    """The blocks that the intervals need, each with the smallest shift of its intervals.

    What is beyond them has the largest shift there may be.
    """
    begin = intervals.start
    start = int(begin[begin > 0].min()) >> low
    number = (int((begin + intervals.width).max()) >> low) - start + 2
    block = torch.where(begin > 0, (begin >> low) - start + 1, 0)
    block += (intervals.sign > 0) * number
    shifts = torch.full((2 * number,), low + 1, dtype=torch.int64, device="cpu")
    shifts.scatter_reduce_(0, block, shift.clamp_max(low), "amin")
    blocks = torch.arange(2 * number, dtype=torch.int64, device="cpu")
    shifts = shifts[torch.where(shifts <= low, blocks, 0).cummax(0).values]
    shifts[number - 1 :: number] = min(low, most)
    cells = 1 << (low - shifts)
    return _Blocks(low, start, number, shifts, cells.cumsum(0) - cells, block)


def _geometry(intervals: Intervals, blocks: _Blocks, uncertified: Tensor) -> CellGeometry:
    """Where the blocks' cells lie in their intervals."""
    if compiled := backends.numba_cells():
        return CellGeometry(*compiled.geometry(intervals, blocks, uncertified))
    index, home = ranges(1 << (blocks.low - blocks.shift))
    mark, begins = torch.zeros_like(home), blocks.of_interval
    rest = intervals.start & ((1 << blocks.low) - 1)
    mark[blocks.first[begins] + (rest >> blocks.shift[begins])] = 1
    owner = mark.cumsum(0) - 1
    away, width = home % blocks.number, (1 << blocks.shift).index_select(0, home)
    magnitudes = ends(((away + blocks.start - 1) << blocks.low) + index * width, width)
    inner, outer = (end * (away > 0) for end in magnitudes)
    negative = home < blocks.number
    inner[negative], outer[negative] = -inner[negative], -outer[negative]
    unit = 1 / intervals.radius.index_select(0, owner)
    centre = intervals.centre.index_select(0, owner)
    inner = (inner - centre) * unit
    ulp = (outer * unit - centre * unit - inner) / (width - 1).clamp_min(1)
    certified = ~(uncertified.index_select(0, owner) | (away == blocks.number - 1))
    return CellGeometry(owner, inner, ulp, width, certified)


def _errors(intervals: Intervals, needed: Refinement, blocks: _Blocks) -> CellErrors:
    """The certified errors of the cells in each interval."""
    shift = blocks.shift[blocks.of_interval]
    part = ((1 << shift) - 1) / (intervals.width - 1).clamp_min(1)
    rest = intervals.rest / math.factorial(ORDER + 1)
    gradient = needed.cubic * part**4 + needed.rounding * part
    gradient = gradient + rest * (ORDER + 1) / intervals.floor / intervals.radius + intervals.noise
    value = (needed.third * (part * 2.0**-needed.fine) ** 3 + rest) / intervals.size
    tiny = intervals.start == 0  # its floats count as zero
    gradient[tiny] = (intervals.second / intervals.radius / intervals.floor * 2)[tiny]
    value[tiny] = (intervals.taylor[1].abs() + intervals.second)[tiny] * 2
    return CellErrors(gradient, value, torch.where(tiny, 1.0, part))

"""Cells addressed by the bits of a float32: log-spaced around zero, down to single floats."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.cells import CellErrors, CellRuns, Cells, Refinement, refinement_for
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch
from swsmix.tables.taylor import ORDER, Ends, Intervals, split

MAX_CELLS = 1 << 21  # a harder mixture is evaluated directly
_SMALLEST = 64  # floats in the shortest interval


class BitAddress:
    """A float32 is its own address.

    Its upper 16 bits (a bfloat16) name its block: (bits >> 16) + 32768. A block has
    2^(16 - shift) cells, the first of them `first`. With low = bits & 65535, the float is in cell
    first + (low >> shift). Its number there is low or, where that would round too coarsely,
    low & (2^shift - 1), counted from the cell's own start.

    Args:
        block: first << 5 | shift for each of the 65,536 blocks.
        absolute: whether numbers count from the block's start instead of the cell's.
    """

    bits = 16

    def __init__(self, block: Tensor, absolute: bool) -> None:
        self.block, self.absolute = block, absolute

    def find(self, w: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """See `cells.Address`; the results lie in scratch memory."""
        low, block, shift, part = (each[: len(w)] for each in scratch.ints)
        bits = w.view(torch.int32)
        torch.bitwise_and(bits, 0xFFFF, out=low)
        torch.bitwise_right_shift(bits, 16, out=shift).add_(1 << 15)
        torch.index_select(self.block, 0, shift, out=block)
        torch.bitwise_and(block, 31, out=shift)
        torch.bitwise_right_shift(low, shift, out=part)
        block.bitwise_right_shift_(5).add_(part)
        if not self.absolute:
            low.sub_(part.bitwise_left_shift_(shift))
        return block, low, scratch.floats[0, : len(w)].copy_(low)


def bit_cells(mixture: ExactMixture, tolerance: float, device: torch.device) -> Cells | None:
    """The cells of a mixture, addressed by bits.

    Tiny floats share one cell; so do huge ones, infinities and NaN. In the latter cell, and where
    no polynomial meets the tolerance, no line is certified.

    Args:
        mixture: the mixture, on the CPU.
        tolerance: the most that the certified bounds may be.
        device: where the weights are.

    Returns:
        The cells, or None if there would be too many.
    """
    intervals = _intervals(mixture, tolerance)
    layout = None if intervals is None else _layout(intervals, tolerance)
    if intervals is None or layout is None:
        return None
    return Cells(
        mixture,
        intervals,
        BitAddress(layout.block.to(device), layout.absolute),
        layout.runs,
        functools.partial(_errors, intervals, tolerance, layout),
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
    return split(mixture, tolerance, start, width, sign, ends=Ends(), smallest=_SMALLEST)


class Layout(NamedTuple):
    """How the intervals are cut into cells."""

    block: Tensor  # the address's entries of the blocks (65,536,)
    absolute: bool  # whether numbers count from the block's start
    shift: Tensor  # log2 of the floats per cell that each interval needs (t,)
    runs: CellRuns


def _layout(intervals: Intervals, tolerance: float) -> Layout | None:
    """Cut the intervals, and mark as uncertified those whose cells would be too short.

    Numbers count from the block's start, in fewer operations per weight, if rounding allows it.
    None if there would be too many cells.
    """
    if compiled := backends.numba_cut():
        found: Layout | None = compiled.layout(intervals, tolerance)
        return found
    needed = refinement_for(intervals, tolerance)
    absolute = bool(_coarse(intervals, needed) <= tolerance / 8)
    shift = intervals.width.double().log2().floor() - needed.parts
    uncertified = intervals.rest.isinf() | (shift < 2)
    intervals.rest.masked_fill_(uncertified, math.inf)
    shift = shift.masked_fill_(uncertified, 6.0).clamp_max_(16.0).long()
    blocks = _blocks(intervals, shift)
    if int(blocks.first[-1]) > MAX_CELLS:
        return None
    runs = _runs(intervals, blocks, absolute)
    return Layout(blocks.packed(), absolute, shift, runs)


def _coarse(intervals: Intervals, needed: Refinement) -> Tensor:
    """The worst rounding over a block, in units of its intervals' lengths, which may be shorter."""
    coarse = (needed.rounding * (1 << 16) / intervals.width)[intervals.start > 0]
    return coarse.nan_to_num(0.0).max()


class _Blocks(NamedTuple):
    """Blocks of floats: of each sign one for the tiny, those of the intervals, one for the rest."""

    low: int  # the upper half of the first interval's magnitudes
    number: int  # how many blocks each sign has
    shift: Tensor  # log2 of the floats per cell (blocks,)
    first: Tensor  # each block's first cell (blocks,)
    of_interval: Tensor  # the block in which each interval starts (t,)

    def packed(self) -> Tensor:
        """The entries first << 5 | shift of all 65,536 upper halves."""
        entries = ((self.first << 5) | self.shift).int()
        beyond = (1 << 15) - (self.low + self.number - 2)  # upper halves
        sides = []
        for side in entries.split(self.number):
            sides += [side[:1].expand(self.low), side[1:-1], side[-1:].expand(beyond)]
        return torch.cat(sides)


def _blocks(intervals: Intervals, shift: Tensor) -> _Blocks:
    """The blocks that the intervals need, each with the smallest shift of its intervals."""
    start = intervals.start
    low = int(start[start > 0].min()) >> 16
    number = (int((start + intervals.width).max()) >> 16) - low + 2
    block = torch.where(start > 0, (start >> 16) - low + 1, 0)
    block += (intervals.sign > 0) * number
    shifts = torch.full((2 * number,), 17, dtype=torch.int64, device="cpu")
    shifts.scatter_reduce_(0, block, shift, "amin")
    blocks = torch.arange(2 * number, dtype=torch.int64, device="cpu")
    shifts = shifts[torch.where(shifts < 17, blocks, 0).cummax(0).values]
    shifts[number - 1 :: number] = 16
    first = (1 << (16 - shifts)).cumsum(0) - (1 << (16 - shifts))
    return _Blocks(low, number, shifts, first, block)


def _runs(intervals: Intervals, blocks: _Blocks, absolute: bool) -> CellRuns:
    """Where the cells lie. An interval's floats are in one half octave: s is linear in the bits.

    A run goes on from block to block while its cells stay alike.
    """
    mine, number = blocks.of_interval, blocks.number  # the block in which each interval starts
    low = intervals.start & 0xFFFF
    cell = blocks.first[mine] + (low >> blocks.shift[mine])
    alone = torch.zeros_like(blocks.first, dtype=torch.bool)  # blocks that do not go on with a run
    alone[1:] = blocks.shift.diff() != 0
    if absolute:
        alone |= blocks.shift < 16
    starts = torch.zeros_like(alone)  # blocks that an interval starts with
    starts[mine[low == 0]] = True
    alone |= starts
    alone[number - 1 :: number] = True
    home = torch.cat([alone.nonzero()[:, 0], mine[low > 0]])
    owner = torch.cat([starts[alone], low[low > 0] > 0])
    first = torch.cat([blocks.first[alone], cell[low > 0]])
    first, order = first.sort()
    home, owner = home[order], owner[order].cumsum(0) - 1
    shift, away = blocks.shift[home], home % number
    total = blocks.first[-1:] + 1  # the last block has one cell
    cells = torch.cat([first, total]).diff()
    start, width, sign = (
        each[owner] for each in (intervals.start, intervals.width, intervals.sign)
    )
    tiny, beyond = away == 0, away == number - 1
    ulp = (2.0 * sign.double() / (width - 1)).masked_fill_(tiny | beyond, 0.0)
    begin, floats = (first - blocks.first[home]) << shift, 1 << shift  # in the block
    magnitude = ((away + blocks.low - 1) << 16) + begin
    inner = (ulp * (magnitude - start) - sign).masked_fill_(beyond, 0.0)
    stride = ulp * floats
    middle = inner + ulp * (floats - 1) / 2
    if absolute:
        inner = inner - ulp * begin
    slide = torch.where(shift < 16, 0.0, stride) if absolute else stride
    return CellRuns(
        cells=cells,
        owner=owner,
        middle=middle,
        stride=stride,
        inner=inner,
        slide=slide,
        back=inner - middle,
        drift=slide - stride,
        ulp=ulp,
        certified=~(intervals.rest.isinf()[owner] | beyond),
    )


def _errors(intervals: Intervals, tolerance: float, layout: Layout) -> CellErrors:
    """The certified errors of the cells."""
    needed = refinement_for(intervals, tolerance)
    part = ((1 << layout.shift) - 1) / (intervals.width - 1).clamp_min(1)
    rest = intervals.rest / math.factorial(ORDER + 1)
    rounding = _coarse(intervals, needed) if layout.absolute else needed.rounding * part
    line = needed.line * part**2 + rounding
    line = line + rest * (ORDER + 1) / intervals.floor / intervals.radius + intervals.noise
    value = (needed.third * part**3 + rest) / intervals.size
    tiny = intervals.start == 0  # its floats count as zero
    line[tiny] = (intervals.second / intervals.radius / intervals.floor * 2)[tiny]
    value[tiny] = (intervals.taylor[1].abs() + intervals.second)[tiny] * 2
    return CellErrors(line, value, torch.where(tiny, 1.0, part))

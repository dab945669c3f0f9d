"""Cells addressed by the float's own bits: log-spaced, down to single floats where need be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swsmix.tables.cells import Cells, Layout, Room, needs
from swsmix.tables.direct import Mixture
from swsmix.tables.taylor import ORDER, Intervals, ranges, split

MAX_CELLS = 1 << 21  # a harder mixture is evaluated directly


def _ends(start: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest magnitude of intervals of floats."""
    inner, outer = torch.stack([start, start + width - 1]).int().view(torch.float32).double()
    return inner, outer


class Bits:
    """A float32 is its own address.

    It is in block (bits >> 16) + 32768, named by its upper 16 bits (a bfloat16). In a block of
    2^(16 - shift) cells, the first of them `first`, its cell is first + (low >> shift) with low =
    bits & 65535. Its number is low or, where that would round too coarsely, low & (2^shift - 1),
    from the cell's own start.

    Args:
        block: first << 5 | shift for each of the 65,536 blocks.
        whole: whether numbers count from the block's start.
    """

    bits = 16

    def __init__(self, block: Tensor, whole: bool) -> None:
        self.block, self.whole = block, whole

    def find(self, w: Tensor, room: Room) -> tuple[Tensor, Tensor, Tensor]:
        """See `cells.Address`.

        Returns:
            cell, number, coordinate, in scratch memory.
        """
        low, block, shift, part = (each[: len(w)] for each in room.ints)
        bits = w.view(torch.int32)
        torch.bitwise_and(bits, 0xFFFF, out=low)
        torch.bitwise_right_shift(bits, 16, out=shift).add_(1 << 15)
        torch.index_select(self.block, 0, shift, out=block)
        torch.bitwise_and(block, 31, out=shift)
        torch.bitwise_right_shift(low, shift, out=part)
        block.bitwise_right_shift_(5).add_(part)
        if not self.whole:
            low.sub_(part.bitwise_left_shift_(shift))
        return block, low, room.floats[0, : len(w)].copy_(low)


def _intervals(mixture: Mixture, tolerance: float) -> Intervals | None:
    """The floats in intervals, those that do not meet the tolerance with 64 floats left open.

    They start as an interval around zero and half octaves up to 8 times the mixture's reach.

    Returns:
        The intervals, or None if there are too many.
    """
    alive = mixture.mixing > 0
    std, far = mixture.std[alive].min().item(), mixture.mean[alive].abs().max().item()
    reach = far + 16 * mixture.std[alive].max().item()
    # f'' is at most (far / std^2)^2 in the middle of two components: f' is constant below 2^zero.
    zero = math.frexp(std * (std / max(far, std)) ** 2)[1] + 126 - 21
    zero = min(max(zero, 1), 250)
    top = min(max(math.frexp(reach)[1] + 126 + 4, zero + 1), 255)
    halves = [0, *range(2 * zero, 2 * top + 1)]
    edges = torch.tensor(halves, device="cpu") << 22
    start, width = edges[:-1].repeat(2), edges.diff().repeat(2)
    sign = torch.ones_like(start)
    sign[: len(sign) // 2] = -1
    return split(mixture, tolerance, start, width, sign, ends=_ends, smallest=64)


def bit_cells(mixture: Mixture, tolerance: float, device: torch.device) -> Cells | None:
    """The cells of a mixture by the bits.

    Tiny floats share one cell; so do huge ones, infinities and NaN. In that one and in open cells
    no line holds.

    Args:
        mixture: the mixture, on the CPU.
        tolerance: what the certified bounds must meet.
        device: where the weights are.

    Returns:
        The cells, or None if there would be too many.
    """
    found = _intervals(mixture, tolerance)
    if found is None:
        return None
    third, line, rounding, parts = needs(found, tolerance)
    # Of a whole block, counted in its interval's length, which may be shorter.
    coarse = (rounding * (1 << 16) / found.width)[found.start > 0].nan_to_num(0.0)
    whole = bool(coarse.max() <= tolerance / 8)
    shift = found.width.double().log2().floor() - parts
    opened = found.rest.isinf() | (shift < 2)
    found.rest.masked_fill_(opened, math.inf)
    shift = shift.masked_fill_(opened, 6.0).clamp_max_(16.0).long()

    # Of each sign: a block for the tiny, those that the intervals cover, one for the rest.
    low = int(found.start[found.start > 0].min()) >> 16
    number = (int((found.start + found.width).max()) >> 16) - low + 2
    block = torch.where(found.start > 0, (found.start >> 16) - low + 1, 0)
    block += (found.sign > 0) * number
    shifts = torch.full((2 * number,), 17, device="cpu")
    shifts.scatter_reduce_(0, block, shift, "amin")
    blocks = torch.arange(2 * number, device="cpu")
    shifts = shifts[torch.where(shifts < 17, blocks, 0).cummax(0).values]
    shifts[number - 1 :: number] = 16
    first = (1 << (16 - shifts)).cumsum(0) - (1 << (16 - shifts))
    if int(first[-1]) > MAX_CELLS:
        return None
    index, home = ranges(1 << (16 - shifts))
    magnitude = (torch.arange(1 << 15, device="cpu") - (low - 1)).clamp(0, number - 1)
    packed = ((first << 5) | shifts).int()

    mark = torch.zeros_like(home)
    mark[first[block] + ((found.start & 0xFFFF) >> shifts[block])] = 1
    owner = mark.cumsum(0) - 1
    away, width = home % number, (1 << shifts).index_select(0, home)
    begin = index * width
    inner, outer = (end * (away > 0) for end in _ends(((away + low - 1) << 16) + begin, width))
    inner[home < number], outer[home < number] = -inner[home < number], -outer[home < number]
    unit = 1 / found.radius.index_select(0, owner)
    inner = (inner - found.centre.index_select(0, owner)) * unit
    ulp = (outer * unit - found.centre.index_select(0, owner) * unit - inner) / (
        width - 1
    ).clamp_min(1)
    middle = inner + ulp * (width - 1) / 2
    shut = ~(opened.index_select(0, owner) | (away == number - 1))
    if whole:
        inner = inner - ulp * begin

    part = ((1 << shift) - 1) / (found.width - 1).clamp_min(1)
    rest = found.rest / math.factorial(ORDER + 1)
    miss = line * part**2 + (coarse.max() if whole else rounding * part)
    miss = miss + rest * (ORDER + 1) / found.floor / found.radius
    value = (third * part**3 + rest) / found.size
    tiny = found.start == 0  # counts as zero
    miss[tiny] = (found.second / found.radius / found.floor * 2)[tiny]
    value[tiny] = (found.taylor[1].abs() + found.second)[tiny] * 2
    part = torch.where(tiny, 1.0, part)
    return Cells(
        mixture,
        found,
        Bits(torch.cat([packed[magnitude], packed[magnitude + number]]).to(device), whole),
        Layout(owner, inner, ulp, middle, inner, shut),
        line=miss,
        value=value,
        part=part,
        device=device,
    )

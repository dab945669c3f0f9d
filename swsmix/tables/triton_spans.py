"""The runs of cells of one size on the GPU: from intervals to spans, as Triton kernels.

The same as `cutting._spans`, for short and for long blocks of floats at once, and the choice of
`cells.refinement_for`. Few numbers in order: one program for each block size takes them all.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from swsmix.tables.cells import FINE, PART
from swsmix.tables.cutting import FEW, LONG, MAX_PARTS, SHORT
from swsmix.tables.taylor import MAX_INTERVALS
from swsmix.tables.triton_certify import KEPT, REFUSED, ROUND, Pending
from swsmix.tables.triton_loops import compiled

_CHUNK = 512  # intervals or spans that a program takes at a time, in order
_SPANS = MAX_INTERVALS + 4  # at most: one for each interval, and the rest of either sign


class Spans:
    """The runs of cells of `cutting.Spans`, for short and for long blocks; all on the GPU."""

    def __init__(self, places: Tensor, order: Tensor, pending: Pending) -> None:
        device = places.device
        self.places, self.order, self.pending = places, order, pending
        # First float, log2 of the floats in a cell, first cell and whether one cell holds it all.
        self.place, self.shift, self.first, self.alone = torch.empty(
            4, 2, _SPANS, dtype=torch.int32, device=device
        )
        self.of_interval = torch.empty(2, MAX_INTERVALS, dtype=torch.int32, device=device)
        self.shift.fill_(31)
        # fine; the number of spans and of cells, with short and with long blocks
        self.numbers = torch.empty(5, dtype=torch.int64, device=device)
        _join[(2,)](
            places, order, pending.kept_widths, pending.fields, pending.fields.shape[1],
            pending.counts, self.place, self.shift, self.alone, self.of_interval, self.numbers,
            _SPANS, SHORT, LONG, PART, finest=FINE, size=_CHUNK,
        )  # fmt: skip
        _count[(2,)](
            self.place, self.shift, self.alone, self.first, self.numbers, _SPANS, size=_CHUNK
        )

    def chosen(self) -> tuple[int, int, int, int, int] | None:
        """Which of both blocks, and how many intervals, spans, cells and parts (log2).

        None if there would be too many.
        """
        numbers = _fetched(torch.cat([self.pending.counts, self.numbers]))
        counts, (fine, *others) = numbers[: -len(self.numbers)], numbers[-len(self.numbers) :]
        if counts[REFUSED] or max(counts[KEPT], *counts[ROUND:]) > MAX_INTERVALS:
            return None
        which = int(others[1] < FEW)
        spans, cells = others[2 * which : 2 * which + 2]
        if cells << fine > MAX_PARTS:
            return None
        return which, counts[KEPT], spans, cells, fine


def _fetched(numbers: Tensor) -> list[int]:
    """Numbers from the GPU: the host waits until it has made them."""
    found: list[int] = numbers.tolist()
    return found


@compiled
def _log2(width):
    """The largest n with 2^n <= width."""
    return ((width.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023).to(tl.int32)


@compiled
def _needed(fields, room, at, here, fine):
    """Log2 of the parts that intervals need if each has 2^fine parts; see `refinement_for`."""
    rest = tl.load(fields + 3 * room + at, mask=here, other=float("inf"))
    least = tl.load(fields + 18 * room + at, mask=here, other=0.0)
    by_value = tl.load(fields + 19 * room + at, mask=here, other=0.0)
    parts = tl.ceil(tl.maximum(tl.maximum(least, by_value - fine), 0.0))
    return tl.where(rest == float("inf"), 0.0, parts)


@compiled
def shift_of(fields, room, at, here, fine, width, bits):
    """Log2 of the floats in the cells of intervals, and whether no cubic is certified."""
    rest = tl.load(fields + 3 * room + at, mask=here, other=float("inf"))
    whole = _log2(width)
    left = whole - tl.minimum(_needed(fields, room, at, here, fine), 99.0).to(tl.int32)
    unknown = (rest == float("inf")) | (left < 2)
    return tl.minimum(tl.where(unknown, whole, left), bits + fine), unknown


@compiled
def _begins(place, width, block):
    """The first float of the span of an interval: of its block, where it is shorter than that."""
    start = place & 0x7FFFFFFF
    return tl.where((start == 0) | (width >= block), place, place & -block)


@compiled
def _join(
    places, order, widths, fields, room, counts, place, shift, alone, of_interval, numbers, stride,
    short, long, bits, finest: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """The spans of intervals in order, as in `cutting._spans`; one program for each block size."""
    which = tl.program_id(0)
    block = 1 << tl.where(which == 0, short, long)
    place, shift, alone = place + which * stride, shift + which * stride, alone + which * stride
    of_interval += which * room
    used = tl.minimum(tl.load(counts), room).to(tl.int32)
    finer = tl.arange(0, 8)[None, :]
    cost = tl.zeros((8,), tl.float64)
    for first in range(0, used, size):
        i = first + tl.arange(0, size)
        here = i < used
        at = tl.load(order + i, mask=here, other=0)
        parts = _needed(fields, room, at[:, None], here[:, None], finer)
        cost += tl.sum(tl.where(here[:, None], tl.exp2(parts), 0.0), 0)
    # To make a cell costs about as much as to sum over eight parts; see `cells.refinement_for`.
    finer = tl.arange(0, 8)
    cost = cost * (tl.exp2(finer.to(tl.float64)) + 8.0)
    fine = tl.argmin(tl.where(finer <= finest, cost, float("inf")), 0)
    tl.store(numbers, fine.to(tl.int64))
    most = bits + fine
    spans = 0
    for first in range(0, used, size):
        i = first + tl.arange(0, size)
        here = i < used
        at = tl.load(order + i, mask=here, other=0)
        x = tl.load(places + i, mask=here, other=0)
        width = tl.load(widths + at, mask=here, other=64)
        begin = _begins(x, width, block)
        ahead = here & (i > 0)
        before = tl.load(order + i - 1, mask=ahead, other=0)
        before = _begins(
            tl.load(places + i - 1, mask=ahead, other=0),
            tl.load(widths + before, mask=ahead, other=64),
            block,
        )
        tiny = (x & 0x7FFFFFFF) == 0
        new = here & (tiny | (begin != before))
        after = tl.load(places + i + 1, mask=i + 1 < used, other=0)
        last = here & ((after & 0x7FFFFFFF) == 0)
        index = spans + tl.cumsum(new.to(tl.int32), 0) - 1
        index += (x >= 0).to(tl.int32)  # the rest of the negative ones comes between
        spans += tl.sum(new.to(tl.int32), 0)
        floats, _ = shift_of(fields, room, at, here, fine, width, bits)
        floats = tl.where(tiny, most, floats)
        tl.store(of_interval + i, index, mask=here)
        tl.store(place + index, begin, mask=new)
        tl.store(alone + index, tiny.to(tl.int32), mask=new)
        tl.atomic_min(shift + index, floats, mask=here, sem="relaxed")
        tl.store(place + index + 1, x + width, mask=last)
        tl.store(alone + index + 1, 1, mask=last)
        tl.store(shift + index + 1, most, mask=last)
    tl.store(numbers + 1 + 2 * which, tl.cast(spans + 2, tl.int64))


@compiled
def _count(place, shift, alone, first, numbers, stride, size: tl.constexpr):
    """The first cell of each span, and the number of all."""
    which = tl.program_id(0)
    place, shift, alone = place + which * stride, shift + which * stride, alone + which * stride
    spans = tl.load(numbers + 1 + 2 * which).to(tl.int32)
    before = 0
    for begin in range(0, spans, size):
        i = begin + tl.arange(0, size)
        here = i < spans
        single = tl.load(alone + i, mask=here, other=1) != 0
        many = here & (single == 0)  # the rest of the sign comes after these
        floats = tl.load(place + i + 1, mask=many, other=0) - tl.load(place + i, mask=many, other=0)
        cells = tl.where(many, floats >> tl.load(shift + i, mask=many, other=0), 1)
        cells = tl.where(here, cells, 0)
        tl.store(first + which * stride + i, before + tl.cumsum(cells, 0) - cells, mask=here)
        before += tl.sum(cells, 0)
    tl.store(numbers + 2 + 2 * which, tl.cast(before, tl.int64))

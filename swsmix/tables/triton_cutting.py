"""A mixture's cells cut on the GPU, as Triton kernels (if Triton is installed).

The same cells as those of `cutting`, up to decisions by a rounding error. All steps are queued one
after the other, each on what the one before left on the GPU; the host waits once, to hear how many
intervals and cells there are.

The tests run all kernels in Triton's interpreter. Unmeasured on a GPU: how fast they are.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from swsmix.tables import triton_certify
from swsmix.tables.address import Address
from swsmix.tables.cells import PART, CellGeometry, Cells, Refinement
from swsmix.tables.cutting import LONG, SHORT, SMALLEST
from swsmix.tables.exact import ExactMixture
from swsmix.tables.taylor import Intervals
from swsmix.tables.triton_certify import Pending
from swsmix.tables.triton_loops import compiled
from swsmix.tables.triton_spans import Spans, shift_of

_BLOCK = 128  # cells, entries or intervals of a program
_WIDTH = 1 << 22  # floats of the intervals at the start: half an octave
_ROUNDS = (_WIDTH // SMALLEST).bit_length()  # each splits in two, at least


def cut(mixture: ExactMixture, tolerance: float, narrowest: float, widest: float) -> Cells | None:
    """The cells of a mixture on the GPU where it is; see `cutting.cut`.

    Args:
        mixture: the mixture, on the GPU.
        tolerance: the most that the certified bounds may be.
        narrowest: the smallest std of which there are cells.
        widest: the largest one.

    Returns:
        The cells, or None if there would be too many or a std is too small or large.
    """
    device = mixture.mean.device
    with torch.cuda.device_of(mixture.mean):
        pending = triton_certify.empty(device, tolerance, _ROUNDS)
        _begin[(1,)](
            mixture.packed, mixture.mixing, mixture.size, pending.places, pending.widths,
            pending.counts, pending.facts, _WIDTH.bit_length() - 1, narrowest=narrowest,
            widest=widest, size=1024,
        )  # fmt: skip
        triton_certify.split_(mixture, pending, SMALLEST)
        places, order = pending.kept.sort()
        spans = Spans(places, order, pending)
        if (found := spans.chosen()) is None:
            return None
        return _cells(mixture, pending, spans, *found)


def _cells(
    mixture: ExactMixture, pending: Pending, spans: Spans, which: int, used: int, num_spans: int,
    cells: int, fine: int,
) -> Cells:  # fmt: skip
    device, low = mixture.mean.device, (SHORT, LONG)[which]
    place, shift, first, alone = (
        each[which] for each in (spans.place, spans.shift, spans.first, spans.alone)
    )
    whole = torch.empty(4, used, dtype=torch.int64, device=device)
    fields = torch.empty(len(pending.fields), used, dtype=torch.float64, device=device)
    _arrange[(triton.cdiv(used, _BLOCK),)](
        spans.places, spans.order, pending.kept_widths, pending.fields, pending.fields.shape[1],
        spans.of_interval[which], shift, fine, PART, whole, fields, used,
        rows=len(pending.fields), size=_BLOCK,
    )  # fmt: skip
    entries = torch.empty(1 << (32 - low), dtype=torch.int32, device=device)
    _enter[(triton.cdiv(len(entries), 8 * _BLOCK),)](
        place, shift, first, alone, num_spans, low, entries, size=8 * _BLOCK
    )
    owner, width = torch.empty(2, cells, dtype=torch.int64, device=device)
    inner, ulp = torch.empty(2, cells, dtype=torch.float64, device=device)
    certified = torch.empty(cells, dtype=torch.bool, device=device)
    _lay_out[(triton.cdiv(cells, _BLOCK),)](
        spans.places, fields, used, place, shift, first, alone, num_spans, owner, width, inner,
        ulp, certified, cells, size=_BLOCK,
    )  # fmt: skip
    start, widths, sign, shifts = whole
    centre, radius, bend, rest, second, floor, size, noise = fields[:8]
    intervals = Intervals(
        start, widths, sign, centre, radius, bend, fields[8:15], rest, second, floor, size, noise
    )
    needed = Refinement(fields[15], fields[16], fields[17], fields[18], fine)
    geometry = CellGeometry(owner, inner, ulp, width, certified)
    return Cells(mixture, intervals, Address(entries, low), geometry, needed, shifts, device)


@compiled
def _exponent(x):
    """The e of x = m 2^e with 1/2 <= m < 1, of normal float64 numbers x."""
    return ((x.to(tl.int64, bitcast=True) >> 52) - 1022).to(tl.int32)


@functools.partial(compiled, general=("k",))
def _begin(
    mixture, mixing, k, places, widths, counts, facts, half, narrowest: tl.constexpr,
    widest: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """The intervals to start with, as in `cutting._intervals`, and the mixture's scale and levels.

    No interval where a std is too small or large.
    """
    least, most = tl.full((size,), float("inf"), tl.float64), tl.zeros((size,), tl.float64)
    std, wide, far, levels = least, most, most, most
    for first in range(0, k, size):
        j = first + tl.arange(0, size)
        there = j < k
        portion = tl.load(mixing + j, mask=there, other=0.0)
        mean = tl.load(mixture + 3 * j + 1, mask=there, other=0.0)
        each = tl.load(mixture + 3 * j + 2, mask=there, other=1.0)
        live = portion > 0.0
        least = tl.minimum(least, tl.where(there, each, float("inf")))
        most = tl.maximum(most, tl.where(there, each, 0.0))
        std = tl.minimum(std, tl.where(live, each, float("inf")))
        wide = tl.maximum(wide, tl.where(live, each, 0.0))
        far = tl.maximum(far, tl.where(live, tl.abs(mean), 0.0))
        level = tl.abs(tl.log(tl.where(live, portion, 1.0))) + tl.abs(tl.log(each))
        levels = tl.maximum(levels, tl.where(live, level, 0.0))
    std, wide, far = tl.min(std, 0), tl.max(wide, 0), tl.max(far, 0)
    tl.store(facts, 1.0 / wide)
    tl.store(facts + 1, tl.max(levels, 0) + 1.0)
    refused = (tl.min(least, 0) < narrowest) | (tl.max(most, 0) > widest)
    # f'' is at most (far / std^2)^2 in the middle of two components; see `cutting._intervals`.
    ratio = std / tl.maximum(far, std)
    zero = _exponent(std * (ratio * ratio)) + 126 - 21
    zero = tl.minimum(tl.maximum(zero, 1), 250)
    top = tl.maximum(_exponent(far + 16.0 * wide) + 126 + 4, zero + 1)
    halves = 2 * (tl.minimum(top, 255) - zero) + 1
    i = tl.arange(0, size)
    mine = tl.where(i < halves, i, i - halves)
    start = tl.where(mine == 0, 0, (2 * zero - 1 + mine) << half)
    negative = tl.where(i < halves, 1, 0) << 31
    tl.store(places + i, start | negative, mask=i < 2 * halves)
    tl.store(widths + i, tl.where(mine == 0, zero << 23, 1 << half), mask=i < 2 * halves)
    tl.store(counts + 1, refused.to(tl.int64))
    tl.store(counts + 2, tl.where(refused, 0, 2 * halves).to(tl.int64))


@compiled
def _found(sorted_, n, x):
    """The last index with sorted_[index] <= x, of int32 numbers of which the first is."""
    at = tl.zeros_like(x)
    for power in range(16):
        next_ = at + (1 << (15 - power))
        there = next_ < n
        reached = there & (tl.load(sorted_ + next_, mask=there, other=0) <= x)
        at = tl.where(reached, next_, at)
    return at


@functools.partial(compiled, general=("fine", "used"))
def _arrange(
    places, order, widths, fields, room, of_interval, shift, fine, bits, whole, out, used,
    rows: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """The intervals in order: start, width, sign and shift (4, used), and their fields."""
    i = tl.program_id(0) * size + tl.arange(0, size)
    here = i < used
    place = tl.load(places + i, mask=here, other=0)
    at = tl.load(order + i, mask=here, other=0)
    width = tl.load(widths + at, mask=here, other=64)
    span = tl.load(of_interval + i, mask=here, other=0)
    tl.store(whole + i, (place & 0x7FFFFFFF).to(tl.int64), mask=here)
    tl.store(whole + used + i, width.to(tl.int64), mask=here)
    tl.store(whole + 2 * used + i, tl.where(place < 0, -1, 1).to(tl.int64), mask=here)
    span = tl.load(shift + span, mask=here, other=0)
    tl.store(whole + 3 * used + i, span.to(tl.int64), mask=here)
    for row in range(rows):
        tl.store(out + row * used + i, tl.load(fields + row * room + at, mask=here), mask=here)
    _, unknown = shift_of(fields, room, at, here, fine, width, bits)
    tl.store(out + 3 * used + i, float("inf"), mask=here & unknown)


@functools.partial(compiled, general=("spans",))
def _enter(place, shift, first, alone, spans, low, entries, size: tl.constexpr):
    """The entries of `Address`: of each block."""
    i = tl.program_id(0) * size + tl.arange(0, size)
    bits = (i - (1 << (31 - low))) << low
    span = _found(place, spans, bits)
    floats = tl.load(shift + span)
    begin = tl.where(tl.load(alone + span) != 0, bits, tl.load(place + span))
    base = tl.load(first + span) - (begin >> floats)
    tl.store(entries + i, (base << 5) | floats)


@compiled
def _magnitude(bits):
    return (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True).to(tl.float64)


@functools.partial(compiled, general=("used", "spans", "cells"))
def _lay_out(
    places, fields, used, place, shift, first, alone, spans, owner, width, inner, ulp, certified,
    cells, size: tl.constexpr,
):  # fmt: skip
    """The fields of `CellGeometry`."""
    cell = tl.program_id(0) * size + tl.arange(0, size)
    here = cell < cells
    cell = tl.minimum(cell, cells - 1)
    span = _found(first, spans, cell)
    begin, floats = tl.load(place + span), tl.load(shift + span)
    many = tl.load(alone + span) == 0
    begin += (cell - tl.load(first + span)) << floats
    interval = _found(places, used, begin)
    sign = tl.where(begin < 0, -1.0, 1.0)  # the tiny ones count as zero
    near = tl.where(many, sign * _magnitude(begin), 0.0)
    far = tl.where(many, sign * _magnitude(begin + (1 << floats) - 1), 0.0)
    centre, unit = tl.load(fields + interval), 1.0 / tl.load(fields + used + interval)
    s = (near - centre) * unit
    steps = tl.maximum((1 << floats) - 1, 1).to(tl.float64)
    known = tl.load(fields + 3 * used + interval) != float("inf")
    known = known & (many | ((begin & 0x7FFFFFFF) == 0))
    tl.store(owner + cell, interval.to(tl.int64), mask=here)
    tl.store(width + cell, (1 << floats).to(tl.int64), mask=here)
    tl.store(inner + cell, s, mask=here)
    tl.store(ulp + cell, (far * unit - centre * unit - s) / steps, mask=here)
    tl.store(certified + cell, known, mask=here)

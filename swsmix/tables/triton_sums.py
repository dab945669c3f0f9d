"""From a histogram over the cells to the value and the moments on a GPU, as Triton kernels.

The same sums as in `cell_histogram`, in a fixed order: some intervals to a program, with all parts
of their cells, and then their components. The host waits once, to hear whether weights are missing.

The tests run all kernels in Triton's interpreter. Unmeasured on a GPU: how fast they are.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from swsmix.tables.cells import PART, Cells
from swsmix.tables.taylor import ORDER
from swsmix.tables.triton_around import COMPONENTS, around, at, component, terms
from swsmix.tables.triton_loops import compiled

assert ORDER == 6, "the kernels write the powers out"
_LANES = 8  # intervals at a time
_PARTS = 16  # of cells, at a time


def sums(cells: Cells, count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, bool]:
    """See `CellHistogram.sums`; the value and the moments lie on the GPU.

    Args:
        cells: the cells, cut on the GPU.
        count: how many weights each part of a cell has.
        first: the sums of their numbers.
        second: the sums of the squares of their numbers less the half.
    """
    place, intervals, mixture = cells.geometry, cells.intervals, cells.mixture
    t, k = len(intervals.centre), mixture.size
    every = torch.arange(t + 1, dtype=torch.int64, device=place.owner.device)
    begins = torch.searchsorted(place.owner, every)  # of each interval, its first cell
    programs = triton.cdiv(t, _LANES)
    powers, values = mixture.mean.new_empty(ORDER + 3, t), mixture.mean.new_empty(2, t)
    moments = mixture.mean.new_empty(programs, 3, k)
    with torch.cuda.device_of(count):
        _powers[(programs,)](
            count, first, second, begins, place.inner, place.ulp, place.width, place.certified,
            intervals.taylor.contiguous(), intervals.bend.contiguous(), powers, values, t,
            cells.fine, bits=PART, lanes=_LANES, size=_PARTS,
        )  # fmt: skip
        _moments[(programs,)](
            mixture.packed, k, intervals.centre.contiguous(), intervals.radius.contiguous(),
            powers, moments, t, lanes=_LANES, size=COMPONENTS,
        )  # fmt: skip
    value, missing = values.sum(1)
    return value, moments.sum(0), bool(missing > 0)


@functools.partial(compiled, general=("t", "fine"))
def _powers(
    count, first, second, begins, inner, ulp, width, certified, taylor, bend, powers, values, t,
    fine, bits: tl.constexpr, lanes: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """The sums of s^n / q by interval (ORDER + 3, t), the value, and how many are missing."""
    i = tl.program_id(0) * lanes + tl.arange(0, lanes)
    here = i < t
    begin = tl.load(begins + i, mask=here, other=0) << fine
    end = tl.load(begins + i + 1, mask=here, other=0) << fine
    row = taylor + i
    r0 = tl.load(row, mask=here, other=0.0)[:, None]
    r1 = tl.load(row + t, mask=here, other=0.0)[:, None]
    r2 = tl.load(row + 2 * t, mask=here, other=0.0)[:, None]
    r3 = tl.load(row + 3 * t, mask=here, other=0.0)[:, None]
    r4 = tl.load(row + 4 * t, mask=here, other=0.0)[:, None]
    r5 = tl.load(row + 5 * t, mask=here, other=0.0)[:, None]
    r6 = tl.load(row + 6 * t, mask=here, other=0.0)[:, None]
    half_bend = 0.5 * tl.load(bend + i, mask=here, other=0.0)[:, None]
    p0 = tl.zeros((lanes, size), tl.float64)
    p1, p2, p3, p4, p5, p6, p7, p8 = p0, p0, p0, p0, p0, p0, p0, p0
    value, missing = p0, p0
    longest = tl.max(end - begin, 0).to(tl.int32)
    for ahead in range(0, longest, size):
        part = begin[:, None] + ahead + tl.arange(0, size)[None, :]
        there = part < end[:, None]
        number = tl.load(count + part, mask=there, other=0)
        used = number > 0
        number = number.to(tl.float64)
        cell = part >> fine
        known = tl.load(certified + cell, mask=used, other=0) != 0
        missing += tl.where(used & (known == 0), number, 0.0)
        used = used & known
        many = tl.where(used, number, 1.0)
        mean = tl.load(first + part, mask=used, other=0).to(tl.float64) / many
        square = tl.load(second + part, mask=used, other=0).to(tl.float64) / many
        unit = tl.load(ulp + cell, mask=used, other=0.0)
        unit *= tl.load(width + cell, mask=used, other=0).to(tl.float64)
        unit /= (tl.zeros_like(cell) + (1 << bits) << fine).to(tl.float64)
        away = mean - (1 << (bits - 1))
        spread = tl.sqrt(tl.maximum(square - away * away, 0.0)) * unit
        middle = (part - (cell << fine)) << bits
        middle = tl.load(inner + cell, mask=used, other=0.0) + unit * (mean + middle)
        mass = tl.where(used, 0.5 * number, 0.0)
        for side in range(2):  # two points of equal mass: same mean and second moment
            s = middle + (2 * side - 1) * spread
            rise = s * (r1 + s * (r2 + s * (r3 + s * (r4 + s * (r5 + s * r6)))))
            value += tl.where(used, (rise + r0) * mass, 0.0)
            term = tl.where(used, tl.exp(rise - (r1 + half_bend * s) * s) * mass, 0.0)
            p0 += term
            p1 += term * s
            square = s * s
            p2 += term * square
            p3 += term * (square * s)
            p4 += term * (square * square)
            term *= square * square
            p5 += term * s
            p6 += term * square
            p7 += term * (square * s)
            p8 += term * (square * square)
    out = powers + i
    tl.store(out, tl.sum(p0, 1), mask=here)
    tl.store(out + t, tl.sum(p1, 1), mask=here)
    tl.store(out + 2 * t, tl.sum(p2, 1), mask=here)
    tl.store(out + 3 * t, tl.sum(p3, 1), mask=here)
    tl.store(out + 4 * t, tl.sum(p4, 1), mask=here)
    tl.store(out + 5 * t, tl.sum(p5, 1), mask=here)
    tl.store(out + 6 * t, tl.sum(p6, 1), mask=here)
    tl.store(out + 7 * t, tl.sum(p7, 1), mask=here)
    tl.store(out + 8 * t, tl.sum(p8, 1), mask=here)
    tl.store(values + i, tl.sum(value, 1), mask=here)
    tl.store(values + t + i, tl.sum(missing, 1), mask=here)


@functools.partial(compiled, general=("k", "t"))
def _moments(
    mixture, k, centre, radius, powers, moments, t, lanes: tl.constexpr, size: tl.constexpr
):
    """The moments (3, k) of the weights in some intervals; see `CellHistogram._moments`."""
    program = tl.program_id(0)
    i = program * lanes + tl.arange(0, lanes)
    here = i < t
    w = tl.load(centre + i, mask=here, other=0.0)[:, None]
    r = tl.load(radius + i, mask=here, other=1.0)[:, None]
    used = (tl.load(powers + i, mask=here, other=0.0) != 0.0)[:, None]
    value, _, curvature, far, any_far, base, near, top, log_total, pull = around(
        w, mixture, k, lanes, size
    )
    _, mean_b, std_b = at(mixture, base)
    _, mean_r, std_r = at(mixture, near)
    for begin in range(0, k, size):
        level, mean, std = component(mixture, begin, k, size)
        gamma, x, y, _most, _noise = terms(
            w, r, level, mean, std, value, curvature, far, any_far, mean_b, std_b, mean_r,
            std_r, top, log_total, pull, 0.0,
        )  # fmt: skip
        there = used & (gamma >= 1e-100)  # slopes and bends may overflow
        x, y, gamma = tl.where(there, x, 0.0), tl.where(there, y, 0.0), tl.where(there, gamma, 0.0)
        before, now = tl.zeros_like(x), tl.zeros_like(x) + 1.0
        zeroth, first, second = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        factorial = 1.0
        for n in range(7):
            row = powers + n * t + i
            term = now / factorial
            zeroth += term * tl.load(row, mask=here, other=0.0)[:, None]
            first += term * tl.load(row + t, mask=here, other=0.0)[:, None]
            second += term * tl.load(row + 2 * t, mask=here, other=0.0)[:, None]
            after = -(x * now + n * y * before)
            before, now = now, after
            factorial = factorial * (n + 1)
        first, second, offset = first * r, second * r * r, w - mean
        out = moments + program * 3 * k + begin + tl.arange(0, size)
        inside = begin + tl.arange(0, size) < k
        tl.store(out, tl.sum(gamma * zeroth, 0), mask=inside)
        tl.store(out + k, tl.sum(gamma * (offset * zeroth + first), 0), mask=inside)
        second += offset * (offset * zeroth + 2.0 * first)
        tl.store(out + 2 * k, tl.sum(gamma * second, 0), mask=inside)

"""The certification of `taylor` on a GPU, as Triton kernels (if Triton is installed).

The same formulas as `numba_certify`, some intervals and components at a time. Intervals are split
breadth first: each round is a kernel that certifies what the round before left. How many those are
lies on the GPU, so that nothing waits for it. Intervals that are kept come in any order;
`triton_cutting` sorts them.

The tests run all kernels in Triton's interpreter. Unmeasured on a GPU: how fast they are.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from swsmix.tables import recursions
from swsmix.tables.exact import ExactMixture
from swsmix.tables.taylor import MAX_INTERVALS, ORDER, Intervals
from swsmix.tables.triton_around import COMPONENTS, around, at, component, derivatives, terms
from swsmix.tables.triton_loops import arithmetic, compiled

_LANES = 8  # intervals at a time
_PROGRAMS = 512  # of a round: each takes one block of intervals after the other
FIELDS = 20  # of an interval; see `_split`
FACTS = 3  # of a mixture; see `triton_cutting._begin`
KEPT, REFUSED, ROUND = 0, 1, 2  # places in `Pending.counts`


class Pending(NamedTuple):
    """Intervals to certify, and room for those that are kept; all on the GPU.

    An interval's place is its first float, as an int32: in this order come negative floats by
    magnitude, then positive ones.
    """

    places: Tensor  # of the intervals to certify, for even and odd rounds (2, room)
    widths: Tensor  # how many floats they have (2, room)
    kept: Tensor  # the places of those that are kept, in any order; the rest are the largest int32
    kept_widths: Tensor  # how many floats they have (room,)
    fields: Tensor  # what is known of them (FIELDS, room)
    counts: Tensor  # how many are kept, whether none may be, how many there are in each round
    facts: Tensor  # of the mixture (FACTS,)


def empty(device: torch.device, tolerance: float, rounds: int) -> Pending:
    """Room for intervals, of which there are none yet."""
    places, widths = torch.empty(2, 2, MAX_INTERVALS, dtype=torch.int32, device=device)
    kept, kept_widths = torch.full(
        (2, MAX_INTERVALS), (1 << 31) - 1, dtype=torch.int32, device=device
    )
    fields = torch.empty(FIELDS, MAX_INTERVALS, dtype=torch.float64, device=device)
    counts = torch.zeros(ROUND + rounds + 1, dtype=torch.int64, device=device)
    facts = torch.full((FACTS,), tolerance, dtype=torch.float64, device=device)
    return Pending(places, widths, kept, kept_widths, fields, counts, facts)


def split_(mixture: ExactMixture, pending: Pending, smallest: int) -> None:
    """Split intervals until they are certified, or as short as can be; see `taylor.split`."""
    rounds = len(pending.counts) - ROUND - 1
    for each in range(rounds):
        old, new = each % 2, (each + 1) % 2
        _split[(_PROGRAMS,)](
            mixture.packed, mixture.size, pending.facts, pending.places[old], pending.widths[old],
            pending.places[new], pending.widths[new], pending.counts, ROUND + each, pending.kept,
            pending.kept_widths, pending.fields, pending.fields.shape[1], smallest,
            lanes=_LANES, size=COMPONENTS,
        )  # fmt: skip


def curvature(mixture: ExactMixture, intervals: Intervals) -> tuple[Tensor, Tensor, Tensor]:
    """See `taylor.curvature`; all on the GPU."""
    t = len(intervals.centre)
    rows = intervals.centre.new_empty(ORDER + 3, t)
    with torch.cuda.device_of(rows):
        _curvature[(triton.cdiv(t, _LANES),)](
            mixture.packed, mixture.size, mixture.scale, intervals.centre.contiguous(),
            intervals.radius.contiguous(), rows, t, lanes=_LANES, size=COMPONENTS,
        )  # fmt: skip
    return rows[:-2], rows[-2], rows[-1]


_cumulants, _quotients = arithmetic(recursions.cumulants), arithmetic(recursions.quotients)


@functools.partial(compiled, general=("k", "turn"))
def _split(
    mixture, k, facts, places, widths, to_places, to_widths, counts, turn, kept, kept_widths,
    fields, room, smallest, lanes: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """One round: certify each interval, and keep it or leave its parts to the next round."""
    scale, levels, tolerance = tl.load(facts), tl.load(facts + 1), tl.load(facts + 2)
    pending = tl.load(counts + turn).to(tl.int32)
    pending = tl.where(pending > room, 0, pending)  # too many: as the host will see
    for block in range(tl.program_id(0), tl.cdiv(pending, lanes), tl.num_programs(0)):
        i = block * lanes + tl.arange(0, lanes)
        here = i < pending
        place = tl.load(places + i, mask=here, other=1 << 29)
        width = tl.load(widths + i, mask=here, other=64)
        start = place & 0x7FFFFFFF
        sign = tl.where(place < 0, -1.0, 1.0)[:, None]
        inner = start.to(tl.float32, bitcast=True).to(tl.float64)[:, None]
        outer = (start + width - 1).to(tl.float32, bitcast=True).to(tl.float64)[:, None]
        w, r = sign * (inner + outer) / 2, (outer - inner) / 2
        value, gradient, curvature, far, any_far, base, near, top, log_total, pull = around(
            w, mixture, k, lanes, size
        )
        _, mean_b, std_b = at(mixture, base)
        _, mean_r, std_r = at(mixture, near)
        q2 = tl.zeros((lanes, size), tl.float64)
        q3, q4, q5, q6, q7 = q2, q2, q2, q2, q2
        b2, b3, b4, b5, b6, b7 = q2, q2, q2, q2, q2, q2
        bending, swing, rounding = q2, q2, q2
        for first in range(0, k, size):
            level, mean, std = component(mixture, first, k, size)
            gamma, x, y, most, noise = terms(
                w, r, level, mean, std, value, curvature, far, any_far, mean_b, std_b, mean_r,
                std_r, top, log_total, pull, levels,
            )  # fmt: skip
            _h1, h2, h3, h4, h5, h6, h7 = derivatives(gamma, -x, -y)
            q2, q3, q4, q5, q6, q7 = q2 + h2, q3 + h3, q4 + h4, q5 + h5, q6 + h6, q7 + h7
            bent = tl.abs(y)
            steep = tl.abs(x) + bent
            _h1, h2, h3, h4, h5, h6, h7 = derivatives(most, steep, bent)
            b2, b3, b4, b5, b6, b7 = b2 + h2, b3 + h3, b4 + h4, b5 + h5, b6 + h6, b7 + h7
            bending += most * bent
            swing += most * bent * steep
            rounding += most * steep * noise
        q2, q3, q4 = tl.sum(q2, 1), tl.sum(q3, 1), tl.sum(q4, 1)
        q5, q6, q7 = tl.sum(q5, 1), tl.sum(q6, 1), tl.sum(q7, 1)
        b2, b3, b4 = tl.sum(b2, 1), tl.sum(b3, 1), tl.sum(b4, 1)
        b5, b6, b7 = tl.sum(b5, 1), tl.sum(b6, 1), tl.sum(b7, 1)
        bending, swing, rounding = tl.sum(bending, 1), tl.sum(swing, 1), tl.sum(rounding, 1)
        centre, r, value = tl.sum(w, 1), tl.sum(r, 1), tl.sum(value, 1)
        gradient, bend = tl.sum(gradient, 1), tl.sum(curvature, 1) * r * r
        # As in `numba_certify._certify`.
        c3, c4, c5, c6, _ = _cumulants(0.0 * q2, q2, q3, q4, q5, q6, q7, -1.0)
        _, _, _, _, rest = _cumulants(b2, b2, b3, b4, b5, b6, b7, 1.0)
        second = bend + b2
        floor = (bend - swing - bending * b2) / (r * r)
        floor = tl.sqrt(tl.maximum(floor, scale * scale))
        floor += tl.maximum(tl.abs(gradient) - second / r, 0.0)
        most = 1.0 + tl.maximum(tl.abs(value) - tl.abs(gradient * r) - second, 0.0)
        noise = rounding / r / floor
        miss = rest / tl.minimum(r * floor / 7.0, most) / (tolerance / 8.0 * 5040.0)
        rough = noise / (tolerance / 16.0)
        good = (miss <= 1.0) & (rough <= 1.0)  # a NaN is not
        last = good | (width <= smallest) | (start == 0)
        rest = tl.where(good, rest, float("inf"))
        # Of those that are kept.
        keep = (here & last).to(tl.int32)
        to = tl.atomic_add(counts + 0, tl.sum(keep, 0).to(tl.int64), sem="relaxed").to(tl.int32)
        to += tl.cumsum(keep, 0) - keep
        fits = (keep > 0) & (to < room)
        tl.store(kept + to, place, mask=fits)
        tl.store(kept_widths + to, width, mask=fits)
        t2, t3, t4 = (bend - q2) / 2.0, -c3 / 6.0, -c4 / 24.0
        t5, t6 = -c5 / 120.0, -c6 / 720.0
        # How finely to cut; see `cells.refinement_for`.
        a3, a4, a5, a6 = tl.abs(t3), tl.abs(t4), tl.abs(t5), tl.abs(t6)
        third = 6.0 * a3 + 36.0 * a4 + 135.0 * a5 + 405.0 * a6 + rest / 24.0
        fourth = 24.0 * a4 + 180.0 * a5 + 810.0 * a6 + rest / 6.0
        cubic = (120.0 * a5 + 1080.0 * a6 + rest / 2.0) / (170.0 * r * floor)
        rounded = (2.0 * second + 2.0 * third + 1.5 * fourth) / (r * floor) * 2.0**-21
        least = tl.log2(cubic * (4.0 / tolerance)) / 4.0
        least = tl.maximum(least, tl.log2(rounded * (8.0 / tolerance)))
        by_value = tl.log2(third / most * (8.0 / tolerance)) / 3.0
        out = fields + to
        tl.store(out, centre, mask=fits)
        tl.store(out + room, r, mask=fits)
        tl.store(out + 2 * room, bend, mask=fits)
        tl.store(out + 3 * room, rest, mask=fits)
        tl.store(out + 4 * room, second, mask=fits)
        tl.store(out + 5 * room, floor, mask=fits)
        tl.store(out + 6 * room, most, mask=fits)
        tl.store(out + 7 * room, noise, mask=fits)
        tl.store(out + 8 * room, value, mask=fits)
        tl.store(out + 9 * room, gradient * r, mask=fits)
        tl.store(out + 10 * room, t2, mask=fits)
        tl.store(out + 11 * room, t3, mask=fits)
        tl.store(out + 12 * room, t4, mask=fits)
        tl.store(out + 13 * room, t5, mask=fits)
        tl.store(out + 14 * room, t6, mask=fits)
        tl.store(out + 15 * room, cubic, mask=fits)
        tl.store(out + 16 * room, rounded, mask=fits)
        tl.store(out + 17 * room, third, mask=fits)
        tl.store(out + 18 * room, least, mask=fits)
        tl.store(out + 19 * room, by_value, mask=fits)
        # The further a bound misses, the more parts.
        parts = tl.where((miss <= 2.0**18) & (rough <= 2.0**18), 8, 16)
        parts = tl.where((miss <= 2.0**12) & (rough <= 2.0**12), 4, parts)
        parts = tl.where((miss <= 2.0**6) & (rough <= 2.0**6), 2, parts)
        parts = tl.where(here & (last == 0), tl.minimum(parts, width // smallest), 0)
        into = counts + turn + 1
        to = tl.atomic_add(into, tl.sum(parts, 0).to(tl.int64), sem="relaxed").to(tl.int32)
        to += tl.cumsum(parts, 0) - parts
        length = width // tl.maximum(parts, 1)
        for part in range(16):
            fits = (part < parts) & (to + part < room)
            tl.store(to_places + to + part, place + part * length, mask=fits)
            tl.store(to_widths + to + part, length, mask=fits)


@functools.partial(compiled, general=("k", "t"))
def _curvature(mixture, k, scale, centre, radius, rows, t, lanes: tl.constexpr, size: tl.constexpr):
    """The rows that `taylor.curvature` returns (ORDER + 3, t)."""
    i = tl.program_id(0) * lanes + tl.arange(0, lanes)
    here, scale = i < t, tl.load(scale)
    w = tl.load(centre + i, mask=here, other=0.0)[:, None]
    r = tl.load(radius + i, mask=here, other=1.0)[:, None]
    value, _, curvature, far, any_far, base, near, top, log_total, pull = around(
        w, mixture, k, lanes, size
    )
    _, mean_b, std_b = at(mixture, base)
    _, mean_r, std_r = at(mixture, near)
    q2 = tl.zeros((lanes, size), tl.float64)
    q3, q4, q5, q6, q7 = q2, q2, q2, q2, q2
    b2, b3, b4, b5, b6, b7 = q2, q2, q2, q2, q2, q2
    a0, a1, a2, a3, a4, a5, a6, a7 = q2, q2, q2, q2, q2, q2, q2, q2
    e0, e1, e2, e3, e4, e5, e6, e7 = q2, q2, q2, q2, q2, q2, q2, q2
    for first in range(0, k, size):
        level, mean, std = component(mixture, first, k, size)
        gamma, x, y, most, _noise = terms(
            w, r, level, mean, std, value, curvature, far, any_far, mean_b, std_b, mean_r,
            std_r, top, log_total, pull, 0.0,
        )  # fmt: skip
        bent = tl.abs(y)
        steep = tl.abs(x) + bent
        _h1, h2, h3, h4, h5, h6, h7 = derivatives(gamma, -x, -y)
        q2, q3, q4, q5, q6, q7 = q2 + h2, q3 + h3, q4 + h4, q5 + h5, q6 + h6, q7 + h7
        _h1, h2, h3, h4, h5, h6, h7 = derivatives(most, steep, bent)
        b2, b3, b4, b5, b6, b7 = b2 + h2, b3 + h3, b4 + h4, b5 + h5, b6 + h6, b7 + h7
        h = gamma * y
        h1, h2, h3, h4, h5, h6, h7 = derivatives(h, -x, -y)
        a0, a1, a2, a3 = a0 + h, a1 + h1, a2 + h2, a3 + h3
        a4, a5, a6, a7 = a4 + h4, a5 + h5, a6 + h6, a7 + h7
        h = most * bent
        h1, h2, h3, h4, h5, h6, h7 = derivatives(h, steep, bent)
        e0, e1, e2, e3 = e0 + h, e1 + h1, e2 + h2, e3 + h3
        e4, e5, e6, e7 = e4 + h4, e5 + h5, e6 + h6, e7 + h7
    q2, q3, q4 = tl.sum(q2, 1), tl.sum(q3, 1), tl.sum(q4, 1)
    q5, q6, q7 = tl.sum(q5, 1), tl.sum(q6, 1), tl.sum(q7, 1)
    b2, b3, b4 = tl.sum(b2, 1), tl.sum(b3, 1), tl.sum(b4, 1)
    b5, b6, b7 = tl.sum(b5, 1), tl.sum(b6, 1), tl.sum(b7, 1)
    a0, a1, a2, a3 = tl.sum(a0, 1), tl.sum(a1, 1), tl.sum(a2, 1), tl.sum(a3, 1)
    a4, a5, a6, a7 = tl.sum(a4, 1), tl.sum(a5, 1), tl.sum(a6, 1), tl.sum(a7, 1)
    e0, e1, e2, e3 = tl.sum(e0, 1), tl.sum(e1, 1), tl.sum(e2, 1), tl.sum(e3, 1)
    e4, e5, e6, e7 = tl.sum(e4, 1), tl.sum(e5, 1), tl.sum(e6, 1), tl.sum(e7, 1)
    a1, a2, a3, a4, a5, a6, _ = _quotients(
        a0, a1, a2, a3, a4, a5, a6, a7, 0.0 * q2, q2, q3, q4, q5, q6, q7, -1.0
    )
    e1, _, _, _, _, _, e7 = _quotients(
        e0, e1, e2, e3, e4, e5, e6, e7, b2, b2, b3, b4, b5, b6, b7, 1.0
    )
    square = tl.sum(r * r, 1)
    bend = tl.sum(curvature, 1) * square
    out = rows + i
    tl.store(out, (bend + a0) / square, mask=here)
    tl.store(out + t, a1 / square, mask=here)
    tl.store(out + 2 * t, a2 / 2.0 / square, mask=here)
    tl.store(out + 3 * t, a3 / 6.0 / square, mask=here)
    tl.store(out + 4 * t, a4 / 24.0 / square, mask=here)
    tl.store(out + 5 * t, a5 / 120.0 / square, mask=here)
    tl.store(out + 6 * t, a6 / 720.0 / square, mask=here)
    tl.store(out + 7 * t, e7 / square, mask=here)
    tl.store(out + 8 * t, tl.maximum(bend - e1, scale * scale * square) / square, mask=here)

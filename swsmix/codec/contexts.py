"""Context models: what neighbours, rows, columns and the layer before say about a weight.

A tensor is scanned as a matrix of *steps* x *lanes*. Of a weight's own lane the earlier steps are
known (the neighbouring inputs of the same neuron, say), of the other lanes too, of its own step
the lanes in the chunks before. A weight is coded as "is it the commonest value (zero)?", then
"above or below it?", then which, by halving. The contexts of these decisions are built here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swsmix.codec.mixing import LOGIT, Decisions, log_density, logit_of_ratio
from swsmix.codec.stream import ONE, Array, Coder

# Levels of densities.
_LEVELS = 12
SIDES = 16
_NEAR = 24
_FIRST_CHUNKS = (16, 8, 4, 2)


@dataclass(frozen=True)
class Scan:
    """How a tensor is scanned.

    Attributes:
        steps: their number.
        lanes: their number.
        num_values: K.
        common: the commonest value's number.
        stride: a second neighbour is so many steps back (an image's width); 1 for none.
        side_step: a class below 16 of each step, known before, or empty.
        side_lane: a class below 16 of each lane, known before, or empty.
        born_in_order: no lane's first other-than-common value comes before that of the lane
            before it.
    """

    steps: int
    lanes: int
    num_values: int
    common: int
    stride: int
    side_step: Array
    side_lane: Array
    born_in_order: bool = False


def code_in_context(coder: Coder, scan: Scan, rows: Array | None) -> Array:
    """Code a matrix steps x lanes of numbers below K.

    Args:
        coder: what codes it.
        scan: how.
        rows: the matrix, or None to read it.

    Returns:
        The matrix.
    """
    past = _Past(scan)
    zeros = _Zeros(scan)
    births = _Births(scan) if scan.born_in_order else None
    others = _Others(scan)
    result = np.full((scan.steps, scan.lanes), scan.common, np.uint16)
    for step in range(scan.steps):
        row = None if rows is None else rows[step].astype(np.int64)
        bits = None if row is None else row != scan.common
        other = zeros.code(coder, past, step, bits)
        if births is not None:
            births.code(coder, past, step, other, bits)
        active = np.flatnonzero(other)
        symbols = others.code(coder, past, step, active, None if row is None else row[active])
        result[step, active] = symbols
        past.add_(step, other, active, symbols)
    return result


class _Past:
    """What has been coded: the other-than-common flags, the sides, and their sums."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.pad = 2 * scan.stride + 4
        self.flag = np.zeros((scan.steps + self.pad, scan.lanes), np.int16)
        self.side = np.zeros_like(self.flag)  # 0 common, 1 below, 2 above
        self.value = np.zeros_like(self.flag)  # 0 common, or 1 + its number, coarsely
        self.lane_count = np.zeros(scan.lanes, np.int64)
        self.lane_above = np.zeros(scan.lanes, np.int64)
        self.lane_last = np.full(scan.lanes, scan.common)
        self.lane_recent = np.zeros(scan.lanes, np.int64)  # of 1024, of the last 16 steps
        # Lanes from this one on have had nothing but the commonest value.
        self.born = 0 if scan.born_in_order else scan.lanes
        self.births = np.zeros(scan.steps + self.pad, np.int64)
        self.step_count = np.zeros(scan.steps + self.pad, np.int64)
        self.step_above = np.zeros(scan.steps + self.pad, np.int64)

    def add_(self, step: int, flag: Array, active: Array, symbols: Array) -> None:
        now = step + self.pad
        above = symbols > self.scan.common
        self.flag[now] = flag
        self.side[now, active] = 1 + above
        levels = min(self.scan.num_values, 16)
        self.value[now, active] = 1 + symbols * levels // self.scan.num_values
        self.lane_count += flag
        self.lane_above[active] += above
        self.lane_last[active] = symbols
        self.lane_recent += 64 * flag - (self.lane_recent >> 4)
        self.step_count[now], self.step_above[now] = len(active), above.sum()


class _Zeros:
    """Is it the commonest value? In chunks, the densest lanes first: they tell of the step."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        lanes, stride = scan.lanes, scan.stride
        sizes = [
            _LEVELS * _LEVELS, 64, _NEAR * 8, 24 * 3, lanes, stride, _LEVELS * _LEVELS,
            SIDES * _LEVELS, SIDES * _LEVELS, SIDES * 4 * 24, SIDES, 8 * _LEVELS, 8 * 8,
        ]  # fmt: skip
        first = 0.04
        self.decisions = Decisions(1, sizes, [0.1, 0.1, 0.15, 0.15, 0.3], [8, SIDES], first=first)

    def code(self, coder: Coder, past: _Past, step: int, bits: Array | None) -> Array:
        scan, now, stride, lanes = self.scan, step + past.pad, self.scan.stride, self.scan.lanes
        one, two, three = (past.flag[now - back] for back in (1, 2, 3))
        pattern, near = one + 2 * two, (one + two + three).astype(np.int64)
        count = 2 * past.step_count[now - 1] + past.step_count[now - 2]
        if stride > 2:
            row = [past.flag[now - stride + d] for d in (2, 1, 0, -1, -2)]
            far = [past.flag[now - 2 * stride + d] for d in (1, 0, -1)]
            pattern += 4 * row[2] + 8 * row[1] + 16 * row[3] + 32 * far[1]
            near += sum(row) + sum(far)
            close = 4 * (one + row[2]) + 2 * (two + row[1] + row[3]) + three + far[1]
            count += 2 * past.step_count[now - stride]
            count += past.step_count[now - stride - 1] + past.step_count[now - stride + 1]
            among, closest = 7 * lanes, 18
        else:
            pattern += 4 * three + 8 * past.flag[now - 4]
            close = 4 * one + 2 * two + three
            among, closest = 3 * lanes, 7
        lane = log_density(past.lane_count, step, _LEVELS)
        recent = log_density(past.lane_recent, 1024, _LEVELS)
        density = int(log_density(np.array([count]), among, 24)[0])
        side = scan.side_lane if len(scan.side_lane) else np.full(lanes, scan.side_step[step])
        zero = np.zeros(lanes, np.int64)
        table = np.stack([
            lane * _LEVELS + density // 2,
            pattern,
            np.minimum(near, _NEAR - 1) * 8 + lane * 8 // _LEVELS,
            density * 3 + np.minimum(near, 2),
            np.arange(lanes),
            zero + step % stride,
            recent * _LEVELS + lane,
            side * _LEVELS + lane,
            side * _LEVELS + density // 2,
            (side * 4 + np.minimum(near, 3)) * 24 + density,
            side,
            lane,
            np.minimum(near, 7),
        ])  # fmt: skip
        decisions = self.decisions
        base = int((ONE * 2 * decisions.ones[0] + ONE) / (2 * decisions.seen[0] + 2))
        inputs = np.stack([
            logit_of_ratio(past.lane_count, step, base, 2),
            logit_of_ratio(zero + count, among, base, 7),
            logit_of_ratio(close.astype(np.int64), closest, base, 4),
            logit_of_ratio(past.lane_recent, 1024, base, 512),
            np.zeros(lanes),
        ])  # fmt: skip
        pick = [np.minimum(near, 7), side]
        order = np.argsort(-past.lane_count[: past.born], kind="stable")
        ends = [len(order) // part for part in _FIRST_CHUNKS if len(order) >= 64]
        flag = np.zeros(lanes, np.int64)
        seen, expected = 0, 0  # ones in this step, and what was expected, over ONE
        for chunk in np.split(order, ends):
            rate = (seen + 1) * ONE * ONE // ((seen + 2) * ONE + expected)
            inputs[-1, chunk] = LOGIT[min(max(rate, 1), ONE - 1)]
            level = int(np.clip(4 + inputs[-1, chunk[:1]] // 90, 0, 7)[0]) if len(chunk) else 0
            here = table[:, chunk]
            here[-2:] += level * np.array([[_LEVELS], [8]])
            got, p = decisions.code(
                coder, zero[chunk], here, inputs[:, chunk], [s[chunk] for s in pick],
                None if bits is None else bits[chunk],
            )  # fmt: skip
            flag[chunk] = got
            seen, expected = seen + int(got.sum()), expected + int(p.sum())
        return flag


class _Births:
    """How many lanes have their first other value in this step, where they are born in order.

    Neurons may stand in any order. Sorted by their first weights, "one more?" is asked instead of
    "which?", which saves log2 of the number of orders, and the dead ones cost nothing.
    """

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        sizes = [9 * 3, 16 * 3, SIDES * 3, 16 * 3, 24 * 3]
        self.decisions = Decisions(1, sizes, [0.3], [3], first=0.15)

    def code(self, coder: Coder, past: _Past, step: int, flag: Array, bits: Array | None) -> None:
        """After the lanes born before: add the new ones to `flag`."""
        scan, now, stride = self.scan, step + past.pad, self.scan.stride
        across = [stride - 1, stride, stride + 1] if stride > 2 else [3, 4]
        recent = [int(past.births[now - back]) for back in (1, 2, *across)]
        others = int(flag.sum())
        count = np.array([past.step_count[now - 1] + others])
        pattern = min(recent[0], 2) * 3 + min(recent[3], 2)
        side = int(scan.side_step[step]) if len(scan.side_step) else 0
        density = int(log_density(count, 2 * max(past.born, 1), 24)[0])
        context = np.array([
            pattern, min(others.bit_length(), 15), side, min(sum(recent), 15), density,
        ])[:, None]  # fmt: skip
        inputs = logit_of_ratio(np.array([[past.born]]), 3 * step + 1, ONE >> 4, 1)
        one = np.zeros(1, np.int64)
        births = 0
        while past.born < scan.lanes:
            again = min(births, 2)
            bit = None if bits is None else bits[past.born : past.born + 1]
            got, _ = self.decisions.code(
                coder, one, context * 3 + again, inputs, [one + again], bit
            )
            if not got[0]:
                break
            flag[past.born] = 1
            past.born += 1
            births += 1
        past.births[now] = births


class _Others:
    """Which of the other values is it? Above or below the commonest, then by halving."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.below, self.above = scan.common, scan.num_values - 1 - scan.common
        self.depth = max(max(self.below, self.above) - 1, 0).bit_length()
        self.last = min(scan.num_values, 16)
        nodes = 1 + (2 << self.depth)
        self.lanes = min(scan.lanes, max(4096 // nodes, 1))
        widths = [27, 9, self.last, 9, 3 * _LEVELS, (self.last + 1) ** 2, self.lanes]
        self.widths = np.array(widths)[:, None]
        self.decisions = Decisions(
            nodes, [int(w) * nodes for w in self.widths[:, 0]], [], [2], prior=4, first=0.16
        )

    def code(
        self, coder: Coder, past: _Past, step: int, active: Array, symbols: Array | None
    ) -> Array:
        scan, now, stride = self.scan, step + past.pad, self.scan.stride
        count = past.step_count[now - 1] + past.step_count[now - stride]
        above = past.step_above[now - 1] + past.step_above[now - stride]
        lean = min(3 * int(above) // int(count), 2) if count > 2 else 1
        one, across = past.side[now - 1, active], past.side[now - stride, active]
        table = np.stack([
            one + 3 * across + 9 * past.side[now - 2, active],
            3 * one + across,
            past.lane_last[active] * self.last // scan.num_values,
            3 * past.side[now - (stride - 1 if stride > 2 else 3), active]
            + past.side[now - (stride + 1 if stride > 2 else 2), active],
            lean * _LEVELS + log_density(past.lane_above[active], past.lane_count[active], _LEVELS),
            past.value[now - 1, active] * (self.last + 1) + past.value[now - stride, active],
            active * self.lanes // scan.lanes,
        ])  # fmt: skip

        everyone = np.arange(len(active))
        up = np.full(len(active), int(self.above > 0))
        if self.below and self.above:
            known = None if symbols is None else symbols > scan.common
            up = self._decide(coder, table, 0 * everyone, 0, known)
        room = np.where(up == 1, self.above, self.below)
        rank = None if symbols is None else np.abs(symbols - scan.common) - 1
        path = np.ones(len(active), np.int64)
        for level in range(self.depth - 1, -1, -1):
            # A one here would lead to this rank or higher.
            lowest = ((2 * path + 1) << level) - (1 << self.depth)
            free = np.flatnonzero(lowest < room)
            known = None if rank is None else (rank[free] >> level) & 1
            path *= 2
            node = 1 + (up[free] << self.depth) + path[free] // 2
            path[free] += self._decide(coder, table[:, free], node, 1, known)
        rank = path - (1 << self.depth)
        return np.where(up == 1, scan.common + 1 + rank, scan.common - 1 - rank)

    def _decide(
        self, coder: Coder, table: Array, node: Array, kind: int, bits: Array | None
    ) -> Array:
        size = len(node)
        contexts = node * self.widths + table
        pick = [np.full(size, kind)]
        return self.decisions.code(coder, node, contexts, np.zeros((0, size)), pick, bits)[0]

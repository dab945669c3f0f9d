"""Context models: what neighbours, rows, columns and the layer before say about a weight.

A tensor is scanned as a matrix of *steps* x *lanes*. When a weight is coded, the earlier steps of
all lanes are known (in its own lane the neighbouring inputs of the same neuron, say), and of its
own step the lanes in earlier chunks. A weight is coded as "is it the commonest value (zero)?", then
"above or below it?", then which, by halving. The contexts of these decisions are built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from swsmix.codec.mixing import LOGIT, DecisionModel, log_density, logit_of_ratio
from swsmix.codec.stream import ONE, Array, Coder, smallest_type

SIDES = 16  # classes of a step or a lane, known from an earlier tensor
_LEVELS = 12  # classes of a density
_FINE = 24  # the same, finer
_NEAR = 24  # classes of the number of other values among the neighbours
_FIRST_CHUNKS = (16, 8, 4, 2)  # the first chunk ends at 1 / 16 of the lanes, and so on
_PER_LEVEL = np.array([[_LEVELS], [8]])  # the last two contexts begin with the step's density


@dataclass(frozen=True)
class Scan:
    """How a tensor is scanned.

    Attributes:
        steps: the number of steps.
        lanes: the number of lanes.
        num_values: K.
        common: the commonest value's number.
        stride: a second neighbour is so many steps back (an image's width); 1 for none.
        side_step: a class below `SIDES` per step, known before, or empty.
        side_lane: a class below `SIDES` per lane, known before, or empty.
        starts_in_order: a lane starts with its first value other than the commonest; none starts
            at an earlier step than the lane before it.
    """

    steps: int
    lanes: int
    num_values: int
    common: int
    stride: int
    side_step: Array
    side_lane: Array
    starts_in_order: bool = False


def code_in_context(
    coder: Coder, scan: Scan, rows: Array | None, costs: list[float] | None = None
) -> Array:
    """Code a matrix steps x lanes of numbers below K, and return it.

    Args:
        coder: the encoder or decoder.
        scan: how the matrix is scanned.
        rows: the matrix, or None to read it.
        costs: receives the coder's cost after each step.
    """
    past = _Past(scan)
    common_or_not = _CommonOrNot(scan)
    starts = _LaneStarts(scan) if scan.starts_in_order else None
    which_other = _WhichOther(scan)
    result = np.full((scan.steps, scan.lanes), scan.common, smallest_type(scan.num_values))
    for step in range(scan.steps):
        row = None if rows is None else rows[step].astype(np.int64)
        bits = None if row is None else row != scan.common
        flag = common_or_not.code(coder, past, step, bits)
        if starts is not None:
            starts.code(coder, past, step, flag, bits)
        others = np.flatnonzero(flag)
        symbols = which_other.code(coder, past, step, others, None if row is None else row[others])
        result[step, others] = symbols
        past.add_(step, flag, others, symbols)
        if costs is not None:
            costs.append(coder.cost)
    return result


class _Past:
    """What has been coded: which values are not the commonest (flags), their sides, and sums."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.pad = 2 * scan.stride + 4
        self.flag = np.zeros((scan.steps + self.pad, scan.lanes), np.int16)
        self.side = np.zeros_like(self.flag)  # 0 common, 1 below, 2 above
        self.value = np.zeros_like(self.flag)  # 0 common, or 1 + its number, coarsely
        self.lane_count = np.zeros(scan.lanes, np.int64)
        self.lane_above = np.zeros(scan.lanes, np.int64)
        self.lane_last = np.full(scan.lanes, scan.common)
        self.lane_recent = np.zeros(scan.lanes, np.int64)  # flags in some 16 steps, over 1024
        # The lanes from this one on have not started.
        self.started = 0 if scan.starts_in_order else scan.lanes
        self.starts = np.zeros(scan.steps + self.pad, np.int64)
        self.step_count = np.zeros(scan.steps + self.pad, np.int64)
        self.step_above = np.zeros(scan.steps + self.pad, np.int64)

    def add_(self, step: int, flag: Array, others: Array, symbols: Array) -> None:
        """Add a step: its flags, the lanes where they are set, and the values there."""
        now = step + self.pad
        above = symbols > self.scan.common
        self.flag[now] = flag
        self.side[now, others] = 1 + above
        levels = min(self.scan.num_values, 16)
        self.value[now, others] = 1 + symbols * levels // self.scan.num_values
        self.lane_count += flag
        self.lane_above[others] += above
        self.lane_last[others] = symbols
        self.lane_recent += 64 * flag - (self.lane_recent >> 4)
        self.step_count[now], self.step_above[now] = len(others), above.sum()


class _CommonOrNot:
    """Is it the commonest value? In chunks, the densest lanes first: they say most of the step."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        lanes, stride = scan.lanes, scan.stride
        sizes = [
            _LEVELS * _LEVELS, 64, _NEAR * 8, _FINE * 3, lanes, stride, _LEVELS * _LEVELS,
            SIDES * _LEVELS, SIDES * _LEVELS, SIDES * 4 * _FINE, SIDES, 8 * _LEVELS, 8 * 8,
        ]  # fmt: skip
        first = 0.04
        self.model = DecisionModel(1, sizes, [0.1, 0.1, 0.15, 0.15, 0.3], [8, SIDES], first=first)

    def code(self, coder: Coder, past: _Past, step: int, bits: Array | None) -> Array:
        """A flag per lane: 1 where the value is another one."""
        order = np.argsort(-past.lane_count[: past.started], kind="stable")
        table, inputs, pick = (each[:, order] for each in self._contexts(past, step))
        known = None if bits is None else bits[order]
        ends = [len(order) // part for part in _FIRST_CHUNKS if len(order) >= 64]
        base = np.zeros(len(order), np.int64)
        flag = np.zeros(self.scan.lanes, np.int64)
        ones, expected = 0, 0  # in this step; the expected ones are over ONE
        for begin, end in pairwise([0, *ends, len(order)]):
            rate = (ones + 1) * ONE * ONE // ((ones + 2) * ONE + expected)
            logit = LOGIT[min(max(rate, 1), ONE - 1)]
            inputs[-1, begin:end] = logit
            level = min(max(4 + int(logit // 90), 0), 7)
            here = table[:, begin:end]
            here[-2:] += level * _PER_LEVEL
            coded, p = self.model.code(
                coder, base[begin:end], here, inputs[:, begin:end], pick[:, begin:end],
                None if known is None else known[begin:end],
            )  # fmt: skip
            flag[order[begin:end]] = coded
            ones, expected = ones + int(coded.sum()), expected + int(p.sum())
        return flag

    def _contexts(self, past: _Past, step: int) -> tuple[Array, Array, Array]:
        """The contexts (13, lanes), the direct logits (5, lanes), the weight sets (2, lanes)."""
        stride, lanes = self.scan.stride, self.scan.lanes
        pattern, near, close, closest = self._neighbours(past, step)
        count, among = self._step_density(past, step)
        lane = log_density(past.lane_count, step, _LEVELS)
        recent = log_density(past.lane_recent, 1024, _LEVELS)
        density = int(log_density(np.array([count]), among, _FINE)[0])
        side = self.scan.side_lane
        if not len(side):
            side = np.full(lanes, self.scan.side_step[step])
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
            (side * 4 + np.minimum(near, 3)) * _FINE + density,
            side,
            lane,
            np.minimum(near, 7),
        ])  # fmt: skip
        ones, seen = self.model.ones[0], self.model.seen[0]
        base = int((ONE * 2 * ones + ONE) / (2 * seen + 2))
        inputs = np.stack([
            logit_of_ratio(past.lane_count, step, base, 2),
            logit_of_ratio(zero + count, among, base, 7),
            logit_of_ratio(close.astype(np.int64), closest, base, 4),
            logit_of_ratio(past.lane_recent, 1024, base, 512),
            np.zeros(lanes),
        ])  # fmt: skip
        return table, inputs, np.stack([np.minimum(near, 7), side])

    def _neighbours(self, past: _Past, step: int) -> tuple[Array, Array, Array, int]:
        """Of the neighbours' flags: a pattern, their number, a weighted sum, and its maximum."""
        now, stride = step + past.pad, self.scan.stride
        one, two, three = (past.flag[now - back] for back in (1, 2, 3))
        pattern, near = one + 2 * two, (one + two + three).astype(np.int64)
        if stride <= 2:
            pattern += 4 * three + 8 * past.flag[now - 4]
            return pattern, near, 4 * one + 2 * two + three, 7
        row = [past.flag[now - stride + d] for d in (2, 1, 0, -1, -2)]
        far = [past.flag[now - 2 * stride + d] for d in (1, 0, -1)]
        pattern += 4 * row[2] + 8 * row[1] + 16 * row[3] + 32 * far[1]
        near += sum(row) + sum(far)
        close = 4 * (one + row[2]) + 2 * (two + row[1] + row[3]) + three + far[1]
        return pattern, near, close, 18

    def _step_density(self, past: _Past, step: int) -> tuple[int, int]:
        """How many flags near steps have, weighted, and how many they could have."""
        now, stride, lanes = step + past.pad, self.scan.stride, self.scan.lanes
        count = 2 * past.step_count[now - 1] + past.step_count[now - 2]
        if stride <= 2:
            return int(count), 3 * lanes
        count += 2 * past.step_count[now - stride]
        count += past.step_count[now - stride - 1] + past.step_count[now - stride + 1]
        return int(count), 7 * lanes


class _LaneStarts:
    """How many lanes start in this step, if they start in order?

    A network's neurons may stand in any order. Sorted by their first weights, the question is "one
    more?" instead of "which?". That saves log2 of the number of orders, and dead neurons cost
    nothing.
    """

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        sizes = [9 * 3, 16 * 3, SIDES * 3, 16 * 3, _FINE * 3]
        self.model = DecisionModel(1, sizes, [0.3], [3], first=0.15)

    def code(self, coder: Coder, past: _Past, step: int, flag: Array, bits: Array | None) -> None:
        """Set `flag` for the lanes that start, after the flags of earlier lanes are coded."""
        scan, now, stride = self.scan, step + past.pad, self.scan.stride
        across = [stride - 1, stride, stride + 1] if stride > 2 else [3, 4]
        recent = [int(past.starts[now - back]) for back in (1, 2, *across)]
        others = int(flag.sum())
        count = np.array([past.step_count[now - 1] + others])
        pattern = min(recent[0], 2) * 3 + min(recent[3], 2)
        side = int(scan.side_step[step]) if len(scan.side_step) else 0
        density = int(log_density(count, 2 * max(past.started, 1), _FINE)[0])
        context = np.array([
            pattern, min(others.bit_length(), 15), side, min(sum(recent), 15), density,
        ])[:, None]  # fmt: skip
        inputs = logit_of_ratio(np.array([[past.started]]), 3 * step + 1, ONE >> 4, 1)
        one = np.zeros(1, np.int64)
        new = 0
        while past.started < scan.lanes:
            again = min(new, 2)
            bit = None if bits is None else bits[past.started : past.started + 1]
            pick = (one + again)[None]
            coded, _ = self.model.code(coder, one, context * 3 + again, inputs, pick, bit)
            if not coded[0]:
                break
            flag[past.started] = 1
            past.started += 1
            new += 1
        past.starts[now] = new


class _WhichOther:
    """Which of the other values is it: above or below the commonest, then by halving?"""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.below, self.above = scan.common, scan.num_values - 1 - scan.common
        self.depth = max(max(self.below, self.above) - 1, 0).bit_length()
        self.last = min(scan.num_values, 16)
        nodes = 1 + (2 << self.depth)
        self.lanes = min(scan.lanes, max(4096 // nodes, 1))
        widths = [27, 9, self.last, 9, 3 * _LEVELS, (self.last + 1) ** 2, self.lanes]
        self.widths = np.array(widths)[:, None]
        self.model = DecisionModel(
            nodes, [int(w) * nodes for w in self.widths[:, 0]], [], [2], prior=4, first=0.16
        )

    def code(
        self, coder: Coder, past: _Past, step: int, others: Array, symbols: Array | None
    ) -> Array:
        if not len(others):
            return others
        scan, now, stride = self.scan, step + past.pad, self.scan.stride
        count = past.step_count[now - 1] + past.step_count[now - stride]
        above = past.step_above[now - 1] + past.step_above[now - stride]
        lean = min(3 * int(above) // int(count), 2) if count > 2 else 1
        one, across = past.side[now - 1, others], past.side[now - stride, others]
        table = np.stack([
            one + 3 * across + 9 * past.side[now - 2, others],
            3 * one + across,
            past.lane_last[others] * self.last // scan.num_values,
            3 * past.side[now - (stride - 1 if stride > 2 else 3), others]
            + past.side[now - (stride + 1 if stride > 2 else 2), others],
            lean * _LEVELS + log_density(past.lane_above[others], past.lane_count[others], _LEVELS),
            past.value[now - 1, others] * (self.last + 1) + past.value[now - stride, others],
            others * self.lanes // scan.lanes,
        ])  # fmt: skip

        first_node = np.zeros(len(others), np.int64)
        up = np.full(len(others), int(self.above > 0))
        if self.below and self.above:
            known = None if symbols is None else symbols > scan.common
            up = self._decide(coder, table, first_node, 0, known)
        ranks = np.where(up == 1, self.above, self.below)  # how many values are on that side
        rank = None if symbols is None else np.abs(symbols - scan.common) - 1
        path = np.ones(len(others), np.int64)
        for level in range(self.depth - 1, -1, -1):
            # A one here would lead to this rank or higher.
            lowest = ((2 * path + 1) << level) - (1 << self.depth)
            free = np.flatnonzero(lowest < ranks)
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
        pick = np.full((1, size), kind)
        return self.model.code(coder, node, contexts, np.zeros((0, size)), pick, bits)[0]

"""Scans: the ways to read a tensor as a matrix of steps x lanes, and which are worth trying.

The first dimension of a tensor are its rows (a layer's outputs), all the others its columns (its
inputs). A scan steps through

    0  the columns
    1  the rows
    2  the second dimension (input channels)
    3  the tensor in memory order, in square shape: only where each of the others has over 1,024
       steps, and over one for 4,096 weights
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from swsmix.codec.stream import Array

COLUMNS, ROWS, CHANNELS, FLAT = range(4)
_NAMES = "columns", "rows", "channels", "memory"
_MAX_LANES = 1 << 17  # beyond, sums over lanes would not be exact
MAX_STRIDE = 1 << 10
_SAMPLE = 1 << 20  # weights in which a stride is looked for


class ScanChoice(NamedTuple):
    """A scan, and what it assumes of the tensor."""

    kind: int
    stride: int  # a second neighbour is so many steps back
    starts_in_order: bool = False  # see `contexts.Scan`

    def __str__(self) -> str:
        """The scan in words, such as 'contexts by columns, stride 28'."""
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"contexts by {_NAMES[self.kind]}{stride}{', in order' * self.starts_in_order}"


def scans_of(shape: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """The scans that suit a shape: kind -> steps, lanes. Each step costs some calls."""
    size = math.prod(shape)
    if size == 0 or not shape:
        return {}
    rows, columns = shape[0], size // shape[0]
    scans = {}
    if len(shape) > 1:
        scans = {COLUMNS: (columns, rows), ROWS: (rows, columns)}
    if len(shape) > 2:
        scans[CHANNELS] = (shape[1], size // shape[1])
    scans = {kind: scan for kind, scan in scans.items() if scan[1] <= _MAX_LANES}
    # Any square matrix keeps its scans. Elsewhere the steps are few enough that their fixed cost
    # does not dominate.
    most, few = (min(max(1024, size >> shift), 64 + size // 32) for shift in (10, 12))
    if all(steps > few for steps, _ in scans.values()):
        steps = max(min(math.isqrt(size - 1) + 1, few), -(-size // _MAX_LANES))
        scans[FLAT] = (steps, -(-size // steps))
    return {kind: scan for kind, scan in scans.items() if kind == FLAT or scan[0] <= most}


def stride_fits(stride: int, kind: int, shape: tuple[int, ...]) -> bool:
    """Whether a scan may have a stride."""
    steps, _ = scans_of(shape)[kind]
    return 1 <= stride <= max(1, min(MAX_STRIDE, steps))


def to_matrix(index: Array, kind: int, shape: tuple[int, ...], common: int) -> Array:
    """A row-major tensor as the matrix steps x lanes; what is left over is filled with `common`."""
    steps, lanes = scans_of(shape)[kind]
    if kind == FLAT:
        full = np.full(steps * lanes, common, index.dtype)
        full[: len(index)] = index
        return full.reshape(steps, lanes)
    if kind == COLUMNS:
        return index.reshape(lanes, steps).T
    if kind == CHANNELS:
        return index.reshape(shape[0], shape[1], -1).transpose(1, 0, 2).reshape(steps, lanes)
    return index.reshape(steps, lanes)


def from_matrix(matrix: Array, kind: int, shape: tuple[int, ...]) -> Array:
    """The row-major tensor of a matrix steps x lanes."""
    if kind == COLUMNS:
        matrix = matrix.T
    elif kind == CHANNELS:
        matrix = matrix.reshape(shape[1], shape[0], -1).transpose(1, 0, 2)
    return matrix.reshape(-1)[: math.prod(shape)]


def start_in_order(flags: Array) -> bool:
    """Whether no lane's first flag comes before that of the lane before it."""
    first = np.where(flags.any(0), flags.argmax(0), len(flags))
    return bool((np.diff(first) >= 0).all())


def is_uneven(flags: Array) -> bool:
    """Whether rows, columns or neighbours differ from chance by six standard deviations.

    Neighbours are those in a row and in a column, and up to 64 columns away (an image's width).
    """
    p = flags.mean()
    if not 0.0 < p < 1.0:
        return False
    for each in (flags, flags.T):
        count = np.count_nonzero(each, axis=1)
        spread = count.var() / (each.shape[1] * p * (1 - p))
        if spread > 1 + 6 * math.sqrt(2 / len(count)):
            return True
    some = flags[: max(1, _SAMPLE // flags.shape[1])]
    shifted = [(some[1:], some[:-1])]
    shifted += [(some[:, d:], some[:, :-d]) for d in range(1, min(some.shape[1], 65))]
    for one, other in shifted:
        expected = one.size * p * p
        if abs(np.count_nonzero(one & other) - expected) > 6 * math.sqrt(expected + 1):
            return True
    return False


def stride_candidates(flags: Array, kind: int) -> list[int]:
    """1, and the distance above 2 at which steps are most alike, if there is a peak."""
    steps = len(flags)
    if kind != COLUMNS or steps < 9:
        return [1]
    flags = flags[:, : max(1, _SAMPLE // steps)]
    alike = {
        d: np.count_nonzero(flags[d:] & flags[:-d]) / (steps - d)
        for d in range(3, min(steps // 3, 65))
    }
    peaks = [
        d
        for d, value in alike.items()
        if value > 0.0 and value >= max(alike.get(d - 1, 0.0), alike.get(d + 1, 0.0))
    ]
    return [1, *sorted(peaks, key=lambda d: (-alike[d], d))[:1]]

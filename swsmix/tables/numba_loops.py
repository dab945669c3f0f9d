"""The passes over the weights on a CPU, each as one loop compiled by numba (if it is installed).

The same look-ups as in `cells`, without scratch memory: each weight is read once and written once,
on as many threads as torch has. What a loop need not do is None, and numba compiles a loop without
it: branches that never change still cost a tenth of the time.

The weights for which no piece is certified are left out: the functions return their indices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix.tables.address import CELL_BITS
from swsmix.tables.arrays import array, indices, zeros
from swsmix.tables.cell_histogram import COUNT, PACKED, CellHistogram, least_for
from swsmix.tables.cells import PART, Cells
from swsmix.tables.numba_compiled import compiled, fused, inlined
from swsmix.tables.numba_cubics import cubic, two_cubics
from swsmix.tables.threads import over_ranges

_BLOCK = 1024  # weights at a time, where what is kept of them stays in the cache
_LEFT = 1 << 14  # how many weights a loop may leave out before it returns their indices
_ONE = 1 << COUNT


def write_gradient_(
    cells: Cells,
    target: Tensor,
    w: Tensor,
    scale: float | None,
    histogram: CellHistogram | None = None,
) -> Tensor:
    """Write f'(w) into the target or, with a scale, add scale * f'(w); flat float32 tensors.

    With a histogram, the weights are added to it in the same pass.
    """
    factor = None if scale is None else np.float32(scale)
    left_out = _look_up(cells, w, histogram, array(target), factor)
    return gaps(cells, w) if left_out else _joined([])


def count_(histogram: CellHistogram, w: Tensor) -> None:
    """Add weights (n,) to a histogram."""
    _look_up(histogram.cells, w, histogram, None, None)


def _look_up(
    cells: Cells, w: Tensor, histogram: CellHistogram | None, target: Any, scale: Any
) -> int:
    raw, where, lock = array(w).view(np.int32), _address(cells), threading.Lock()
    pieces = None if target is None else _flat(cells.pieces)
    left = np.int64(PART + cells.fine)

    def work(start: int, stop: int) -> int:
        if histogram is None:
            part = slice(start, stop)
            return int(_write(raw[part], target[part], pieces, scale, *where))
        left_out = 0
        with zeros(len(histogram.count)) as sums:
            for first in range(start, stop, PACKED):
                part = slice(first, min(first + PACKED, stop))
                to = None if target is None else target[part]
                left_out += _count(raw[part], to, pieces, scale, *sums, left, *where)
                with lock:
                    totals = histogram.count, histogram.first, histogram.second
                    _unpack(*sums, *(each.numpy() for each in totals))
        return left_out

    return sum(over_ranges(len(w), work, least_for(histogram)))


def gaps(cells: Cells, w: Tensor) -> Tensor:
    """The indices of the flat weights for which no piece is certified."""
    raw, pieces, where = array(w).view(np.int32), _flat(cells.pieces), _address(cells)

    def loop(part: slice, out: Any) -> tuple[int, int]:
        done: tuple[int, int] = _gaps(raw[part], pieces, out, *where)
        return done

    return _joined(over_ranges(len(w), lambda start, stop: _in_parts(start, stop, loop)))


def proximal_(
    cells: Cells, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
) -> Tensor:
    """Make the proximal step, t = rate / (sqrt(second) + eps) or the rate; flat float32 tensors."""
    values, places, where = array(w), array(at), _address(cells)
    raw = places.view(np.int32)
    squares = None if second is None else array(second)
    pieces = _flat(cells.both_pieces)
    numbers = np.float32(rate), np.float32(eps)

    def loop(part: slice, out: Any) -> tuple[int, int]:
        other = None if squares is None else squares[part]
        done: tuple[int, int] = _proximal(
            values[part], places[part], raw[part], other, *numbers, pieces, out, *where
        )
        return done

    return _joined(over_ranges(len(w), lambda start, stop: _in_parts(start, stop, loop)))


def _in_parts(start: int, stop: int, loop: Callable[[slice, Any], tuple[int, int]]) -> list[Tensor]:
    """A loop from start to stop, begun again whenever it has no space for what it leaves out."""
    left, out = [], indices(_LEFT)
    while start < stop:
        done, number = loop(slice(start, stop), out)
        if number:
            left.append(torch.from_numpy(start + out[:number]))
        start += done
    return left


def _joined(ranges: list[list[Tensor]]) -> Tensor:
    left = [each for parts in ranges for each in parts]
    return torch.cat(left) if left else torch.empty(0, dtype=torch.int64, device="cpu")


def _flat(pieces: Tensor) -> Any:
    return pieces.numpy().reshape(-1)


def _address(cells: Cells) -> tuple[Any, ...]:
    return cells.address.entries.numpy(), np.int64(cells.address.low)


@inlined
def _entry(raw, entries, low):
    """A float's bits, where its block counts cells from, and their shift; see `Address`."""
    bits = np.int64(raw)
    entry = np.int64(entries[np.uint64((bits >> low) + (np.int64(1) << (np.int64(31) - low)))])
    return bits, entry >> np.int64(5), entry & np.int64(31)


@inlined
def _cell(bits, base, shift):
    part = bits >> shift
    number = bits & ((np.int64(1) << shift) - np.int64(1))
    return (base + part) & np.int64((1 << CELL_BITS) - 1), number


@inlined
def _slope(pieces, cell, number):
    return cubic(pieces, np.uint64(4 * cell), np.float32(number))


@fused
def _slopes(raw, target, pieces, entries, low):
    for i in range(raw.shape[0]):
        bits, base, shift = _entry(raw[i], entries, low)
        cell, number = _cell(bits, base, shift)
        target[i] = _slope(pieces, cell, number)


@compiled
def _missing(slope):
    missing = 0
    for i in range(slope.shape[0]):
        missing += slope[i] != slope[i]
    return missing


@fused
def _add(target, slope, scale):
    for i in range(slope.shape[0]):
        total = target[i] + scale * slope[i]
        target[i] = total if slope[i] == slope[i] else target[i]


@compiled
def _write(raw, target, pieces, scale, entries, low):
    """Returns for how many no piece is certified: what is written of them is to be replaced."""
    left_out, slopes = 0, np.empty(_BLOCK, np.float32)
    for start in range(0, raw.shape[0], _BLOCK):  # by turns: `_missing` takes several at once
        part = target[start : start + _BLOCK]
        slope = part if scale is None else slopes[: part.shape[0]]
        _slopes(raw[start : start + _BLOCK], slope, pieces, entries, low)
        if scale is not None:
            _add(part, slope, scale)
        left_out += _missing(slope)
    return left_out


@fused
def _count(raw, target, pieces, scale, packed, squares, left, entries, low):
    """Count and, with a target, write; see `_write`, but what has no piece is not written."""
    left_out = 0
    for i in range(raw.shape[0]):
        bits, base, shift = _entry(raw[i], entries, low)
        cell, number = _cell(bits, base, shift)
        # Part of the cell and number there are two parts of one integer.
        place = (cell << left) + (number << (left - shift))
        if target is None:  # the same, sooner
            place = ((base << left) + (bits << (left - shift))) & ((1 << (CELL_BITS + left)) - 1)
        part, rest = np.uint64(place >> np.int64(PART)), place & np.int64((1 << PART) - 1)
        packed[part] += rest + np.int64(_ONE)
        squares[part] += rest * rest
        if target is not None:
            slope = _slope(pieces, cell, number)
            if slope != slope:
                left_out += 1
                continue
            if scale is None:
                target[i] = slope
            else:
                target[i] += scale * slope
    return left_out


@compiled
def _gaps(raw, pieces, left, entries, low):
    """Until all are done or `left` is full: how many it took, and how many have no piece."""
    gaps = 0
    for i in range(raw.shape[0]):
        bits, base, shift = _entry(raw[i], entries, low)
        cell, _ = _cell(bits, base, shift)
        c0 = pieces[np.uint64(4 * cell)]
        if c0 == c0:
            continue
        left[gaps] = i
        gaps += 1
        if gaps == left.shape[0]:
            return i + 1, gaps
    return raw.shape[0], gaps


@compiled
def _unpack(packed, squares, count, first, second):
    """Move sums of numbers and of their squares to a histogram, where squares are from the half.

    What they were moved from is zero then.
    """
    half = 1 << (PART - 1)
    for part in range(packed.shape[0]):
        if packed[part]:
            number = packed[part] >> COUNT
            total = packed[part] & (_ONE - 1)
            count[part] += number
            first[part] += total
            second[part] += squares[part] - 2 * half * total + half * half * number
            packed[part] = 0
            squares[part] = 0


@fused
def _look(raw, pieces, slope, a, entries, low):
    for i in range(raw.shape[0]):
        bits, base, shift = _entry(raw[i], entries, low)
        cell, number = _cell(bits, base, shift)
        slope[i], a[i] = two_cubics(pieces, np.uint64(8 * cell), np.float32(number))


@compiled
def _move(w, at, second, rate, eps, slope, a):
    for i in range(w.shape[0]):
        inverse = np.float32(1.0) if second is None else np.sqrt(second[i]) + eps
        moved = w[i] + rate * (a[i] * (at[i] - w[i]) - slope[i]) / (inverse + rate * a[i])
        w[i] = moved if slope[i] == slope[i] else w[i]


@compiled
def _proximal(w, at, raw, second, rate, eps, pieces, left, entries, low):
    """The proximal step until all are done or `left` is nearly full; see `_gaps`."""
    gaps, slopes, curvatures = 0, np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for start in range(0, raw.shape[0], _BLOCK):
        stop = min(start + _BLOCK, raw.shape[0])
        if gaps + _BLOCK > left.shape[0]:
            return start, gaps
        # By turns, so that the second loop, of a square root and a division, takes several at once.
        slope, a = slopes[: stop - start], curvatures[: stop - start]
        _look(raw[start:stop], pieces, slope, a, entries, low)
        squares = None if second is None else second[start:stop]
        _move(w[start:stop], at[start:stop], squares, rate, eps, slope, a)
        for i in range(stop - start):
            if slope[i] != slope[i]:
                left[gaps] = start + i
                gaps += 1
    return raw.shape[0], gaps

"""The passes over the weights, each as one loop, compiled by numba (where it is installed).

The same look-ups as in `cells`, without scratch memory: a weight is read once, and once written.
Each function returns how many weights lie where no line holds; these it leaves alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from swsmix.tables.bits import Bits
from swsmix.tables.cells import Cells, Histogram
from swsmix.tables.grid import Grid


def _compiled(function: Any) -> Any:
    # Unwrapped: a type checker's import hook may have wrapped it.
    return numba.njit(cache=True, nogil=True, error_model="numpy")(inspect.unwrap(function))


def _inlined(function: Any) -> Any:
    return numba.njit(inline="always", error_model="numpy")(inspect.unwrap(function))


def write_gradient_(cells: Cells, target: Tensor, w: Tensor, scale: float | None) -> int:
    """Write f'(w) into the target or, with a scale, add scale * f'(w); flat float32 tensors.

    Returns:
        The number of weights left out.
    """
    add, scale = scale is not None, 1.0 if scale is None else scale
    lines = cells.lines.numpy()
    return int(_write_gradient(*_both(w), target.numpy(), lines, scale, add, *_address(cells)))


def proximal_(cells: Cells, w: Tensor, at: Tensor, step: float | Tensor, scale: float) -> int:
    """Make the proximal step, with one step for all or one for each; flat float32 tensors.

    Returns:
        The number of weights left out.
    """
    many = isinstance(step, Tensor)
    steps, one = (step.numpy(), 0.0) if isinstance(step, Tensor) else (w.numpy(), step)
    lines = cells.both_lines.numpy()
    where = _address(cells)
    return int(_proximal(w.numpy(), *_both(at), steps, many, one, scale, lines, *where))


def count_(histogram: Histogram, w: Tensor) -> None:
    """Count weights (n,) into a histogram."""
    sums = np.zeros((len(histogram.count), 4), dtype=np.int64)  # of each cell in one cache line
    _count(*_both(w), sums, *_address(histogram.cells))
    totals = histogram.count, histogram.first, histogram.second
    for total, here in zip(totals, sums.T, strict=False):
        total += torch.from_numpy(here)


def _both(w: Tensor) -> tuple[Any, Any]:
    values = w.numpy()
    return values, values.view(np.int32)


def _address(cells: Cells) -> tuple[Any, ...]:
    at = cells.address
    if isinstance(at, Grid):
        return np.zeros(0, np.int32), at.whole, at.half, at.bits, np.float32(at.scale)
    assert isinstance(at, Bits)
    return at.block.numpy(), at.whole, 0, at.bits, np.float32(0.0)


@_inlined
def _find(x, raw, block, whole, half, bits, scale):  # type: ignore[no-untyped-def]
    """Cell, number, coordinate; see `Grid.find` and, without a scale, `Bits.find`."""
    if scale == 0.0:
        low = raw & 0xFFFF
        entry = block[(raw >> 16) + 32768]
        shift = entry & 31
        part = low >> shift
        number = low if whole else low - (part << shift)
        return (entry >> 5) + part, number, np.float32(number)
    place = x * scale
    if not abs(place) < half << bits:  # NaN too
        return 0, 0, place
    number = np.int32(place)
    low = number & ((1 << bits) - 1)
    return (number >> bits) + half, low, place if whole else np.float32(low)


@_compiled
def _write_gradient(w, raw, target, lines, scale, add, block, whole, half, bits, grid):  # type: ignore[no-untyped-def]
    gaps = 0
    scale = np.float32(scale)
    for i in range(w.shape[0]):
        cell, _, coordinate = _find(w[i], raw[i], block, whole, half, bits, grid)
        slope = scale * (lines[cell, 0] + lines[cell, 1] * coordinate)
        if slope == slope:
            target[i] = target[i] + slope if add else slope
        else:
            gaps += 1
    return gaps


@_compiled
def _proximal(w, at, raw, steps, many, step, scale, lines, block, whole, half, bits, grid):  # type: ignore[no-untyped-def]
    gaps = 0
    scale, step = np.float32(scale), np.float32(step)
    for i in range(w.shape[0]):
        cell, _, coordinate = _find(at[i], raw[i], block, whole, half, bits, grid)
        slope = lines[cell, 0] + lines[cell, 1] * coordinate
        if slope == slope:
            a = lines[cell, 2] + lines[cell, 3] * coordinate
            t = (steps[i] if many else step) * scale
            w[i] += t * (a * (at[i] - w[i]) - slope) / (np.float32(1.0) + t * a)
        else:
            gaps += 1
    return gaps


@_compiled
def _count(w, raw, sums, block, whole, half, bits, grid):  # type: ignore[no-untyped-def]
    middle = 1 << (bits - 1)
    for i in range(w.shape[0]):
        cell, number, _ = _find(w[i], raw[i], block, whole, half, bits, grid)
        away = number - middle
        sums[cell, 0] += 1
        sums[cell, 1] += number
        sums[cell, 2] += away * away

"""The passes over the weights on a CPU, each as one loop compiled by numba (if it is installed).

The same look-ups as in `cells`, without scratch memory: each weight is read once and written once.
Each function returns how many weights it left out, because no line is certified for them.
"""

from __future__ import annotations

import inspect
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from swsmix.tables.bits import BitAddress
from swsmix.tables.cell_histogram import COUNT, PACKED, CellHistogram
from swsmix.tables.cells import Cells
from swsmix.tables.grid import GridAddress


def compiled(function: Any, fast: bool | set[str] = False) -> Any:
    """The function, compiled and kept on disk."""
    # Unwrapped, since a type checker's import hook may have wrapped it.
    function = inspect.unwrap(function)
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fast)(function)
    except RuntimeError:  # no folder that can be written keeps what is compiled
        return numba.njit(nogil=True, error_model="numpy", fastmath=fast)(function)


def inlined(function: Any) -> Any:
    """The function, compiled into those that call it."""
    return numba.njit(inline="always", error_model="numpy")(inspect.unwrap(function))


def write_gradient_(cells: Cells, target: Tensor, w: Tensor, scale: float | None) -> int:
    """Write f'(w) into the target or, with a scale, add scale * f'(w); flat float32 tensors."""
    add, scale = scale is not None, 1.0 if scale is None else scale
    lines = cells.lines.numpy()
    return int(_write_gradient(*_with_bits(w), target.numpy(), lines, scale, add, *_address(cells)))


def proximal_(
    cells: Cells, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
) -> int:
    """Make the proximal step, t = rate / (sqrt(second) + eps) or the rate; flat float32 tensors."""
    adaptive = second is not None
    second = w if second is None else second
    lines, where = cells.both_lines.numpy(), _address(cells)
    return int(
        _proximal(w.numpy(), *_with_bits(at), second.numpy(), adaptive, rate, eps, lines, *where)
    )


def count_(histogram: CellHistogram, w: Tensor) -> None:
    """Add weights (n,) to a histogram."""
    sums = np.zeros((len(histogram.count), 2), dtype=np.int64)  # count and first are packed
    for part in w.split(PACKED):
        _count(*_with_bits(part), sums, *_address(histogram.cells))
        histogram.packed += torch.from_numpy(sums[:, 0])
        histogram.unpack_()
        sums[:, 0] = 0
    histogram.second += torch.from_numpy(sums[:, 1])


_NO_BLOCKS = np.zeros(0, dtype=np.int32)


def _with_bits(w: Tensor) -> tuple[Any, Any]:
    """The weights, and their bits as integers."""
    values = w.numpy()
    return values, values.view(np.int32)


def _address(cells: Cells) -> tuple[Any, ...]:
    at = cells.address
    bits = np.int32(at.bits)
    if isinstance(at, GridAddress):
        return _NO_BLOCKS, at.absolute, np.int32(at.half), bits, np.float32(at.scale)
    assert isinstance(at, BitAddress)
    return at.block.numpy(), at.absolute, np.int32(0), bits, np.float32(0.0)


@inlined
def _find(x, raw, block, absolute, half, bits, scale):
    """Cell, number, coordinate; see `GridAddress.find` and, without a scale, `BitAddress.find`."""
    if scale == np.float32(0.0):
        low = raw & np.int32(0xFFFF)
        entry = block[np.uint32((raw >> np.int32(16)) + np.int32(32768))]
        shift = entry & np.int32(31)
        part = low >> shift
        number = low if absolute else low - (part << shift)
        return np.uint32((entry >> np.int32(5)) + part), number, np.float32(number)
    place = x * scale
    if not abs(place) < np.float32(half << bits):  # NaN too
        return np.uint32(0), np.int32(0), place
    number = np.int32(place)
    low = number & ((np.int32(1) << bits) - np.int32(1))
    return np.uint32((number >> bits) + half), low, place if absolute else np.float32(low)


@compiled
def _write_gradient(w, raw, target, lines, scale, add, block, absolute, half, bits, grid):
    gaps = 0
    scale = np.float32(scale)
    for i in range(w.shape[0]):
        cell, _, coordinate = _find(w[i], raw[i], block, absolute, half, bits, grid)
        slope = scale * (lines[cell, 0] + lines[cell, 1] * coordinate)
        if slope == slope:
            target[i] = target[i] + slope if add else slope
        else:
            gaps += 1
    return gaps


@compiled
def _proximal(w, at, raw, second, adaptive, rate, eps, lines, block, absolute, half, bits, grid):
    gaps = 0
    rate, eps = np.float32(rate), np.float32(eps)
    for i in range(w.shape[0]):
        cell, _, coordinate = _find(at[i], raw[i], block, absolute, half, bits, grid)
        slope = lines[cell, 0] + lines[cell, 1] * coordinate
        if slope == slope:
            a = lines[cell, 2] + lines[cell, 3] * coordinate
            inverse = np.sqrt(second[i]) + eps if adaptive else np.float32(1.0)
            w[i] += rate * (a * (at[i] - w[i]) - slope) / (inverse + rate * a)
        else:
            gaps += 1
    return gaps


@compiled
def _count(w, raw, sums, block, absolute, half, bits, grid):
    middle = np.int32(1) << (bits - np.int32(1))
    for i in range(w.shape[0]):
        cell, number, _ = _find(w[i], raw[i], block, absolute, half, bits, grid)
        away = np.int32(number - middle)
        sums[cell, 0] += (np.int64(1) << COUNT) + number
        sums[cell, 1] += np.int32(away * away)

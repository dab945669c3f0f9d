"""The passes over the weights on a CPU, each as one loop compiled by numba (if it is installed).

The same look-ups as in `cells`, without scratch memory: each weight is read once and written once.
Each function returns how many weights it left out, because no line is certified for them.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from swsmix.tables.cell_histogram import COUNT, PACKED, CellHistogram
from swsmix.tables.cells import PART, Cells


def compiled(function: Any, fast: frozenset[str] = frozenset()) -> Any:
    """A loop that holds no lock of Python's."""
    # Unwrapped, since a type checker's import hook may have wrapped it.
    function = inspect.unwrap(function)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fast)}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written keeps what is compiled
        return numba.njit(**options)(function)


def summed(function: Any) -> Any:
    """A loop over components, several at a time: sums in any order, and no NaN."""
    return compiled(function, frozenset({"contract", "reassoc", "nnan", "nsz"}))


def _inlined(function: Any) -> Any:
    return numba.njit(inline="always", error_model="numpy")(inspect.unwrap(function))


_LEAST = -708.0  # exp of less is zero here
_E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12, _E13 = (
    1.0 / math.factorial(n) for n in range(3, 14)
)
_LOG_2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # log 2 = their sum


@_inlined
def exp(x):
    """The exponential of x <= 700, to one unit of the last digit.

    Unlike a library's, it takes several numbers at a time.
    """
    power = np.floor(max(x, _LEAST) * 1.4426950408889634 + 0.5)
    rest = (max(x, _LEAST) - power * _LOG_2[0]) - power * _LOG_2[1]
    high = (((_E13 * rest + _E12) * rest + _E11) * rest + _E10) * rest + _E9
    high = (((high * rest + _E8) * rest + _E7) * rest + _E6) * rest + _E5
    taylor = ((((high * rest + _E4) * rest + _E3) * rest + 0.5) * rest + 1.0) * rest + 1.0
    scale = np.int64((np.int64(power) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return taylor * scale if x >= _LEAST else 0.0


def write_gradient_(cells: Cells, target: Tensor, w: Tensor, scale: float | None) -> int:
    """Write f'(w) into the target or, with a scale, add scale * f'(w); flat float32 tensors."""
    add, scale = scale is not None, 1.0 if scale is None else scale
    return int(_write_gradient(target.numpy(), *_bits(w), scale, add, *_lookup(cells)))


def proximal_(
    cells: Cells, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
) -> int:
    """Make the proximal step, t = rate / (sqrt(second) + eps) or the rate; flat float32 tensors."""
    adaptive = second is not None
    second = w if second is None else second
    curvature = cells.curvature_pieces.numpy()
    return int(
        _proximal(
            w.numpy(), at.numpy(), *_bits(at), second.numpy(), adaptive, rate, eps, curvature,
            *_lookup(cells),
        )
    )  # fmt: skip


def count_(histogram: CellHistogram, w: Tensor) -> None:
    """Add weights (n,) to a histogram."""
    sums = np.zeros((len(histogram.count), 2), dtype=np.int64)  # count and first are packed
    where = _lookup(histogram.cells)[1:]
    for part in w.split(PACKED):
        _count(*_bits(part), sums, *where, PART + histogram.cells.fine)
        histogram.packed += torch.from_numpy(sums[:, 0])
        histogram.unpack_()
        sums[:, 0] = 0
    histogram.second += torch.from_numpy(sums[:, 1])


def _bits(w: Tensor) -> tuple[Any]:
    """The weights' bits as integers."""
    return (w.numpy().view(np.int32),)


def _lookup(cells: Cells) -> tuple[Any, ...]:
    return cells.pieces.numpy(), cells.address.block.numpy(), np.int32(cells.address.low)


@_inlined
def _find(raw, block, low):
    """Cell, number and shift; see `Address.find`."""
    entry = block[np.uint32((raw >> low) + (np.int32(1) << (np.int32(31) - low)))]
    shift = entry & np.int32(31)
    rest = raw & ((np.int32(1) << low) - np.int32(1))
    part = rest >> shift
    return np.uint32((entry >> np.int32(5)) + part), rest - (part << shift), shift


@_inlined
def _cubic(pieces, cell, x):
    return pieces[cell, 0] + x * (pieces[cell, 1] + x * (pieces[cell, 2] + x * pieces[cell, 3]))


@compiled
def _write_gradient(target, raw, scale, add, pieces, block, low):
    gaps = 0
    scale = np.float32(scale)
    for i in range(raw.shape[0]):
        cell, number, _ = _find(raw[i], block, low)
        slope = scale * _cubic(pieces, cell, np.float32(number))
        if slope == slope:
            target[i] = target[i] + slope if add else slope
        else:
            gaps += 1
    return gaps


@compiled
def _proximal(w, at, raw, second, adaptive, rate, eps, curvature, pieces, block, low):
    gaps = 0
    rate, eps = np.float32(rate), np.float32(eps)
    for i in range(raw.shape[0]):
        cell, number, _ = _find(raw[i], block, low)
        x = np.float32(number)
        slope = _cubic(pieces, cell, x)
        if slope == slope:
            a = _cubic(curvature, cell, x)
            inverse = np.sqrt(second[i]) + eps if adaptive else np.float32(1.0)
            w[i] += rate * (a * (at[i] - w[i]) - slope) / (inverse + rate * a)
        else:
            gaps += 1
    return gaps


@compiled
def _count(raw, sums, block, low, left):
    # As `CellHistogram.add_`, with cell and number found as one: both are parts of one integer.
    for i in range(raw.shape[0]):
        entry = np.int64(block[np.uint32((raw[i] >> low) + (np.int32(1) << (np.int32(31) - low)))])
        rest = np.int64(raw[i] & ((np.int32(1) << low) - np.int32(1)))
        place = ((entry >> 5) << left) + (rest << (left - (entry & 31)))
        part, number = np.uint64(place >> PART), place & ((1 << PART) - 1)
        away = number - (1 << (PART - 1))
        sums[part, 0] += (1 << COUNT) + number
        sums[part, 1] += away * away
    return 0

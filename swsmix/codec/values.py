"""Lists of numbers (codebooks, biases), bit for bit, in the fewest bits.

A list is stored in the narrowest form that gives back every bit: as multiples of one power of two
(entropy-coded integers), in a narrower type, or as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from swsmix.codec.header import DTYPES, TableReader, TableWriter, from_patterns, to_patterns
from swsmix.codec.stream import Array, Coder, StreamEncoder, code_integers

_GRID = len(DTYPES)  # a form is a dtype's number, or this one: multiples of a power of two
_MAX_EXPONENT = 1100
_MAX_INTEGER = 1 << 32
_MAX_ON_GRID = 1 << 22  # numbers of one list
_NARROWER = {
    torch.float64: (torch.float16, torch.bfloat16, torch.float32),
    torch.float32: (torch.float16, torch.bfloat16),
    torch.int64: (torch.int8, torch.int16, torch.int32),
    torch.int32: (torch.int8, torch.int16),
}


def write_values(
    table: TableWriter, stream: StreamEncoder, patterns: Array, dtype: torch.dtype
) -> int:
    """Write a list of numbers in its smallest form.

    Args:
        table: the tensor table.
        stream: the stream.
        patterns: the numbers' bit patterns.
        dtype: their type.

    Returns:
        The number of decisions to read it.
    """
    values = from_patterns(patterns, dtype, (len(patterns),))
    form = DTYPES.index(dtype)
    for narrow in _NARROWER.get(dtype, ()):
        if np.array_equal(to_patterns(values.to(narrow).to(dtype)), patterns):
            form = DTYPES.index(narrow)
            break
    unchanged = 8 * DTYPES[form].itemsize * len(patterns)
    grid = _grid(patterns, dtype)
    if grid is not None:
        trial = StreamEncoder()
        _code_grid(trial, len(patterns), grid[1])
        if trial.cost + 16 < unchanged:
            table.number(_GRID)
            table.signed(grid[0])
            stream.extend(trial)
            return trial.decisions
    table.number(form)
    table.data += to_patterns(values.to(DTYPES[form])).tobytes()
    return 0


def read_values(
    table: TableReader,
    coder: Coder,
    size: int,
    dtype: torch.dtype,
    charge: Callable[[int], None],
) -> Array:
    """Read the bit patterns of a list of numbers; `charge` is told of decisions beforehand.

    Raises:
        ValueError: if they are not numbers of that type, or `charge` refuses.
    """
    form = table.number(_GRID)
    if form == _GRID:
        if size > _MAX_ON_GRID:
            raise ValueError("a list of multiples of a power of two is too long")
        exponent = table.signed(_MAX_EXPONENT)
        integers = _code_grid(coder, size, None, charge)
        values = torch.from_numpy(np.ldexp(integers.astype(np.float64), exponent))
        if not values.isfinite().all():
            raise ValueError("a stored number is too large")
        return to_patterns(values.to(dtype))
    narrow = DTYPES[form]
    if narrow != dtype and narrow not in _NARROWER.get(dtype, ()):
        raise ValueError(f"numbers of {dtype} cannot be stored as {narrow}")
    raw = np.frombuffer(table.take(size * narrow.itemsize), f"<u{narrow.itemsize}")
    if narrow == dtype:
        return raw.astype(f"u{narrow.itemsize}")
    return to_patterns(from_patterns(raw, narrow, (size,)).to(dtype))


def _grid(patterns: Array, dtype: torch.dtype) -> tuple[int, Array] | None:
    """An exponent and integers whose products with 2^exponent are the values, bit for bit."""
    if not len(patterns) or len(patterns) > _MAX_ON_GRID or dtype == torch.bool:
        return None
    values = from_patterns(patterns, dtype, (len(patterns),)).double()
    if not values.isfinite().all() or (values.abs() >= 2.0**52).any():
        return None
    fraction, exponent = np.frexp(values.numpy())
    mantissa = (fraction * 2.0**53).astype(np.int64)
    lowest = np.frexp((mantissa & -mantissa).astype(np.float64))[1] - 1 + exponent - 53
    step = int(lowest[mantissa != 0].min(initial=_MAX_EXPONENT))
    if step == _MAX_EXPONENT:  # zeros alone
        step = 0
    scaled = np.ldexp(values.numpy(), -step)
    if np.abs(scaled).max() >= _MAX_INTEGER:
        return None
    integers = scaled.astype(np.int64)
    back = torch.from_numpy(np.ldexp(integers.astype(np.float64), step)).to(dtype)
    if not np.array_equal(to_patterns(back), patterns):  # a negative zero
        return None
    return step, integers


def _code_grid(
    coder: Coder,
    size: int,
    integers: Array | None,
    charge: Callable[[int], None] = lambda decisions: None,
) -> Array:
    folded = None if integers is None else np.where(integers < 0, -2 * integers - 1, 2 * integers)
    folded = code_integers(coder, size, folded, charge)
    return np.where(folded % 2 == 0, folded // 2, -(folded + 1) // 2)

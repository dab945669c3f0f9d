"""Lists of numbers (codebooks, biases), bit for bit, in the fewest bits.

A list is stored in the narrowest form that gives back every bit: as multiples of one power of two
(entropy-coded integers), in a narrower type, or as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from swsmix.codec.header import DTYPES, TableReader, TableWriter, from_patterns, to_patterns
from swsmix.codec.stream import Array, Coder, StreamEncoder, code_integers

_GRID = 10  # a form: multiples of a power of two; others are dtypes, see `_form`
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
    table: TableWriter,
    stream: StreamEncoder,
    patterns: Array,
    dtype: torch.dtype,
    raw: bytearray | None = None,
) -> int:
    """Write a list of numbers in its smallest form.

    Args:
        table: the tensor table.
        stream: the stream.
        patterns: the numbers' bit patterns.
        dtype: their type.
        raw: receives the numbers' bytes instead of the table, unless they are on a grid.

    Returns:
        The number of decisions to read it.
    """
    values = from_patterns(patterns, dtype, (len(patterns),))
    stored = dtype
    for narrow in _NARROWER.get(dtype, ()):
        if np.array_equal(to_patterns(values.to(narrow).to(dtype)), patterns):
            stored = narrow
            break
    unchanged = 8 * stored.itemsize * len(patterns)
    grid = _grid(patterns, dtype)
    if grid is not None:
        trial = StreamEncoder()
        _code_grid(trial, len(patterns), grid[1])
        if trial.cost + 16 < unchanged:
            table.number(_GRID)
            table.signed(grid[0])
            stream.extend(trial)
            return trial.decisions
    table.number(_form(stored))
    (table.data if raw is None else raw).extend(to_patterns(values.to(stored)).tobytes())
    return 0


@dataclass(frozen=True)
class StoredValues:
    """What the tensor table says of a list of numbers.

    Attributes:
        size: how many.
        dtype: their type.
        form: `_GRID`, or a dtype's `_form`.
        exponent: of the grid.
        raw: their bytes, unless they are on a grid.
    """

    size: int
    dtype: torch.dtype
    form: int
    exponent: int
    raw: bytes | memoryview | None

    @classmethod
    def from_table(
        cls, table: TableReader, size: int, dtype: torch.dtype, *, inside: bool = True
    ) -> StoredValues:
        """Read it; the bytes of the numbers are in the table only if `inside`.

        Raises:
            ValueError: if they are not numbers of that type.
        """
        form = table.number(len(DTYPES))
        if form == _GRID:
            if size > _MAX_ON_GRID:
                raise ValueError("a list of multiples of a power of two is too long")
            return cls(size, dtype, form, table.signed(_MAX_EXPONENT), None)
        narrow = _stored_as(form)
        if narrow != dtype and narrow not in _NARROWER.get(dtype, ()):
            raise ValueError(f"numbers of {dtype} cannot be stored as {narrow}")
        raw = table.take(size * narrow.itemsize) if inside else None
        return cls(size, dtype, form, 0, raw)

    def with_raw(self, raw: bytes | memoryview) -> StoredValues:
        """The same, with the bytes of the numbers."""
        return replace(self, raw=raw)

    @property
    def on_grid(self) -> bool:
        """Whether the numbers are in a coded stream."""
        return self.form == _GRID

    def patterns(self, coder: Coder | None, charge: Callable[[int], None]) -> Array:
        """The bit patterns; `charge` is told of decisions beforehand.

        Raises:
            ValueError: if they are not numbers of that type, or `charge` refuses.
        """
        if self.on_grid:
            assert coder is not None
            integers = _code_grid(coder, self.size, None, charge)
            values = torch.from_numpy(np.ldexp(integers.astype(np.float64), self.exponent))
            if not values.isfinite().all():
                raise ValueError("a stored number is too large")
            return to_patterns(values.to(self.dtype))
        narrow = _stored_as(self.form)
        assert self.raw is not None
        if len(self.raw) != self.size * narrow.itemsize:
            raise ValueError("it is damaged: the numbers of a tensor are not as many as its shape")
        raw = np.frombuffer(self.raw, f"<u{narrow.itemsize}")
        if narrow == self.dtype:
            return raw
        return to_patterns(from_patterns(raw, narrow, (self.size,)).to(self.dtype))


def _form(dtype: torch.dtype) -> int:
    """A dtype's number; those of the first version come before the grid."""
    number = DTYPES.index(dtype)
    return number + (number >= _GRID)


def _stored_as(form: int) -> torch.dtype:
    return DTYPES[form - (form > _GRID)]


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

"""How dense the rows of a file's earlier tensors are."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from swsmix.codec.contexts import SIDES
from swsmix.codec.mixing import log_density
from swsmix.codec.stream import Array, counted


class RowDensities:
    """How dense the rows of earlier tensors are: a layer's outputs are the next one's inputs."""

    def __init__(self) -> None:
        self._classes: dict[int, Array] = {}  # number of rows -> their classes, the latest last

    def add_(self, index: Array, num_values: int, shape: tuple[int, ...]) -> None:
        """Remember a tensor's rows."""
        if has_rows(shape):
            self._classes.pop(shape[0], None)
            self._classes[shape[0]] = row_classes(index, num_values, shape)

    def of_columns(self, shape: tuple[int, ...]) -> Array:
        """A class below `SIDES` per column: its row's in the last tensor that fits; 0 if none."""
        columns = math.prod(shape[1:])
        number = fitting(self._classes, columns)
        if number is None:
            return np.zeros(columns, np.int64)
        return of_columns(self._classes[number], columns)


def has_rows(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has rows to remember."""
    return len(shape) >= 2 and min(shape) >= 1 and shape[0] >= 2


def fitting(numbers: Iterable[int], columns: int) -> int | None:
    """The last of these numbers of rows that divides the columns."""
    return next((n for n in reversed(list(numbers)) if columns % n == 0), None)


def row_classes(index: Array, num_values: int, shape: tuple[int, ...]) -> Array:
    """A class from 1 to below `SIDES` per row."""
    common = counted(index, num_values).argmax()
    count = np.count_nonzero(index.reshape(shape[0], -1) != common, axis=1)
    return 1 + log_density(count, len(index) // shape[0], SIDES - 1)


def of_columns(classes: Array, columns: int) -> Array:
    """The classes of rows as those of the columns of a tensor that they divide."""
    return np.repeat(classes, columns // len(classes))

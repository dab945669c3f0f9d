"""How dense the rows of a file's earlier tensors are."""

from __future__ import annotations

import numpy as np

from swsmix.codec.contexts import SIDES
from swsmix.codec.mixing import log_density
from swsmix.codec.stream import Array


class RowDensities:
    """How dense the rows of earlier tensors are: a layer's outputs are the next one's inputs."""

    def __init__(self) -> None:
        self._classes: dict[int, Array] = {}  # number of rows -> their classes, the latest last

    def add_(self, index: Array, num_values: int, shape: tuple[int, ...]) -> None:
        """Remember a tensor's rows."""
        if len(shape) < 2 or min(shape) < 1 or shape[0] < 2:
            return
        common = np.bincount(index, minlength=num_values).argmax()
        count = np.count_nonzero(index.reshape(shape[0], -1) != common, axis=1)
        columns = len(index) // shape[0]
        self._classes.pop(shape[0], None)
        self._classes[shape[0]] = 1 + log_density(count, columns, SIDES - 1)

    def of_columns(self, columns: int) -> Array:
        """A class below `SIDES` per column: its row's in the last tensor that fits; 0 if none."""
        for number, classes in reversed(self._classes.items()):
            if columns % number == 0:
                return np.repeat(classes, columns // number)
        return np.zeros(columns, np.int64)

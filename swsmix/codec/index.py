"""Component numbers of one tensor or block: the models, and what each costs.

0  counts of the values, then the numbers by them     (zero order)
1  the numbers by the counts of those before them     (zero order, adaptive)
2  context models (`codec.contexts`). Settings: the commonest value, the scan (`codec.scans`;
   plus 4 if its lanes start in order), its stride
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swsmix.codec import scans
from swsmix.codec.budget import ContextBudget
from swsmix.codec.contexts import Scan, code_in_context
from swsmix.codec.header import TableReader, TableWriter
from swsmix.codec.scans import ScanChoice
from swsmix.codec.stream import (
    Array,
    Coder,
    StreamEncoder,
    code_adaptively,
    code_integers,
    counted,
    frequencies,
)

COUNTED, ADAPTIVE, CONTEXTS = range(3)
MAX_VALUES = 1024  # of context models: their tables grow with it
NO_CHOICE = ScanChoice(scans.COLUMNS, 1)
_IN_ORDER = 4  # added to the scan's number


@dataclass(frozen=True)
class Numbers:
    """What is known of component numbers before they are coded.

    Attributes:
        num_values: K, at least 2.
        shape: of the tensor or block, which is row-major.
        sides: a class per column, from an earlier tensor's rows (see `RowDensities`).
    """

    num_values: int
    shape: tuple[int, ...]
    sides: Array

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class IndexModel:
    """A model of component numbers, with its settings.

    Attributes:
        number: 0, 1 or 2.
        common: the commonest value's number, for context models.
        choice: the scan, for context models.
    """

    number: int
    common: int = 0
    choice: ScanChoice = NO_CHOICE

    def write(self, table: TableWriter) -> None:
        """Write it to the tensor table."""
        table.number(self.number)
        if self.number == CONTEXTS:
            table.number(self.common)
            table.number(self.choice.kind + _IN_ORDER * self.choice.starts_in_order)
            table.number(self.choice.stride)

    @classmethod
    def from_table(cls, table: TableReader, num_values: int, shape: tuple[int, ...]) -> IndexModel:
        """Read it.

        Raises:
            ValueError: if the settings are impossible.
        """
        number = table.number(CONTEXTS)
        if number != CONTEXTS:
            return cls(number)
        if num_values > MAX_VALUES:
            raise ValueError("the context models of a tensor have too many values")
        common = table.number(num_values - 1)
        in_order, kind = divmod(table.number(_IN_ORDER + scans.FLAT), _IN_ORDER)
        stride = table.number(scans.MAX_STRIDE)
        if kind not in scans.scans_of(shape) or not scans.stride_fits(stride, kind, shape):
            raise ValueError("a tensor cannot be scanned as its table says")
        return cls(number, common, ScanChoice(kind, stride, bool(in_order)))

    def __str__(self) -> str:
        """The model in words, such as 'contexts by rows'."""
        return ("counts", "adaptive counts", str(self.choice))[self.number]

    @property
    def asks_sides(self) -> bool:
        """Whether it asks for the rows of an earlier tensor."""
        return self.number == CONTEXTS and self.choice.kind in (scans.COLUMNS, scans.ROWS)

    def steps(self, num_values: int, shape: tuple[int, ...]) -> int:
        """What reading costs at most, see `ContextBudget`, but for counts of the values."""
        size = math.prod(shape)
        if self.number != CONTEXTS:  # the tables of frequencies, of which model 1 has several
            tables = size.bit_length() if self.number == ADAPTIVE else 2
            return num_values * tables + (size >> 4)
        steps, lanes = scans.scans_of(shape)[self.choice.kind]
        starts = 100 * lanes if self.choice.starts_in_order else 0  # one by one
        decisions = size * (1 + num_values.bit_length())
        return decisions + ContextBudget.STEP * steps + starts + 64 * num_values

    def charge(self, num_values: int, shape: tuple[int, ...], budget: ContextBudget) -> None:
        """Charge what reading will cost.

        Raises:
            ValueError: if it is more than may be spent.
        """
        if self.number == CONTEXTS:
            budget.left -= math.prod(shape)
            if budget.left < 0:
                raise ValueError(
                    "context models code more weights than one file may have under them"
                )
        budget.read_(self.steps(num_values, shape))

    def code(
        self,
        coder: Coder,
        numbers: Numbers,
        index: Array | None,
        charge: Callable[[int], None] = lambda decisions: None,
    ) -> Array:
        """Code the numbers, or read them where `index` is None; row-major, in the smallest type."""
        if self.number == CONTEXTS:
            return code_contexts(coder, self, numbers, index)
        if self.number == ADAPTIVE:
            return code_adaptively(coder, numbers.num_values, numbers.size, index)
        count = None if index is None else counted(index, numbers.num_values)
        count = code_integers(coder, numbers.num_values, count, charge)
        if int(count.sum()) != numbers.size:
            raise ValueError("the counts of a tensor's values do not add up to its size")
        return coder.symbols(frequencies(count), numbers.size, index)


def code_zero_order(index: Array, numbers: Numbers) -> tuple[IndexModel, StreamEncoder]:
    """The smaller coding by models 0 and 1."""
    found = []
    for number in (COUNTED, ADAPTIVE):
        stream = StreamEncoder()
        IndexModel(number).code(stream, numbers, index)
        found.append((IndexModel(number), stream))
    return min(found, key=lambda coded: coded[1].cost)


def code_contexts(
    coder: Coder,
    model: IndexModel,
    numbers: Numbers,
    index: Array | None,
    part: slice | None = None,
    costs: list[float] | None = None,
) -> Array:
    """Model 2.

    Args:
        coder: the encoder or decoder.
        model: with its settings.
        numbers: what is known of the numbers.
        index: the numbers, or None to read them.
        part: code those steps only, for a trial.
        costs: receives the encoder's cost after each step.
    """
    kind, shape, common = model.choice.kind, numbers.shape, model.common
    steps, lanes = scans.scans_of(shape)[kind]
    unknown = np.zeros(0, np.int64)
    side = numbers.sides if model.asks_sides else np.zeros(lanes, np.int64)
    matrix = None if index is None else scans.to_matrix(index, kind, shape, common)
    if part is not None and matrix is not None:
        matrix = matrix[part]
        steps = len(matrix)
        side = side[part] if kind == scans.COLUMNS else side
    scan = Scan(
        steps,
        lanes,
        numbers.num_values,
        common,
        model.choice.stride,
        side_step=side if kind == scans.COLUMNS else unknown,
        side_lane=unknown if kind == scans.COLUMNS else side,
        starts_in_order=model.choice.starts_in_order,
    )
    matrix = code_in_context(coder, scan, matrix, costs)
    return matrix if part is not None else scans.from_matrix(matrix, kind, shape)

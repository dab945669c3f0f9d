"""What a file's tensor tables say: names, shapes and models, before a stream is read."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch

from swsmix.codec.blocks import BlockedIndex
from swsmix.codec.budget import ContextBudget, limits
from swsmix.codec.densities import fitting, has_rows
from swsmix.codec.header import MAX_VALUES, Kind, TableReader
from swsmix.codec.index import IndexModel
from swsmix.codec.sections import Section
from swsmix.codec.values import StoredValues

_MAX_IN_CONTEXT = 1 << 27  # weights of one file that context models may code


@dataclass(frozen=True)
class Entry:
    """What the tables say of a tensor; other tensors are told by their place in the file.

    Attributes:
        name: its name.
        section: the number of its section.
        in_blocks: whether it has the section for itself, in streams of its own.
        kind: how it is stored.
        dtype: its type.
        shape: its shape.
        original: the tensor that it is a copy of, or None.
        codebook: the tensor whose codebook it uses, perhaps its own, or None.
        num_values: K of that codebook; 0 if it has none.
        values: its codebook if that is its own, or its elements, value by value; or None.
        head: the length of the codebook's stream in bytes, if it is in blocks.
        model: of its component numbers; None if there are none, or K = 1.
        sides: the tensor whose rows its context models ask for, or None.
        table_bits: the sizes of its name and shape, its codebook, and the rest, in the table.
    """

    name: str
    section: int
    in_blocks: bool
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, ...]
    original: int | None
    codebook: int | None
    num_values: int
    values: StoredValues | None
    head: int
    model: IndexModel | BlockedIndex | None
    sides: int | None
    table_bits: tuple[int, int, int]

    @property
    def numel(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)


def read_entries(sections: list[Section], size: int) -> list[Entry]:
    """All entries of a file.

    Args:
        sections: of the file, in order.
        size: of the file, in bytes.

    Raises:
        ValueError: if a table is damaged.
    """
    contents = _Contents()
    parts: list[str] | None = None
    left = None
    for number, section in enumerate(sections):
        table = TableReader(section.table, parts, left)
        count = table.number(size)
        in_blocks = section.is_checked and count == 0
        for _ in range(1 if in_blocks else count):
            contents.read_entry(table, number, in_blocks=in_blocks)
        table.check_end()
        parts, left = table.parts, table.names_left
    return contents.entries


class _Contents:
    """Reads entries one after another."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._names: set[str] = set()
        self._books: list[int] = []  # codebook -> the tensor that holds it
        self._rows: dict[int, int] = {}  # number of rows -> the last tensor that has them

    def read_entry(self, table: TableReader, section: int, *, in_blocks: bool) -> None:
        """Read the next entry."""
        start = table.position
        name = table.name()
        if name in self._names:
            raise ValueError(f"it is damaged: it holds {name!r} twice")
        self._names.add(name)
        kind = Kind(table.number(Kind.COPY))
        original = codebook = values = sides = None
        model: IndexModel | BlockedIndex | None = None
        num_values = head = 0
        if kind == Kind.COPY:
            original = table.number()
            if original >= len(self.entries):
                raise ValueError("it is damaged: a tensor is a copy of one that is not there")
            dtype, shape = self.entries[original].dtype, self.entries[original].shape
            codebook = self.entries[original].codebook
        else:
            dtype, shape = table.tensor()
        named = with_codebook = table.position
        numel = math.prod(shape)
        if kind == Kind.VALUES:
            values = StoredValues.from_table(table, numel, dtype, inside=not in_blocks)
        elif kind != Kind.COPY:
            if kind == Kind.INDEX:
                num_values = table.number(min(numel, MAX_VALUES))
                if not num_values:
                    raise ValueError("it is damaged: a codebook is empty")
                values = StoredValues.from_table(table, num_values, dtype)
                codebook = len(self.entries)
                self._books.append(codebook)
            else:
                codebook = self._shared(table.number(), dtype)
                num_values = self.entries[codebook].num_values
            with_codebook = table.position
            if in_blocks:
                head = 4 * table.number()
                model = BlockedIndex.from_table(table, num_values, shape)
            elif num_values > 1:
                model = IndexModel.from_table(table, num_values, shape)
            if model is not None:
                sides = self._sides(model, shape)
        elif in_blocks:
            raise ValueError("it is damaged: a copy is stored in blocks")
        bits = (
            8 * (named - start),
            8 * (with_codebook - named),
            8 * (table.position - with_codebook),
        )
        self.entries.append(Entry(
            name, section, in_blocks, kind, dtype, shape, original, codebook, num_values, values,
            head, model, sides, bits,
        ))  # fmt: skip

    def _shared(self, number: int, dtype: torch.dtype) -> int:
        """The tensor that holds a codebook."""
        if number >= len(self._books) or self.entries[self._books[number]].dtype != dtype:
            raise ValueError("it is damaged: a tensor refers to a codebook that is not there")
        return self._books[number]

    def _sides(self, model: IndexModel | BlockedIndex, shape: tuple[int, ...]) -> int | None:
        """The tensor whose rows are this one's columns, if a model asks; this one's rows follow."""
        number = fitting(self._rows, math.prod(shape[1:])) if model.asks_sides else None
        sides = None if number is None else self._rows[number]
        if has_rows(shape):
            self._rows.pop(shape[0], None)
            self._rows[shape[0]] = len(self.entries)
        return sides


def needed(entries: list[Entry], wanted: Collection[str]) -> list[tuple[Entry, bool]]:
    """What must be read for these tensors, each with whether its codebook is enough, by place.

    The tensors of one stream are read from its first on.
    """
    level = [2 * (entry.name in wanted) for entry in entries]  # 2 the tensor, 1 its codebook
    in_stream = -1
    found: list[tuple[int, bool]] = []
    for place in range(len(entries) - 1, -1, -1):
        entry = entries[place]
        if not entry.in_blocks and entry.section == in_stream:
            level[place] = 2
        if not level[place]:
            continue
        if not entry.in_blocks:
            in_stream = entry.section
        found.append((place, level[place] == 1))
        if level[place] == 1:
            continue
        for other in (entry.original, entry.sides):
            if other is not None:
                level[other] = 2
        if entry.kind == Kind.SHARED and entry.codebook is not None:
            level[entry.codebook] = max(level[entry.codebook], 1)
    return [(entries[place], is_book) for place, is_book in reversed(found)]


def charged(wanted: list[tuple[Entry, bool]], size: int, max_weights: int | None) -> ContextBudget:
    """What reading may cost, less what the tables tell of it.

    Raises:
        ValueError: if it is more than is allowed.
    """
    left, steps = limits(size, max_weights)
    allowed_for = f"a file of {size:,} bytes"
    most = f"{left:,} numbers, the most for {allowed_for}"
    if max_weights is not None:
        most = f"max_weights = {max_weights:,} numbers"
        allowed_for += f" and max_weights = {max_weights:,}"
    budget = ContextBudget(_MAX_IN_CONTEXT, steps, allowed_for)
    for entry, is_book in wanted:
        left -= entry.num_values if is_book else max(entry.numel, 1)
        if left < 0:
            raise ValueError(
                f"it holds more than {most}: give a larger max_weights (--max-weights of "
                "`swsmix decompress` and `inspect`) if you trust it"
            )
        if entry.kind == Kind.VALUES:
            budget.read_(entry.numel >> 4)
        elif entry.model is not None and not is_book:
            entry.model.charge(entry.num_values, entry.shape, budget)
    return budget

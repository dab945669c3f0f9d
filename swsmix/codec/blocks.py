"""Large tensors in blocks of rows, each a stream of its own: coded and read in parallel.

The blocks and their bytes depend on the tensor alone, never on the number of threads.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from swsmix.codec import scans
from swsmix.codec.budget import ContextBudget
from swsmix.codec.choosing import Coded, choose_for_blocks, kinds_in_order, most_decisions
from swsmix.codec.header import TableReader, TableWriter
from swsmix.codec.index import CONTEXTS, IndexModel, Numbers, code_contexts, code_zero_order
from swsmix.codec.stream import Array, StreamDecoder, StreamEncoder, counted, smallest_type

# Weights in a block, about. Each learns anew, which costs it less than .1 %; context models have
# much more to learn.
WEIGHTS, WEIGHTS_IN_CONTEXT = 1 << 20, 1 << 22

_Job = tuple[Array, Numbers, IndexModel | None]
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results in order, computed by as many threads as torch has."""
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(contextvars.copy_context().run, function, item) for item in items]
        return [run.result() for run in runs]


def spans(shape: tuple[int, ...], rows: int) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Each block's part of the flat tensor, and its shape."""
    columns = math.prod(shape[1:])
    for begin in range(0, shape[0], rows):
        end = min(begin + rows, shape[0])
        yield slice(begin * columns, end * columns), (end - begin, *shape[1:])


def write_blocks(
    table: TableWriter, index: Array, numbers: Numbers, budget: ContextBudget
) -> list[bytes]:
    """Code component numbers in blocks.

    Args:
        table: receives the rows per block, and each block's model and length.
        index: the numbers, row-major.
        numbers: what is known of them.
        budget: what context models may still spend.

    Returns:
        The streams.
    """
    shape, common = numbers.shape, int(counted(index, numbers.num_values).argmax())
    rows, blocks = _blocks(index, numbers, WEIGHTS_IN_CONTEXT)
    choice = choose_for_blocks(blocks, common, budget) if budget.left > 0 else None
    if choice is None:
        rows, blocks = _blocks(index, numbers, WEIGHTS)
    jobs, left = list[_Job](), budget.left
    for part, of_block in blocks:
        model = None
        if choice is not None and choice.kind in scans.scans_of(of_block.shape):
            in_order = choice.kind in kinds_in_order(part, of_block, common)
            model = IndexModel(CONTEXTS, common, choice._replace(starts_in_order=in_order))
            left -= most_decisions(part, of_block, model)
        jobs.append((part, of_block, model if left >= 0 else None))
    table.number(rows)
    streams = []
    for (model, data, to_read, spent), (_, block) in zip(
        in_threads(_coded, jobs), spans(shape, rows), strict=True
    ):
        model.write(table)
        table.number(len(data) // 4)
        streams.append(data)
        budget.read_(model.steps(numbers.num_values, block) + to_read)
        budget.left -= spent
    return streams


def _blocks(
    index: Array, numbers: Numbers, weights: int
) -> tuple[int, list[tuple[Array, Numbers]]]:
    """The rows per block, and the blocks, of even sizes."""
    rows = numbers.shape[0]
    rows = -(-rows // min(max(numbers.size // weights, 1), rows))
    return rows, [
        (index[span], Numbers(numbers.num_values, shape, numbers.sides))
        for span, shape in spans(numbers.shape, rows)
    ]


def _coded(job: _Job) -> tuple[IndexModel, bytes, int, int]:
    """A block in the smaller way: its model and stream, decisions to read, what contexts spent."""
    index, numbers, contexts = job
    best: Coded = code_zero_order(index, numbers)
    spent = 0
    if contexts is not None:
        stream = StreamEncoder()
        code_contexts(stream, contexts, numbers, index)
        steps = scans.scans_of(numbers.shape)[contexts.choice.kind][0]
        spent = stream.decisions + ContextBudget.STEP * steps
        if stream.cost < best[1].cost - 24:
            best = contexts, stream
    decisions = 0 if best[0].number == CONTEXTS else best[1].decisions
    return best[0], best[1].to_bytes(), decisions, spent


@dataclass(frozen=True)
class BlockedIndex:
    """What the tensor table says of component numbers in blocks.

    Attributes:
        rows: in a block.
        models: of each block.
        lengths: of each block's stream, in bytes.
    """

    rows: int
    models: list[IndexModel]
    lengths: list[int]

    @classmethod
    def from_table(
        cls, table: TableReader, num_values: int, shape: tuple[int, ...]
    ) -> BlockedIndex:
        """Read it.

        Raises:
            ValueError: if the settings are impossible.
        """
        if not shape or not math.prod(shape):
            raise ValueError("it is damaged: a tensor without rows is stored in blocks of them")
        rows = max(table.number(shape[0]), 1)
        models, lengths = [], []
        for _, block in spans(shape, rows):
            models.append(IndexModel.from_table(table, num_values, block))
            lengths.append(4 * table.number())
        return cls(rows, models, lengths)

    def __str__(self) -> str:
        """The models in words, the commonest first."""
        names = [str(model) for model in self.models]
        return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))

    @property
    def asks_sides(self) -> bool:
        """Whether a block asks for the rows of an earlier tensor."""
        return any(model.asks_sides for model in self.models)

    def charge(self, num_values: int, shape: tuple[int, ...], budget: ContextBudget) -> None:
        """Charge what reading will cost.

        Raises:
            ValueError: if it is more than may be spent.
        """
        for model, (_, block) in zip(self.models, spans(shape, self.rows), strict=True):
            model.charge(num_values, block, budget)

    def read(
        self,
        streams: memoryview,
        numbers: Numbers,
        budget: ContextBudget,
        decoder: type[StreamDecoder],
    ) -> tuple[Array, float]:
        """The numbers, row-major in the smallest type, and the streams' cost in bits.

        Raises:
            ValueError: if the streams are damaged, or `budget` is spent.
        """
        if sum(self.lengths) != len(streams):
            raise ValueError("it is damaged: the streams of a tensor do not have its lengths")
        index = np.empty(numbers.size, smallest_type(numbers.num_values))
        ends = np.cumsum(self.lengths).tolist()
        places = zip(self.models, self.lengths, ends, spans(numbers.shape, self.rows), strict=True)

        def read(job: tuple[IndexModel, int, int, tuple[slice, tuple[int, ...]]]) -> float:
            model, length, end, (span, shape) = job
            coder = decoder(streams[end - length : end])
            block = Numbers(numbers.num_values, shape, numbers.sides)
            index[span] = model.code(coder, block, None, budget.read_)
            coder.check_end()
            return coder.cost

        return index, sum(in_threads(read, list(places)))

"""Component numbers of one tensor: each model is tried, and the smallest is taken.

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
from swsmix.codec.densities import RowDensities
from swsmix.codec.header import TableReader, TableWriter
from swsmix.codec.scans import ScanChoice
from swsmix.codec.stream import (
    Array,
    Coder,
    StreamEncoder,
    code_adaptively,
    code_integers,
    entropy_bits,
    frequencies,
)

_COUNTED, _ADAPTIVE, _CONTEXTS = range(3)
_IN_ORDER = 4  # added to the scan's number
_MAX_VALUES = 1024  # of context models: their tables grow with it
_MIN_WEIGHTS = 256  # fewer never pay for context models
_TRIAL = 1 << 16  # weights, from the middle, on which scans are tried
_TRY_ALL = 1 << 14  # up to so many weights, every scan is tried, whatever the first one saves
# The share of the bits that context models must save: they take a microsecond or two per weight,
# and as much again for each decision about a value that is not the commonest. For a large tensor
# that is a second or more.
_MIN_SAVING = 0.01
_MIN_SAVING_IF_LARGE = 0.05
_LARGE = 1 << 20


@dataclass(frozen=True)
class _Tensor:
    """What context models know about a tensor before they code it."""

    num_values: int
    shape: tuple[int, ...]
    common: int  # the commonest value's number
    densities: RowDensities


def write_index(
    table: TableWriter,
    stream: StreamEncoder,
    index: Array,
    num_values: int,
    shape: tuple[int, ...],
    densities: RowDensities,
    budget: ContextBudget,
) -> None:
    """Code component numbers with the model that makes them smallest.

    Args:
        table: the tensor table; receives the model's number and its settings.
        stream: the stream; receives the coded numbers.
        index: numbers below `num_values`, row-major.
        num_values: K, at least 2.
        shape: the tensor's shape.
        densities: the earlier tensors' rows; the tensor is added to them.
        budget: what context models may still spend.
    """
    best = StreamEncoder()
    model, settings = _COUNTED, list[int]()
    choice = ScanChoice(0, 1)
    _code_zero_order(best, _COUNTED, len(index), num_values, index)
    trial = StreamEncoder()
    _code_zero_order(trial, _ADAPTIVE, len(index), num_values, index)
    if trial.cost < best.cost:
        best, model = trial, _ADAPTIVE
    if num_values <= _MAX_VALUES:
        common = int(np.bincount(index).argmax())
        tensor = _Tensor(num_values, shape, common, densities)
        most = (1 - _MIN_SAVING) * best.cost - 24
        if contexts := _best_contexts(index, tensor, budget, most):
            best, choice = contexts
            model = _CONTEXTS
            settings = [common, choice.kind + _IN_ORDER * choice.starts_in_order, choice.stride]
    for number in (model, *settings):
        table.number(number)
    if model == _CONTEXTS:
        budget.read_(_context_cost(choice, num_values, shape))
    else:
        budget.read_(_zero_order_cost(model, num_values, len(index)) + best.decisions)
    stream.extend(best)
    densities.add_(index, num_values, shape)


def read_index(
    table: TableReader,
    coder: Coder,
    num_values: int,
    shape: tuple[int, ...],
    densities: RowDensities,
    budget: ContextBudget,
) -> tuple[Array, str]:
    """Read component numbers: below `num_values`, row-major; and their model, in words.

    Raises:
        ValueError: if the settings are impossible, or context models code more weights than
            `budget` has left.
    """
    model = table.number(_CONTEXTS)
    if model != _CONTEXTS:
        budget.read_(_zero_order_cost(model, num_values, math.prod(shape)))
        index = _code_zero_order(coder, model, math.prod(shape), num_values, None, budget.read_)
        name = "counts" if model == _COUNTED else "adaptive counts"
    else:
        if num_values > _MAX_VALUES:
            raise ValueError("the context models of a tensor have too many values")
        common = table.number(num_values - 1)
        in_order, kind = divmod(table.number(_IN_ORDER + scans.FLAT), _IN_ORDER)
        stride = table.number(scans.MAX_STRIDE)
        if kind not in scans.scans_of(shape) or not scans.stride_fits(stride, kind, shape):
            raise ValueError("a tensor cannot be scanned as its table says")
        budget.left -= math.prod(shape)
        if budget.left < 0:
            raise ValueError("context models code more weights than one file may have under them")
        choice = ScanChoice(kind, stride, bool(in_order))
        budget.read_(_context_cost(choice, num_values, shape))
        tensor = _Tensor(num_values, shape, common, densities)
        index = _code_contexts(coder, choice, tensor, None)
        name = str(choice)
    densities.add_(index, num_values, shape)
    return index, name


def _zero_order_cost(model: int, num_values: int, size: int) -> int:
    """Steps to read component numbers: the tables of frequencies, of which model 1 has several."""
    return num_values * (size.bit_length() if model == _ADAPTIVE else 2) + (size >> 4)


def _context_cost(choice: ScanChoice, num_values: int, shape: tuple[int, ...]) -> int:
    """Steps to read a tensor by context models, if every weight takes all its decisions."""
    steps, lanes = scans.scans_of(shape)[choice.kind]
    starts = 100 * lanes if choice.starts_in_order else 0  # one by one
    decisions = math.prod(shape) * (1 + num_values.bit_length())
    return decisions + ContextBudget.STEP * steps + starts + 64 * num_values


def _code_zero_order(
    coder: Coder,
    model: int,
    size: int,
    num_values: int,
    index: Array | None,
    charge: Callable[[int], None] = lambda decisions: None,
) -> Array:
    """Models 0 and 1."""
    if model == _ADAPTIVE:
        return code_adaptively(coder, num_values, size, index)
    count = None if index is None else np.bincount(index, minlength=num_values)
    count = code_integers(coder, num_values, count, charge)
    if int(count.sum()) != size:
        raise ValueError("the counts of a tensor's values do not add up to its size")
    return coder.symbols(frequencies(count), size, index)


def _code_contexts(
    coder: Coder,
    choice: ScanChoice,
    tensor: _Tensor,
    index: Array | None,
    part: slice | None = None,
) -> Array:
    """Model 2; `part` codes those steps only, for a trial."""
    kind, shape = choice.kind, tensor.shape
    steps, lanes = scans.scans_of(shape)[kind]
    side, unknown = np.zeros(lanes, np.int64), np.zeros(0, np.int64)
    if kind in (scans.COLUMNS, scans.ROWS):
        side = tensor.densities.of_columns(math.prod(shape[1:]))
    matrix = None if index is None else scans.to_matrix(index, kind, shape, tensor.common)
    if part is not None and matrix is not None:
        matrix = matrix[part]
        steps = len(matrix)
        side = side[part] if kind == scans.COLUMNS else side
    scan = Scan(
        steps,
        lanes,
        tensor.num_values,
        tensor.common,
        choice.stride,
        side_step=side if kind == scans.COLUMNS else unknown,
        side_lane=unknown if kind == scans.COLUMNS else side,
        starts_in_order=choice.starts_in_order,
    )
    matrix = code_in_context(coder, scan, matrix)
    return matrix if part is not None else scans.from_matrix(matrix, kind, shape)


def _best_contexts(
    index: Array, tensor: _Tensor, budget: ContextBudget, most: float
) -> tuple[StreamEncoder, ScanChoice] | None:
    """The smallest coding by context models, if it is below `most` bits and within the budget."""
    others = len(index) - int(np.count_nonzero(index == tensor.common))
    # Is it the commonest value, on which side of it, and which there: at most so many decisions.
    decisions = len(index) + others * tensor.num_values.bit_length()
    best = None
    for choice, coded in _choose_scans(index, tensor, budget):
        trial, steps = coded or StreamEncoder(), scans.scans_of(tensor.shape)[choice.kind][0]
        if coded is None:
            if decisions + budget.STEP * steps > budget.left:
                break
            _code_contexts(trial, choice, tensor, index)
            budget.spend(trial, steps)
        if trial.cost < most:
            best, most = (trial, choice), trial.cost
    return best


def _choose_scans(
    index: Array, tensor: _Tensor, budget: ContextBudget
) -> list[tuple[ScanChoice, StreamEncoder | None]]:
    """The scans and strides to code the whole tensor with: up to two, one if it is large.

    They are the one that does best on the weights in the middle, and the best of those whose lanes
    start in order, about which a part tells nothing. An even tensor has none if the quickest scan
    saves nothing there. Of an uneven sparse tensor the middle does not tell: its pruned rows may
    lie elsewhere. Where the middle is the whole, the coding comes with its choice.
    """
    if len(index) < _MIN_WEIGHTS:
        return []
    shape, common = tensor.shape, tensor.common
    in_order = {
        kind
        for kind in scans.scans_of(shape)
        if scans.start_in_order(scans.to_matrix(index, kind, shape, common) != common)
    }
    flags = (index != common).reshape(shape[0] if shape else 1, -1)
    even = not in_order and not scans.is_uneven(flags)
    dense = 2 * np.count_nonzero(flags) > len(index)
    trials = _try_scans(index, tensor, budget, even)
    if trials is None:
        return []
    costs, whole = trials
    ranked = sorted(costs, key=lambda choice: (costs[choice], choice))
    saved = -costs[ranked[0]]
    chosen = ranked[:1]
    chosen += [c._replace(starts_in_order=True) for c in ranked if c.kind in in_order][:1]
    large = len(index) > _LARGE
    entropy = entropy_bits(np.bincount(index)) / len(index)
    worthless = saved < large * _MIN_SAVING_IF_LARGE * entropy
    if len(index) > _TRIAL and (even or dense) and worthless:
        return []
    if large:
        chosen = chosen[-1:]
    return [(choice, whole.get(choice)) for choice in chosen]


def _try_scans(
    index: Array, tensor: _Tensor, budget: ContextBudget, even: bool
) -> tuple[dict[ScanChoice, float], dict[ScanChoice, StreamEncoder]] | None:
    """Code the weights in the middle by every scan and stride: bits per weight above the entropy.

    The second dictionary has the codings where the middle is the whole. None if the budget is
    spent, or if the first scan of an even tensor saves nothing.
    """
    costs: dict[ScanChoice, float] = {}
    whole: dict[ScanChoice, StreamEncoder] = {}
    for kind, (steps, lanes) in sorted(
        scans.scans_of(tensor.shape).items(), key=lambda item: item[1][0]
    ):
        if len(index) > _TRY_ALL and even and costs and min(costs.values()) > 0:
            return None
        matrix = scans.to_matrix(index, kind, tensor.shape, tensor.common)
        window = min(steps, -(-_TRIAL // lanes))
        part = slice((steps - window) // 2, (steps + window) // 2)
        count = np.bincount(matrix[part].reshape(-1)).astype(np.float64)
        entropy = entropy_bits(count) / (window * lanes)
        for stride in scans.stride_candidates(matrix != tensor.common, kind):
            if budget.left <= 0:
                return None
            trial, choice = StreamEncoder(), ScanChoice(kind, stride)
            _code_contexts(trial, choice, tensor, index, part=part)
            budget.spend(trial, window)
            # Compared with the window's own entropy, which may be far from the whole's.
            costs[choice] = trial.cost / (window * lanes) - entropy
            if window == steps:
                whole[choice] = trial
    return costs, whole

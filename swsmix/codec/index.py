"""Component numbers of one tensor: each model is tried, and the smallest is taken.

    0  counts of the values, then the numbers by them     (zero order)
    1  the numbers by the counts of those before them     (zero order, adaptive)
    2  context models (`codec.contexts`): the commonest value, the scan (4 more if its lanes are
       born in order), its stride

The scans of model 2: a tensor is a matrix of its first dimension (rows, a layer's outputs) by all
the others (columns, its inputs); 0 steps through the columns, 1 through the rows, 2 through the
second dimension (input channels), 3 through the tensor in memory order, in square shape (only where
each of the others has over 1,024 steps, and over one for 4,096 weights).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from swsmix.codec.contexts import SIDES, Scan, code_in_context
from swsmix.codec.header import Reader, Writer
from swsmix.codec.mixing import log_density
from swsmix.codec.stream import (
    Array,
    Coder,
    Recorder,
    code_adaptively,
    code_integers,
    entropy_bits,
    frequencies,
)

_COUNTED, _ADAPTIVE, _CONTEXTS = range(3)
_COLUMNS, _ROWS, _CHANNELS, _FLAT = range(4)
_IN_ORDER = 4  # added to these
_SCANS = "columns", "rows", "channels", "memory"  # their names
_MAX_VALUES = 1024  # of context models: their tables grow with it
_MAX_LANES = 1 << 17  # beyond, sums over lanes would not be exact
_MAX_STRIDE = 1 << 10
_LEAST = 256  # weights that context models could pay for
_TRIAL = 1 << 16  # weights, from the middle, on which scans are tried
_PATIENT = 1 << 14  # up to so many weights, every scan is tried, whatever the first one saves
# The share of the bits that context models must save: they take their time, a microsecond or two a
# weight, and as much again for each decision about a value that is not the commonest. Of a large
# tensor that is a second or more.
_WORTH = 0.01
_WORTH_IF_LARGE = 0.05
_LARGE = 1 << 20
_SAMPLE = 1 << 20  # weights in which a stride is looked for


class Effort:
    """What may still be spent on context models in one file, in decisions of some microseconds.

    It is counted and not measured, so that the same bytes come out everywhere.

    Args:
        left: so many decisions; when coding, a step of a scan counts as `STEP` of them.
    """

    STEP = 500

    def __init__(self, left: int) -> None:
        self.left = left

    def coded(self, recorder: Recorder, steps: int) -> None:
        """Take off what has been coded."""
        self.left -= recorder.decisions + self.STEP * steps


class Earlier:
    """How dense the rows of the tensors before are: a layer's outputs are the next one's inputs."""

    def __init__(self) -> None:
        self._rows: dict[int, Array] = {}  # by their number, the latest last

    def add_(self, index: Array, num_values: int, shape: tuple[int, ...]) -> None:
        """Take note of a tensor."""
        if len(shape) < 2 or min(shape) < 1 or shape[0] < 2:
            return
        common = np.bincount(index, minlength=num_values).argmax()
        count = np.count_nonzero(index.reshape(shape[0], -1) != common, axis=1)
        columns = len(index) // shape[0]
        self._rows.pop(shape[0], None)
        self._rows[shape[0]] = 1 + log_density(count, columns, SIDES - 1)

    def of_columns(self, columns: int) -> Array:
        """A class of each column: that of the row it continues, in the last tensor that fits.

        Returns:
            Numbers below `SIDES`; zeros if none fits.
        """
        for number, rows in reversed(self._rows.items()):
            if columns % number == 0:
                return np.repeat(rows, columns // number)
        return np.zeros(columns, np.int64)


class _Choice(NamedTuple):
    kind: int
    stride: int
    in_order: bool = False

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"contexts by {_SCANS[self.kind]}{stride}{', in order' * self.in_order}"


def write_index(
    writer: Writer,
    recorder: Recorder,
    index: Array,
    num_values: int,
    shape: tuple[int, ...],
    earlier: Earlier,
    effort: Effort,
) -> None:
    """Code component numbers with the model that makes them smallest.

    Args:
        writer: the tensor table; takes the model's number and its settings.
        recorder: the stream.
        index: numbers below `num_values`, row-major.
        num_values: K, at least 2.
        shape: the tensor's.
        earlier: the tensors before.
        effort: what trying context models may still take.
    """
    best = Recorder()
    model, settings = _COUNTED, list[int]()
    _code_zero_order(best, _COUNTED, len(index), num_values, index)
    trial = Recorder()
    _code_zero_order(trial, _ADAPTIVE, len(index), num_values, index)
    if trial.cost < best.cost:
        best, model = trial, _ADAPTIVE
    count = np.bincount(index)
    common = int(count.argmax())
    # Is it the commonest value, on which side of it, and which there: at most so many decisions.
    need = len(index) + (len(index) - int(count[common])) * num_values.bit_length()
    if num_values <= _MAX_VALUES:
        least = (1 - _WORTH) * best.cost - 24
        for scan, done in _choose_scans(index, num_values, shape, common, earlier, effort):
            trial, steps = done or Recorder(), _scans(shape)[scan.kind][0]
            if done is None:
                if need + effort.STEP * steps > effort.left:
                    break
                _code_contexts(trial, scan, common, num_values, shape, earlier, index)
                effort.coded(trial, steps)
            if trial.cost < least:
                kind = scan.kind + _IN_ORDER * scan.in_order
                best, model, settings = trial, _CONTEXTS, [common, kind, scan.stride]
                least = trial.cost
    for number in (model, *settings):
        writer.number(number)
    recorder.extend(best)
    earlier.add_(index, num_values, shape)


def read_index(
    reader: Reader,
    coder: Coder,
    num_values: int,
    shape: tuple[int, ...],
    earlier: Earlier,
    effort: Effort,
) -> tuple[Array, str]:
    """Read component numbers.

    Returns:
        Numbers below `num_values`, row-major; and the model that they are coded by, in words.

    Raises:
        ValueError: if the settings are impossible, or more weights are under context models than
            are left in `effort`.
    """
    model = reader.number(_CONTEXTS)
    if model != _CONTEXTS:
        index = _code_zero_order(coder, model, math.prod(shape), num_values, None)
        told = "counts" if model == _COUNTED else "adaptive counts"
    else:
        if num_values > _MAX_VALUES:
            raise ValueError("the context models of a tensor have too many values")
        common = reader.number(num_values - 1)
        in_order, kind = divmod(reader.number(_IN_ORDER + _FLAT), _IN_ORDER)
        stride = reader.number(_MAX_STRIDE)
        if kind not in _scans(shape) or not _strides_fit(stride, kind, shape):
            raise ValueError("a tensor cannot be scanned as its table says")
        effort.left -= math.prod(shape)
        if effort.left < 0:
            raise ValueError("more weights are under context models than a file may have")
        scan = _Choice(kind, stride, bool(in_order))
        index = _code_contexts(coder, scan, common, num_values, shape, earlier, None)
        told = str(scan)
    earlier.add_(index, num_values, shape)
    return index, told


def _code_zero_order(
    coder: Coder, model: int, size: int, num_values: int, index: Array | None
) -> Array:
    if model == _ADAPTIVE:
        return code_adaptively(coder, num_values, size, index)
    count = None if index is None else np.bincount(index, minlength=num_values)
    count = code_integers(coder, num_values, count)
    if int(count.sum()) != size:
        raise ValueError("the counts of a tensor's values do not add up to its size")
    return coder.symbols(frequencies(count), size, index)


def _code_contexts(
    coder: Coder,
    choice: _Choice,
    common: int,
    num_values: int,
    shape: tuple[int, ...],
    earlier: Earlier,
    index: Array | None,
    part: slice | None = None,
) -> Array:
    """Model 2; `part` codes those steps only, for a trial."""
    kind = choice.kind
    rows, columns = shape[0], math.prod(shape[1:])
    steps, lanes = _scans(shape)[kind]
    side = earlier.of_columns(columns) if kind in (_COLUMNS, _ROWS) else np.zeros(lanes, np.int64)
    none = np.zeros(0, np.int64)
    matrix = None if index is None else _scanned(index, kind, shape, common)
    if part is not None and matrix is not None:
        matrix = matrix[part]
        steps = len(matrix)
        side = side[part] if kind == _COLUMNS else side
    scan = Scan(
        steps,
        lanes,
        num_values,
        common,
        choice.stride,
        side if kind == _COLUMNS else none,
        none if kind == _COLUMNS else side,
        choice.in_order,
    )
    matrix = code_in_context(coder, scan, matrix)
    if part is not None:
        return matrix
    if kind == _COLUMNS:
        matrix = matrix.T
    elif kind == _CHANNELS:
        matrix = matrix.reshape(shape[1], rows, -1).transpose(1, 0, 2)
    return matrix.reshape(-1)[: rows * columns]


def _scanned(index: Array, kind: int, shape: tuple[int, ...], common: int) -> Array:
    steps, lanes = _scans(shape)[kind]
    if kind == _FLAT:
        full = np.full(steps * lanes, common, index.dtype)
        full[: len(index)] = index
        return full.reshape(steps, lanes)
    if kind == _COLUMNS:
        return index.reshape(lanes, steps).T
    if kind == _CHANNELS:
        return index.reshape(shape[0], shape[1], -1).transpose(1, 0, 2).reshape(steps, lanes)
    return index.reshape(steps, lanes)


def _scans(shape: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """The scans that suit a shape: kind -> steps, lanes. Each step costs some calls."""
    size = math.prod(shape)
    if size == 0 or not shape:
        return {}
    rows, columns = shape[0], size // shape[0]
    found = {}
    if len(shape) > 1:
        found = {_COLUMNS: (columns, rows), _ROWS: (rows, columns)}
    if len(shape) > 2:
        found[_CHANNELS] = (shape[1], size // shape[1])
    found = {kind: scan for kind, scan in found.items() if scan[1] <= _MAX_LANES}
    # Those of any square matrix; and few enough that the steps' fixed cost is not what counts.
    most, few = (min(max(1024, size >> shift), 64 + size // 32) for shift in (10, 12))
    if all(steps > few for steps, _ in found.values()):
        steps = max(min(math.isqrt(size - 1) + 1, few), -(-size // _MAX_LANES))
        found[_FLAT] = (steps, -(-size // steps))
    return {kind: scan for kind, scan in found.items() if kind == _FLAT or scan[0] <= most}


def _strides_fit(stride: int, kind: int, shape: tuple[int, ...]) -> bool:
    steps, _ = _scans(shape)[kind]
    return 1 <= stride <= max(1, min(_MAX_STRIDE, steps))


def _choose_scans(
    index: Array,
    num_values: int,
    shape: tuple[int, ...],
    common: int,
    earlier: Earlier,
    effort: Effort,
) -> list[tuple[_Choice, Recorder | None]]:
    """The scan and stride that do best on the weights in the middle, if they would do.

    And the best of those whose lanes are born in order, of which a part tells nothing. Of an even
    tensor, where the quickest scan saves nothing, the others are not tried. Of a sparse tensor that
    is uneven the middle does not tell: the pruned rows may lie elsewhere.

    Returns:
        The choices to try in full: none to two, of a large tensor at most one; and what has been
        coded, where the middle is the whole.
    """
    if len(index) < _LEAST:
        return []
    costs: dict[_Choice, float] = {}
    whole: dict[_Choice, Recorder] = {}
    scans = sorted(_scans(shape).items(), key=lambda item: item[1][0])
    in_order = {k for k, _ in scans if _born_in_order(_scanned(index, k, shape, common) != common)}
    flags = (index != common).reshape(shape[0] if shape else 1, -1)
    even, dense = not in_order and not _uneven(flags), 2 * np.count_nonzero(flags) > len(index)
    for kind, (steps, lanes) in scans:
        if len(index) > _PATIENT and even and costs and min(costs.values()) > 0:
            return []
        matrix = _scanned(index, kind, shape, common)
        window = min(steps, -(-_TRIAL // lanes))
        part = slice((steps - window) // 2, (steps + window) // 2)
        count = np.bincount(matrix[part].reshape(-1)).astype(np.float64)
        entropy = entropy_bits(count) / (window * lanes)
        for stride in _stride_candidates(matrix, common, kind):
            if effort.left <= 0:
                return []
            trial, choice = Recorder(), _Choice(kind, stride)
            _code_contexts(trial, choice, common, num_values, shape, earlier, index, part=part)
            effort.coded(trial, window)
            # What is saved; a window's own entropy may be far from the whole's.
            costs[choice] = trial.cost / (window * lanes) - entropy
            if window == steps:
                whole[choice] = trial
    ranked = sorted(costs, key=lambda choice: (costs[choice], choice))
    saved = -costs[ranked[0]]
    chosen = ranked[:1]
    chosen += [choice._replace(in_order=True) for choice in ranked if choice.kind in in_order][:1]
    if len(index) > _TRIAL and (even or dense):
        large = len(index) > _LARGE
        if saved < large * _WORTH_IF_LARGE * entropy_bits(np.bincount(index)) / len(index):
            return []
    if len(index) > _LARGE:
        chosen = chosen[-1:]
    return [(choice, whole.get(choice)) for choice in chosen]


def _uneven(flags: Array) -> bool:
    """Whether rows, columns or neighbours differ from chance by six standard deviations.

    Neighbours are those in a row and in a column, and up to 64 columns away (an image's width).

    Returns:
        Whether they do.
    """
    p = flags.mean()
    if not 0.0 < p < 1.0:
        return False
    for each in (flags, flags.T):
        count = np.count_nonzero(each, axis=1)
        spread = count.var() / (each.shape[1] * p * (1 - p))
        if spread > 1 + 6 * math.sqrt(2 / len(count)):
            return True
    some = flags[: max(1, _SAMPLE // flags.shape[1])]
    shifted = [(some[1:], some[:-1])]
    shifted += [(some[:, d:], some[:, :-d]) for d in range(1, min(some.shape[1], 65))]
    for one, other in shifted:
        expected = one.size * p * p
        if abs(np.count_nonzero(one & other) - expected) > 6 * math.sqrt(expected + 1):
            return True
    return False


def _born_in_order(flags: Array) -> bool:
    """Whether no lane's first other value comes before that of the lane before it."""
    first = np.where(flags.any(0), flags.argmax(0), len(flags))
    return bool((np.diff(first) >= 0).all())


def _stride_candidates(matrix: Array, common: int, kind: int) -> list[int]:
    """1 and the distance at which steps resemble each other most, but for neighbours."""
    steps = len(matrix)
    if kind != _COLUMNS or steps < 9:
        return [1]
    flags = matrix[:, : max(1, _SAMPLE // steps)] != common
    alike = {
        d: np.count_nonzero(flags[d:] & flags[:-d]) / (steps - d)
        for d in range(3, min(steps // 3, 65))
    }
    peaks = [
        d
        for d, value in alike.items()
        if value > 0.0 and value >= max(alike.get(d - 1, 0.0), alike.get(d + 1, 0.0))
    ]
    return [1, *sorted(peaks, key=lambda d: (-alike[d], d))[:1]]

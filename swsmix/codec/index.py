"""Component numbers of one tensor: zero-order models, and the choice among all models by size."""

from __future__ import annotations

import numpy as np

from swsmix.codec.header import Reader, Writer
from swsmix.codec.stream import (
    Array,
    Coder,
    Recorder,
    code_adaptively,
    code_integers,
    frequencies,
)

_COUNTED, _ADAPTIVE = range(2)


def write_index(
    writer: Writer, recorder: Recorder, index: Array, num_values: int, shape: tuple[int, ...]
) -> None:
    """Code component numbers with the model that makes them smallest.

    Args:
        writer: the tensor table; takes the model's number and its settings.
        recorder: the stream.
        index: numbers below `num_values`, row-major.
        num_values: K, at least 2.
        shape: the tensor's.
    """
    trials = []
    for model in (_COUNTED, _ADAPTIVE):
        trial = Recorder()
        _code_zero_order(trial, model, len(index), num_values, index)
        trials.append((trial.cost, model, trial))
    _, model, best = min(trials, key=lambda t: t[:2])
    writer.number(model)
    recorder.extend(best)


def read_index(reader: Reader, coder: Coder, num_values: int, shape: tuple[int, ...]) -> Array:
    """Read component numbers.

    Returns:
        Numbers below `num_values`, row-major.
    """
    size = int(np.prod(shape, dtype=np.int64))
    model = reader.number(_ADAPTIVE)
    return _code_zero_order(coder, model, size, num_values, None)


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

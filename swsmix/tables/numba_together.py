"""The exact evaluation of many small tensors in one call, compiled by numba (if it is installed).

A call of a compiled loop takes longer than the loop over a few weights does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from torch import Tensor

from swsmix.tables.arrays import indices
from swsmix.tables.exact import ExactMixture
from swsmix.tables.numba_compiled import compiled
from swsmix.tables.numba_exact import gradient_into, proximal_into, scratch


def add_gradient_each_(
    mixtures: Sequence[ExactMixture],
    parts: Sequence[tuple[Tensor, Tensor]],
    scales: Sequence[float],
) -> list[Tensor]:
    """Add scale * f' of weights to targets, in one call for all of a step's.

    Args:
        mixtures: of each part.
        parts: target and weights of each, contiguous and in float32.
        scales: tau / num_data, usually, of each.

    Returns:
        The flat indices of the weights left out, of each.
    """
    table, values, left_out, numbers = _memory_of(mixtures, parts)
    number = _add_gradient_each(table, np.array(scales, np.float64), values, left_out, numbers)
    return _split(left_out[:number], numbers)


def proximal_each_(
    mixtures: Sequence[ExactMixture],
    parts: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    rates: Sequence[tuple[float, float]],
) -> list[Tensor]:
    """`proximal_` of several tensors in one call.

    Args:
        mixtures: of each part.
        parts: w, at and second of each, contiguous and in float32.
        rates: rate and eps of each.

    Returns:
        The flat indices of the weights left out, of each.
    """
    table, values, left_out, numbers = _memory_of(mixtures, parts)
    number = _proximal_each(table, np.array(rates), values, left_out, numbers)
    return _split(left_out[:number], numbers)


def _memory_of(
    mixtures: Sequence[ExactMixture], parts: Sequence[tuple[Tensor | None, ...]]
) -> tuple[Any, Any, Any, Any]:
    """A row for each part, the mixtures' numbers, and memory for what a loop leaves out.

    A row: where its mixture begins and has how many components, its size, its tensors' addresses.
    """
    begins, arrays, end = dict[int, int](), [], 0
    for mixture in mixtures:
        if id(mixture) not in begins:
            begins[id(mixture)] = end
            arrays.append(mixture.as_array.reshape(-1))
            end += len(arrays[-1])
    sizes = [tensors[0].numel() for tensors in parts if tensors[0] is not None]
    rows = [
        (
            begins[id(mixture)], len(mixture.mean), size,
            *(0 if each is None else each.data_ptr() for each in tensors),
        )
        for mixture, size, tensors in zip(mixtures, sizes, parts, strict=True)
    ]  # fmt: skip
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    left_out = indices(sum(sizes))
    return np.array(rows, np.int64), values, left_out, np.zeros(len(sizes), np.int64)


def _split(left_out: Any, numbers: Any) -> list[Tensor]:
    if not len(left_out):
        return []
    return list(torch.from_numpy(left_out.copy()).split(numbers.tolist()))


def _to_pointer(_context, address):
    """The float32 numbers at an address."""

    def convert(context, builder, signature, values):
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), convert


_pointer: Any = intrinsic(_to_pointer)


@compiled
def _mixture_of(values, row):
    return values[row[0] : row[0] + 5 * row[1]].reshape(5, row[1])


@compiled
def _add_gradient_each(table, scales, values, left_out, numbers):
    # Addresses instead of arrays: to make an array of a small tensor takes as long as its weights.
    done = 0
    for i in range(len(table)):
        mixture = _mixture_of(values, table[i])
        if i == 0 or table[i, 0] != table[i - 1, 0]:
            memory = scratch(mixture)
        target = carray(_pointer(table[i, 3]), table[i, 2])
        w = carray(_pointer(table[i, 4]), table[i, 2])
        numbers[i] = gradient_into(target, w, scales[i], mixture, memory, left_out[done:])
        done += numbers[i]
    return done


@compiled
def _proximal_each(table, rates, values, left_out, numbers):
    done = 0
    for i in range(len(table)):
        mixture = _mixture_of(values, table[i])
        if i == 0 or table[i, 0] != table[i - 1, 0]:
            memory = scratch(mixture)
        w = carray(_pointer(table[i, 3]), table[i, 2])
        at = carray(_pointer(table[i, 4]), table[i, 2])
        second = carray(_pointer(table[i, 5]), table[i, 2] if table[i, 5] else 0)
        rate, eps = rates[i]
        numbers[i] = proximal_into(w, at, second, rate, eps, mixture, memory, left_out[done:])
        done += numbers[i]
    return done

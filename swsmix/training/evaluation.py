"""The mean of a measure over data; the types of data and measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

Batch = tuple[Tensor, Tensor]
Data = Batch | Iterable[Batch]
Loss = Callable[[Tensor, Tensor], Tensor]


def is_pair(data: Data) -> TypeIs[Batch]:
    """Whether the data are two tensors rather than batches."""
    return isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor)


def evaluate(model: nn.Module, measure: Loss, data: Data) -> float:
    """The mean of measure(model(x), y) over data, in evaluation mode.

    Args:
        model: the network.
        measure: a mean over a batch.
        data: two tensors (x, y) or batches.

    Returns:
        The mean over all cases.
    """
    return means(model, (measure,), data)[0]


@torch.no_grad()
def means(model: nn.Module, functions: tuple[Loss, ...], data: Data) -> list[float]:
    """`evaluate` for several functions in one pass.

    Args:
        model: the network.
        functions: of (prediction, target), each a mean over a batch.
        data: two tensors (x, y) or batches.

    Returns:
        The means over all cases, in the order of the functions.

    Raises:
        ValueError: if there is no case.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    totals, count = [0.0] * len(functions), 0
    for x, y in _batches(data):
        prediction, target = model(x.to(device)), y.to(device)
        for i, function in enumerate(functions):
            totals[i] += float(function(prediction, target)) * len(x)
        count += len(x)
    model.train(training)
    if count == 0:
        raise ValueError("there are no data to measure on: the batches hold no cases")
    return [total / count for total in totals]


def num_cases(data: Data) -> int:
    """The number of examples in the data.

    Args:
        data: two tensors (x, y) or batches that know their `dataset`, as a `DataLoader` does.

    Raises:
        ValueError: if the data do not tell.
    """
    if is_pair(data):
        return len(data[0])
    dataset = getattr(data, "dataset", None)
    if not isinstance(dataset, Sized):
        raise ValueError(
            "the number of training examples cannot be read off the data: give it as num_data"
        )
    return len(dataset)


def check_data(data: Data) -> None:
    """Check that data can be iterated over more than once, and that x and y are of one length.

    Raises:
        ValueError: if not.
    """
    if is_pair(data) and len(data[0]) != len(data[1]):
        raise ValueError(f"x and y must have one length; got {len(data[0])} and {len(data[1])}")
    if iter(data) is data:
        raise ValueError(
            "the data are an iterator, which yields its batches only once: give two tensors, a "
            "list of batches or a DataLoader"
        )


def _batches(data: Data, size: int = 4096) -> Iterable[Batch]:
    if not is_pair(data):
        return data
    x, y = data
    return zip(x.split(size), y.split(size), strict=True)

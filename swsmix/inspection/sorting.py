"""What tensors are sorted and compared by: one number of a tensor under each name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from swsmix.inspection.inspect import InspectedTensor

KEYS: dict[str, Callable[[InspectedTensor], float]] = {
    "kurtosis": lambda tensor: tensor.measures.kurtosis,
    "gg-shape": lambda tensor: tensor.measures.shape,
    "left": lambda tensor: tensor.measures.left,
    "bits": lambda tensor: tensor.bits_per_weight if tensor.clustered else math.nan,
    "non-zero": lambda tensor: tensor.nonzero / tensor.size,
    "outliers": lambda tensor: tensor.measures.outliers,
    "clusters": lambda tensor: tensor.num_clusters if tensor.clustered else math.nan,
    "weights": lambda tensor: tensor.size,
}
"""The measures, the most telling first: a narrow table omits the last."""


def ordered(tensors: Sequence[InspectedTensor], by: str | None) -> list[InspectedTensor]:
    """The tensors, the largest of a measure first; those without it last.

    Args:
        tensors: the tensors; those that are equal stay in their order.
        by: the measure, a key of `KEYS`; None leaves the order.

    Raises:
        ValueError: if there is no such measure.
    """
    return list(tensors) if by is None else [tensors[i] for i in places(measured(tensors, by))]


def measured(tensors: Sequence[InspectedTensor], by: str) -> list[float]:
    """A measure of each tensor, nan where it has none.

    Raises:
        ValueError: if there is no such measure.
    """
    check(by)
    return [float(KEYS[by](tensor)) for tensor in tensors]


def check(by: str) -> None:
    """Refuse the name of a measure that there is not.

    Raises:
        ValueError: if it is no key of `KEYS`.
    """
    if by not in KEYS:
        raise ValueError(f"sort must be one of {', '.join(KEYS)}, got {by!r}: choose one of them")


def places(values: Sequence[float]) -> list[int]:
    """The places of numbers, the largest first and nan last."""
    keys = [math.inf if math.isnan(value) else -value for value in values]
    return sorted(range(len(values)), key=keys.__getitem__)

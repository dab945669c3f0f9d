"""The histogram of one or several tensors, in memory that does not grow with the weights.

Tensors are neither joined nor copied. Figures, tables and pages all count by these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix.mixture import GaussianMixture

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Tensor | Sequence[Tensor]
Parameters = tuple[Array, Array, Array]  # mixing, mean, std: float64 (k,)
MAX_BINS = 240
_CHUNK = 1 << 18
_SOME = 1 << 12


def flat_weights(weights: Weights, name: str = "weights") -> list[Tensor]:
    """The weights as finite vectors, views where possible; a TypeError or ValueError otherwise."""
    single = isinstance(weights, Tensor | Mapping | np.ndarray) or not isinstance(weights, Iterable)
    given: list[Any] = [weights] if single else list(weights)
    for w in given:
        if not isinstance(w, Tensor):
            raise TypeError(
                f"{name}: needs a tensor or a list of tensors, got {type(w).__name__}: "
                + ("pass list(w.values())" if isinstance(w, Mapping) else "pass torch.as_tensor(w)")
            )
    flat = [w.detach().reshape(-1) for w in given if w.numel()]
    if not flat:
        shapes = [tuple(w.shape) for w in given]
        got = f"shape {shapes[0]}" if isinstance(weights, Tensor) else f"shapes {shapes}"
        raise ValueError(f"{name}: needs at least one weight, got {got}: omit it")
    if bad := sum(int((~part.isfinite()).sum()) for part in chunks(flat)):
        raise ValueError(
            f"{name}: needs finite weights, got {bad} nan or inf among {count(flat)}: "
            "find where training diverged, or pass weights[weights.isfinite()]"
        )
    return flat


def chunks(flat: Sequence[Tensor]) -> Iterator[Tensor]:
    """The vectors in parts of bounded size, each on the CPU and in a dtype that numpy has."""
    for part in (part for w in flat for part in w.split(_CHUNK)):
        yield part.cpu() if part.dtype in {torch.float32, torch.float64} else part.float().cpu()


def few_values(flat: Sequence[Tensor], most: int) -> Tensor | None:
    """The different values, ascending, in float64; None if there are more than `most`."""
    values = torch.zeros(0, dtype=torch.float64, device="cpu")
    for number, whole in enumerate(chunks(flat)):
        first = [whole[:_SOME]] if not number else []  # tells nearly always
        for part in (*first, whole):
            values = torch.cat([values, part.double().unique()]).unique()
            if len(values) > most:
                return None
    return values


def count(flat: Sequence[Tensor]) -> int:
    """The number of weights."""
    return sum(len(w) for w in flat)


def parameters_of(mixture: GaussianMixture) -> Parameters:
    """Mixing, mean and std of a mixture, as float64 arrays."""
    mixing, mean, std = (
        v.detach().double().cpu().numpy() for v in (mixture.mixing, mixture.mean, mixture.std)
    )
    return mixing, mean, std


def span(parameters: Parameters, flat: Sequence[Tensor] = ()) -> tuple[float, float]:
    """An interval with all weights and all centres with mixing > 0.

    It is at least 8 times the smallest std wide.
    """
    mean, std = (v[parameters[0] > 0] for v in parameters[1:])
    ends = [v.item() for part in chunks(flat) for v in part.aminmax()]
    ends += list(mean) if flat else [*(mean - 4 * std), *(mean + 4 * std)]
    low, high = min(ends), max(ends)
    pad = max(0.03 * (high - low), 4 * std.min() - (high - low) / 2)
    return float(low - pad), float(high + pad)


def histogram(
    flat: Sequence[Tensor],
    low: float,
    high: float,
    most: int = MAX_BINS,
    finest: float = float("inf"),
) -> tuple[Array, Array]:
    """Bin edges and counts; one bin is centred on zero, so that it holds all pruned weights."""
    edges = bin_edges(count(flat), low, high, most, finest)
    return edges, bin_counts(flat, edges)


def bin_edges(
    total: int, low: float, high: float, most: int = MAX_BINS, finest: float = float("inf")
) -> Array:
    """The edges of about `most` equal bins for `total` weights.

    For few weights there are fewer, unless they would be wider than `finest`, the std of the
    narrowest component: a bar is to be no wider than the peak over it.
    """
    step = max((high - low) / most, min(finest, (high - low) / max(40, 4 * total**0.5)))
    numbers = np.arange(np.floor(low / step - 0.5), np.ceil(high / step - 0.5) + 1)
    edges: Array = (numbers + 0.5) * step
    return edges


def bin_counts(flat: Sequence[Tensor], edges: Array) -> Array:
    """The number of weights in each of these equal bins."""
    counts = np.zeros(len(edges) - 1)
    for part in chunks(flat):
        counts += np.histogram(part.numpy(), len(counts), (edges[0], edges[-1]))[0]
    return counts

"""The mixture's formulas of `density`, compiled by numba; importing this needs numba."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numba
import numpy as np

from swsmix.bayes import density
from swsmix.bayes.layout import Array


def _mixture_sums_loop(
    w: Array, height: Array, mean: Array, inverse_std: Array
) -> tuple[float, Array, Array, Array, Array]:
    """`density.mixture_sums` as a loop over the weights."""
    k = len(mean)
    by_w, joint = np.empty(len(w)), np.empty(k)
    count, first, second = np.zeros(k), np.zeros(k), np.zeros(k)
    value = 0.0
    for i in range(len(w)):
        top = -np.inf
        for j in range(k):
            off = (w[i] - mean[j]) * inverse_std[j]
            joint[j] = height[j] - 0.5 * off * off
            top = max(top, joint[j])
        total = 0.0
        for j in range(k):
            joint[j] = math.exp(joint[j] - top)
            total += joint[j]
        value += top + math.log(total)
        pull = 0.0
        for j in range(k):
            gamma, off = joint[j] / total, (w[i] - mean[j]) * inverse_std[j]
            count[j] += gamma
            first[j] += gamma * off
            second[j] += gamma * off * off
            pull += gamma * off * inverse_std[j]
        by_w[i] = -pull
    return value, by_w, count, first, second


def compiled(function: Any) -> Any:
    """The function, compiled and kept on disk."""
    # Unwrapped: a type checker's import hook may have wrapped it.
    function = inspect.unwrap(function)
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that can be written keeps what is compiled
        return numba.njit(nogil=True, error_model="numpy")(function)


mixture_at = compiled(density.mixture_at)
mixture_sums = compiled(_mixture_sums_loop)
with_hyper_prior = compiled(density.with_hyper_prior)

"""The exact evaluation of few weights on a CPU, compiled by numba (if it is installed).

The formulas of `exact`, one weight at a time and without temporary tensors. Weights that are not
finite, and those so far out that components must be compared by differences, are left to `exact`:
their results are NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix._log_odds import FAR, LOG_SQRT_2PI
from swsmix.tables.exact import ExactMixture
from swsmix.tables.numba_loops import compiled

# A responsibility below exp(-45) of the largest is 0: less than a rounding of any sum that it is
# in, once the pull and the precision of the narrowest component are allowed for; see `_least`.
_NOTHING = -45.0


def slopes(mixture: ExactMixture, w: Tensor) -> Tensor:
    """The gradient f' and the curvature a (2, n) of flat weights, in float64."""
    out = torch.empty(2, len(w), dtype=torch.float64, device="cpu")
    _slopes(w.numpy(), *_parameters(mixture), out.numpy())
    return out


def sums(mixture: ExactMixture, w: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The value and the moments (3, k) of flat weights, and whether some were left out."""
    moments = torch.zeros(3, len(mixture.mean), dtype=torch.float64, device="cpu")
    value, left_out = _sums(w.numpy(), *_parameters(mixture), moments.numpy())
    return moments.new_tensor(value), moments, left_out > 0


def proximal_(
    mixture: ExactMixture, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
) -> int:
    """The proximal step of flat weights, in place; returns how many were left out."""
    squares = None if second is None else second.numpy()
    return int(_proximal(w.numpy(), at.numpy(), squares, rate, eps, *_parameters(mixture)))


def gaps(mixture: ExactMixture, w: Tensor) -> Tensor:
    """The indices of the flat weights that are left out."""
    return slopes(mixture, w)[0].isnan().nonzero()[:, 0]


def _parameters(mixture: ExactMixture) -> tuple[Any, Any, Any]:
    return mixture.as_array, _least(mixture), np.empty(len(mixture.mean))


def _least(mixture: ExactMixture) -> float:
    narrow = float(mixture.std.min()) * float(mixture.scale)
    return _NOTHING + 2.0 * math.log(max(narrow, 1e-300))


@compiled
def _responsible(w, mixture, least, gamma):
    """Write gamma, not yet divided by their sum; returns the sum, and log of what it is a share of.

    The latter is NaN where the weight has to be left out.
    """
    top = -np.inf
    for j in range(gamma.shape[0]):
        z = (w - mixture[1, j]) / mixture[2, j]
        gamma[j] = mixture[0, j] - 0.5 * z * z
        top = max(top, gamma[j])
    if not top >= FAR:
        return 1.0, np.nan
    total = 0.0
    for j in range(gamma.shape[0]):
        odds = gamma[j] - top
        gamma[j] = np.exp(odds) if odds > least else 0.0
        total += gamma[j]
    return total, top


@compiled
def _slope(w, mixture, least, gamma):
    total, top = _responsible(w, mixture, least, gamma)
    slope, a = 0.0, 0.0
    for j in range(gamma.shape[0]):
        if gamma[j] > 0.0:
            slope += gamma[j] * ((w - mixture[1, j]) / mixture[2, j]) / mixture[2, j]
            a += gamma[j] * mixture[3, j]
    nothing = top - top  # NaN for what is left out
    return slope / total + nothing, a / total + nothing


@compiled
def _slopes(w, mixture, least, gamma, out):
    for i in range(w.shape[0]):
        out[0, i], out[1, i] = _slope(np.float64(w[i]), mixture, least, gamma)


@compiled
def _proximal(w, at, second, rate, eps, mixture, least, gamma):
    left_out = 0
    for i in range(w.shape[0]):
        x = np.float64(at[i])
        slope, a = _slope(x, mixture, least, gamma)
        if slope != slope:
            left_out += 1
            continue
        inverse = 1.0 if second is None else np.sqrt(np.float64(second[i])) + eps
        before = np.float64(w[i])
        w[i] = before + rate * (a * (x - before) - slope) / (inverse + rate * a)
    return left_out


@compiled
def _sums(w, mixture, least, gamma, moments):
    value, left_out = 0.0, 0
    for i in range(w.shape[0]):
        x = np.float64(w[i])
        total, top = _responsible(x, mixture, least, gamma)
        if top != top:
            left_out += 1
            continue
        value -= top + np.log(total) - LOG_SQRT_2PI
        for j in range(gamma.shape[0]):
            if gamma[j] > 0.0:
                share, away = gamma[j] / total, x - mixture[1, j]
                moments[0, j] += share
                moments[1, j] += share * away
                moments[2, j] += share * away * away
    return value, left_out

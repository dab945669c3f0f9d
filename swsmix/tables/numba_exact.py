"""The exact evaluation of few weights on a CPU, compiled by numba (if it is installed).

The formulas of `exact`, a block of weights at a time and without temporary tensors. Weights that
are not finite, and those so far out that components must be compared by differences, are left to
`exact`: their results are NaN.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swsmix._log_odds import FAR, LOG_SQRT_2PI
from swsmix.tables.arrays import array
from swsmix.tables.exact import ExactMixture
from swsmix.tables.fingerprint import ADDED, FACTOR, FIFTEEN, HIGH, SECOND
from swsmix.tables.numba_compiled import compiled, fused, summed
from swsmix.tables.numba_exp import exp

_BLOCK = 256  # weights at a time: what is kept of them stays in the cache
_MANY = 1 << 14  # weights that are summed by themselves
_TERMS = 16  # components that are summed by themselves, lest hundreds of roundings add up


def slopes(mixture: ExactMixture, w: Tensor) -> Tensor:
    """The gradient f' and the curvature a (2, n) of flat weights, in float64."""
    out = torch.empty(2, len(w), dtype=torch.float64, device="cpu")
    _slopes(array(w), mixture.as_array, out.numpy())
    return out


def sums(mixture: ExactMixture, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value and the moments (3, k) of flat weights, and the indices of those left out."""
    moments = torch.zeros(3, len(mixture.mean), dtype=torch.float64, device="cpu")
    left_out = np.empty(len(w), np.int64)
    value, number = _sums(array(w), mixture.as_array, moments.numpy(), left_out)
    return moments.new_tensor(value), moments, torch.from_numpy(left_out[:number])


def write_gradient_(
    mixture: ExactMixture, target: Tensor, w: Tensor, scale: float | None
) -> Tensor:
    """Write f' of flat weights or, with a scale, add scale * f'; the indices of those left out."""
    left_out = np.empty(len(w), np.int64)
    number = _write_gradient(array(target), array(w), scale, mixture.as_array, left_out)
    return torch.from_numpy(left_out[:number])


def proximal_(
    mixture: ExactMixture, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
) -> Tensor:
    """The proximal step of weights, in place; returns the flat indices of those left out."""
    weights, where = array(w, flat=True), array(at, flat=True)
    squares = weights[:0] if second is None else array(second, flat=True)
    left_out = np.empty(len(weights), np.int64)
    number = _proximal(weights, where, squares, rate, eps, mixture.as_array, left_out)
    return torch.from_numpy(left_out[:number])


def scrambled(words: Tensor) -> tuple[int, int]:
    """The two sums over flat integers of 32 bits that `fingerprint` describes."""
    first, second = _scrambled(array(words))
    return int(first), int(second)


# Each of these loops is over the weights of a block, for one component: the processor takes several
# weights at a time.


@fused
def _compare(x, mean, std, level, odds, top):
    for i in range(len(x)):
        z = (x[i] - mean) / std
        odds[i] = level - 0.5 * z * z
        top[i] = odds[i] if odds[i] > top[i] else top[i]


@fused
def _exponentiate(odds, top, total):
    for i in range(len(odds)):
        odds[i] = exp(odds[i] - top[i])
        total[i] += odds[i]


@fused
def _add_pull(x, mean, gamma, inverse, precision, slope, a):
    for i in range(len(x)):
        slope[i] += gamma[i] * ((x[i] - mean) * inverse * inverse)
        a[i] += gamma[i] * precision


@summed
def _add_moments(gamma, share, x, mean, moments):
    count, first, second = 0.0, 0.0, 0.0
    for i in range(len(gamma)):
        mass, away = gamma[i] * share[i], x[i] - mean
        count += mass
        first += mass * away
        second += mass * away * away
    moments[0] += count
    moments[1] += first
    moments[2] += second


@compiled
def _flush(part, total):
    for i in range(len(part)):
        total[i] += part[i]
        part[i] = 0.0


@compiled
def _responsible(w, mixture, gamma, x, top, total, part):
    """Of a block of weights: gamma not yet divided by their sum, the sum, and the divisor's log.

    The latter is NaN for weights that have to be left out.
    """
    part[:] = 0.0
    for i in range(len(w)):
        x[i] = w[i] if abs(w[i]) < np.inf else np.inf
        top[i], total[i] = -np.inf, 0.0
    for j in range(len(gamma)):
        _compare(x, mixture[1, j], mixture[2, j], mixture[0, j], gamma[j], top)
    for i in range(len(w)):
        top[i] = top[i] if top[i] >= FAR else np.nan
    for j in range(len(gamma)):
        _exponentiate(gamma[j], top, part)
        if j % _TERMS == _TERMS - 1 or j == len(gamma) - 1:
            _flush(part, total)


@compiled
def _pull(w, mixture, gamma, rows):
    """The slope and the curvature of a block of weights; NaN for those that are left out."""
    x, top, total, slope, a, part, part_a = (
        rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
    )  # fmt: skip
    _responsible(w, mixture, gamma, x, top, total, part)
    slope[:], a[:], part_a[:] = 0.0, 0.0, 0.0
    for j in range(len(gamma)):
        _add_pull(x, mixture[1, j], gamma[j], mixture[3, j], mixture[4, j], part, part_a)
        if j % _TERMS == _TERMS - 1 or j == len(gamma) - 1:
            _flush(part, slope)
            _flush(part_a, a)
    for i in range(len(w)):
        nothing = top[i] - top[i]
        slope[i] = slope[i] / total[i] + nothing
        a[i] = a[i] / total[i] + nothing


@compiled
def scratch(mixture):
    """Memory for gamma (k, block), and for seven numbers per weight of a block."""
    k = mixture.shape[1]
    return np.empty((k, _BLOCK)), np.empty((7, _BLOCK))


@compiled
def _slopes(w, mixture, out):
    gamma, rows = scratch(mixture)
    for start in range(0, len(w), _BLOCK):
        part = w[start : start + _BLOCK]
        _pull(part, mixture, gamma, rows)
        for i in range(len(part)):
            out[0, start + i], out[1, start + i] = rows[3, i], rows[4, i]


@compiled
def gradient_into(target, w, scale, mixture, memory, left_out):
    """`write_gradient_` in memory from `scratch`; how many weights are left out."""
    gamma, rows = memory
    number = 0
    for start in range(0, len(w), _BLOCK):
        part = w[start : start + _BLOCK]
        _pull(part, mixture, gamma, rows)
        for i in range(len(part)):
            slope = rows[3, i]
            if slope != slope:
                left_out[number] = start + i
                number += 1
            elif scale is None:
                target[start + i] = slope
            else:
                target[start + i] += scale * slope
    return number


@compiled
def _write_gradient(target, w, scale, mixture, left_out):
    return gradient_into(target, w, scale, mixture, scratch(mixture), left_out)


@compiled
def proximal_into(w, at, second, rate, eps, mixture, memory, left_out):
    """`proximal_` in memory from `scratch`; how many weights are left out."""
    gamma, rows = memory
    number = 0
    for start in range(0, len(w), _BLOCK):
        part = at[start : start + _BLOCK]
        _pull(part, mixture, gamma, rows)
        for i in range(len(part)):
            slope, a, before = rows[3, i], rows[4, i], np.float64(w[start + i])
            if slope != slope:
                left_out[number] = start + i
                number += 1
                continue
            inverse = np.sqrt(np.float64(second[start + i])) + eps if len(second) else 1.0
            w[start + i] = before + rate * (a * (part[i] - before) - slope) / (inverse + rate * a)
    return number


@compiled
def _proximal(w, at, second, rate, eps, mixture, left_out):
    return proximal_into(w, at, second, rate, eps, mixture, scratch(mixture), left_out)


@compiled
def _sums(w, mixture, moments, left_out):
    # The roundings of millions do not add up: `lost` is what the value has lost by them (Kahan
    # 1965), and the moments are those of many blocks at a time.
    gamma, rows = scratch(mixture)
    number, x, top, total, own = 0, rows[0], rows[1], rows[2], rows[5]
    value, lost, few = 0.0, 0.0, np.zeros_like(moments)
    for start in range(0, len(w), _BLOCK):
        part = w[start : start + _BLOCK]
        _responsible(part, mixture, gamma, x, top, total, own)
        for i in range(len(part)):
            if top[i] != top[i]:
                left_out[number] = start + i
                number += 1
                x[i], total[i], gamma[:, i] = 0.0, 0.0, 0.0
                continue
            term = LOG_SQRT_2PI - top[i] - np.log(total[i]) - lost
            larger = value + term
            lost = (larger - value) - term
            value = larger
            total[i] = 1.0 / total[i]
        for j in range(len(gamma)):
            _add_moments(gamma[j, : len(part)], total, x, mixture[1, j], few[:, j])
        if start % _MANY == _MANY - _BLOCK or start + _BLOCK >= len(w):
            moments += few
            few[:] = 0.0
    return value, number


@compiled
def _scrambled(words):
    first, second = np.int32(0), np.int32(0)
    for i in range(len(words)):
        y = np.int32(words[i] * np.int32(FACTOR) + np.int32(ADDED))
        z = np.int32((y ^ (y >> HIGH)) * np.int32(SECOND))
        v = np.int32(z ^ (z >> FIFTEEN))
        first = np.int32(first + v)
        second = np.int32(second + v * y)
    return first, second

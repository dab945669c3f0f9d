"""`Tables`: a mixture's value, gradient, moments and proximal step, for many weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swsmix._shards import SMALL, flat_like, write_flat_
from swsmix.tables import backends
from swsmix.tables.arrays import empty_like
from swsmix.tables.cells import ErrorBounds
from swsmix.tables.exact import ExactMixture, run_isolated
from swsmix.tables.passes import Passes
from swsmix.tables.scratch import flattened

# The sums over i of gamma_ij (w_i - mu_j)^n for n = 0, 1, 2: count, first, second; each (k,).
MomentSums = tuple[Tensor, Tensor, Tensor]


class Full(NamedTuple):
    """The value, the gradient and the moments of some weights."""

    value: Tensor  # R, in nats
    gradient: Tensor  # dR/dw, of the weights' shape
    moments: MomentSums


class Sums(NamedTuple):
    """The value and the moments of some weights, without the gradient."""

    value: Tensor
    moments: MomentSums


class Adaptive(NamedTuple):
    """One step size per weight, rate / (sqrt(second) + eps), as Adam has it."""

    second: Tensor  # Adam's second moments, of the weights' shape
    rate: float
    eps: float


class Tables:
    """A mixture's f(w) = -log p(w), its derivative and its EM moments, for many weights.

    `build` and `direct` make it. The weights may have any shape and memory order, in float16,
    bfloat16, float32 or float64. Where a weight is infinite or NaN, its gradient is NaN; sums over
    such weights raise a ValueError.

    Example:
        >>> tables = build(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.ones(2))
        >>> tables.gradient(torch.tensor([0.5, -9.0]))
        tensor([ 0.0000, -9.0001])
    """

    def __init__(self, mixture: ExactMixture, tolerance: float) -> None:
        self._passes = Passes(mixture, tolerance)

    @property
    @run_isolated
    def error(self) -> ErrorBounds:
        """Certified error bounds for float32 weights; without tables, those of rounding."""
        return self._passes.error()

    @run_isolated
    def value_and_moments(self, w: Tensor) -> Sums:
        """What `value` and `moments` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        with flattened(w) as (flat,):
            value, (count, first, second) = self._passes.sums(flat)
        return Sums(value, (count, first, second))

    def value(self, w: Tensor) -> Tensor:
        """R = sum_i f(w_i), in nats.

        Returns:
            A float64 scalar.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        return self.value_and_moments(w)[0]

    def moments(self, w: Tensor) -> MomentSums:
        """The moments of the weights under the responsibilities, centred on the means.

        Returns:
            count, first and second (k,), in float64.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        return self.value_and_moments(w)[1]

    @run_isolated
    def gradient(self, w: Tensor, out: Tensor | None = None) -> Tensor:
        """dR/dw_i = f'(w_i) = sum_j gamma_ij (w_i - mu_j) / sigma_j^2.

        Returns:
            The gradient, of w's shape and type, in `out` if given.
        """
        out = empty_like(w) if out is None else out
        with flattened(out, w) as (target, flat):
            self._passes.write_gradient_(target, flat, None)
        return out

    @run_isolated
    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float) -> None:
        """Add scale * dR/dw to `grad`, in place, with no memory that grows with N.

        Args:
            grad: a tensor of w's shape.
            w: the weights.
            scale: tau / num_data, usually.
        """
        with flattened(grad, w) as (target, flat):
            self._passes.write_gradient_(target, flat, scale)

    @run_isolated
    def add_gradient_each_(self, pairs: Sequence[tuple[Tensor, Tensor]], scale: float) -> None:
        """`add_gradient_` of several tensors, at a lower cost per tensor.

        Args:
            pairs: the gradient to add to and the weights of each.
            scale: tau / num_data, usually.
        """
        numba, few, small = backends.numba_exact(), [], []
        for grad, w in pairs:
            if numba and self._are_few(grad, w):
                few.append((grad, w))
            elif w.numel() >= SMALL or backends.is_compiled_for(w, grad):
                self.add_gradient_(grad, w, scale)
            else:
                small.append((grad, w))
        if numba and few:
            left = numba.add_gradient_each_(self._passes.mixture, few, scale)
            for which, tensors in zip(left, few, strict=False):
                grad, w = (each.detach().view(-1) for each in tensors)
                self._passes.write_exactly_(which, grad, w, scale)
        if small:  # one call: the fixed cost per call dominates
            flat = torch.cat([w.reshape(-1) for _, w in small])
            parts = self.gradient(flat).split([w.numel() for _, w in small])
            for part, (grad, w) in zip(parts, small, strict=True):
                grad.add_(part.view_as(w), alpha=scale)

    @run_isolated
    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """What `value` and `gradient` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        value, gradient, _ = self.full(w)
        return value, gradient

    @run_isolated
    def full(self, w: Tensor, out: Tensor | None = None) -> Full:
        """What `value`, `gradient` (in `out` if given) and `moments` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        gradient = empty_like(w) if out is None else out
        with flattened(gradient, w) as (target, flat):
            value, sums = self._passes.write_gradient_and_sum_(target, flat)
        count, first, second = sums
        return Full(value, gradient, (count, first, second))

    @run_isolated
    def proximal_(self, w: Tensor, at: Tensor, step: float | Adaptive, scale: float) -> None:
        """The proximal step of EM's quadratic majoriser, stable for every sigma and step size.

            w <- (w + t b) / (1 + t a) = w + t (a (at - w) - f'(at)) / (1 + t a),  t = step * scale
            a = sum_j gamma_j / sigma_j^2,  b = sum_j gamma_j mu_j / sigma_j^2 = a at - f'(at)

        Args:
            w: the weights, changed in place.
            at: where to take the responsibilities gamma: w, or the weights before the data step.
            step: the step size, or one per weight.
            scale: tau / num_data, usually.
        """
        self._proximal_(w, at, step, scale)

    @run_isolated
    def proximal_each_(
        self, parts: Sequence[tuple[Tensor, Tensor, float | Adaptive]], scale: float
    ) -> None:
        """`proximal_` of several tensors, at a lower cost per tensor.

        Args:
            parts: w, at and step of each.
            scale: tau / num_data, usually.
        """
        many = list(parts)
        if numba := backends.numba_exact():
            many = self._proximal_of_few_(numba, parts, scale)
        together: dict[tuple[Any, ...], list[tuple[Tensor, list[Tensor]]]] = {}
        for w, at, step in many:
            if w.numel() >= SMALL or backends.is_compiled_for(w, at):
                self._proximal_(w, at, step, scale)
                continue
            second, *rates = step if isinstance(step, Adaptive) else (w, step)
            entry = w, flat_like(w, at, second)
            together.setdefault((w.dtype, *rates), []).append(entry)
        for (_, *rates), small in together.items():  # one call, whose fixed cost would dominate
            targets, where, seconds = zip(*(flat for _, flat in small), strict=True)
            moved = torch.cat(targets)
            step = Adaptive(torch.cat(seconds), *rates) if len(rates) > 1 else rates[0]
            self._proximal_(moved, torch.cat(where), step, scale)
            parts_moved = moved.split([len(flat) for flat in targets])
            for (w, _), part in zip(small, parts_moved, strict=True):
                write_flat_(w, part)

    def _are_few(self, *tensors: Tensor) -> bool:
        """Whether numba's loops over few weights take these tensors by their addresses."""
        small = self._passes.is_small(tensors[0])
        return small and all(
            each.dtype == torch.float32 and each.is_cpu and each.is_contiguous() for each in tensors
        )

    def _proximal_of_few_(
        self, numba: Any, parts: Sequence[tuple[Tensor, Tensor, float | Adaptive]], scale: float
    ) -> list[tuple[Tensor, Tensor, float | Adaptive]]:
        """The proximal step of tensors of few weights, without views; returns the other parts."""
        few: list[tuple[Tensor, Tensor, Tensor | None]] = []
        rates, many = [], []
        for part in parts:
            w, at, step = part
            second, rate, eps = step if isinstance(step, Adaptive) else (None, step, 0.0)
            if self._are_few(w, at, w if second is None else second):
                few.append((w, at, second))
                rates.append((rate * scale, eps))
            else:
                many.append(part)
        if few:
            left = numba.proximal_each_(self._passes.mixture, few, rates)
            for which, tensors, (rate, eps) in zip(left, few, rates, strict=False):
                if len(which):
                    flat = [each.detach().view(-1) for each in tensors if each is not None]
                    self._passes.proximal_exactly_(which, *flat, rate=rate, eps=eps)
        return many

    def _proximal_(self, w: Tensor, at: Tensor, step: float | Adaptive, scale: float) -> None:
        second = step.second if isinstance(step, Adaptive) else None
        rate, eps = (step.rate, step.eps) if isinstance(step, Adaptive) else (step, 0.0)
        with flattened(w, at, w if second is None else second) as (target, where, other):
            second = None if second is None else other
            self._passes.proximal_(target, where, second, rate * scale, eps)


def build(mixing: Tensor, mean: Tensor, std: Tensor, *, tolerance: float = 1e-5) -> Tables:
    """A mixture's `Tables`: its cells are made when a call with many weights first needs them.

    Args:
        mixing: pi (k,); entries may be zero.
        mean: mu (k,).
        std: sigma (k,).
        tolerance: the most that the certified bounds of the gradient and the value may be.

    Returns:
        The tables, valid until the mixture changes.

    Example:
        >>> tables = build(torch.tensor([0.9, 0.1]), torch.zeros(2), torch.tensor([1e-3, 0.1]))
        >>> tables.error.gradient < 1e-5
        True
    """
    return Tables(ExactMixture(mixing, mean, std), tolerance)


def direct(mixing: Tensor, mean: Tensor, std: Tensor) -> Tables:
    """The same operations without tables: O(N K) in float64, in bounded memory.

    Args:
        mixing: pi (k,); entries may be zero.
        mean: mu (k,).
        std: sigma (k,).

    Returns:
        `Tables` that evaluate every weight exactly.
    """
    return Tables(ExactMixture(mixing, mean, std), tolerance=0.0)

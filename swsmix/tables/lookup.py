"""`Tables`: a mixture's value, gradient, moments and proximal step, for many weights."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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
        >>> import torch
        >>> tables = build(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.ones(2))
        >>> tables.gradient(torch.tensor([0.5, -9.0]))
        tensor([ 0.0000, -9.0001])
    """

    def __init__(
        self, mixture: ExactMixture, tolerance: float, num_weights: int | None = None
    ) -> None:
        self.passes = Passes(mixture, tolerance, num_weights)

    @property
    @run_isolated
    def error(self) -> ErrorBounds:
        """Certified error bounds for float32 weights; without tables, those of rounding."""
        return self.passes.error()

    @run_isolated
    def value_and_moments(self, w: Tensor) -> Sums:
        """What `value` and `moments` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        with flattened(w) as (flat,):
            value, (count, first, second) = self.passes.sums(flat)
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
            self.passes.write_gradient_(target, flat, None)
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
            self.passes.write_gradient_(target, flat, scale)

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
            value, sums = self.passes.write_gradient_and_sum_(target, flat)
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

    def _proximal_(self, w: Tensor, at: Tensor, step: float | Adaptive, scale: float) -> None:
        second = step.second if isinstance(step, Adaptive) else None
        rate, eps = (step.rate, step.eps) if isinstance(step, Adaptive) else (step, 0.0)
        with flattened(w, at, w if second is None else second) as (target, where, other):
            second = None if second is None else other
            self.passes.proximal_(target, where, second, rate * scale, eps)


def build(
    mixing: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    tolerance: float = 1e-5,
    num_weights: int | None = None,
) -> Tables:
    """A mixture's `Tables`: its cells are made when a call with many weights first needs them.

    Args:
        mixing: pi (k,); entries may be zero.
        mean: mu (k,).
        std: sigma (k,).
        tolerance: the most that the certified bounds of the gradient and the value may be.
        num_weights: how many weights the mixture has in all, if that is known. Some ten thousand
            are evaluated exactly: to cut the cells of a mixture that soon moves would take longer.

    Returns:
        The tables, valid until the mixture changes.

    Example:
        >>> import torch
        >>> tables = build(torch.tensor([0.9, 0.1]), torch.zeros(2), torch.tensor([1e-3, 0.1]))
        >>> tables.error.gradient < 1e-5
        True
    """
    return Tables(ExactMixture(mixing, mean, std), tolerance, num_weights)


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

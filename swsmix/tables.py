"""The mixture's scalar functions over many weights: value, gradient, proximal step, moments.

    f(w) = -log p(w),   f'(w) = sum_j gamma_j (w - mu_j) / sigma_j^2 = a(w) w - b(w)

Evaluated directly, in chunks: O(N K) time, but no N x K memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 18  # numbers (weights x components) at a time
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Tables:
    """f(w) = -log p(w) of one mixture, its derivative and its EM moments, for many weights.

    Made by `build`. Weights of any shape, in any floating-point type.

    Example:
        >>> tables = build(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.ones(2))
        >>> tables.gradient(torch.tensor([0.5, -9.0]))
        tensor([ 0.0000, -9.0001])
    """

    def __init__(self, mixing: Tensor, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std
        self.log_scale = mixing.log() - std.log() - _LOG_SQRT_2PI

    def _chunks(self, w: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Part by part: w_i - mu_j and log pi_j N(w_i | mu_j, sigma_j^2), each (part, k)."""
        flat = w.detach().reshape(-1)
        size = max(1, _CHUNK // len(self.mean))
        dtype = torch.promote_types(w.dtype, self.mean.dtype)
        with torch.autocast(w.device.type, enabled=False):
            for start in range(0, len(flat), size):
                part = slice(start, start + size)
                off = flat[part].to(dtype).unsqueeze(-1) - self.mean
                yield part, off, self.log_scale - 0.5 * (off / self.std).square()

    @torch.no_grad()
    def value(self, w: Tensor) -> Tensor:
        """R = sum_i f(w_i), in nats.

        Returns:
            A float64 scalar.
        """
        total = torch.zeros((), dtype=torch.float64, device=w.device)
        for _, _, joint in self._chunks(w):
            total -= joint.logsumexp(-1).double().sum()
        return total

    @torch.no_grad()
    def gradient(self, w: Tensor) -> Tensor:
        """dR/dw_i = f'(w_i).

        Returns:
            The gradient, of w's shape and type.
        """
        out = torch.empty(w.numel(), dtype=w.dtype, device=w.device)
        for part, off, joint in self._chunks(w):
            out[part] = (joint.softmax(-1) * off / self.std.square()).sum(-1).to(w.dtype)
        return out.view(w.shape)

    @torch.no_grad()
    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float) -> None:
        """Grad += scale * dR/dw, in place.

        Args:
            grad: a tensor of w's shape.
            w: the weights.
            scale: tau / num_data, as a rule.
        """
        grad.add_(self.gradient(w), alpha=scale)

    @torch.no_grad()
    def moments(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The moments of the responsibilities for the weights, centred on the means.

        Returns:
            count, first and second (k,), in float64.
        """
        total = torch.zeros(3, len(self.mean), dtype=torch.float64, device=w.device)
        for _, off, joint in self._chunks(w):
            gamma, off = joint.softmax(-1).double(), off.double()
            for n in range(3):
                total[n] += (gamma * off**n).sum(0)
        return total[0], total[1], total[2]

    @torch.no_grad()
    def proximal_(self, w: Tensor, at: Tensor, step: float | Tensor, scale: float) -> None:
        """The proximal step of EM's quadratic majoriser, stable for every sigma and step size.

            w <- (w + t b) / (1 + t a),  t = step * scale,
            a = sum_j gamma_j / sigma_j^2,  b = sum_j gamma_j mu_j / sigma_j^2

        Args:
            w: the weights (n,), changed in place.
            at: the weights whose responsibilities count (n,).
            step: the step size, or one for each weight (n,).
            scale: tau / num_data, as a rule.
        """
        precision = self.std.square().reciprocal()
        for part, _, joint in self._chunks(at):
            gamma = joint.softmax(-1)
            t = scale * (step[part] if isinstance(step, Tensor) else step)
            a, b = gamma @ precision, gamma @ (self.mean * precision)
            w[part] = ((w[part] + t * b) / (1.0 + t * a)).to(w.dtype)


def build(mixing: Tensor, mean: Tensor, std: Tensor) -> Tables:
    """What is needed to evaluate a mixture, once for each change of the mixture.

    Args:
        mixing: pi (k,).
        mean: mu (k,).
        std: sigma (k,).

    Returns:
        The tables.
    """
    return Tables(mixing.detach(), mean.detach(), std.detach())


class _NegLogPrior(torch.autograd.Function):
    """R with its gradients by the formulas, so that the graph holds no N x K tensor."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, mixing: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        ctx.save_for_backward(w, mixing, mean, std)
        return build(mixing, mean, std).value(w).to(torch.promote_types(w.dtype, mean.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        w, mixing, mean, std = ctx.saved_tensors
        tables = build(mixing, mean, std)
        to_w = above.to(w.dtype) * tables.gradient(w) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return to_w, None, None, None
        count, first, second = tables.moments(w)
        to_mixing = -count / mixing.double().clamp_min(1e-300)
        to_mean = -first / std.double() ** 2
        to_std = count / std.double() - second / std.double() ** 3
        return to_w, *((above * g).to(mean.dtype) for g in (to_mixing, to_mean, to_std))


def neg_log_prior(w: Tensor, mixing: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """R(w) = -sum_i log p(w_i), differentiable once in all four, without N x K memory.

        dR/dpi_j = -N_j / pi_j,  dR/dmu_j = -first_j / sigma_j^2,
        dR/dsigma_j = N_j / sigma_j - second_j / sigma_j^3

    Args:
        w: the weights, any shape.
        mixing: pi (k,).
        mean: mu (k,).
        std: sigma (k,).

    Returns:
        A scalar, in nats.
    """
    value: Tensor = _NegLogPrior.apply(w, mixing, mean, std)  # type: ignore[no-untyped-call]
    return value

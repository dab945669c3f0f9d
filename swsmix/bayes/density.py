"""The terms of the log joint density and their gradients, in numpy, by hand.

    log p(z) = log p(data | w, sigma_y) + sum_groups tau ( sum_i log p(w_i | phi) + log p(phi) )
               + log p(other parameters) + log p(sigma_y^2) + log |d(w, pi, sigma^2, ..) / dz|

The densities are over the mixing proportions and sigma^2, as everywhere in swsmix
(`swsmix.em.log_hyper_prior`); the last term, the change of variables to the sampler's coordinates,
belongs to the posterior's density over z and not to the objective that EM minimises.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

from swsmix.bayes.layout import Array, Components, basis

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Hyper:
    """A hyper-prior as arrays, one value a component; see `swsmix.em.HyperPrior`.

    Attributes:
        concentration: alpha (k,).
        mean: m (k,).
        mean_count: kappa (k,).
        std: s (k,).
        std_count: nu (k,).
    """

    concentration: Array
    mean: Array
    mean_count: Array
    std: Array
    std_count: Array


def mixture_sums(
    w: Array, height: Array, mean: Array, inverse_std: Array
) -> tuple[float, Array, Array, Array, Array]:
    """Sums over the weights of what a mixture makes of them.

    With off_ij = (w_i - mu_j) / sigma_j and the responsibilities gamma_ij:

    Args:
        w: the weights (n,).
        height: log pi_j - log sigma_j - log(2 pi) / 2 (k,).
        mean: mu (k,).
        inverse_std: 1 / sigma (k,).

    Returns:
        sum_i log p(w_i); its gradient by w (n,); sum_i gamma, gamma off, gamma off^2 (k,).
    """
    off = (w - mean[:, None]) * inverse_std[:, None]
    gamma = height[:, None] - 0.5 * off * off
    top = gamma.max(0)
    gamma = np.exp(gamma - top)
    total = gamma.sum(0)
    value = float(np.log(total).sum() + top.sum())
    gamma /= total
    scaled = gamma * off
    return value, -(inverse_std @ scaled), gamma.sum(1), scaled.sum(1), (scaled * off).sum(1)


@functools.cache
def _fastest_sums() -> Any:
    try:
        from swsmix.bayes import kernels
    except ImportError:  # numba is an extra
        return mixture_sums
    return kernels.mixture_sums


class MixtureTerm:
    """One group's sum_i log p(w_i | phi) and log p(phi) as functions of its coordinates.

    Args:
        components: values and pins.
        hyper: the hyper-prior.
        tau: the strength.
    """

    def __init__(self, components: Components, hyper: Hyper, tau: float) -> None:
        self.components, self.hyper, self.tau = components, hyper, tau
        self._sums = _fastest_sums()
        self.free_mixing, self.free_mean, self.free_std = components.free
        self.basis = basis(len(self.free_mixing))
        self.values = [
            np.array(v, dtype=np.float64)
            for v in (components.mixing, components.mean, components.std)
        ]
        with np.errstate(divide="ignore"):
            self.log_mixing = np.log(self.values[0])
        self.alpha = hyper.concentration[self.free_mixing]
        self.drawn = np.flatnonzero((hyper.mean_count > 0) & ~np.asarray(components.pinned_mean))
        half = 0.5 * hyper.std_count[self.free_std]
        self.half, self.half_s2 = half, half * hyper.std[self.free_std] ** 2
        # What does not depend on the coordinates.
        self.constant = (half * np.log(self.half_s2) - gammaln(half)).sum()
        self.constant += 0.5 * (np.log(hyper.mean_count[self.drawn]) - _LOG_2PI).sum()
        if len(self.alpha):
            self.constant += gammaln(self.alpha.sum()) - gammaln(self.alpha).sum()

    def __call__(
        self, w: Array, u: Array, mu: Array, xi: Array, *, jacobian: bool
    ) -> tuple[float, Array, Array, Array, Array]:
        """The term and its gradients by w, u, mu and xi.

        Args:
            w: the weights (n,).
            u: of the free mixing proportions.
            mu: of the free means.
            xi: of the free stds.
            jacobian: add the change of variables.

        Returns:
            The value in nats, and four arrays.
        """
        mean, log_variance = self.values[1].copy(), 2.0 * np.log(self.values[2])
        mean[self.free_mean], log_variance[self.free_std] = mu, xi
        log_mixing, log_share = self.log_mixing.copy(), np.zeros(0)
        if len(self.free_mixing):
            logits = self.basis @ u
            top = logits.max()
            log_share = logits - (top + math.log(np.exp(logits - top).sum()))
            log_mixing[self.free_mixing] = log_share + math.log(self.components.rest)
        share = np.exp(log_share)
        inverse_std = np.exp(-0.5 * log_variance)

        height = log_mixing - 0.5 * (log_variance + _LOG_2PI)
        value, by_w, count, first, second = self._sums(w, height, mean, inverse_std)
        by_mean = first * inverse_std
        by_log_variance = 0.5 * (second - count)

        h = self.hyper
        precision = inverse_std * inverse_std
        drawn, kappa = self.drawn, h.mean_count[self.drawn]
        away = mean[drawn] - h.mean[drawn]
        squares = kappa * away * away * precision[drawn]
        spread = self.half_s2 * precision[self.free_std]
        value += self.constant
        value -= 0.5 * (squares.sum() + log_variance[drawn].sum())
        value -= ((self.half + 1.0) * log_variance[self.free_std]).sum() + spread.sum()
        by_mean[drawn] -= kappa * away * precision[drawn]
        by_log_variance[drawn] += 0.5 * (squares - 1.0)
        by_log_variance[self.free_std] += spread - self.half - 1.0
        value += ((self.alpha - 1.0) * log_share).sum()
        by_log_share = count[self.free_mixing] + self.alpha - 1.0

        value *= self.tau
        by_w *= self.tau
        by_mu = self.tau * by_mean[self.free_mean]
        by_xi = self.tau * by_log_variance[self.free_std]
        by_log_share = self.tau * by_log_share
        if jacobian:
            # |d share / du| = sqrt(f) prod share for an orthonormal basis; d sigma^2 = sigma^2 dxi
            value += log_share.sum() + 0.5 * math.log(max(len(share), 1)) + xi.sum()
            by_log_share += 1.0
            by_xi += 1.0
        by_u = (by_log_share - share * by_log_share.sum()) @ self.basis
        return value, by_w, by_u, by_mu, by_xi


def gaussian(out: Array, y: Array, log_variance: float) -> tuple[float, Array, float]:
    """Log N(y | out, sigma_y^2), summed, and its gradients by out and log sigma_y^2.

    Returns:
        Nats, and two gradients.
    """
    off = y - out
    push = off * math.exp(-log_variance)
    squares = float(np.vdot(push, off))
    value = -0.5 * (squares + y.size * (log_variance + _LOG_2PI))
    return value, push, 0.5 * (squares - y.size)


def categorical(logits: Array, y: Array) -> tuple[float, Array]:
    """Log softmax(logits)[y], summed, and its gradient by the logits (n, c).

    Returns:
        Nats, and the gradient.
    """
    log_p = logits - logsumexp(logits, axis=-1, keepdims=True)
    push = -np.exp(log_p)
    at = np.arange(len(y))
    push[at, y] += 1.0
    return float(log_p[at, y].sum()), push


def binary(logits: Array, y: Array) -> tuple[float, Array]:
    """The log likelihood of labels 0 and 1 given logits, summed, and its gradient.

    Returns:
        Nats, and the gradient.
    """
    p = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return float((y * logits - np.logaddexp(0.0, logits)).sum()), y - p


def log_scaled_inverse_chi2(log_variance: float, count: float, std: float) -> tuple[float, float]:
    """The log density over sigma^2 of a scaled-inverse-chi^2(count, std^2), and its d / d xi.

    Returns:
        Nats, and the derivative by xi = log sigma^2.
    """
    half, spread = 0.5 * count, 0.5 * count * std * std * math.exp(-log_variance)
    constant = half * math.log(half * std * std) - math.lgamma(half)
    return constant - (half + 1.0) * log_variance - spread, spread - half - 1.0

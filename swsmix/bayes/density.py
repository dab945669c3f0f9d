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

Free = tuple[Array, Array, Array, Array]
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


def mixture_at(
    u: Array, mu: Array, xi: Array, free: Free, pinned: tuple[Array, Array, Array], log_rest: float
) -> tuple[Array, Array, Array, Array, Array]:
    """The mixture at its coordinates, as `mixture_sums` wants it.

    Args:
        u: of the free mixing proportions.
        mu: of the free means.
        xi: of the free stds.
        free: which components' mixing, mean and std are free, and the basis of u.
        pinned: log mixing, mean and log sigma^2 (k,) of the pinned ones.
        log_rest: the logarithm of what the pinned proportions leave.

    Returns:
        The heights, mu, log sigma^2 and 1 / sigma (k,), and the logarithms of the free shares.
    """
    free_mixing, free_mean, free_std, basis = free
    log_mixing, mean, log_variance = pinned[0].copy(), pinned[1].copy(), pinned[2].copy()
    mean[free_mean] = mu
    log_variance[free_std] = xi
    log_share = np.zeros(len(free_mixing))
    if len(free_mixing) > 0:
        if len(u) > 0:
            log_share = basis @ u
        top = log_share.max()
        log_share = log_share - (top + math.log(np.exp(log_share - top).sum()))
        log_mixing[free_mixing] = log_share + log_rest
    height = log_mixing - 0.5 * (log_variance + _LOG_2PI)
    return height, mean, log_variance, np.exp(-0.5 * log_variance), log_share


def with_hyper_prior(
    sums: tuple[float, Array, Array, Array, Array],
    at: tuple[Array, Array, Array, Array, Array],
    free: Free,
    normal: tuple[Array, Array, Array],
    chi2: tuple[Array, Array],
    alpha: Array,
    constant: float,
    tau: float,
    jacobian: bool,
) -> tuple[float, Array, Array, Array, Array]:
    """The sums over the weights and the hyper-prior's log density, to the power tau.

    Args:
        sums: from `mixture_sums`.
        at: from `mixture_at`.
        free: as there.
        normal: the means that are drawn from their prior, kappa and m of each.
        chi2: nu / 2 and nu s^2 / 2 of the free stds.
        alpha: of the free proportions.
        constant: what does not depend on the coordinates.
        tau: the strength.
        jacobian: add the change of variables.

    Returns:
        The value in nats, and its gradients by w, u, mu and xi.
    """
    value, by_w, count, first, second = sums
    _, mean, log_variance, inverse_std, log_share = at
    free_mixing, free_mean, free_std, basis = free
    drawn, kappa, m = normal
    half, half_s2 = chi2
    by_mean, by_log_variance = first * inverse_std, 0.5 * (second - count)
    precision, share = inverse_std * inverse_std, np.exp(log_share)

    away = mean[drawn] - m
    squares = kappa * away * away * precision[drawn]
    spread = half_s2 * precision[free_std]
    value += constant - 0.5 * (squares.sum() + log_variance[drawn].sum())
    value += ((alpha - 1.0) * log_share).sum()
    value -= ((half + 1.0) * log_variance[free_std]).sum() + spread.sum()
    by_mean[drawn] -= kappa * away * precision[drawn]
    by_log_variance[drawn] += 0.5 * (squares - 1.0)
    by_log_variance[free_std] += spread - half - 1.0

    value *= tau
    by_w = tau * by_w
    by_mu, by_xi = tau * by_mean[free_mean], tau * by_log_variance[free_std]
    by_log_share = tau * (count[free_mixing] + alpha - 1.0)
    if jacobian:
        # |d share / du| = sqrt(f) prod share for an orthonormal basis; d sigma^2 = sigma^2 dxi
        value += log_share.sum() + 0.5 * math.log(max(len(share), 1))
        value += log_variance[free_std].sum()
        by_log_share += 1.0
        by_xi += 1.0
    by_u = (by_log_share - share * by_log_share.sum()) @ basis
    return value, by_w, by_u, by_mu, by_xi


@functools.cache
def _fastest() -> tuple[Any, Any, Any]:
    try:
        from swsmix.bayes import kernels
    except ImportError:  # numba is an extra
        return mixture_at, mixture_sums, with_hyper_prior
    return kernels.mixture_at, kernels.mixture_sums, kernels.with_hyper_prior


class MixtureTerm:
    """One group's sum_i log p(w_i | phi) and log p(phi) as functions of its coordinates.

    Args:
        components: values and pins.
        hyper: the hyper-prior.
        tau: the strength.
    """

    def __init__(self, components: Components, hyper: Hyper, tau: float) -> None:
        self.components, self.hyper, self.tau = components, hyper, tau
        free_mixing, self.free_mean, free_std = components.free
        self.basis = basis(len(free_mixing))
        self._free = (free_mixing, self.free_mean, free_std, self.basis)
        mixing, mean, std = (
            np.array(v, dtype=np.float64)
            for v in (components.mixing, components.mean, components.std)
        )
        with np.errstate(divide="ignore"):
            self._pinned = (np.log(mixing), mean, 2.0 * np.log(std))
        self._log_rest = math.log(components.rest) if len(free_mixing) else 0.0
        self.alpha = hyper.concentration[free_mixing]
        drawn = np.flatnonzero((hyper.mean_count > 0) & ~np.asarray(components.pinned_mean))
        self._normal = (drawn, hyper.mean_count[drawn], hyper.mean[drawn])
        self.half = 0.5 * hyper.std_count[free_std]
        self.half_s2 = self.half * hyper.std[free_std] ** 2
        self.constant = float((self.half * np.log(self.half_s2) - gammaln(self.half)).sum())
        self.constant += float(0.5 * (np.log(self._normal[1]) - _LOG_2PI).sum())
        if len(self.alpha):
            self.constant += float(gammaln(self.alpha.sum()) - gammaln(self.alpha).sum())

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
        mixture, sums, whole = _fastest()
        at = mixture(u, mu, xi, self._free, self._pinned, self._log_rest)
        height, mean, _, inverse_std, _ = at
        found: tuple[float, Array, Array, Array, Array] = whole(
            sums(w, height, mean, inverse_std), at, self._free, self._normal,
            (self.half, self.half_s2), self.alpha, self.constant, self.tau, jacobian,
        )  # fmt: skip
        return found


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

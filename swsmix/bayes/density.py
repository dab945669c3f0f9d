"""The log joint density's formulas and their gradients, derived by hand, in numpy.

    log p(z) = log p(data | w, sigma_y) + sum_groups tau ( sum_i log p(w_i | phi) + log p(phi) )
               + log p(other parameters) + log p(sigma_y^2) + log |d(w, pi, sigma^2, ..) / dz|

The densities are over the mixing proportions and sigma^2, as everywhere in swsmix
(`swsmix.em.log_hyper_prior`). The last term is the change of variables to the sampler's
coordinates: it belongs to the posterior's density over z, and EM does not minimise it.

`kernels` compiles the mixture's part; `mixture_term` chooses between the two.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from swsmix.bayes.layout import Array

Free = tuple[Array, Array, Array, Array]  # indices of free mixing, means and stds; the basis of u
LOG_2PI = math.log(2.0 * math.pi)


def mixture_sums(
    w: Array, height: Array, mean: Array, inverse_std: Array
) -> tuple[float, Array, Array, Array, Array]:
    """The mixture's log density, summed over the weights, its gradient and its moments.

    Args:
        w: the weights (n,).
        height: log pi_j - log sigma_j - log(2 pi) / 2 (k,).
        mean: mu (k,).
        inverse_std: 1 / sigma (k,).

    Returns:
        sum_i log p(w_i); its gradient by w (n,); and, with off_ij = (w_i - mu_j) / sigma_j and the
        responsibilities gamma_ij, the sums over i of gamma, gamma off and gamma off^2 (k,).
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
    """The mixture at the coordinates u, mu, xi of `Layout`, in the form that `mixture_sums` takes.

    Args:
        u: coordinates of the free mixing proportions.
        mu: the free means.
        xi: log sigma^2 of the free stds.
        free: which components' mixing, mean and std are free, and the basis of u.
        pinned: log mixing, mean and log sigma^2 (k,); only the pinned entries count.
        log_rest: log of one minus the pinned mixing proportions.

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
    height = log_mixing - 0.5 * (log_variance + LOG_2PI)
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
    """The log densities of weights and hyper-prior, added and times tau, and the gradient.

    Args:
        sums: from `mixture_sums`.
        at: from `mixture_at`.
        free: as in `mixture_at`.
        normal: the components whose mean has a prior, and kappa and m of each.
        chi2: nu / 2 and nu s^2 / 2 of the free stds.
        alpha: concentrations of the free mixing proportions.
        constant: the terms that do not depend on the coordinates.
        tau: the prior's strength.
        jacobian: add the change of variables.

    Returns:
        The value in nats, and its gradients by w, u, mu and xi.
    """
    value, by_w, count, first, second = sums
    _, mean, log_variance, inverse_std, log_share = at
    free_mixing, free_mean, free_std, basis = free
    with_prior, kappa, m = normal
    half, half_s2 = chi2
    by_mean, by_log_variance = first * inverse_std, 0.5 * (second - count)
    precision, share = inverse_std * inverse_std, np.exp(log_share)

    away = mean[with_prior] - m
    squares = kappa * away * away * precision[with_prior]
    spread = half_s2 * precision[free_std]
    value += constant - 0.5 * (squares.sum() + log_variance[with_prior].sum())
    value += ((alpha - 1.0) * log_share).sum()
    value -= ((half + 1.0) * log_variance[free_std]).sum() + spread.sum()
    by_mean[with_prior] -= kappa * away * precision[with_prior]
    by_log_variance[with_prior] += 0.5 * (squares - 1.0)
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


def gaussian(out: Array, y: Array, log_variance: float) -> tuple[float, Array, float]:
    """Log N(y | out, sigma_y^2) in nats, summed, and its gradients by out and log sigma_y^2."""
    off = y - out
    by_out = off * math.exp(-log_variance)
    squares = float(np.vdot(by_out, off))
    value = -0.5 * (squares + y.size * (log_variance + LOG_2PI))
    return value, by_out, 0.5 * (squares - y.size)


def categorical(logits: Array, y: Array) -> tuple[float, Array]:
    """Log softmax(logits)[y] in nats, summed, and its gradient by the logits (n, c)."""
    log_p = logits - logsumexp(logits, axis=-1, keepdims=True)
    by_logits = -np.exp(log_p)
    case = np.arange(len(y))
    by_logits[case, y] += 1.0
    return float(log_p[case, y].sum()), by_logits


def binary(logits: Array, y: Array) -> tuple[float, Array]:
    """The log likelihood in nats of labels 0 and 1, summed, and its gradient by the logits."""
    p = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return float((y * logits - np.logaddexp(0.0, logits)).sum()), y - p


def log_scaled_inverse_chi2(log_variance: float, count: float, std: float) -> tuple[float, float]:
    """The log density over sigma^2 of scaled-inverse-chi^2(count, std^2), and its d / dlog sigma^2.

    In nats.
    """
    half, spread = 0.5 * count, 0.5 * count * std * std * math.exp(-log_variance)
    constant = half * math.log(half * std * std) - math.lgamma(half)
    return constant - (half + 1.0) * log_variance - spread, spread - half - 1.0

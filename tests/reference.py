"""Slow, obvious twins of what swsmix computes fast: loops and scipy, in float64."""

import math

import numpy as np
from scipy import stats


def log_prob(w, mixing, mean, std):
    """log p(w_i) by scipy's normal densities; exact wherever the density does not underflow."""
    w = np.asarray(w, dtype=np.float64)
    density = sum(p * stats.norm(m, s).pdf(w) for p, m, s in zip(mixing, mean, std, strict=True))
    return np.log(density)


def responsibilities(w, mixing, mean, std):
    """gamma_ij = pi_j N(w_i) / sum, one number at a time, in log space with Python floats."""
    rows = []
    for value in w:
        logs = [
            math.log(p) - math.log(s) - 0.5 * ((value - m) / s) ** 2
            for p, m, s in zip(mixing, mean, std, strict=True)
        ]
        top = max(logs)
        total = sum(math.exp(v - top) for v in logs)
        rows.append([math.exp(v - top) / total for v in logs])
    return np.array(rows)


def moments(w, mixing, mean, std):
    """N_j, first and second centred moments, summed with math.fsum."""
    gamma = responsibilities(w, mixing, mean, std)
    powers = [[(value - m) ** n for value in w] for n in (0, 1, 2) for m in mean]
    k = len(mean)
    table = [
        [
            math.fsum(g * x for g, x in zip(gamma[:, j], powers[n * k + j], strict=True))
            for j in range(k)
        ]
        for n in (0, 1, 2)
    ]
    return [np.array(row) for row in table]


def pull(w, mixing, mean, std):
    """dR/dw_i = sum_j gamma_ij (w_i - mu_j) / sigma_j^2."""
    gamma = responsibilities(w, mixing, mean, std)
    return np.array(
        [
            sum(g * (value - m) / s**2 for g, m, s in zip(row, mean, std, strict=True))
            for row, value in zip(gamma, w, strict=True)
        ]
    )


def log_hyper_prior(mixing, mean, std, hyper):
    """log p(phi) by scipy's Dirichlet, normal and inverse-gamma densities; scalars in `hyper`."""
    k = len(mean)
    total = 0.0
    if k > 1:
        alpha = np.full(k, hyper.concentration)
        total += stats.dirichlet(alpha).logpdf(np.asarray(mixing) / np.sum(mixing))
    for m, s in zip(mean, std, strict=True):
        if hyper.mean_count > 0:
            total += stats.norm(hyper.mean, s / math.sqrt(hyper.mean_count)).logpdf(m)
        nu, scale = hyper.std_count, hyper.std
        # A scaled inverse chi-squared in sigma^2 is an inverse gamma.
        total += stats.invgamma(nu / 2, scale=nu * scale**2 / 2).logpdf(s**2)
    return total


def expected_moments(w, variance, mixing, mean, std):
    """The moments over posteriors N(w_i, s_i^2): the E step of variational EM, one by one."""
    k = len(mean)
    sums = np.zeros((3, k))
    for value, s2 in zip(w, variance, strict=True):
        squares = [(value - m) ** 2 + s2 for m in mean]
        logs = [
            math.log(p) - math.log(s) - 0.5 * square / s**2
            for p, s, square in zip(mixing, std, squares, strict=True)
        ]
        top = max(logs)
        total = sum(math.exp(v - top) for v in logs)
        for j in range(k):
            gamma = math.exp(logs[j] - top) / total
            sums[:, j] += gamma * np.array([1.0, value - mean[j], squares[j]])
    return sums

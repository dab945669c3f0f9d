"""Gibbs draws of a mixture, given its weights: which component each is of, and then the mixture.

    z_i           ~ gamma_i.                       the responsibilities
    pi            ~ rest Dirichlet(alpha + n)      n_j weights have z_i = j
    sigma_j^2     ~ scaled-inverse-chi^2           of nu + n_j degrees of freedom, mu integrated out
    mu_j          ~ N((kappa m + sum w) / (kappa + n_j), sigma_j^2 / (kappa + n_j))

Exact where the prior has its own strength, tau = 1; what is pinned stays. (Diebolt & Robert 1994.)
"""

from __future__ import annotations

import numpy as np

from swsmix.bayes.layout import Array
from swsmix.bayes.mixture_term import MixtureTerm


def drawn(
    term: MixtureTerm, w: Array, u: Array, mu: Array, xi: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """One draw, from coordinates to coordinates (see `Layout`).

    Args:
        term: of the joint density, with tau = 1.
        w: the weights (n,).
        u: coordinates of the free mixing proportions.
        mu: the free means.
        xi: log sigma^2 of the free stds.
        rng: source of the draws.

    Returns:
        New u, mu and xi.
    """
    height, mean, inverse_std = term.at(u, mu, xi)
    free_mixing, free_mean, free_std = term.components.free
    log_gamma = height[:, None] - 0.5 * ((w - mean[:, None]) * inverse_std[:, None]) ** 2
    of = (log_gamma + rng.gumbel(size=log_gamma.shape)).argmax(0)  # a draw from gamma
    number, total, squares = (
        np.bincount(of, weights=w**power, minlength=len(mean)) for power in (0, 1, 2)
    )
    hyper = term.hyper
    counts = np.where(np.isin(np.arange(len(mean)), free_mean), hyper.mean_count, 0.0)
    strength = np.maximum(counts + number, 1e-300)
    centre = np.where(counts > 0, (counts * hyper.mean + total) / strength, mean)
    # Squares about the mean: of a free one with what its prior adds, of a pinned one about it.
    about = squares - 2.0 * centre * total + number * centre**2
    about += counts * (centre - hyper.mean) ** 2
    variance = inverse_std**-2.0
    for j in free_std:
        degrees = hyper.std_count[j] + number[j]
        scaled = hyper.std_count[j] * hyper.std[j] ** 2 + max(about[j], 0.0)
        variance[j] = scaled / rng.chisquare(degrees)
    noise = rng.standard_normal(len(free_mean))
    mean = centre[free_mean] + noise * np.sqrt(variance[free_mean] / strength[free_mean])
    if len(u):
        # log of gamma draws, also of those that would underflow: Gamma(a) = Gamma(a + 1) U^(1/a)
        shape = term.alpha + number[free_mixing]
        log_gamma = np.log(rng.gamma(shape + 1.0)) + np.log(1.0 - rng.random(len(shape))) / shape
        u = term.basis.T @ log_gamma
    return u, mean, np.log(variance[free_std])

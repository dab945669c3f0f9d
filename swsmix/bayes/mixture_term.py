"""One mixture's term of the log joint density, by compiled loops where numba is installed."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from swsmix.bayes import density
from swsmix.bayes.layout import Array, Components, basis


@dataclass(frozen=True)
class HyperPriorArrays:
    """`swsmix.em.HyperPrior` as arrays, one value per component.

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


@functools.cache
def _fastest_formulas() -> tuple[Any, Any, Any]:
    try:
        from swsmix.bayes import kernels
    except ImportError:  # numba is an extra
        return density.mixture_at, density.mixture_sums, density.with_hyper_prior
    return kernels.mixture_at, kernels.mixture_sums, kernels.with_hyper_prior


class MixtureTerm:
    """tau (sum_i log p(w_i | phi) + log p(phi)) of one group, as a function of its coordinates.

    Args:
        components: the mixture's values and pins.
        hyper: the hyper-prior.
        tau: the prior's strength.
    """

    def __init__(self, components: Components, hyper: HyperPriorArrays, tau: float) -> None:
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
        with_prior = np.flatnonzero((hyper.mean_count > 0) & ~np.asarray(components.pinned_mean))
        self._normal = (with_prior, hyper.mean_count[with_prior], hyper.mean[with_prior])
        self.half = 0.5 * hyper.std_count[free_std]
        self.half_s2 = self.half * hyper.std[free_std] ** 2
        self.constant = float((self.half * np.log(self.half_s2) - gammaln(self.half)).sum())
        self.constant += float(0.5 * (np.log(self._normal[1]) - density.LOG_2PI).sum())
        if len(self.alpha):
            self.constant += float(gammaln(self.alpha.sum()) - gammaln(self.alpha).sum())

    def at(self, u: Array, mu: Array, xi: Array) -> tuple[Array, Array, Array]:
        """Log pi - log sigma - log(2 pi) / 2, mu and 1 / sigma (k,) at the free coordinates."""
        at = _fastest_formulas()[0](u, mu, xi, self._free, self._pinned, self._log_rest)
        return at[0], at[1], at[3]

    def __call__(
        self, w: Array, u: Array, mu: Array, xi: Array, *, jacobian: bool
    ) -> tuple[float, Array, Array, Array, Array]:
        """The term in nats, and its gradients by w, u, mu and xi.

        Args:
            w: the weights (n,).
            u: coordinates of the free mixing proportions.
            mu: the free means.
            xi: log sigma^2 of the free stds.
            jacobian: add the change of variables.
        """
        mixture_at, mixture_sums, with_hyper_prior = _fastest_formulas()
        at = mixture_at(u, mu, xi, self._free, self._pinned, self._log_rest)
        height, mean, _, inverse_std, _ = at
        term: tuple[float, Array, Array, Array, Array] = with_hyper_prior(
            mixture_sums(w, height, mean, inverse_std), at, self._free, self._normal,
            (self.half, self.half_s2), self.alpha, self.constant, self.tau, jacobian,
        )  # fmt: skip
        return term

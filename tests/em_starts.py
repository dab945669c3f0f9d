"""Weights and mixtures to start EM from, hyper-priors, and the objective that it lowers."""

import cases

from swsmix import HyperPrior, initial_mixture
from swsmix.em import fit_mixture_, log_hyper_prior

HYPERS = {
    "default": HyperPrior(),
    "means drawn": HyperPrior(mean=0.1, mean_count=2.0, std=0.05, std_count=3.0),
    "strong": HyperPrior(concentration=5.0, std=0.2, std_count=50.0),
}


def start(k=4, seed=0, **options):
    return initial_mixture(cases.weights(seed=seed), k, method="spread", **options)


def objective(mixture, w, hyper):
    """R(w; phi) - log p(phi): what an EM step must never raise."""
    return (-mixture.log_prob(w).sum() - log_hyper_prior(mixture, hyper)).item()


def converged(hyper, k=4, **options):
    w, mixture = cases.weights(), start(k, **options)
    fit_mixture_(mixture, w, hyper, max_steps=5000, tolerance=1e-13)
    return w, mixture

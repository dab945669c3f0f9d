"""How well a posterior predicts cases that it has not seen, and how many clusters it uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix.bayes.layout import Array
from swsmix.bayes.posterior import Posterior
from swsmix.bayes.symmetric import cluster_counts


@dataclass(frozen=True)
class PredictiveScore:
    """An expected log predictive density, summed over cases, in nats; higher is better.

    Attributes:
        elpd: the sum over cases.
        se: its standard error, from the spread between cases.
        pointwise: one number per case (n,).
        pareto_k: the reliability of each case's importance weights (n,): above 0.7 they are
            unreliable (Vehtari, Gelman & Gabry 2017). Empty for held-out cases, which use none.
    """

    elpd: float
    se: float
    pointwise: Array = field(repr=False)
    pareto_k: Array = field(repr=False)

    @property
    def num_unreliable(self) -> int:
        """The number of cases with a Pareto k above 0.7."""
        return int((self.pareto_k > 0.7).sum())


def loo(log_likelihood: Float[Tensor, "chains draws n"]) -> PredictiveScore:
    """Leave-one-out by Pareto-smoothed importance sampling (PSIS), from one posterior of all cases.

        elpd = sum_c log p(y_c | x_c, all other cases)

    Args:
        log_likelihood: from `Posterior.log_likelihood`, on the cases that the posterior is given.

    Returns:
        The estimate, with its diagnostics.

    Raises:
        ValueError: if a number is not finite, there are fewer than 2 cases or 50 draws, or the
            chains have not moved.

    Reference:
        Vehtari, Gelman & Gabry 2017; computed by ArviZ.
    """
    from arviz_stats.base.array import array_stats

    draws = _checked_draws(log_likelihood)
    if draws.shape[0] * draws.shape[1] < 50:
        raise ValueError(f"PSIS needs at least 50 draws; got {draws.shape[0] * draws.shape[1]}")
    try:
        with np.errstate(all="ignore"):
            pointwise, k, _ = array_stats.loo(draws, chain_axis=0, draw_axis=1)
    except ValueError as error:
        raise ValueError(
            f"PSIS failed, most likely because the chains do not move: {error}"
        ) from error
    return _score(np.asarray(pointwise), np.asarray(k))


def held_out(log_likelihood: Float[Tensor, "chains draws n"]) -> PredictiveScore:
    """The log predictive density of cases that the posterior has not seen.

        elpd = sum_c log mean_draws p(y_c | x_c, draw)

    Args:
        log_likelihood: from `Posterior.log_likelihood` on new cases.

    Raises:
        ValueError: if a number is not finite, or there are fewer than 2 cases.
    """
    draws = torch.from_numpy(_checked_draws(log_likelihood)).flatten(0, 1)
    pointwise = draws.logsumexp(0) - math.log(len(draws))
    return _score(pointwise.numpy(), np.zeros(0))


@dataclass(frozen=True)
class ComparedModel:
    """One model in a comparison.

    Attributes:
        name: the model's name.
        elpd: its expected log predictive density, in nats.
        difference: its elpd minus the best model's, at most 0.
        se: the standard error of the difference, paired by case; 0 for the best model.
        num_unreliable: the number of cases with a Pareto k above 0.7.
    """

    name: str
    elpd: float
    difference: float
    se: float
    num_unreliable: int


def compare(models: Mapping[str, PredictiveScore]) -> list[ComparedModel]:
    """Rank models by their scores on the same cases, the best first.

    Args:
        models: name -> its score, all from `loo` or all from `held_out`.

    Returns:
        One entry per model. A difference below about two standard errors is not evidence.

    Raises:
        ValueError: if there is no model, or their numbers of cases differ.

    Example:
        >>> draws = torch.randn(2, 50, 30, generator=torch.Generator().manual_seed(0))
        >>> [model.name for model in compare({"worse": loo(draws - 5), "better": loo(draws)})]
        ['better', 'worse']
    """
    sizes = {name: len(m.pointwise) for name, m in models.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"a comparison needs the same cases for every model; got {sizes}")
    best = max(models.values(), key=lambda m: m.elpd)
    compared = []
    for name, model in sorted(models.items(), key=lambda item: -item[1].elpd):
        difference = _score(model.pointwise - best.pointwise, model.pareto_k)
        compared.append(
            ComparedModel(name, model.elpd, difference.elpd, difference.se, model.num_unreliable)
        )
    return compared


@dataclass(frozen=True)
class ClusterCounts:
    """How many clusters the weights form, in each draw.

    Attributes:
        occupied: the number of components that are the most responsible for at least one weight
            (chains, draws). Of components that coincide, only one counts.
        effective: exp(-sum_j p_j log p_j) with p_j = N_j / N (chains, draws): two equal clusters
            give 2, a large and a tiny one little more than 1. Components that coincide each count.
    """

    occupied: Int[Tensor, "chains draws"]
    effective: Float[Tensor, "chains draws"]

    def probabilities(self) -> dict[int, float]:
        """The posterior of the number of occupied components: number -> probability."""
        values, counts = self.occupied.unique(return_counts=True)
        total = self.occupied.numel()
        return {int(v): int(c) / total for v, c in zip(values, counts, strict=True)}


def clusters(posterior: Posterior, group: str | None = None) -> ClusterCounts:
    """The posterior of the number of clusters.

    Args:
        posterior: the draws.
        group: the group of weights; may be omitted if there is only one.

    Returns:
        Two numbers per draw.
    """
    return ClusterCounts(*cluster_counts(posterior.weights(group), *posterior.mixture(group)))


def _checked_draws(log_likelihood: Tensor) -> Array:
    draws = log_likelihood.detach().double().numpy()
    if draws.ndim != 3 or draws.shape[-1] < 2:
        raise ValueError(
            f"needs log likelihoods (chains, draws, n) of at least 2 cases; got {draws.shape}"
        )
    if not np.isfinite(draws).all():
        raise ValueError(f"{int((~np.isfinite(draws)).sum())} log likelihoods are nan or inf")
    return draws


def _score(pointwise: Array, pareto_k: Array) -> PredictiveScore:
    se = math.sqrt(len(pointwise)) * float(pointwise.std(ddof=1))
    return PredictiveScore(float(pointwise.sum()), se, pointwise, pareto_k)

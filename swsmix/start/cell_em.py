"""EM on cells: a few hundred numbers stand for all weights."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from swsmix.em import HyperPrior, Moments, log_hyper_prior, m_step_, variational
from swsmix.mixture import GaussianMixture
from swsmix.start.cells import Cells


def e_step_on_cells(mixture: GaussianMixture, cells: Cells) -> tuple[Float[Tensor, ""], Moments]:
    """The log likelihood of cells, in nats, and their moments under the mixture.

    A cell's weights share their responsibilities, those of the expected log density: a lower bound
    of the weights' own log likelihood, and near it where cells are narrow.
    """
    variance = cells.scatter / cells.count
    value, moments = variational.sums(mixture, cells.mean, variance, cells.count)
    return value, Moments(mixture.mean.clone(), *moments)


def fit_cells_(mixture: GaussianMixture, cells: Cells, hyper: HyperPrior, steps: int) -> float:
    """EM on cells, in place, until the log posterior stands still; its last value, in nats."""
    last = -math.inf
    for _ in range(steps):
        log_p, moments = e_step_on_cells(mixture, cells)
        value = (log_p + log_hyper_prior(mixture, hyper)).item()
        if value - last < 1e-3:
            break
        m_step_(mixture, moments, hyper)
        last = value
    return value

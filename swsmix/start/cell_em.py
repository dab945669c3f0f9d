"""EM on cells: a few hundred numbers stand for all weights."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.em import HyperPrior, Moments, log_hyper_prior, m_step_, variational
from swsmix.mixture import GaussianMixture
from swsmix.start.cells import Cells


def e_step_on_cells(mixture: GaussianMixture, cells: Cells) -> tuple[Float[Tensor, "*b"], Moments]:
    """The log likelihood of cells, in nats, and their moments under the mixture, or under each.

    A cell's weights share their responsibilities, those of the expected log density: a lower bound
    of the weights' own log likelihood, and near it where cells are narrow.
    """
    variance = cells.scatter / cells.count
    value, moments = variational.sums(mixture, cells.mean, variance, cells.count)
    return value, Moments(mixture.mean.clone(), *moments)


def fit_cells_(
    mixture: GaussianMixture, cells: Cells, hyper: HyperPrior, steps: int
) -> Float[Tensor, "*b"]:
    """EM on cells, in place, until the log posterior stands still; its last value, in nats.

    Mixtures side by side go on until all of them stand still.
    """
    value = last = torch.full(mixture.batch_shape, -math.inf, dtype=torch.float64, device="cpu")
    for _ in range(steps):
        log_p, moments = e_step_on_cells(mixture, cells)
        value = log_p + log_hyper_prior(mixture, hyper)
        if bool((value - last < 1e-3).all()):
            break
        m_step_(mixture, moments, hyper)
        last = value
    return value

"""EM for the mixture: the E step sums up the weights (`Moments`), the M step fits the mixture.

One EM step is `m_step_(mixture, e_step(mixture, w), hyper)`.

    steps        e_step, m_step_, and both until the mixture stands still
    moments      Moments: what the E step sums up
    hyper_prior  HyperPrior: the pseudo-counts of the M step, and their log density
    variational  what is expected of weights that are known up to a variance
    state        EMState: what is kept from step to step
"""

from swsmix.em.hyper_prior import HyperPrior, log_hyper_prior
from swsmix.em.moments import Moments
from swsmix.em.state import EMState
from swsmix.em.steps import e_step, fit_mixture_, m_step_

__all__ = [
    "EMState",
    "HyperPrior",
    "Moments",
    "e_step",
    "fit_mixture_",
    "log_hyper_prior",
    "m_step_",
]

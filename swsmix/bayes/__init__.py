"""The Bayesian answer (draft docstring)."""

from swsmix.bayes.joint import Joint
from swsmix.bayes.nuts import sample
from swsmix.bayes.posterior import Posterior, Prediction

__all__ = ["Joint", "Posterior", "Prediction", "sample"]

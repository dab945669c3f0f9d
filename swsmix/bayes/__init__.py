"""The Bayesian answer (draft docstring)."""

from swsmix.bayes.evidence import clusters, compare, held_out, loo
from swsmix.bayes.joint import Joint
from swsmix.bayes.nuts import sample
from swsmix.bayes.svi import fit_guide
from swsmix.bayes.posterior import Posterior, Prediction

__all__ = ["Joint", "Posterior", "Prediction", "clusters", "compare", "fit_guide", "held_out", "loo", "sample"]

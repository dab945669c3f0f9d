"""The posterior of a network under its mixture prior, with Pyro.

`Joint` is the model: a network, a `MixturePrior` (its selection, groups, pins, tau and
hyper-priors) and data become one log density over the weights, the mixtures and the noise, with
the assignments marginalised. `sample` draws from it by NUTS, `fit_guide` approximates it by a Pyro
guide, `program` is the same density as a Pyro model; `Posterior` holds the draws, predicts, saves;
`loo`, `held_out` and `compare` judge models, `clusters` counts.

    model, prior = ..., MixturePrior(model, 3, hyper=HyperPrior(mean_count=0.05, std=0.3))
    fit(model, GaussianNoise(), (x, y), optimizer="l-bfgs", epochs=20, prior=prior)
    joint = Joint(model, prior, x, y)
    posterior = sample(joint)
    predicted = posterior.predict(model, new, quantiles=(0.05, 0.95))

The project's README has the whole script. The same base measure as everywhere: densities over pi
and sigma^2, so that the joint density has the stationary points of EM and of gradient descent.
Components have no names: `Posterior.mixture` sorts them by their means, draw by draw, after
sampling.

Pyro is imported when a chain or a guide starts, not before.
"""

from swsmix.bayes.evidence import clusters, compare, held_out, loo
from swsmix.bayes.joint import Joint
from swsmix.bayes.nuts import sample
from swsmix.bayes.posterior import Posterior, Prediction
from swsmix.bayes.svi import fit_guide

__all__ = [
    "Joint",
    "Posterior",
    "Prediction",
    "clusters",
    "compare",
    "fit_guide",
    "held_out",
    "loo",
    "sample",
]

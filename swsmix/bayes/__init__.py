"""The posterior of a network under its mixture prior, with Pyro.

`Joint` makes one log density, over weights, mixtures and noise, of a network, its `MixturePrior`
(selection, groups, pins, tau, hyper-priors) and data. The assignments are marginalised. `sample`
draws from it by NUTS; `fit_guide` approximates it by a Pyro guide. Both return a `Posterior`: it
holds the draws, says whether they may be used, predicts, and saves them. `loo`, `held_out` and
`compare` judge models; `clusters` counts the clusters in use.

    model, prior = ..., MixturePrior(model, 3, hyper=HyperPrior(mean_count=0.05, std=0.3))
    fit(model, GaussianNoise(), (x, y), optimizer="l-bfgs", epochs=20, prior=prior)
    joint = Joint(model, prior, x, y)
    posterior = sample(joint)
    predicted = posterior.predict(model, new, quantiles=(0.05, 0.95))

`swsmix guide posterior` has the script. The densities are over pi and sigma^2, as everywhere in
swsmix, so that the joint density has the stationary points of EM and of gradient descent.
Components have no names: `Posterior.mixture` sorts them by their means, draw by draw. Pyro is
imported when a chain or a guide starts, not before.

    joint         Joint: the log joint density and its gradient
    layout        the layout of z, the one vector that a sampler moves
    density       the formulas and their gradients, in numpy
    kernels       the mixture's formulas, compiled by numba
    mixture_term  one mixture's term of the density, by the faster of the two
    network       a network as a function of its parameters, with its gradient
    checks        checks of network, prior and data
    nuts          sample: the No-U-turn sampler
    chains        its chains, in turn or in processes
    trajectory    one draw of it, in numpy
    jumps         weights that jump between components, from one draw to the next
    jump_loops    their loops
    mixture_draws mixtures drawn given the weights
    svi           fit_guide: variational inference
    program       the joint density as a Pyro model
    posterior     Posterior: the draws
    symmetric     summaries of draws that no permutation of units or components changes
    agreement     R-hat and effective sizes, between chains and within each
    verdict       whether the draws may be used, and what to do
    predictive    what the draws predict
    evidence      loo, held_out, compare, clusters
    laplace       a Gaussian posterior of small networks, and its evidence
    modes         the evidence summed over the modes that an ensemble finds
"""

from swsmix.bayes.evidence import clusters, compare, held_out, loo
from swsmix.bayes.joint import Joint
from swsmix.bayes.nuts import sample
from swsmix.bayes.posterior import Posterior
from swsmix.bayes.predictive import Prediction
from swsmix.bayes.svi import fit_guide
from swsmix.bayes.verdict import PosteriorWarning

__all__ = [
    "Joint",
    "Posterior",
    "PosteriorWarning",
    "Prediction",
    "clusters",
    "compare",
    "fit_guide",
    "held_out",
    "loo",
    "sample",
]

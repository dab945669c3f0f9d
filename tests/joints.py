"""Small joint densities for tests of the posterior; of one, the posterior is known."""

import numpy as np
import torch
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint
from swsmix.problems import nets

FLOAT = torch.float64
HYPER = HyperPrior(concentration=1.5, mean=0.1, mean_count=0.3, std=0.2, std_count=3.0)


def small(*, groups="global", k=3, seed=0, likelihood="gaussian", tau=1.0, mode="em", **options):
    """A small network, its prior, data, and the joint density of all."""
    generator = torch.Generator().manual_seed(seed)
    net = nets.sunspot_net(hidden=3, lags=4, generator=generator, dtype=FLOAT)
    prior = MixturePrior(net, k, groups=groups, hyper=HYPER, tau=tau, mode=mode, **options)
    x = torch.randn(12, 4, generator=generator, dtype=FLOAT)
    y = torch.randn(12, generator=generator, dtype=FLOAT)
    if likelihood == "binary":
        y = (y > 0).double()
    return net, prior, x, y, Joint(net, prior, x, y, likelihood=likelihood)


def points(joint, num=5, seed=0):
    """Points about the start of a chain."""
    rng = np.random.default_rng(seed)
    return [joint.start() + 0.3 * rng.standard_normal(joint.layout.size) for _ in range(num)]


def conjugate():
    """Linear regression under one fixed Gaussian: the posterior is known."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 2, generator=generator, dtype=FLOAT)
    y = x @ torch.tensor([0.5, -0.3], dtype=FLOAT) + 0.4 * torch.randn(
        20, generator=generator, dtype=FLOAT
    )
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0)).double()
    nn.init.normal_(net[0].weight, std=0.5, generator=generator)
    gaussian = GaussianMixture(
        [1.0], [0.2], [0.5], pinned_mixing=[True], pinned_mean=[True], pinned_std=[True]
    )
    prior = MixturePrior(net, initial=gaussian, hyper=HYPER)
    prior.em_step_()
    joint = Joint(net, prior, x, y, noise_std=0.4)
    precision = x.T @ x / 0.4**2 + torch.eye(2, dtype=FLOAT) / 0.5**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (x.T @ y / 0.4**2 + 0.2 / 0.5**2)
    return net, x, y, joint, mean, covariance

"""The Bayesian section: posteriors of the sunspot net under mixture priors, by NUTS.

`score` judges one setting on training years; `final` samples the chosen setting on all training
years and predicts 1921-55 and 1956-79. Nothing after 1920 is read by `score`, nothing after 1979
by `final`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papers.nowlan1992.forecasts import FLOAT, Scale, digits, numbers
from papers.nowlan1992.nets import Cases, train
from papers.nowlan1992.penalties import Decay
from papers.nowlan1992.sunspots import HIDDEN, folds
from swsmix import GaussianMixture, HyperPrior, MixturePrior, data, nets
from swsmix.bayes import Joint, Posterior, clusters, held_out, loo, sample
from swsmix.em import fit_mixture_


@dataclass(frozen=True)
class Setting:
    """A prior and a scale.

    Attributes:
        components: K; 1 is a single Gaussian about zero, its width learned.
        divisor: of the sunspot numbers.
        std: s of the hyper-prior.
        std_count: nu.
        mean_count: kappa.
        concentration: alpha.
        other_std: of the biases' normal prior.
        tau: 1 is Bayes.
    """

    components: int = 8
    divisor: float = 191.0
    std: float = 0.1
    std_count: float = 2.0
    mean_count: float = 0.05
    concentration: float = 1.0
    other_std: float = 3.0
    tau: float = 1.0


def joints(setting: Setting, x: Tensor, y: Tensor, chains: int) -> tuple[list[Joint], Tensor]:
    """The model, and a start for each chain: nets trained under weight decay from `chains` seeds.

    Returns:
        One joint, and z (chains, d).
    """
    scale = Scale(divisor=setting.divisor)
    inputs, targets = scale.there(x), scale.there(y)
    cases = Cases(inputs, targets, torch.ones(chains, len(y), dtype=FLOAT), "gaussian", HIDDEN)
    theta, _ = train(
        cases, cases.start(range(chains), 0.3), Decay(torch.full((chains,), 0.5, dtype=FLOAT)), 150
    )
    n, h = cases.num_weights, HIDDEN
    hyper = HyperPrior(
        concentration=setting.concentration, mean=0.0, mean_count=setting.mean_count,
        std=setting.std, std_count=setting.std_count,
    )  # fmt: skip
    found = []
    for row in theta:
        net = nets.sunspot_net(dtype=FLOAT)
        with torch.no_grad():
            net.hidden.weight.copy_(row[: n - h].view(h, -1))
            net.output.weight.copy_(row[n - h : n].view(1, -1))
            net.hidden.bias.copy_(row[n : n + h])
            net.output.bias.copy_(row[n + h : n + h + 1])
        prior = MixturePrior(
            net, setting.components, zero=setting.components == 1, hyper=hyper, tau=setting.tau
        )
        (mixture,) = prior.mixtures.values()
        fit_mixture_(mixture, row[:n], hyper, max_steps=20)
        prior.em_step_()
        found.append(Joint(net, prior, inputs, targets, other_std=setting.other_std))
    starts = torch.from_numpy(np.stack([j.start() for j in found]))
    return found[0], starts


def posterior(
    setting: Setting, x: Tensor, y: Tensor, *, chains: int, draws: int, warmup: int, seed: int = 0,
    max_depth: int = 8, progress: bool = False,
) -> tuple[Posterior, nn.Module]:
    """Sample the posterior given cases in sunspot numbers.

    Returns:
        The posterior, and the network's module.
    """
    joint, starts = joints(setting, x, y, chains)
    drawn = sample(
        joint, chains=chains, draws=draws, warmup=warmup, start=starts.numpy(), jitter=0.01,
        seed=seed, max_depth=max_depth, progress=progress,
    )  # fmt: skip
    return drawn, joint.net

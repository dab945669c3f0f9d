"""Draws from the posterior of many small nets at once: HMC for the nets, Gibbs for the mixtures."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from papers.nowlan1992.nets import Cases
from papers.nowlan1992.penalties import Sharing

_BIAS_STD, _TARGET = 10.0, 0.8


def sample(
    cases: Cases,
    theta: Tensor,
    prior: Sharing,
    *,
    burn: int,
    keep: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Sample w, biases, log sigma_y^2 and (pi, mu, sigma) given the data, one chain per network.

    The posterior is the one whose maximum `methods.sharing` looks for, to the power
    1 / temperature; the biases have a wide Gaussian, log sigma_y^2 is flat. HMC moves the network
    with the mixture held, 20 to 40 leapfrog steps at a step size adapted while burning in; Gibbs
    draws memberships, then pi, sigma and mu. An empty component's mu is drawn from N(0, 1).

    Args:
        cases: the data.
        theta: the start (b, p).
        prior: the mixtures to start from, with their strength and hyper-prior.
        burn: steps that are dropped.
        keep: steps after them.
        temperature: below 1 is colder than Bayes.
        seed: of the draws.

    Returns:
        theta at every kept step (keep, b, p).
    """
    generator = torch.Generator().manual_seed(seed)
    rows, n, p = torch.arange(len(theta)), cases.num_weights, cases.num_parameters
    biases = slice(n, n + cases.hidden + 1)
    prior = replace(prior)

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = cases.data_term(x, rows)
        more, by_weights, _ = prior(x[:, :n], x[:, :0], rows)
        gradient[:, :n] += by_weights
        gradient[:, biases] += x[:, biases] / _BIAS_STD**2
        wide = 0.5 * x[:, biases].square().sum(1) / _BIAS_STD**2
        return (value + more + wide) / temperature, gradient / temperature

    size = torch.full((len(theta), 1), 0.01, dtype=theta.dtype)
    kept = []
    for step in range(burn + keep):
        x = theta
        value, gradient = potential(x)
        momentum = torch.randn(len(x), p, generator=generator, dtype=x.dtype)
        energy = value + 0.5 * momentum.square().sum(1)
        jitter = 0.8 + 0.4 * torch.rand(size.shape, generator=generator, dtype=x.dtype)
        eps = size * jitter
        leaps = int(torch.randint(20, 41, (), generator=generator))
        for _ in range(leaps):
            momentum = momentum - 0.5 * eps * gradient
            x = x + eps * momentum
            value, gradient = potential(x)
            momentum = momentum - 0.5 * eps * gradient
        off = energy - value - 0.5 * momentum.square().sum(1)
        chance = off.nan_to_num(-torch.inf).clamp_max(0.0).exp()
        accept = torch.rand(len(x), generator=generator, dtype=x.dtype) < chance
        theta = torch.where(accept[:, None], x, theta)
        if step < burn:
            size = size * (0.1 * (chance[:, None] - _TARGET)).exp()
        else:
            kept.append(theta)
        _gibbs_(prior, theta[:, :n], temperature, generator)
    return torch.stack(kept)


def _gibbs_(
    prior: Sharing, weights: Tensor, temperature: float, generator: torch.Generator
) -> None:
    """Draw memberships, then the mixtures given them; counts to the posterior's power."""
    held, hyper = prior.mixture, prior.hyper.expanded(prior.mixture)
    joint = held.log_joint(weights)
    uniform = torch.rand(joint.mT.shape, generator=generator, dtype=joint.dtype).mT
    member = (joint - (-uniform.log()).log()).argmax(-1)  # Gumbel
    share = torch.nn.functional.one_hot(member, held.num_components).mT
    power = (prior.tau / temperature)[:, None]
    gamma = power[..., None] * share
    count = gamma.sum(-1)
    squares = (gamma * (weights[:, None] - held.mean[..., None]).square()).sum(-1)
    nu, s = hyper["std_count"], hyper["std"]
    chi2 = 2.0 * torch._standard_gamma(0.5 * (nu + count), generator=generator)
    std = ((nu * s.square() + squares) / chi2.clamp_min(1e-12)).sqrt().clamp(1e-3, 10.0)
    drawn = torch.randn(count.shape, generator=generator, dtype=count.dtype)
    middle = (gamma * weights[:, None]).sum(-1) / count.clamp_min(1e-12)
    mean = middle + drawn * std / count.clamp_min(1e-12).sqrt()
    pi = torch._standard_gamma(count + hyper["concentration"], generator=generator)
    prior.hold_(pi / pi.sum(-1, keepdim=True), torch.where(count > 0, mean, drawn), std)

"""Merging components that say the same, by moment matching, with a bound on what is lost."""

from __future__ import annotations

import torch
from torch import Tensor

from swsmix.mixture import GaussianMixture


@torch.no_grad()
def merge_components(
    mixture: GaussianMixture, *, max_loss: float = 1e-3
) -> tuple[GaussianMixture, list[int]]:
    """Join components pair by pair, the cheapest first, as long as that loses little.

    Components i and j become one with the mixing, the mean and the variance of the two together:

        pi = pi_i + pi_j,  mu = (pi_i mu_i + pi_j mu_j) / pi,
        sigma^2 = sum_{l = i, j} pi_l (sigma_l^2 + (mu_l - mu)^2) / pi

    (weighting the variances alone would drop the spread between the means). The cost is Runnalls'
    (2007) bound on the Kullback-Leibler divergence of the new mixture from the old one, that is
    on the loss of log likelihood a weight, for weights that follow the old one:

        B = 1/2 (pi log sigma^2 - pi_i log sigma_i^2 - pi_j log sigma_j^2)   [nats a weight]

    A pinned mean stays: what merges with it has its second moment taken about it (the bound holds
    for that too). Two pinned means merge only if they are equal. Ullrich, Meeds & Welling (2017,
    section 3.3) merge before they snap.

    Args:
        mixture: the mixture; it stays as it is.
        max_loss: the most that all mergers together may cost, in nats a weight.

    Returns:
        The merged mixture, its tensors buffers, and for each old component the number of the new
        one.

    Raises:
        ValueError: if max_loss is negative.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.25, 0.25], [0.0, 1.0, 1.001], [0.1, 0.1, 0.1])
        >>> merged, number = merge_components(mixture)
        >>> number, merged.mixing.tolist()
        ([0, 1, 1], [0.5, 0.5])
    """
    if not max_loss >= 0.0:
        raise ValueError(f"max_loss must be at least 0 nats a weight; got {max_loss}")
    like = mixture.mean
    pi, mu, std = (t.detach().double().clone() for t in (mixture.mixing, like, mixture.std))
    var = std.square()
    pinned = {n: getattr(mixture, f"pinned_{n}").clone() for n in ("mixing", "mean", "std")}
    members = [[j] for j in range(len(pi))]
    left = max_loss
    while len(pi) > 1:
        cost, mean, variance = _pairs(pi, mu, var, pinned["mean"])
        i, j = divmod(int(cost.argmin()), len(pi))
        if not cost[i, j].isfinite() or cost[i, j] > left:
            break
        left -= cost[i, j].item()
        i, j = min(i, j), max(i, j)
        mu[i], var[i] = mean[i, j], variance[i, j]
        pi[i] += pi[j]
        members[i] += members.pop(j)
        keep = torch.arange(len(pi), device=like.device) != j
        for mask in pinned.values():
            mask[i] |= mask[j]
        pi, mu, var = pi[keep], mu[keep], var[keep]
        pinned = {n: mask[keep] for n, mask in pinned.items()}
    number = [0] * mixture.num_components
    for new, old in enumerate(members):
        for j in old:
            number[j] = new
    pins = {f"pinned_{n}": mask for n, mask in pinned.items()}
    return GaussianMixture(pi.to(like), mu.to(like), var.sqrt().to(like), **pins), number


def _pairs(pi: Tensor, mu: Tensor, var: Tensor, pinned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost, mean and variance of every merger (k, k); infinite where it is none."""
    total = pi[:, None] + pi
    share = pi[:, None] / total.clamp_min(1e-300)  # of i in the merger of i and j
    mean = share * mu[:, None] + (1.0 - share) * mu
    mean = torch.where(pinned[:, None], mu[:, None], torch.where(pinned, mu, mean))
    variance = share * (var[:, None] + (mu[:, None] - mean).square())
    variance = variance + (1.0 - share) * (var + (mu - mean).square())
    apart = pi[:, None] * var.log()[:, None] + pi * var.log()
    cost = 0.5 * (total * variance.log() - apart)
    both = pinned[:, None] & pinned & (mu[:, None] != mu)
    same = torch.eye(len(pi), dtype=torch.bool, device=pi.device)
    return cost.masked_fill(both | same, torch.inf), mean, variance

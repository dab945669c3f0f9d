"""Summaries that do not change when hidden units or components are permuted or change sign.

Two chains may draw the same networks with their hidden units in another order and of another sign,
and the same mixture with its components in another order. Their weights then differ, and R-hat of
the weights is large, for no reason. What is here differs only if the posterior's draws do.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from swsmix.bayes import predictive
from swsmix.bayes.layout import Layout

_MOST = 500  # predictions that are judged, of evenly spaced cases
_CHUNK = 1 << 22  # responsibilities that are held at once


def predictions(layout: Layout, z: Tensor, net: nn.Module, x: Tensor) -> Tensor:
    """The outputs at evenly spaced cases under each draw, at most about 500 numbers.

    Args:
        layout: which part of z is what.
        z: draws (chains, draws, d).
        net: the network.
        x: inputs (n, ...).

    Returns:
        (chains, draws, m); log probabilities of classes rather than logits, whose common shift
        changes nothing.
    """
    with torch.no_grad():
        per_case = net(x[:1]).numel()
    every = max(1, math.ceil(len(x) * per_case / _MOST))
    out = predictive.network_outputs(layout, z, net, x[::every])
    out = out.log_softmax(-1) if layout.likelihood == "categorical" else out
    return out.flatten(2)


def summaries(layout: Layout, z: Tensor, steps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The symmetric summaries that need neither network nor data: name -> (chains, draws, ...).

    Args:
        layout: which part of z is what.
        z: draws (chains, draws, d).
        steps: how they were made; `"log_density"` or else `"energy"` is used.

    Returns:
        The log density, the noise's std, and of each mixture the sizes of the means, the stds and
        the mixing proportions, each sorted by itself, and the numbers of clusters. If all hidden
        units change sign, so do the weights and the means: hence their sizes.
    """
    found = {}
    if "log_density" in steps:
        found["log density"] = steps["log_density"]
    elif "energy" in steps:  # the same with a momentum's noise
        found["energy"] = steps["energy"]
    if layout.learns_noise:
        found["noise std"] = layout.noise(z)
    for group in layout.groups:
        of = "" if len(layout.groups) == 1 else f" of {group}"
        mixing, mean, std = layout.mixture(z, group)
        sorts = [t.sort(-1).values for t in (mixing, mean.abs(), std)]
        found[f"components{of}"] = torch.cat(sorts, -1)
        occupied, effective = cluster_counts(layout.weights(z, group), mixing, mean, std)
        found[f"clusters{of}"] = torch.stack([occupied.double(), effective], -1)
    return found


def norms(layout: Layout, z: Tensor) -> Tensor:
    """The norm of each tensor of the network (chains, draws, tensors)."""
    return torch.stack([z[..., at].square().sum(-1).sqrt() for at in layout.slices.values()], -1)


def cluster_counts(
    weights: Float[Tensor, "*batch n"],
    mixing: Float[Tensor, "*batch k"],
    mean: Float[Tensor, "*batch k"],
    std: Float[Tensor, "*batch k"],
) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """How many clusters each draw has: components that claim a weight, and their effective number.

    See `swsmix.bayes.ClusterCounts`.
    """
    batch = weights.shape[:-1]
    flat = [t.double().reshape(-1, t.shape[-1]) for t in (weights, mixing, mean, std)]
    rows = max(1, _CHUNK // max(1, flat[0].shape[1] * flat[1].shape[1]))
    occupied, effective = [], []
    for w, pi, mu, sigma in zip(*(t.split(rows) for t in flat), strict=True):
        off = (w[..., None] - mu[:, None]) / sigma[:, None]
        gamma = ((pi.log() - sigma.log())[:, None] - 0.5 * off.square()).softmax(-1)
        claimed = torch.zeros_like(pi).scatter_(1, gamma.argmax(-1), 1.0)
        occupied.append(claimed.sum(-1).long())
        share = gamma.mean(1)
        effective.append((-torch.xlogy(share, share).sum(-1)).exp())
    return torch.cat(occupied).reshape(batch), torch.cat(effective).reshape(batch)

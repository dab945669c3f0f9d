"""From a mixture to few values: assign each weight to its most responsible component, and snap."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior

_CHUNK = 1 << 16


@torch.no_grad()
def assign(mixture: GaussianMixture, w: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The most responsible component of each weight, argmax_j gamma_ij.

    Args:
        mixture: the mixture.
        w: the weights, any shape.

    Returns:
        Component numbers of the weights' shape.

    Example:
        >>> mixture = GaussianMixture([0.9, 0.1], [0.0, 1.0], [0.1, 0.1])
        >>> assign(mixture, torch.tensor([0.1, 0.9]))
        tensor([0, 1])
    """
    chunks = w.detach().reshape(-1).to(mixture.mean.dtype).split(_CHUNK)
    return torch.cat([mixture.log_joint(chunk).argmax(-1) for chunk in chunks]).view(w.shape)


@torch.no_grad()
def snap_(prior: MixturePrior) -> dict[str, Int[Tensor, "..."]]:
    """Set each weight under the prior to the mean of its most responsible component, in place.

    Ullrich, Meeds & Welling 2017, section 3.3. The network keeps its structure; its tensors then
    hold at most K values a mixture. Snapping twice changes nothing more, as long as each centre
    is its own component's.

    Args:
        prior: the prior; its network is changed.

    Returns:
        name -> the component of each weight.

    Raises:
        ValueError: if weights are not finite.

    Example:
        >>> net = torch.nn.Linear(10, 10)
        >>> prior = MixturePrior(net, num_components=3)
        >>> index = snap_(prior)
        >>> len(net.weight.unique()) <= 3
        True
    """
    for group in prior.mixtures:
        prior.check_weights(group)
    index = {}
    for group, mixture in prior.mixtures.items():
        for name, p in prior.parameters_of(group).items():
            index[name] = assign(mixture, p)
            p.copy_(mixture.mean[index[name]])
    return index


def bits_per_weight(index: Int[Tensor, "*n"]) -> float:
    """The zero-order entropy of component numbers, -sum_j p_j log2 p_j, in bits a weight.

    What an ideal entropy coder needs for the numbers (not for the codebook) without context.

    Args:
        index: component numbers, at least one.

    Returns:
        Bits a weight.

    Example:
        >>> bits_per_weight(torch.tensor([0, 0, 1, 1]))
        1.0
    """
    share = torch.bincount(index.reshape(-1)).double()
    share = share[share > 0] / index.numel()
    return -(share * share.log2()).sum().item() + 0.0


@torch.no_grad()
def within_share(mixture: GaussianMixture, w: Float[Tensor, "*n"]) -> float:
    """The within-cluster share of the weights' variance: how far the histogram has collapsed.

        sum_i (w_i - mu_j(i))^2 / sum_i (w_i - mean(w))^2,  j(i) the most responsible component

    Args:
        mixture: the mixture.
        w: the weights.

    Returns:
        0 if every weight sits on its centre; nan if all weights are equal.
    """
    w = w.detach().reshape(-1).double()
    centre = mixture.mean.detach().double()[assign(mixture, w)]
    return ((w - centre).square().sum() / (w - w.mean()).square().sum()).item()

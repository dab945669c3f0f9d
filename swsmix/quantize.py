"""From a mixture to few values: assign each weight to its most responsible component, and snap."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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


@torch.no_grad()
def snapped_state(
    model: nn.Module | Mapping[str, Tensor],
    prior: MixturePrior | None = None,
    *,
    bias_bits: int | None = None,
) -> dict[str, Tensor]:
    """The state_dict of a network as it would be if it were snapped; the network stays as it is.

    Args:
        model: the network, or a state_dict.
        prior: the prior, whose tensors are snapped to its centres; None snaps none.
        bias_bits: 8 or 16 snap the floating-point tensors outside the prior too: parameters to
            multiples of a power of two (`snap_to_grid`), buffers, such as the running variances
            of a batch norm, to bfloat16. None keeps them exactly.

    Returns:
        name -> tensor, in the order of the network's.

    Raises:
        ValueError: if the prior is not over this network, or bias_bits is not 8 or 16.
    """
    if bias_bits not in (None, 8, 16):
        raise ValueError(f"bias_bits must be 8, 16 or None; got {bias_bits}")
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    inside: dict[str, Tensor] = {}
    if prior is not None:
        for group, mixture in prior.mixtures.items():
            for name, p in prior.parameters_of(group).items():
                inside[name] = mixture.mean[assign(mixture, p)].to(p.dtype)
    missing = [name for name in inside if name not in state]
    if missing:
        raise ValueError(
            f"the prior is over {missing}, which the model does not have; it has {list(state)}"
        )
    parameters = set(state)
    if isinstance(model, nn.Module):
        named = dict(model.named_parameters(remove_duplicate=False))
        parameters = set(named)
        # A tied tensor is in the state under each of its names.
        snapped = {id(named[name]): value for name, value in inside.items()}
        inside = {n: snapped[id(p)] for n, p in named.items() if id(p) in snapped}
    for name, t in state.items():
        if name in inside:
            state[name] = inside[name]
        elif bias_bits is not None and t.is_floating_point():
            state[name] = (
                snap_to_grid(t, bias_bits) if name in parameters else t.bfloat16().to(t.dtype)
            )
    return state


def snap_to_grid(t: Float[Tensor, "*n"], bits: int) -> Float[Tensor, "*n"]:
    """Numbers rounded to multiples of a power of two, at most 2^(bits - 1) - 1 of them each way.

    A power of two keeps them exact in every floating-point type, and the codec finds it.

    Args:
        t: finite numbers.
        bits: of each, the sign included.

    Returns:
        The rounded numbers, at most half a step away.

    Raises:
        ValueError: if they are not finite.

    Example:
        >>> snap_to_grid(torch.tensor([1.0, 0.3, -0.3]), 3)
        tensor([ 1.0000,  0.5000, -0.5000])
    """
    if not t.numel():
        return t.clone()
    largest = t.detach().abs().max().item()
    if not math.isfinite(largest):
        raise ValueError("numbers to snap to a grid must be finite")
    if largest == 0.0:
        return t.clone()
    most = 2 ** (bits - 1) - 1
    step = 2.0 ** math.ceil(math.log2(largest / most))
    return ((t.detach().double() / step).round().clamp(-most, most) * step + 0.0).to(t.dtype)


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

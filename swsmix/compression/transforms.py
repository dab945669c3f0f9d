"""Exact transforms of a network before it is snapped: the same outputs, fewer bits.

They act on pairs of layers that follow each other, named by the caller: a `Linear` or `Conv2d`,
nothing but element-wise activations (and pooling or flattening) in between, and the layer that
takes all its outputs and nothing else. Compare the outputs with `same_outputs` before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_Layer = nn.Linear | nn.Conv2d


@torch.no_grad()
def fold_dead_neurons_(
    model: nn.Module,
    layer: str,
    following: str,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> int:
    """Fold neurons without input or without output into the next layer's biases, in place.

    A neuron j without incoming weights puts out f(b_j) whatever the input: each neuron k of the
    next layer gets b_k += w_kj f(b_j), and w_kj = 0. A neuron without outgoing weights changes
    nothing: its incoming weights and its bias become 0. Both then take few bytes.

    Args:
        model: the network.
        layer: the name of the layer whose neurons may be dead (`"fc1"`).
        following: the name of the layer that takes its outputs.
        activation: f, the element-wise function between the two layers.

    Returns:
        How many neurons of the layer are dead now.

    Raises:
        ValueError: if the layers do not follow each other, have no biases, or a convolution pads
            (at the border a constant is then not a constant).

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data[0].zero_()
        >>> fold_dead_neurons_(net, "0", "2")
        1
    """
    first, second = _pair(model, layer, following)
    if first.bias is None or second.bias is None:
        raise ValueError(f"folding needs biases: {layer} and {following} must both have one")
    if isinstance(second, nn.Conv2d) and any(second.padding):
        raise ValueError(
            f"{following} pads its input: what a dead neuron adds varies at the border"
        )
    outgoing = _by_input(second, first)  # a view (outputs, neurons, rest)
    deaf = first.weight.flatten(1).eq(0).all(1)
    constant = activation(first.bias.double())
    second.bias += (outgoing.double().sum(-1) * (constant * deaf)).sum(1).to(second.bias.dtype)
    outgoing[:, deaf] = 0.0
    mute = outgoing.eq(0).all(-1).all(0)
    first.weight[mute] = 0.0
    first.bias[mute] = 0.0
    return int(mute.sum())


@torch.no_grad()
def sort_neurons_(model: nn.Module, layer: str, following: str) -> Tensor:
    """Order a layer's neurons by the place of their first non-zero weight, in place.

    The order of n neurons takes log2 n! bits of a file and means nothing (2041 bits of 300). In
    this order the codec spends none on it, nor on dead neurons, which come last. The next layer's
    inputs are permuted in the same way: the network's outputs stay the same up to rounding.
    Begin with the layer next to the input.

    Args:
        model: the network.
        layer: the name of the layer whose neurons are sorted.
        following: the name of the layer that takes its outputs.

    Returns:
        The permutation: which neuron is now at each place.

    Raises:
        ValueError: if the layers do not follow each other.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data[0].zero_()
        >>> sort_neurons_(net, "0", "2")
        tensor([1, 0])
    """
    first, second = _pair(model, layer, following)
    outgoing = _by_input(second, first)
    alive = first.weight.flatten(1).ne(0)
    place = torch.where(alive.any(1), alive.int().argmax(1), alive.shape[1])
    order = place.argsort(stable=True)
    first.weight.copy_(first.weight[order])
    if first.bias is not None:
        first.bias.copy_(first.bias[order])
    outgoing.copy_(outgoing[:, order])
    return order


@torch.no_grad()
def same_outputs(
    before: nn.Module, after: nn.Module, inputs: Iterable[Tensor], *, tolerance: float = 1e-5
) -> float:
    """Verify that two networks have the same outputs, relative to the largest output.

    Args:
        before: the network as it was (a `copy.deepcopy`).
        after: the network as it is.
        inputs: batches.
        tolerance: the largest relative difference to accept.

    Returns:
        The largest relative difference.

    Raises:
        ValueError: if it is above the tolerance, or there are no batches.
    """
    worst = -1.0
    for batch in inputs:
        a, b = before(batch), after(batch)
        scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
        difference = ((a - b).abs().max() / scale).item()
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):  # outputs that are nan or inf are never the same
            break
    if not 0.0 <= worst <= tolerance:
        raise ValueError(
            "there are no inputs to compare the outputs on"
            if worst == -1.0
            else f"the outputs differ by {worst:.2g} of the largest one, more than {tolerance:g}: "
            "the layers are not a pair that the transform can handle"
        )
    return worst


def _pair(model: nn.Module, layer: str, following: str) -> tuple[_Layer, _Layer]:
    modules = dict(model.named_modules())
    pair = []
    for name in (layer, following):
        module = modules.get(name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            legal = [n for n, m in modules.items() if isinstance(m, nn.Linear | nn.Conv2d)]
            raise ValueError(f"{name!r} is no Linear or Conv2d of the model; it has {legal}")
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ValueError(f"{name} has {module.groups} groups; the transforms need 1")
        pair.append(module)
    first, second = pair
    if second.weight.shape[1] % len(first.weight):
        raise ValueError(
            f"{following} takes {second.weight.shape[1]} inputs, which is no multiple of the "
            f"{len(first.weight)} outputs of {layer}: they do not follow each other"
        )
    return first, second


def _by_input(second: _Layer, first: _Layer) -> Tensor:
    """The following layer's weights as a view (outputs, neurons, rest)."""
    return second.weight.view(len(second.weight), len(first.weight), -1)

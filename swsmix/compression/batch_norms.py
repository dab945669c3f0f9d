"""Batch norms multiplied into the layers before them: the same outputs, fewer numbers."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@torch.no_grad()
def fold_batch_norms_(model: nn.Module) -> dict[str, str]:
    """Fold each batch norm into the layer whose outputs it alone takes, in place.

        W' = W g / sqrt(v + eps),   b' = (b - m) g / sqrt(v + eps) + beta    (each output channel)

    with the running mean m and variance v: the outputs in evaluation mode stay the same up to
    rounding. The norm becomes an `Identity`, so that training goes on without it. Fold before the
    weights are clustered: it multiplies each channel by a number of its own. A layer without a bias
    gets one. Then make optimiser and prior, which would not know of it.

    Norms stay where they are if they follow no layer (those before a convolution, in a wide
    residual network), if anything else takes the layer's outputs, if layer or norm is used
    twice, or if they keep no running statistics.

    Args:
        model: the network; `torch.fx` must be able to trace it.

    Returns:
        norm -> layer, of those folded.

    Raises:
        ValueError: if the network cannot be traced; it is then unchanged.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> fold_batch_norms_(net)
        {'1': '0'}
        >>> [type(layer).__name__ for layer in net]
        ['Conv2d', 'Identity', 'ReLU']
    """
    found = _pairs(model)
    for norm_name, name in found.items():
        norm, layer = model.get_submodule(norm_name), model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        assert isinstance(layer, nn.Linear | _ConvNd)
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        scale = (var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale *= norm.weight
        shift = -mean.double() * scale
        if norm.bias is not None:
            shift += norm.bias
        weight = layer.weight.double()
        if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs of a group, ...)
            by_group = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            by_group *= scale.view(-1, *[1] * (by_group.ndim - 1))
            weight = by_group.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        else:
            weight *= scale.view(-1, *[1] * (weight.ndim - 1))
        layer.weight.copy_(weight)
        if layer.bias is None:
            layer.bias = nn.Parameter(shift.to(layer.weight.dtype))
        else:
            layer.bias.copy_(layer.bias * scale + shift)
        model.set_submodule(norm_name, nn.Identity())
    return found


def _pairs(model: nn.Module) -> dict[str, str]:
    """Norm -> the layer that it can be folded into."""
    try:
        nodes = torch.fx.symbolic_trace(model).graph.nodes
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(
            f"the network cannot be traced to see which layer each batch norm follows ({error}): "
            "fold its parts one by one, each of which torch.fx can trace"
        ) from error
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    pairs = {}
    for node in nodes:
        if node.op != "call_module" or not node.args:
            continue
        norm, before = model.get_submodule(node.target), node.args[0]
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        if not isinstance(before, torch.fx.Node) or before.op != "call_module":
            continue
        layer = model.get_submodule(str(before.target))
        foldable = isinstance(layer, nn.Linear | _ConvNd)
        alone = len(before.users) == 1 and calls[node.target] == calls[before.target] == 1
        own = all(owners[id(p)] == 1 for p in layer.parameters())
        if foldable and alone and own:
            pairs[str(node.target)] = str(before.target)
    return pairs

"""A network as a function of its parameters, with its gradient: the sampler's inner loop.

Sequentials of Linear, Tanh, ReLU, Sigmoid, Flatten and Identity are computed in numpy, forward and
backward: for a 12-8-1 network ten times cheaper than autograd, whose fixed cost dominates there.
Every other network goes through `functional_call` and autograd.

A sampler mixes better in *centred* coordinates, where a unit's mean input over the cases replaces
its bias:

    b' = b + mean_n (W a_n),   hence   W a_n + b = W a_n - mean(W a) + b'

The data determine the mean of all outputs best. In ordinary coordinates that direction involves
every weight, and changes with them; in centred ones it is a bias. The map is a shear: its Jacobian
determinant is 1. In the gradient it costs a subtraction: from the gradient by a unit's input, the
mean of the gradient by its bias, the prior's part included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from swsmix.bayes.layout import Array, Layout

Backward = Callable[[Array, Array], Array]


def evaluator(net: nn.Module, layout: Layout, x: Tensor) -> SequentialEvaluator | AutogradEvaluator:
    """The outputs on fixed inputs as a function of the trainable parameters.

    Args:
        net: in the dtype to compute in, in evaluation mode.
        layout: the slice of each parameter.
        x: the inputs (n, ...).
    """
    layers = list(_layers(net))
    # Shared tensors, frozen ones and hooks need autograd.
    by_hand = (
        all(layer is not None for layer in layers)
        and x.ndim == 2
        and all(p.requires_grad for p in net.parameters())
        and len({id(p) for p in net.parameters()})
        == len(list(net.named_parameters(remove_duplicate=False)))
        and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    )
    if by_hand:
        return SequentialEvaluator(layers, layout, x.numpy())
    return AutogradEvaluator(net, layout, x)


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module] | None]:
    """The layers in order, with the prefixes of their names; None for a kind not in `_KINDS`."""
    if type(module) is nn.Sequential:
        for name, child in module.named_children():
            yield from _layers(child, f"{prefix}{name}.")
    elif type(module) in _KINDS or _flattens(module):
        yield prefix, module
    else:
        yield None


def _flattens(module: nn.Module) -> bool:
    """Whether this is a Flatten from the first or the second dimension to the last."""
    return type(module) is nn.Flatten and module.start_dim in (0, 1) and module.end_dim == -1


_KINDS = (nn.Linear, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Identity)


class SequentialEvaluator:
    """A sequence of layers of the kinds in `_KINDS`, forward and backward in numpy."""

    def __init__(self, layers: list[Any], layout: Layout, x: Array) -> None:
        self.layers, self.x = layers, x
        self.slices, self.shapes = layout.slices, layout.parameters

    def __call__(self, theta: Array, *, centred: bool = False) -> tuple[Array, Array, Backward]:
        """Run forward.

        Args:
            theta: the trainable parameters (p,).
            centred: theta is in centred coordinates.

        Returns:
            The outputs; theta in ordinary coordinates; and `backward(by_out, by_theta)`. Of a
            function f(outputs) + g(theta), with the gradients by_out of f and by_theta of g (p,),
            by the ordinary theta, it gives the gradient by the given theta (p,).
        """
        value, ordinary, steps = self._forward(theta, centred)
        return value, ordinary, functools.partial(self.backward, steps, centred)

    def _forward(self, theta: Array, centred: bool) -> tuple[Array, Array, list[Any]]:
        ordinary = theta.copy() if centred else theta
        value, steps = self.x, []
        for prefix, layer in self.layers:
            before, kind = value, type(layer)
            if kind is nn.Linear:
                name = f"{prefix}weight"
                kept = theta[self.slices[name]].reshape(self.shapes[name])
                value = value @ kept.T
                if layer.bias is not None:
                    at = self.slices[f"{prefix}bias"]
                    if centred:
                        ordinary[at] -= value.sum(0) / len(value)
                    value += ordinary[at]
            else:
                if kind is nn.Flatten:
                    value = value.reshape(-1 if layer.start_dim == 0 else (len(value), -1))
                elif kind is nn.Tanh:
                    value = np.tanh(value)
                elif kind is nn.ReLU:
                    value = np.maximum(value, 0.0)
                elif kind is nn.Sigmoid:
                    value = 0.5 * (1.0 + np.tanh(0.5 * value))
                kept = value
            steps.append((prefix, layer, before, kept))
        return value, ordinary, steps

    def centre(self, theta: Array) -> Array:
        """Theta (p,) in centred coordinates."""
        centred = theta.copy()
        for prefix, layer, before, weight in self._forward(theta, False)[2]:
            if type(layer) is nn.Linear and layer.bias is not None:
                centred[self.slices[f"{prefix}bias"]] += before.mean(0) @ weight.T
        return centred

    def backward(self, steps: list[Any], centred: bool, by_out: Array, by_theta: Array) -> Array:
        """The gradient by theta (p,), see `__call__`."""
        gradient, by_value = by_theta.copy(), by_out
        for number, (prefix, layer, before, kept) in reversed(list(enumerate(steps))):
            kind = type(layer)
            if kind is nn.Linear:
                if layer.bias is not None:
                    at = self.slices[f"{prefix}bias"]
                    gradient[at] += by_value.sum(0)
                    if centred:
                        by_value = by_value - gradient[at] / len(by_value)
                gradient[self.slices[f"{prefix}weight"]] += (by_value.T @ before).reshape(-1)
                if number:
                    by_value = by_value @ kept
            elif kind is nn.Flatten:
                by_value = by_value.reshape(before.shape)
            elif kind is nn.Tanh:
                by_value = by_value * (1.0 - kept * kept)
            elif kind is nn.ReLU:
                by_value = by_value * (kept > 0.0)
            elif kind is nn.Sigmoid:
                by_value = by_value * (kept * (1.0 - kept))
        return gradient


class AutogradEvaluator:
    """Any network, by autograd."""

    def __init__(self, net: nn.Module, layout: Layout, x: Tensor) -> None:
        self.net, self.layout, self.x = net, layout, x

    def __call__(self, theta: Array, *, centred: bool = False) -> tuple[Array, Array, Backward]:
        """As `SequentialEvaluator`; `centred` changes nothing, as `centre` does nothing."""
        flat = torch.from_numpy(theta).requires_grad_()
        out = functional_call(self.net, self.layout.network(flat), (self.x,))
        return out.detach().double().numpy(), theta, functools.partial(self.backward, out, flat)

    def centre(self, theta: Array) -> Array:
        """Theta itself: these coordinates are not centred."""
        return theta

    @staticmethod
    def backward(out: Tensor, flat: Tensor, by_out: Array, by_theta: Array) -> Array:
        """The gradient by theta (p,), see `SequentialEvaluator.__call__`."""
        above = torch.from_numpy(by_out).to(out.dtype)
        gradient: Array = by_theta + torch.autograd.grad(out, flat, above)[0].numpy()
        return gradient

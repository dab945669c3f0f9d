"""A network as a function of its parameters, with its gradient: the sampler's inner loop.

Networks made of plain layers (Linear, Tanh, ReLU, Sigmoid, Flatten, Identity in Sequentials) are
computed in numpy, forward and backward by hand: for a 12-8-1 net ten times cheaper than autograd,
whose fixed costs are all there is. Every other network goes through `functional_call` and autograd.

A sampler does better in *centred* coordinates, where each bias stands for the mean, over the cases,
of what its unit receives:

    b' = b + mean_n (W a_n),   hence   W a_n + b = W a_n - mean(W a) + b'

The mean of all outputs is by far what the data pin down best. In plain coordinates that direction
involves every weight and turns with them; in the centred ones it is a bias. The map is a shear: its
Jacobian determinant is 1. In the gradient it costs a subtraction: what comes back to a unit, minus
its mean, the prior's gradient by the bias included.
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

Pull = Callable[[Array, Array], Array]


def evaluator(net: nn.Module, layout: Layout, x: Tensor) -> Plain | General:
    """The outputs on fixed inputs as a function of the trainable parameters.

    Args:
        net: in the dtype to compute in, in evaluation mode.
        layout: which parameters lie where.
        x: the inputs (n, ...).

    Returns:
        The function, made of `Plain` layers or of `General` ones.
    """
    layers = list(_layers(net))
    # What shares a tensor, is frozen or has hooks wants autograd's care.
    simple = (
        all(layer is not None for layer in layers)
        and x.ndim == 2
        and all(p.requires_grad for p in net.parameters())
        and len({id(p) for p in net.parameters()})
        == len(list(net.named_parameters(remove_duplicate=False)))
        and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    )
    return Plain(layers, layout, x.numpy()) if simple else General(net, layout, x)


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module] | None]:
    """The plain layers in order, with the prefixes of their names; None for anything else."""
    if type(module) is nn.Sequential:
        for name, child in module.named_children():
            yield from _layers(child, f"{prefix}{name}.")
    elif type(module) in _PLAIN or _flattens(module):
        yield prefix, module
    else:
        yield None


def _flattens(module: nn.Module) -> bool:
    """Flatten, from the first or the second dimension to the last."""
    return type(module) is nn.Flatten and module.start_dim in (0, 1) and module.end_dim == -1


_PLAIN = (nn.Linear, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Identity)


class Plain:
    """Plain layers, forward and backward by hand."""

    def __init__(self, layers: list[Any], layout: Layout, x: Array) -> None:
        self.layers, self.x = layers, x
        self.slices, self.shapes = layout.slices, layout.parameters

    def __call__(self, theta: Array, *, centred: bool = False) -> tuple[Array, Array, Pull]:
        """Run forward.

        Args:
            theta: the trainable parameters (p,).
            centred: whether theta is given in centred coordinates.

        Returns:
            The outputs; theta in plain coordinates; and the way back: the gradient by the outputs,
            and that of all else by the plain theta -> the gradient of both by the given theta (p,).
        """
        value, plain, steps = self._forward(theta, centred)
        return value, plain, functools.partial(self.pull, steps, centred)

    def _forward(self, theta: Array, centred: bool) -> tuple[Array, Array, list[Any]]:
        plain = theta.copy() if centred else theta
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
                        plain[at] -= value.sum(0) / len(value)
                    value += plain[at]
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
        return value, plain, steps

    def centre(self, theta: Array) -> Array:
        """Theta in centred coordinates.

        Returns:
            (p,).
        """
        found = theta.copy()
        for prefix, layer, before, weight in self._forward(theta, False)[2]:
            if type(layer) is nn.Linear and layer.bias is not None:
                found[self.slices[f"{prefix}bias"]] += before.mean(0) @ weight.T
        return found

    def pull(self, steps: list[Any], centred: bool, push: Array, known: Array) -> Array:
        """The way back, see `__call__`.

        Returns:
            (p,).
        """
        gradient = known.copy()
        for number, (prefix, layer, before, kept) in reversed(list(enumerate(steps))):
            kind = type(layer)
            if kind is nn.Linear:
                if layer.bias is not None:
                    at = self.slices[f"{prefix}bias"]
                    gradient[at] += push.sum(0)
                    if centred:
                        push = push - gradient[at] / len(push)
                gradient[self.slices[f"{prefix}weight"]] += (push.T @ before).reshape(-1)
                if number:
                    push = push @ kept
            elif kind is nn.Flatten:
                push = push.reshape(before.shape)
            elif kind is nn.Tanh:
                push = push * (1.0 - kept * kept)
            elif kind is nn.ReLU:
                push = push * (kept > 0.0)
            elif kind is nn.Sigmoid:
                push = push * (kept * (1.0 - kept))
        return gradient


class General:
    """Any network, by autograd."""

    def __init__(self, net: nn.Module, layout: Layout, x: Tensor) -> None:
        self.net, self.layout, self.x = net, layout, x

    def __call__(self, theta: Array, *, centred: bool = False) -> tuple[Array, Array, Pull]:
        """As `Plain`, whose `centred` changes nothing here.

        Returns:
            As `Plain`.
        """
        flat = torch.from_numpy(theta).requires_grad_()
        out = functional_call(self.net, self.layout.network(flat), (self.x,))
        return out.detach().double().numpy(), theta, functools.partial(self.pull, out, flat)

    def centre(self, theta: Array) -> Array:
        """Theta itself: there are no centred coordinates here.

        Returns:
            (p,).
        """
        return theta

    @staticmethod
    def pull(out: Tensor, flat: Tensor, push: Array, known: Array) -> Array:
        """The way back.

        Returns:
            (p,).
        """
        above = torch.from_numpy(push).to(out.dtype)
        gradient: Array = known + torch.autograd.grad(out, flat, above)[0].numpy()
        return gradient

"""Straight-through training: answers from snapped weights, gradients for the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swsmix.compression.snap import assign
from swsmix.prior import MixturePrior


class StraightThrough(nn.Module):
    """A network that answers with its weights snapped, and learns with them as they are.

    In each forward pass every weight outside `zero` takes its most responsible component's mean;
    the gradient there becomes the weight's own (Bengio, Leonard & Courville 2013). The prior's
    pull damps the weights that would hop between two centres for ever.

    Args:
        model: the network; the weights in `zero` are set to 0 in it.
        prior: one mixture per tensor, under the tensor's name.
        zero: name -> which weights stay at 0.
    """

    def __init__(self, model: nn.Module, prior: MixturePrior, zero: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.prior = model, [prior]  # in a list, so that it is no submodule
        self.at = {name: (~z).reshape(-1).nonzero().reshape(-1) for name, z in zero.items()}
        with torch.no_grad():
            for name, z in zero.items():
                model.get_parameter(name).masked_fill_(z, 0.0)

    # A checkpoint of this module is one of the network.
    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The network's."""
        return self.model.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Into the network."""
        return self.model.load_state_dict(*args, **options)

    def forward(self, *args: Tensor) -> Tensor:
        """The answers with snapped weights."""
        values = {}
        for name, at in self.at.items():
            p, mixture = self.model.get_parameter(name), self.prior[0].mixtures[name]
            flat = p.reshape(-1)
            w = flat[at]
            with torch.no_grad():
                change = mixture.mean[assign(mixture, w)].to(w.dtype) - w
            value = torch.zeros_like(flat).index_put((at,), w + change)
            values[name] = value.view_as(p)
        answer: Tensor = torch.func.functional_call(self.model, values, args)
        return answer

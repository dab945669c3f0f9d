"""What a figure is given: a prior, a network, a tensor or an array, as weights with their mixture.

A prior brings its weights and its mixture. A network brings the tensors that a prior would see. For
weights without a mixture one is placed on them, as `MixturePrior` would with `"auto"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swsmix._histogram import flat_weights
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior
from swsmix.selection import resolve, select
from swsmix.start import initial_mixture

Weights = Tensor | np.ndarray | nn.Module | Sequence[Any]
Mixture = GaussianMixture | MixturePrior


def group_of(prior: MixturePrior, group: str | None) -> str:
    """The group that is asked for, or the only one.

    Raises:
        ValueError: if there is no such group, or there are several and none is named.
    """
    groups = list(prior.mixtures)
    if group is None and len(groups) == 1:
        return groups[0]
    if group not in groups:
        raise ValueError(
            f"group must be one of {groups}, the mixtures of this prior, got {group!r}; name one"
        )
    return group


def weights_of(given: Any, group: str | None = None) -> Any:
    """Weights as a tensor or a list of tensors."""
    if isinstance(given, MixturePrior):
        return list(given.parameters_of(group_of(given, group)).values())
    if isinstance(given, GaussianMixture):
        raise TypeError(
            "weights must be a tensor, an array, a network or a prior, got a GaussianMixture: "
            "pass the weights first, or draw the mixture alone by plots.responsibilities"
        )
    if isinstance(given, nn.Module):
        return list(named_weights(given).values())
    if isinstance(given, np.ndarray):
        return tensor_of(given)
    if isinstance(given, list | tuple):
        return [tensor_of(w) if isinstance(w, np.ndarray) else w for w in given]
    return given


def tensor_of(given: Tensor | np.ndarray | Sequence[float]) -> Tensor:
    """Numbers on the CPU without a gradient; an array may have any strides and byte order."""
    if isinstance(given, Tensor):
        return given.detach().cpu()
    array = np.asarray(given)
    kind = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))


def mixture_of(given: Any, group: str | None, weights: Any = None) -> GaussianMixture:
    """A mixture that is given itself or by its prior, or else placed on the weights."""
    if isinstance(given, MixturePrior):
        return given.mixtures[group_of(given, group)]
    if given is not None:
        mixture: GaussianMixture = given
        return mixture
    if isinstance(weights, MixturePrior):
        return weights.mixtures[group_of(weights, group)]
    flat = torch.cat([w.detach().float().cpu() for w in flat_weights(weights_of(weights, group))])
    return initial_mixture(flat, "auto")


def named_weights(given: nn.Module) -> dict[str, Tensor]:
    """The tensors of a prior, or those of a network that a prior would see, by name."""
    if isinstance(given, MixturePrior):
        return {n: p for group in given.mixtures for n, p in given.parameters_of(group).items()}
    return dict(resolve(given, select(given).names))


def tensors_of(given: Any, mixture: Any = None) -> dict[str, tuple[Tensor, GaussianMixture]]:
    """Tensors by name, each with its mixture: the given one, its prior's, or one placed on it.

    Raises:
        ValueError: if there are no tensors, or a name has no mixture.
    """
    if mixture is None and isinstance(given, MixturePrior):
        mixture = {n: each for g, each in given.mixtures.items() for n in given.parameters_of(g)}
    if isinstance(mixture, MixturePrior):
        mixture = mixture_of(mixture, None)
    if isinstance(given, nn.Module):
        given = named_weights(given)
    elif not isinstance(given, Mapping):
        given = {"weights": torch.cat(flat_weights(weights_of(given)))}
    named: dict[str, Tensor] = {n: weights_of(w) for n, w in given.items()}
    if not named:
        raise ValueError("named_weights: needs name -> weights, got none: pass one or more")
    if mixture is None:
        mixture = {name: mixture_of(None, None, w) for name, w in named.items()}
    if isinstance(mixture, GaussianMixture):
        mixture = dict.fromkeys(named, mixture)
    if missing := [name for name in named if name not in mixture]:
        raise ValueError(f"mixture: none for {missing}; got those for {list(mixture)}: add them")
    return {name: (w, mixture[name]) for name, w in named.items()}

"""What a figure is given: a prior, a network, a tensor or an array, as weights with their mixture.

A prior brings its weights and its mixture. A network brings the tensors that a prior would see. For
weights without a mixture one is placed on them, as `MixturePrior` would with `"auto"`. All else is
refused in one form: what is needed, what was got, and what to pass instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swsmix._histogram import flat_weights
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior
from swsmix.prior.learned import LearnedPrior
from swsmix.selection import resolve, select
from swsmix.start import initial_mixture
from swsmix.training.history import History

Weights = Tensor | np.ndarray | nn.Module | Sequence[Any]
Mixture = GaussianMixture | MixturePrior


def refusal(name: str, needs: str, given: Any, mend: str = "") -> str:
    """What is said of an argument of a wrong kind."""
    return f"{name}: needs {needs}, got {_kind(given)}: {mend or _mend(given)}"


def _kind(given: Any) -> str:
    inside = f" of {type(given[0]).__name__}" if isinstance(given, list | tuple) and given else ""
    return type(given).__name__ + inside


def _mend(given: Any) -> str:
    """What to pass in place of what was given."""
    if isinstance(given, str | Path):
        return "read the file first: torch.load(path), or swsmix.load_run(path)"
    if isinstance(given, GaussianMixture):
        return "pass the weights first; plots.clusters(mixture) draws it alone"
    if isinstance(given, History):
        return "draw it by plots.trajectories, collapse or loss_terms"
    if isinstance(given, LearnedPrior):
        return "pass one of its mixtures, or the prior on a network: learned.on(net)"
    if isinstance(given, Mapping):
        return "pass list(w.values())"
    if isinstance(given, int | float | list | tuple):
        return "pass torch.as_tensor(w)"
    return "pass one of these"


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


def weights_of(given: Any, group: str | None = None, name: str = "weights") -> Any:
    """Weights as a tensor or a list of tensors.

    Raises:
        TypeError: for anything that is or holds none.
    """
    if isinstance(given, MixturePrior):
        return list(given.parameters_of(group_of(given, group)).values())
    if isinstance(given, nn.Module) and not isinstance(given, GaussianMixture):
        return list(named_weights(given).values())
    if isinstance(given, list | tuple):
        return [_weights(w, name) for w in given]
    return _weights(given, name)


def _weights(given: Any, name: str) -> Tensor:
    """A tensor of real numbers, dense, with values, wherever it is."""
    if isinstance(given, np.ndarray):
        return tensor_of(given, name)
    if not isinstance(given, Tensor):
        raise TypeError(refusal(name, "a tensor, an array, a network or a prior", given))
    if given.is_complex() or given.is_meta:
        got = "complex numbers" if given.is_complex() else "a tensor on the meta device"
        mend = "pass w.real or w.abs()" if given.is_complex() else "load its values first"
        raise TypeError(f"{name}: needs real weights that have values, got {got}: {mend}")
    if given.is_quantized:
        return given.dequantize()
    return given if given.layout == torch.strided else given.to_dense()


def tensor_of(given: Any, name: str = "weights") -> Tensor:
    """Numbers on the CPU without a gradient; an array may have any strides and byte order.

    Raises:
        TypeError: for anything but real numbers.
    """
    if isinstance(given, Tensor):
        return _weights(given, name).detach().cpu()
    if isinstance(given, nn.Module | Mapping | str | Path) or given is None:
        raise TypeError(
            refusal(name, "numbers, as a tensor or an array", given, "pass torch.as_tensor(...)")
        )
    try:
        array = np.asarray(given)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            refusal(name, "real numbers", given, "pass a tensor or an array of float32")
        )
    kind = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))


def mixture_of(given: Any, group: str | None, weights: Any = None) -> GaussianMixture:
    """A mixture that is given itself or by its prior, or else placed on the weights.

    Raises:
        TypeError: if what is given is neither.
    """
    if isinstance(given, MixturePrior):
        return given.mixtures[group_of(given, group)]
    if isinstance(given, GaussianMixture):
        return given
    if given is not None:
        raise TypeError(
            refusal("mixture", "a GaussianMixture or its prior", given, "pass prior.mixtures[g]")
        )
    if isinstance(weights, MixturePrior):
        return weights.mixtures[group_of(weights, group)]
    flat = torch.cat([w.detach().float().cpu() for w in flat_weights(weights_of(weights, group))])
    return initial_mixture(flat, "auto")


def named_weights(given: nn.Module) -> dict[str, Tensor]:
    """The tensors of a prior, or those of a network that a prior would see, by name."""
    if isinstance(given, MixturePrior):
        return {n: p for group in given.mixtures for n, p in given.parameters_of(group).items()}
    return dict(resolve(given, select(given).names))


def mixtures_by_name(prior: MixturePrior) -> dict[str, GaussianMixture]:
    """The mixture of each tensor of a prior."""
    return {n: each for g, each in prior.mixtures.items() for n in prior.parameters_of(g)}


def tensors_of(given: Any, mixture: Any = None) -> dict[str, tuple[Tensor, GaussianMixture]]:
    """Tensors by name, each with its mixture: the given one, its prior's, or one placed on it.

    Raises:
        TypeError: for anything that is or holds no weights.
        ValueError: if there are no tensors, or a name has no mixture.
    """
    if isinstance(given, MixturePrior) and mixture is None:
        mixture = given
    if isinstance(given, nn.Module) and not isinstance(given, GaussianMixture):
        given = named_weights(given)
    elif not isinstance(given, Mapping):
        given = {"weights": torch.cat(flat_weights(weights_of(given, None, "named_weights")))}
    named = {str(n): _weights(w, str(n)) for n, w in given.items()}
    if not named:
        raise ValueError("named_weights: needs name -> weights, got none: pass one or more")
    if mixture is None:
        mixture = {name: mixture_of(None, None, w) for name, w in named.items()}
    elif isinstance(mixture, MixturePrior) and len(mixture.mixtures) > 1:
        mixture = mixtures_by_name(mixture)
    elif not isinstance(mixture, Mapping):
        mixture = dict.fromkeys(named, mixture_of(mixture, None))
    if missing := [name for name in named if name not in mixture]:
        raise ValueError(
            f"mixture: needs one for {missing}, got those for {list(mixture)}: add them"
        )
    return {name: (w, mixture_of(mixture[name], None)) for name, w in named.items()}

"""What a prior begins with: a mixture and a hyper-prior for each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.em import EMState, HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.start import Initialisation, NumComponents, initial_mixture

T = TypeVar("T")
_ENOUGH = 20  # weights of a component that say how narrow it is


def for_group(value: T | Mapping[str, T], group: str, what: str) -> T:
    """An argument's value for one group: its own, or the one for all.

    Raises:
        ValueError: if there are values by group, and none for this one.
    """
    if not isinstance(value, Mapping):
        return value
    if group not in value:
        raise ValueError(f"{what} has no entry for the group {group!r}; it has {list(value)}")
    return value[group]


def check_sizes(sizes: Mapping[str, int], num_components: Mapping[str, NumComponents]) -> None:
    """Check that each group has as many weights as components.

    Args:
        sizes: group -> its number of weights.
        num_components: group -> K, or "auto".

    Raises:
        ValueError: if not; the message names the groups.
    """
    small = {
        group: (sizes[group], k)
        for group, k in num_components.items()
        if isinstance(k, int) and sizes[group] < k
    }
    if small:
        raise ValueError(
            "a mixture needs at least as many weights as components; these groups have fewer: "
            + ", ".join(f"{g!r} ({n} weights, K = {k})" for g, (n, k) in small.items())
            + ": use fewer components, or share a mixture between tensors with groups="
        )


def initial_state(
    w: Float[Tensor, " n"],
    num_components: NumComponents,
    mixture: GaussianMixture | None,
    hyper: HyperPrior | None,
    *,
    moves: bool,
    method: Initialisation,
    zero: bool,
    zero_mixing: float | None,
    seed: int,
) -> EMState:
    """A group's mixture and hyper-prior: those given (copied), or the defaults for its weights."""
    if mixture is None:
        mixture = initial_mixture(
            w, num_components, method=method, zero=zero, zero_mixing=zero_mixing, seed=seed
        )
    else:
        dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
        mixture = mixture.plain_copy().to(w.device, dtype)
    start_std = w.double().std(correction=0).item()
    if hyper is None:
        scale = start_std or w.abs().max().item() or 1.0
        std = mixture.std[mixture.mixing * len(w) >= _ENOUGH].double().tolist()
        narrow = min(std, default=scale) if moves else scale
        hyper = HyperPrior(mean=mixture.mean.clone(), std=min(scale / 20.0, narrow))
    return EMState(mixture, hyper, start_std)

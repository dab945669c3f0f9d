"""The proximal step: how a weight moves towards the centres, stable for every sigma.

After the optimiser's step on the data loss alone, the closed-form step on the EM majoriser of R,
which is quadratic in w:

    a_i = sum_j gamma_ij / sigma_j^2,   b_i = sum_j gamma_ij mu_j / sigma_j^2,
    w_i <- (w_i + eta_i t b_i) / (1 + eta_i t a_i),   t = tau / num_data

with gamma taken at the weights before the optimiser's step, and eta_i the optimiser's own
effective step for that weight. It has the fixed points of the explicit gradient:
w* = (w* - eta g + eta t b) / (1 + eta t a) says that g + t (a w* - b) = 0. (AdamW's decay, itself a
step outside the gradient, shifts the two a little differently.)

`Tables.proximal_` evaluates the formula in O(N); here are the optimiser's step size and the
batching of small tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from swsmix import _shards
from swsmix.tables import Adaptive

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

# Optimisers whose effective step is known.
KNOWN = (SGD, Adam, AdamW)


@torch.no_grad()
def step_(
    prior: MixturePrior,
    optimizer: Optimizer,
    held: Sequence[tuple[str, nn.Parameter, str]],
    before: Mapping[str, Tensor],
    strength: float,
) -> None:
    """The proximal step on the tensors that an optimiser has just moved, in place.

    Args:
        prior: the prior.
        optimizer: one of `KNOWN`.
        held: name, parameter and group of the prior's tensors in it; those without a gradient
            stay, since the optimiser has not moved them and has no step size for them.
        before: name -> the weights before the optimiser's step.
        strength: t = tau / num_data.
    """
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    together: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for name, p, group in held:
        if p.grad is None:
            continue  # the optimiser has not moved it, and has no step for it
        w, old = _shards.local(p), before[name]
        step = effective_step(optimizer.state[p], settings[id(p)], optimizer)
        if w.numel() >= _shards.SMALL:
            scale = strength * prior.tau[group]
            prior.tables_of(group).proximal_(w, old, step, scale)
            continue
        second, *rates = step if isinstance(step, Adaptive) else (w, step)
        entry = _shards.flat_view(w), _shards.flat_view(old), _shards.flat_view(second)
        together.setdefault((group, *rates), []).append(entry)
    for (group, *rates), small in together.items():  # in one call: a fixed cost is what counts
        targets, befores, seconds = zip(*small, strict=True)
        flat = torch.cat(targets)
        step = Adaptive(torch.cat(seconds), *rates) if len(rates) > 1 else rates[0]
        scale = strength * prior.tau[group]
        prior.tables_of(group).proximal_(flat, torch.cat(befores), step, scale)
        for w, moved in zip(targets, flat.split([len(w) for w in targets]), strict=True):
            w.copy_(moved)


def effective_step(
    state: dict[str, Any], settings: dict[str, Any], optimizer: Optimizer
) -> float | Adaptive:
    """eta: how far the optimiser moves a weight for a constant unit gradient."""
    lr = float(settings["lr"])
    if isinstance(optimizer, SGD):
        momentum, dampening = settings["momentum"], settings["dampening"]
        return float(lr * (1.0 - dampening) / (1.0 - momentum)) if momentum else lr
    second = state["max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq"]
    # lr / (sqrt(v / correction) + eps)
    root = math.sqrt(1.0 - settings["betas"][1] ** float(state["step"]))
    return Adaptive(_shards.local(second), lr * root, settings["eps"] * root)

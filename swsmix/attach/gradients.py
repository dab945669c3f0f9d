"""The explicit update: the penalty's gradient is added to the data's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards
from swsmix.attach import _optimizers
from swsmix.tables.backends import is_compiled_for

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior


def add_(
    prior: MixturePrior,
    optimizer: Optimizer,
    held: Sequence[tuple[str, nn.Parameter, str]],
    strength: float,
) -> None:
    """Add strength * dpenalty/dw to the gradients of an optimiser's tensors (name, tensor, group).

    The mixtures stand still: mode "em".
    """
    by_group: dict[str, list[nn.Parameter]] = {}
    for _, p, group in held:
        by_group.setdefault(group, []).append(p)
    for group, params in by_group.items():
        for p in params:
            _optimizers.make_gradient_dense(optimizer, p)
        _add_to_group_(prior, group, params, strength)


def _add_to_group_(
    prior: MixturePrior, group: str, params: Sequence[nn.Parameter], strength: float
) -> None:
    """Add strength * tau_g * dR/dw to the gradients of a group's parameters: no graph, O(N)."""
    table, scale = prior.tables_of(group), strength * prior.tau[group]
    pairs = [
        (_shards.local(p.detach()), _shards.local(p.grad)) for p in params if p.grad is not None
    ]
    small = []
    for w, grad in pairs:
        if w.numel() >= _shards.SMALL or is_compiled_for(w, grad):
            table.add_gradient_(grad, w, scale)
        else:
            small.append((w, grad))
    if small:  # one call: the fixed cost per call dominates
        flat = torch.cat([w.reshape(-1) for w, _ in small])
        parts = table.gradient(flat).split([w.numel() for w, _ in small])
        for part, (w, grad) in zip(parts, small, strict=True):
            grad.add_(part.view_as(w), alpha=scale)


def joint(prior: MixturePrior, params: Sequence[Tensor]) -> dict[int, Tensor]:
    """The penalty's gradient in weights and mixtures together, by the parameters' ids."""
    with torch.enable_grad():
        found = torch.autograd.grad(prior.penalty(), params)
    return {id(p): g for p, g in zip(params, found, strict=True)}


def add_joint_(optimizer: Optimizer, gradient: Mapping[int, Tensor], strength: float) -> None:
    """Add strength times those of `joint` to the gradients of an optimiser's parameters."""
    for p in _optimizers.parameters_of(optimizer):
        if id(p) in gradient:
            grad = _optimizers.make_gradient_dense(optimizer, p)
            grad.add_(gradient[id(p)], alpha=strength)

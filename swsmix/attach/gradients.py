"""The explicit update: the penalty's gradient is added to the data's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards, tables
from swsmix.attach import _optimizers

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
    by_group: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for _, p, group in held:
        grad = _optimizers.make_gradient_dense(optimizer, p)
        by_group.setdefault(group, []).append((_shards.local(grad), _shards.local(p.detach())))
    tables.add_gradient_each_([
        (prior.tables_of(group, wait=False), pairs, strength * prior.tau[group])
        for group, pairs in by_group.items()
    ])  # fmt: skip


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

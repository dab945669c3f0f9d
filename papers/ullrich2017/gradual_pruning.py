"""Gradual magnitude pruning and straight-through k-means.

prune     the share of zeros of each tensor rises as 1 - (1 - t)^3, and the smallest go
          (Zhu & Gupta 2017); a zero comes back only if its next step alone makes it larger than
          those that would be left
cluster   k-means of what is left; the network answers with the centres and the gradient moves
          the weights, which are assigned anew as they move
snap      to the centres, which are fine-tuned
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from swsmix.compression import clusters
from swsmix.compression.centres import tie
from swsmix.start import initial_mixture
from swsmix.training.evaluation import Loss


class Batches(Protocol):
    """Batches of images and labels: their number, and one epoch of them."""

    def __len__(self) -> int:
        """The number of batches in an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""


@dataclass(frozen=True)
class Pruning:
    """How much to prune, and how long.

    Attributes:
        kept: name of each tensor -> the share of its weights that is left.
        num_values: of each tensor, zero included.
        prune_epochs: of pruning; the shares are reached at three quarters.
        cluster_epochs: of straight-through k-means.
        finetune_epochs: of the centres.
        lr: Adam's, falling by a cosine to a twentieth in each phase; fine-tuning has a twentieth.
        cluster_lr: that of the clusters' phase, if it is another.
        every: steps between two prunings, or two assignments.
    """

    kept: Mapping[str, float]
    num_values: int = 8
    prune_epochs: int = 50
    cluster_epochs: int = 20
    finetune_epochs: int = 1
    lr: float = 2e-3
    cluster_lr: float | None = None
    every: int = 50


def prune_(net: nn.Module, loss: Loss, images: Batches, pruning: Pruning) -> None:
    """Train a pretrained network, in place, while the smallest weights go."""
    weights = {name: net.get_parameter(name) for name in pruning.kept}
    alive = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    steps = len(images) * pruning.prune_epochs
    for step, batch in enumerate(_epochs(net, images, pruning.prune_epochs, pruning.lr)):
        if step % pruning.every == 0:
            progress = min((step + pruning.every) / (0.75 * steps), 1.0)
            for name, w in weights.items():
                alive[name] = largest(w, kept_at(pruning.kept[name], progress))
        for name, w in weights.items():
            w.data.masked_fill_(~alive[name], 0.0)
        batch(loss, net)
    for name, w in weights.items():
        alive[name] = largest(w.data.masked_fill_(~alive[name], 0.0), pruning.kept[name])
        w.data.masked_fill_(~alive[name], 0.0)


def kept_at(kept: float, progress: float) -> float:
    """The share that is left at some point of the pruning, from 0 to 1."""
    return 1.0 - (1.0 - kept) * (1.0 - (1.0 - progress) ** 3)


def largest(w: Tensor, share: float) -> Tensor:
    """Which weights are left, if that share of the largest is."""
    count = round(share * w.numel())
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[w.detach().abs().reshape(-1).topk(count).indices] = True
    return mask.view(w.shape)


def quantise_(
    net: nn.Module,
    loss: Loss,
    images: Batches,
    pruning: Pruning,
    look: Callable[[str], None] = lambda phase: None,
) -> dict[str, Tensor]:
    """Cluster, snap and fine-tune a pruned network, in place; `look` after each phase.

    Returns:
        The cluster of each weight, by tensor; 0 is zero's.
    """
    weights = {name: net.get_parameter(name) for name in pruning.kept}
    alive = {name: w.detach() != 0.0 for name, w in weights.items()}
    index = cluster_(net, weights, alive, loss, images, pruning)
    look("cluster")
    handles = [tie(w, index[name]) for name, w in weights.items()]
    for batch in _epochs(net, images, pruning.finetune_epochs, pruning.lr / 20):
        batch(loss, net)
    for handle in handles:
        handle.remove()
    for name, w in weights.items():
        clusters.set_to_centres_(w, index[name])
    look("finetune")
    return index


def cluster_(
    net: nn.Module,
    weights: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    loss: Loss,
    images: Batches,
    pruning: Pruning,
) -> dict[str, Tensor]:
    """Train with answers from the centres of k-means; the cluster of each weight."""
    centres, index, lr = {}, {}, pruning.cluster_lr or pruning.lr
    for name, w in weights.items():
        left = w.detach()[alive[name]]
        k = min(pruning.num_values - 1, len(left.unique()))
        found = initial_mixture(left, k, method="kmeans", seed=0).mean if k else left
        centres[name] = torch.cat([torch.zeros(1), found])
    for step, batch in enumerate(_epochs(net, images, pruning.cluster_epochs, lr)):
        if step % pruning.every == 0:
            for name, w in weights.items():
                index[name] = assigned_(centres[name], w.detach(), alive[name])
        values = {
            name: w + (centres[name][index[name]] - w).detach() for name, w in weights.items()
        }
        batch(loss, partial(_answer, net, values))
    for name, w in weights.items():
        index[name] = assigned_(centres[name], w.detach(), alive[name])
        w.data.copy_(centres[name][index[name]])
    return index


def _answer(net: nn.Module, values: dict[str, Tensor], x: Tensor) -> Tensor:
    answer: Tensor = torch.func.functional_call(net, values, (x,))
    return answer


def assigned_(centre: Tensor, w: Tensor, alive: Tensor) -> Tensor:
    """The nearest centre of each weight that is left, and these centres moved to their means."""
    index = torch.zeros_like(w, dtype=torch.long)
    if len(centre) > 1:
        left = w[alive]
        j = (left[:, None] - centre[None, 1:]).abs().argmin(1)
        index[alive] = j + 1
        count = torch.bincount(j, minlength=len(centre) - 1)
        mean = torch.bincount(j, left, minlength=len(centre) - 1) / count.clamp_min(1)
        centre[1:] = torch.where(count > 0, mean, centre[1:])
    return index


Answer = Callable[[Tensor], Tensor]


def _epochs(
    net: nn.Module, images: Batches, epochs: int, lr: float
) -> Iterator[Callable[[Loss, Answer], None]]:
    """A call for each batch that makes a step of Adam on it."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    scheduler = CosineAnnealingLR(optimizer, max(epochs, 1), lr / 20)
    for _ in range(epochs):
        net.train()
        for x, y in images:

            def step(loss: Loss, answer: Answer, x: Tensor = x, y: Tensor = y) -> None:
                optimizer.zero_grad()
                loss(answer(x), y).backward()
                optimizer.step()

            yield step
        scheduler.step()

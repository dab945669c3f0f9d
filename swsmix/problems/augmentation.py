"""Batches that are shuffled and changed anew in each epoch: what `fit` takes as training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["Augmented"]


class Augmented:
    """Batches of two tensors, shuffled in each epoch, the inputs changed by an augmentation.

    A loader for `fit` and `compress_`, whose checkpoints keep the state of its generator: a run
    that is continued sees the same batches as without the interruption.

    Args:
        x: inputs, one per row.
        y: targets.
        augment: called as `augment(x[rows], generator=...)`, such as `cifar10.jitter`.
        batch_size: rows per batch; the last batch of an epoch may be smaller.
        seed: of order and augmentation.

    Raises:
        ValueError: if x and y differ in length, or the batches would be empty.

    Example:
        >>> from swsmix.problems.cifar10 import jitter
        >>> batches = Augmented(torch.ones(5, 3, 8, 8), torch.arange(5), jitter, batch_size=2)
        >>> sorted(int(each) for _, y in batches for each in y)
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        augment: Callable[..., Tensor],
        *,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        if len(x) != len(y) or batch_size < 1:
            raise ValueError(
                "x and y must have one length and batch_size must be at least 1; got lengths "
                f"{len(x)} and {len(y)} and batch_size={batch_size}"
            )
        self.dataset, self.y = x, y  # `fit` counts the examples of `dataset`
        self.augment, self.batch_size = augment, batch_size
        self.generator = torch.Generator(device=x.device).manual_seed(seed)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        n, device = len(self.dataset), self.generator.device
        order = torch.randperm(n, generator=self.generator, dtype=torch.int64, device=device)
        for rows in order.split(self.batch_size):
            yield self.augment(self.dataset[rows], generator=self.generator), self.y[rows]

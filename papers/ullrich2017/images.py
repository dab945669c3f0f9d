"""The images that a network is trained on: their split, their batches, their shifts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from papers.ullrich2017.settings import Setting
from swsmix.problems.mnist import mnist

NUM_VALIDATION = 10_000


class Images:
    """Batches of MNIST, shuffled anew each epoch, shifted and with dropped pixels if asked for.

    With a teacher, the targets are the label and the teacher's ten logits. The generator's state
    goes into the checkpoints of `fit`.
    """

    def __init__(
        self, x: Tensor, y: Tensor, setting: Setting, seed: int, teacher: nn.Module | None = None
    ) -> None:
        self.x, self.y, self.dataset = x, y, x  # `fit` counts the examples of `dataset`
        self.setting, self.teacher = setting, teacher
        self.batch_size = setting.batch_size  # `fit` asks for it
        self.generator = torch.Generator().manual_seed(seed)
        s = setting.shift
        self.windows = nn.functional.pad(x, (s, s, s, s)).unfold(1, 28, 1).unfold(2, 28, 1)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.x) // self.setting.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        n, generator = len(self.x), self.generator
        order = torch.randperm(n, generator=generator)
        offset = torch.randint(2 * self.setting.shift + 1, (n, 2), generator=generator)
        for rows in order.split(self.setting.batch_size):
            x = self.windows[rows, offset[rows, 0], offset[rows, 1]]
            if self.setting.dropout:
                keep = torch.rand(x.shape, generator=generator) >= self.setting.dropout
                x = x * keep / (1.0 - self.setting.dropout)
            yield x, self.y[rows] if self.teacher is None else self._taught(x, self.y[rows])

    @torch.no_grad()
    def _taught(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.teacher is not None
        return torch.cat([y[:, None].float(), self.teacher(x).float()], dim=1)


def training_images(seed: int, subset: int | None) -> tuple[tuple[Tensor, Tensor], ...]:
    """The 50,000 images to train on and the 10,000 to validate on, drawn anew for each seed."""
    digits = mnist()
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(1000 + seed))
    x, y = digits.x_train.float() / 255, digits.y_train
    train, validation = order[NUM_VALIDATION:], order[:NUM_VALIDATION]
    if subset is not None:
        train, validation = train[:subset], validation[:subset]
    return (x[train], y[train]), (x[validation], y[validation])

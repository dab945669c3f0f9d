"""What `fit` asks of a way to train: `batches` and `rounds` share this interface."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Loss


@runtime_checkable
class Trainer(Protocol):
    """A model, its loss and its prior, trained an epoch at a time.

    Attributes:
        model: the network.
        loss: the mean negative log likelihood of a batch.
        prior: the mixture prior, if any.
        num_data: the number of training examples.
        schedule: tau, warm-up, EM, annealing; tau is another's where the prior enters by itself.
        steps: how many steps of the optimiser, or rounds, have been made.
    """

    model: nn.Module
    loss: Loss
    prior: MixturePrior | None
    num_data: int
    schedule: Schedule
    steps: int

    @property
    def tick(self) -> int:
        """Where the schedule's clock stands."""

    @property
    def parts(self) -> dict[str, str]:
        """The names of the optimiser and of the learning-rate scheduler, by argument of `fit`."""

    @property
    def tau(self) -> float:
        """The strength of the prior."""

    def epoch(self, number: int) -> None:
        """Train for one epoch, the `number`-th."""

    def adapt_rate(self, score: float) -> None:
        """Adapt the learning rate, now that the epoch's score is known (lower is better)."""

    def state_dict(self) -> dict[str, Any]:
        """What the next epoch depends on, beside model, loss, prior and random generators."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; other entries are ignored."""

    def close(self) -> None:
        """Let go of the optimiser."""

"""What an ensemble is after training: its members, and what they say together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix.prior import MixturePrior
from swsmix.training.evaluation import Batch, Loss
from swsmix.training.history import History


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks that were trained side by side; each is a plain module with its prior.

    Attributes:
        models: the networks.
        priors: their priors; empty without.
        losses: their losses, each with its own parameters where it has any.
        histories: their histories; empty if they were not recorded.
        objective: data term + tau * penalty at the end, in nats, one per member (b,).
        middle: the member whose validation measure (without, whose objective) is the ceil(b / 2)-th
            best: what one run gives, neither the best nor the worst.

    Example:
        >>> from swsmix.training.ensemble import fit_ensemble
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> nets = [nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(3)]
        >>> ensemble = fit_ensemble(nets, nn.functional.mse_loss, (x, x**3), epochs=2,
        ...                         progress=False)
        >>> ensemble.predict(x).shape
        torch.Size([3, 20, 1])
    """

    models: list[nn.Module]
    priors: list[MixturePrior] = field(repr=False)
    losses: list[Loss] = field(repr=False)
    histories: list[History] = field(repr=False)
    objective: Float[Tensor, " b"]
    middle: int

    def __len__(self) -> int:
        """The number of members."""
        return len(self.models)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """f(x) of every member, in evaluation mode (b, n, ...)."""
        found = []
        for model in self.models:
            training, p = model.training, next(model.parameters())
            dtype = p.dtype if x.is_floating_point() else x.dtype
            found.append(model.eval()(x.to(p.device, dtype)))
            model.train(training)
        return torch.stack(found)

    def measures(self, measure: Loss, data: Batch) -> Float[Tensor, " b"]:
        """measure(f(x), y) of every member; `.mean()` and `.std()` are what one run gives."""
        outputs = self.predict(data[0])
        y = data[1].to(outputs.device)
        y = y.to(outputs.dtype) if y.is_floating_point() else y
        return torch.stack([measure(out, y).double().cpu().reshape(()) for out in outputs])

    def mean_prediction(
        self, x: Tensor, link: Callable[[Tensor], Tensor] = lambda outputs: outputs
    ) -> tuple[Tensor, Tensor]:
        """The ensemble's prediction and its spread: mean and standard deviation over members.

        Args:
            x: the inputs.
            link: from outputs to a scale on which averaging makes sense: `torch.sigmoid` or a
                softmax of logits; the outputs themselves by default.

        Returns:
            Two tensors of one prediction's shape; the spread of one member is 0.
        """
        values = link(self.predict(x))
        return values.mean(0), values.std(0, correction=min(1, len(values) - 1))

    def nearest(
        self,
        x: Tensor,
        link: Callable[[Tensor], Tensor] = lambda outputs: outputs,
        decide: Callable[[Tensor], Tensor] | None = None,
    ) -> int:
        """The member that agrees most with the ensemble on unlabelled inputs.

        Args:
            x: the inputs.
            link: as for `mean_prediction`.
            decide: from predictions to decisions, such as `lambda p: p > 0.5` or
                `lambda p: p.argmax(-1)`; the share of equal decisions then counts. By default the
                mean squared distance of the predictions does.

        Returns:
            Its number; of several the first.
        """
        values = link(self.predict(x))
        mean = values.mean(0)
        if decide is None:
            apart = (values - mean).square().flatten(1).mean(1)
        else:
            apart = (decide(values) != decide(mean)).flatten(1).double().mean(1)
        return int(apart.argmin())

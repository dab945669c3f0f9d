"""Training in full-batch rounds of L-BFGS or conjugate gradients, as in the 1992 paper.

The minimisers are those of `scipy.optimize`; between two rounds the mixture makes its EM step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from swsmix.attach import advance_
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Data, Loss, is_pair

FullBatch = Literal["l-bfgs", "cg"]

METHODS = {"l-bfgs": "L-BFGS-B", "cg": "CG"}


class RoundTrainer:
    """An epoch is one round of iterations; the interface is that of `Trainer`.

    Args:
        model: the network.
        loss: the mean negative log likelihood.
        data: two tensors.
        method: `"l-bfgs"` or `"cg"`.
        num_data: the number of training examples.
        prior: part of the objective, if any.
        schedule: of the prior, its clock counts rounds; an EM step in every round by default.
        iterations: how many at most in one round.

    Raises:
        ValueError: for another method, and for data in batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Data,
        method: str,
        *,
        num_data: int,
        prior: MixturePrior | None = None,
        schedule: Schedule | None = None,
        iterations: int = 40,
    ) -> None:
        if method not in METHODS:
            raise ValueError(
                f"optimizer must be a torch optimiser, 'l-bfgs' or 'cg'; got {method!r}"
            )
        if not is_pair(data):
            raise ValueError(f"{method!r} is full-batch: it needs the data as two tensors (x, y)")
        self.model, self.loss, self.data, self.prior = model, loss, data, prior
        self.method, self.iterations, self.num_data = method, iterations, num_data
        self.schedule = schedule or Schedule(em_every=1)
        self.steps = 0

    @property
    def tick(self) -> int:
        """The number of rounds."""
        return self.steps

    @property
    def tau(self) -> float:
        """The strength of the prior in the next round."""
        return self.schedule.tau_at(self.steps)

    def epoch(self, number: int) -> None:
        """One round, then what the schedule asks of the mixtures.

        Raises:
            FloatingPointError: if the objective is not finite at its end.
        """
        self.model.train()
        moving = self._moving()
        x, y = (part.to(moving[0].device) for part in self.data)
        tau = self.tau

        def objective() -> Tensor:
            total = self.num_data * self.loss(self.model(x), y)
            if self.prior is not None and tau > 0.0:
                total = total + tau * self.prior.penalty()
            return total

        end = minimize_(objective, moving, method=self.method, iterations=self.iterations)
        if not math.isfinite(end):
            raise FloatingPointError(
                f"the objective is {end} in round {self.steps + 1}: lower tau, or raise "
                "std_count of the hyper-prior; the last checkpoint is intact"
            )
        self.steps += 1
        if self.prior is not None:
            advance_(self.prior, self.schedule, self.steps)

    def _moving(self) -> list[Tensor]:
        """The parameters that move in this round: those of the mixtures not always."""
        modules: list[Any] = [self.model, self.loss]
        if self.prior is not None and self.schedule.mixture_moves_at(self.steps):
            modules.append(self.prior)
        parameters = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
        return [p for p in parameters if p.requires_grad]

    def adapt_rate(self, score: float) -> None:
        """Nothing: a round has no learning rate."""

    def state_dict(self) -> dict[str, Any]:
        """The number of rounds."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps = state["steps"]

    def close(self) -> None:
        """Nothing: there is no optimiser to let go of."""


def minimize_(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    method: str,
    iterations: int,
) -> float:
    """Move parameters downhill, in place, by L-BFGS or by Polak & Ribiere's conjugate gradients.

    The search is in float64, whatever the parameters' type. An error or Ctrl-C on the way leaves
    the parameters where they started, never at a point of a line search.

    Args:
        objective: a scalar that depends on the parameters; on the scale of nats summed over the
            cases, since scipy's stopping rules are absolute.
        parameters: those that move.
        method: `"l-bfgs"` or `"cg"`.
        iterations: how many at most.

    Returns:
        The objective at the end. If it is not finite, the parameters are where they started.

    Raises:
        ValueError: for another method.

    Example:
        >>> w = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> end = minimize_(lambda: (w - 1).square().sum(), [w], method="l-bfgs", iterations=20)
        >>> w.detach().round(decimals=4)
        tensor([1., 1.])
    """
    from scipy.optimize import minimize

    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}")

    def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        _assign_(parameters, flat)
        value = objective()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        return value.item(), _flat([torch.zeros_like(p) if g is None else g for p, g in pairs])

    start = _flat(parameters)
    options = {"maxiter": iterations, "gtol": 1e-9}
    try:
        result = minimize(
            value_and_gradient, start, jac=True, method=METHODS[method], options=options
        )
    except BaseException:
        _assign_(parameters, start)
        raise
    end = float(result.fun)
    _assign_(parameters, result.x if np.isfinite(end) else start)
    return end


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = torch.cat(
        [t.detach().reshape(-1).double().cpu() for t in tensors]
    ).numpy()
    return flat


@torch.no_grad()
def _assign_(parameters: Sequence[Tensor], flat: NDArray[np.float64]) -> None:
    parts = torch.from_numpy(flat).split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.copy_(part.view_as(p))

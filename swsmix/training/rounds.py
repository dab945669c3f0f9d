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

from swsmix.attach import MOMENTS, MomentsOf, advance_
from swsmix.attach.checks import check_clock
from swsmix.attach.entry import ceiling
from swsmix.attach.watching import Watch
from swsmix.em.variational import Variance
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training.entering import RoundEntry
from swsmix.training.evaluation import Data, Loss, is_pair

FullBatch = Literal["l-bfgs", "cg"]

METHODS = {"l-bfgs": "L-BFGS-B", "cg": "CG"}
_EM_STEPS = 5  # over the posterior, for one curvature of the data: that takes the most time


class RoundTrainer:
    """An epoch is one round of iterations; the interface is that of `Trainer`.

    Args:
        model: the network.
        loss: the mean negative log likelihood.
        data: two tensors.
        method: `"l-bfgs"` or `"cg"`.
        num_data: the number of training examples.
        prior: part of the objective, if any.
        schedule: of the prior, its clock counts rounds. By default an EM step in every round, and
            the prior enters by itself, see `swsmix.training.entering`; with moments="posterior"
            it acts at tau = 1 from the first round, which is what its variances are of.
        iterations: how many at most in one round.
        moments: what EM is over: the `"maximum"` of the posterior, or the `"posterior"`, by the
            Laplace approximation of `swsmix.bayes.laplace`. The rounds then minimise the expected
            penalty, and parameters of the loss move with the EM step, against its expectation.

    Raises:
        ValueError: for another method, for data in batches, and for moments that are unknown, or
            not those of a prior in mode "em".
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
        moments: MomentsOf = "maximum",
    ) -> None:
        if method not in METHODS:
            raise ValueError(
                f"optimizer must be a torch optimiser, 'l-bfgs' or 'cg'; got {method!r}"
            )
        if not is_pair(data):
            raise ValueError(f"{method!r} is full-batch: it needs the data as two tensors (x, y)")
        if moments not in MOMENTS:
            raise ValueError(f"moments must be one of {MOMENTS}; got {moments!r}")
        if moments == "posterior" and (prior is None or prior.mode != "em"):
            raise ValueError("moments='posterior' is for a prior in mode 'em': its EM step")
        self.moments = moments
        self.variance: Variance | None = None  # of the weights, from the last EM step
        self.model, self.loss, self.data, self.prior = model, loss, data, prior
        self.method, self.iterations, self.num_data = method, iterations, num_data
        self.schedule = schedule or Schedule(em_every=1)
        self.entry: RoundEntry | None = None
        if schedule is None and prior is not None and moments == "maximum":
            size, asked = prior._weighted_size(), self.schedule.tau
            self.entry = RoundEntry(ceiling(asked, num_weights=size, num_data=num_data))
        self.steps = 0
        self.diagnosis = None if prior is None else Watch(prior)

    @property
    def tick(self) -> int:
        """The number of rounds."""
        return self.steps

    @property
    def parts(self) -> dict[str, str]:
        """The method, quoted."""
        return {"optimizer": repr(self.method)}

    @property
    def tau(self) -> float:
        """The strength of the prior in the next round."""
        return self.schedule.tau_at(self.steps) if self.entry is None else self.entry.tau

    def epoch(self, number: int) -> None:
        """One round, then what the schedule asks of the mixtures.

        Raises:
            FloatingPointError: if the objective is not finite at its end.
        """
        self.model.train()
        moving = self._moving()
        x, y = (part.to(moving[0].device) for part in self.data)
        tau = self.tau
        if self.entry is not None and not self.entry.begun:
            self._show_loss(x, y)

        def objective() -> Tensor:
            total = self.num_data * self.loss(self.model(x), y)
            if self.prior is not None and tau > 0.0:
                s2 = self.variance
                penalty = self.prior.expected_penalty(s2) if s2 else self.prior.penalty()
                total = total + tau * penalty
            return total

        end = minimize_(objective, moving, method=self.method, iterations=self.iterations)
        if not math.isfinite(end):
            raise FloatingPointError(
                f"the objective is {end} in round {self.steps + 1}: lower tau, or raise "
                "std_count of the hyper-prior; the last checkpoint is intact"
            )
        self.steps += 1
        if self.entry is not None:
            self._show_loss(x, y)
        if self.prior is not None and self.diagnosis is not None:
            em_step_ = self._posterior_em_step_ if self.moments == "posterior" else None
            advance_(self.prior, self.schedule, self.steps, em_step_)
            self.diagnosis.look(self.schedule, self.steps)

    @torch.no_grad()
    def _show_loss(self, x: Tensor, y: Tensor) -> None:
        """Show the data loss to the entry."""
        assert self.entry is not None
        self.entry.see(float(self.loss(self.model(x), y)))

    def _posterior_em_step_(self, rate: float) -> None:
        """EM steps over the posterior while the network stands still, then one of the loss."""
        assert self.prior is not None and is_pair(self.data)
        from swsmix.bayes.laplace import curvature, expected_loss, laplace  # the room loads scipy

        bend = curvature(self.model, self.loss, self.data, num_data=self.num_data)
        tau = self.schedule.tau_at(self.steps) or self.schedule.tau
        posterior = laplace(bend, self.prior, tau=tau, near=self.variance)
        for _ in range(_EM_STEPS):
            self.prior.em_step_(rate, posterior.variance)
            posterior = posterior.refreshed()
        self.variance = posterior.variance
        if own := _trainable([self.loss]):
            expected = expected_loss(posterior, self.loss, self.data)
            minimize_(expected, own, method="l-bfgs", iterations=10)

    def _moving(self) -> list[Tensor]:
        """The parameters that move in this round: those of the mixtures not always."""
        over_posterior = self.moments == "posterior"  # the EM step moves the loss's own
        modules: list[Any] = [self.model] if over_posterior else [self.model, self.loss]
        if self.prior is not None and self.schedule.mixture_moves_at(self.steps):
            modules.append(self.prior)
        return _trainable(modules)

    def adapt_rate(self, score: float) -> None:
        """Nothing: a round has no learning rate."""

    def state_dict(self) -> dict[str, Any]:
        """The number of rounds, the weights' variances, and where the entry stands."""
        state: dict[str, Any] = {"steps": self.steps}
        if self.variance is not None:
            state["variance"] = dict(self.variance)
        return state if self.entry is None else {**state, "entry": self.entry.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if the one has a schedule, and the other lets the data decide.
        """
        check_clock(state, scheduled=self.entry is None, earlier="Schedule(em_every=1)")
        self.steps, self.variance = state["steps"], state.get("variance")
        if self.entry is not None:
            self.entry.load_state_dict(state["entry"])

    def close(self) -> None:
        """Nothing: there is no optimiser to let go of."""


def _trainable(modules: Sequence[Any]) -> list[Tensor]:
    parameters = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
    return [p for p in parameters if p.requires_grad]


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

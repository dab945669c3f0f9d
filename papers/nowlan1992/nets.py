"""Many I-H-1 networks in one tensor program: their data terms and gradients, by hand.

A network is one row theta = (W (h, i), v (h), b (h), c, log sigma_y^2), and computes
f(x) = v . tanh(W x + b) + c. The weights that a prior sees, W and v, come first. All b networks
share the cases, each with case weights of its own (0 leaves a case out), so folds, seeds and
settings fill one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from swsmix.training.ensemble.lbfgs import minimise

Likelihood = Literal["binary", "gaussian"]
Penalty = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(weights (r, n), rest (r, q), rows) -> value (r,) and the gradients by both."""


@dataclass(frozen=True)
class Cases:
    """The cases, and which of them each network learns.

    Attributes:
        inputs: (n, i).
        targets: (n,), 0 or 1 if binary.
        share: case weights (b, n).
        likelihood: `"binary"` (cross-entropy on the logit) or `"gaussian"`.
        hidden: h.
        noise: a fixed sigma_y of the Gaussian; None learns it.
        squashed: the Gaussian is about tanh f, for targets of -1 and 1.
    """

    inputs: Tensor
    targets: Tensor
    share: Tensor
    likelihood: Likelihood
    hidden: int
    noise: float | None = None
    squashed: bool = False

    @property
    def num_weights(self) -> int:
        """What the prior sees of a network: W and v."""
        return self.hidden * (self.inputs.shape[1] + 1)

    @property
    def num_parameters(self) -> int:
        """The length of theta, without a mixture's parameters."""
        return self.num_weights + self.hidden + 1 + (self.likelihood == "gaussian")

    def start(self, seeds: Sequence[int], scale: float, noise_std: float = 0.3) -> Tensor:
        """Initial networks, W, v, b and c uniform on +-scale, a function of their seeds alone.

        Returns:
            theta (b, p).
        """
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            row = torch.rand(self.num_parameters, generator=generator, dtype=torch.float64)
            rows.append(scale * (2.0 * row - 1.0))
        theta = torch.stack(rows)
        if self.likelihood == "gaussian":
            theta[:, -1] = 2.0 * math.log(self.noise or noise_std)
        return theta

    def outputs(self, theta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """f(x) of every network on every case.

        Returns:
            (b, n).
        """
        inputs = self.inputs if inputs is None else inputs
        w, v, b, c = self._parts(theta)
        active = torch.addmm(b.reshape(-1), inputs, w.T).tanh_().view(len(inputs), *v.shape)
        return ((active * v).sum(-1) + c).T

    def data_term(self, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(data | theta), summed over the weighted cases, in nats, and its gradient.

        Returns:
            Values (r,) and gradients (r, p).
        """
        share = self.share[rows].T
        w, v, b, c = self._parts(theta)
        active = torch.addmm(b.reshape(-1), self.inputs, w.T).tanh_()
        units = active.view(len(self.inputs), *v.shape)
        f = (units * v).sum(-1) + c
        value, push, noise = self.misfit(f, theta[:, self.num_parameters - 1], share)
        if self.likelihood == "binary":
            noise = theta[:, :0]
        push3 = push[..., None]
        by_v, by_c = (push3 * units).sum(0), push.sum(0)
        back = units.square().neg_().add_(1.0).mul_(v).mul_(push3)
        by_w = back.view(active.shape).T @ self.inputs
        gradient = [by_w.view(len(theta), -1), by_v, back.sum(0), by_c[:, None], noise]
        return value, torch.cat(gradient, 1)

    def misfit(
        self, f: Tensor, log_variance: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The likelihood: -log p(targets | f), and its gradients.

        Args:
            f: outputs (n, r).
            log_variance: log sigma_y^2 (r,); a binary likelihood does not look at it.
            share: case weights (n, r).

        Returns:
            Values (r,), gradients by f (n, r) and by log sigma_y^2 (r, 1).
        """
        y = self.targets[:, None]
        if self.likelihood == "binary":
            value = (share * (torch.nn.functional.softplus(f) - y * f)).sum(0)
            return value, share * (f.sigmoid() - y), torch.zeros_like(log_variance)[:, None]
        out = f.tanh() if self.squashed else f
        precision, off, count = (-log_variance).exp(), out - y, share.sum(0)
        squares = precision * (share * off.square()).sum(0)
        value = 0.5 * (squares + count * (log_variance + math.log(2.0 * math.pi)))
        free = self.noise is None
        push = share * off * precision
        if self.squashed:
            push *= 1.0 - out.square()
        return value, push, 0.5 * free * (count - squares)[:, None]

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, n = self.hidden, self.num_weights
        w = theta[:, : n - h].reshape(len(theta) * h, -1)
        return w, theta[:, n - h : n], theta[:, n : n + h], theta[:, n + h]


def train(
    cases: Cases,
    theta: Tensor,
    penalty: Penalty | None,
    iterations: int,
    *,
    each: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise data term + penalty for every network by L-BFGS.

    Args:
        cases: the data.
        theta: (b, p + q); the q last columns, if any, are the penalty's own parameters.
        penalty: (weights, rest, rows) -> value and gradients; None for none.
        iterations: to make.
        each: see `minimise`.

    Returns:
        theta and the objectives (b,), in nats.
    """
    n, p = cases.num_weights, cases.num_parameters

    def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = cases.data_term(x[:, :p], rows)
        if penalty is None:
            return value, gradient
        more, by_weights, by_rest = penalty(x[:, :n], x[:, p:], rows)
        gradient[:, :n] += by_weights
        return value + more, torch.cat([gradient, by_rest], 1)

    return minimise(objective, theta, iterations, each=each)

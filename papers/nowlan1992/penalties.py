"""The complexity terms: weight decay, weight elimination and soft weight-sharing, b at a time.

Each is called with the weights (r, n), further parameters (r, q) and the rows of these networks in
the batch, and returns its value in nats with the gradients by both. Each network has a strength.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Decay:
    """Weight decay, a Gaussian prior: sum w^2 / (2 std^2).

    Attributes:
        std: of the weights (b,).
    """

    std: Tensor

    def __call__(self, weights: Tensor, rest: Tensor, rows: Tensor) -> Result:
        """The penalty and its gradients."""
        precision = self.std[rows].pow(-2)
        value = 0.5 * precision * weights.square().sum(-1)
        return value, precision[:, None] * weights, torch.zeros_like(rest)


@dataclass(frozen=True)
class Elimination:
    """Weight elimination: strength * sum (w / scale)^2 / (1 + (w / scale)^2).

    Attributes:
        strength: the cost of a large weight, in nats (b,).
        scale: w_0, 1 in the literature, or one per network (b,).

    Reference:
        Weigend, Huberman & Rumelhart 1990.
    """

    strength: Tensor
    scale: Tensor

    def __call__(self, weights: Tensor, rest: Tensor, rows: Tensor) -> Result:
        """The penalty and its gradients."""
        strength, scale = self.strength[rows], self.scale[rows, None]
        squares = (weights / scale).square()
        value = strength * (squares / (1.0 + squares)).sum(-1)
        slope = 2.0 * weights / (scale * (1.0 + squares)).square()
        return value, strength[:, None] * slope, torch.zeros_like(rest)


@dataclass
class Sharing:
    """Soft weight-sharing: tau * (R(w; phi) - log p(phi)) with phi = (pi, mu, sigma), k a network.

    The same objective as `swsmix.MixturePrior.penalty`, up to the hyper-prior's constant. In mode
    "gradient" phi is part of what is minimised, as rest = (mu, log sigma, logits of pi); in mode
    "em" rest is empty, phi is held here and moved by `em_step_`.

    Attributes:
        mixing: pi (b, k).
        mean: mu (b, k).
        std: sigma (b, k).
        tau: the strength (b,).
        hyper_std: s of the hyper-prior (b,).
        hyper_count: nu of the hyper-prior (b,).
        concentration: alpha of the Dirichlet.
        pace: in mode "gradient", the unit in which phi is counted: below 1 it is slower to move
            than the weights, the counterpart of a learning rate of its own.
    """

    mixing: Tensor
    mean: Tensor
    std: Tensor
    tau: Tensor
    hyper_std: Tensor
    hyper_count: Tensor
    concentration: float = 2.0
    pace: float = 1.0

    def rest(self) -> Tensor:
        """The mixtures as parameters of mode "gradient".

        Returns:
            (b, 3 k).
        """
        return torch.cat([self.mean, self.std.log(), self.mixing.log()], 1) / self.pace

    def take_(self, rest: Tensor) -> None:
        """Hold the mixtures given by such parameters."""
        self.mean, log_std, logits = (self.pace * rest).chunk(3, 1)
        self.std, self.mixing = log_std.exp(), logits.softmax(1)

    def __call__(self, weights: Tensor, rest: Tensor, rows: Tensor) -> Result:
        """The penalty and its gradients."""
        if rest.shape[1]:
            mean, log_std, logits = (self.pace * rest).chunk(3, 1)
            std, mixing = log_std.exp(), logits.softmax(1)
        else:
            mixing, mean, std = self.mixing[rows], self.mean[rows], self.std[rows]
        tau, nu = self.tau[rows], self.hyper_count[rows, None]
        value, gamma, off = self._responsible(weights, mixing, mean, std)
        scaled = nu * (self.hyper_std[rows, None] / std).square()
        pseudo = self.concentration - 1.0
        hyper = ((nu + 2.0) * std.log() + 0.5 * scaled - pseudo * mixing.log()).sum(-1)
        pull = gamma * off
        by_weights = (pull / std[..., None]).sum(1)
        by_rest = rest
        if rest.shape[1]:
            count = gamma.sum(-1)
            by_mean = -pull.sum(-1) / std
            by_log_std = count - (pull * off).sum(-1) + nu + 2.0 - scaled
            total = weights.shape[1] + pseudo * mixing.shape[1]
            by_logits = total * mixing - count - pseudo
            by_rest = (self.pace * tau)[:, None] * torch.cat([by_mean, by_log_std, by_logits], 1)
        return tau * (value + hyper), tau[:, None] * by_weights, by_rest

    def em_step_(self, weights: Tensor) -> None:
        """One EM step of every mixture; `swsmix.m_step_`, b at a time."""
        _, gamma, off = self._responsible(weights, self.mixing, self.mean, self.std)
        count = gamma.sum(-1)
        shift = self.std * (gamma * off).sum(-1) / count.clamp_min(1e-300)
        second = self.std.square() * (gamma * off.square()).sum(-1)
        about = (second - count * shift.square()).clamp_min(0.0)
        nu, s = self.hyper_count[:, None], self.hyper_std[:, None]
        self.mean = self.mean + shift
        self.std = ((about + nu * s.square()) / (count + nu + 2.0)).sqrt()
        share = count + self.concentration - 1.0
        self.mixing = share / share.sum(-1, keepdim=True)

    @staticmethod
    def _responsible(
        weights: Tensor, mixing: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R (r,), the responsibilities (r, k, n), and (w - mu) / sigma (r, k, n)."""
        off = (weights[:, None, :] - mean[..., None]) / std[..., None]
        height = (mixing / std).log() - 0.5 * math.log(2.0 * math.pi)
        joint = off.square().mul_(-0.5).add_(height[..., None])
        top = joint.amax(1, keepdim=True)
        gamma = joint.sub_(top).exp_()
        total = gamma.sum(1, keepdim=True)
        value = -(total.log() + top).sum((1, 2))
        return value, gamma.div_(total), off

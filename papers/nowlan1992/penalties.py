"""The complexity terms: weight decay, weight elimination and soft weight-sharing, b at a time.

Each is called with the weights (r, n), further parameters (r, q) and the rows of these networks in
the batch, and returns its value in nats with the gradients by both. Each network has a strength.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from swsmix import GaussianMixture, HyperPrior
from swsmix.em import e_step, log_hyper_prior, m_step_
from swsmix.em.hyper_prior import log_density
from swsmix.tables import BatchTables, neg_log_prior

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

    The objective of `swsmix.MixturePrior.penalty`, by the library's functions. In mode "gradient"
    phi is part of what is minimised, as rest = (mu, log sigma, logits of pi); in mode "em" rest is
    empty, phi is held here and moved by `em_step_`.

    Attributes:
        mixture: the mixtures, (b, k) side by side, none of them pinned.
        hyper: their hyper-priors.
        tau: the strength (b,).
        pace: in mode "gradient", the unit in which phi is counted: below 1 it is slower to move
            than the weights, the counterpart of a learning rate of its own.
    """

    mixture: GaussianMixture
    hyper: HyperPrior
    tau: Tensor
    pace: float = 1.0
    # Of the mixtures as they are: the tables, and log p(phi).
    _known: tuple[BatchTables, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Expand the hyper-priors once: mode "gradient" asks for them at every step."""
        self._hyper = self.hyper.expanded(self.mixture)

    def rest(self) -> Tensor:
        """The mixtures as parameters of mode "gradient".

        Returns:
            (b, 3 k).
        """
        m = self.mixture
        return torch.cat([m.mean, m.std.log(), m.mixing.log()], 1) / self.pace

    def take_(self, rest: Tensor) -> None:
        """Hold the mixtures given by such parameters."""
        self.hold_(*self._phi(rest))

    def hold_(self, mixing: Tensor, mean: Tensor, std: Tensor) -> None:
        """Hold these mixtures."""
        self.mixture, self._known = GaussianMixture(mixing, mean, std), None

    def __call__(self, weights: Tensor, rest: Tensor, rows: Tensor) -> Result:
        """The penalty and its gradients."""
        tau = self.tau[rows]
        if not rest.shape[1]:
            tables, density = self._of(rows)
            full = tables.full(weights)
            return tau * (full.value - density), tau[:, None] * full.gradient, rest
        everyone = len(rows) == len(self.tau)
        hyper = self._hyper if everyone else {n: value[rows] for n, value in self._hyper.items()}
        with torch.enable_grad():
            w, free = weights.detach().requires_grad_(), rest.detach().requires_grad_()
            phi = self._phi(free)
            pinned = torch.zeros_like(phi[0], dtype=torch.bool)
            terms = neg_log_prior(w, *phi) - log_density(hyper, *phi, pinned, pinned, pinned)
            value = tau * terms
            by_weights, by_rest = torch.autograd.grad(value.sum(), (w, free))
        return value.detach(), by_weights, by_rest

    def em_step_(self, weights: Tensor) -> None:
        """One EM step of every mixture."""
        m_step_(self.mixture, e_step(self.mixture, weights), self.hyper)
        self._known = None

    def _phi(self, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pi, mu and sigma of parameters of mode "gradient"."""
        mean, log_std, logits = (self.pace * rest).chunk(3, 1)
        return logits.softmax(1), mean, log_std.exp()

    def _of(self, rows: Tensor) -> tuple[BatchTables, Tensor]:
        """The tables and log p(phi) of some of the mixtures that are held."""
        if self._known is None:
            m = self.mixture
            self._known = BatchTables(m.mixing, m.mean, m.std), log_hyper_prior(m, self.hyper)
        tables, density = self._known
        if len(rows) == len(self.tau):
            return tables, density
        return tables.rows(rows), density[rows]

"""Many small mixtures at once, each over its own row of weights: evaluated exactly, N x K memory.

What an ensemble of small networks needs: one call serves all of them, where a call of `Tables` for
each would cost more than its arithmetic.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix._log_odds import FAR, LOG_SQRT_2PI, log_odds, standardised
from swsmix.tables.lookup import Adaptive, Full, MomentSums, Sums


class BatchTables:
    """The functions of b mixtures of K components over b rows of n weights, in float64.

    The same operations as `Tables`, with a leading axis of members.

    Args:
        mixing: pi (b, k).
        mean: mu (b, k).
        std: sigma (b, k).

    Example:
        >>> pi, mu, sigma = torch.full((2, 1), 1.0), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1)
        >>> BatchTables(pi, mu, sigma).gradient(torch.tensor([[0.5], [0.5]])).tolist()
        [[0.5], [-0.5]]
    """

    def __init__(
        self, mixing: Float[Tensor, "b k"], mean: Float[Tensor, "b k"], std: Float[Tensor, "b k"]
    ) -> None:
        self.mixing, self.mean, self.std = (t.detach().double() for t in (mixing, mean, std))
        self._level = self.mixing.log() - self.std.log()

    def rows(self, rows: Tensor) -> BatchTables:
        """The tables of some of the members."""
        return BatchTables(self.mixing[rows], self.mean[rows], self.std[rows])

    def full(self, w: Float[Tensor, "b n"]) -> Full:
        """R of each member (b,), dR/dw (b, n), and the moments, each (b, k), centred on the means.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        value, gamma, z = self._responsible(w)
        pull = gamma * z
        count, first, second = gamma.sum(-1), pull.sum(-1), (pull * z).sum(-1)
        gradient = pull.div_(self.std[..., None]).sum(1).to(w.dtype)
        return Full(value, gradient, (count, first * self.std, second * self.std.square()))

    def value_and_moments(self, w: Float[Tensor, "b n"]) -> Sums:
        """What `full` returns, without the gradient."""
        full = self.full(w)
        return Sums(full.value, full.moments)

    def moments(self, w: Float[Tensor, "b n"]) -> MomentSums:
        """The moments of the weights under the responsibilities, each (b, k)."""
        return self.full(w).moments

    def gradient(self, w: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """dR/dw_i = sum_j gamma_ij (w_i - mu_j) / sigma_j^2."""
        return self.full(w).gradient

    @torch.no_grad()
    def proximal_(
        self,
        w: Float[Tensor, "b n"],
        at: Float[Tensor, "b n"],
        step: float | Adaptive,
        scale: Float[Tensor, " b"],
    ) -> None:
        """The proximal step of `Tables.proximal_`, at a strength of each member's own."""
        gamma = self._responsible(at)[1]
        precision = self.std.pow(-2)
        a = (gamma * precision[..., None]).sum(1)
        b = (gamma * (precision * self.mean)[..., None]).sum(1)
        t = scale.double()[:, None]
        if isinstance(step, Adaptive):
            t = t * step.rate / (step.second.double().sqrt() + step.eps)
        else:
            t = t * step
        w.copy_((w.double() + t * b) / (1.0 + t * a))

    def _responsible(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R (b,), gamma and z, each (b, k, n): the longest axis last, which is the fastest."""
        if not bool(w.isfinite().all()):
            bad = (~w.isfinite()).sum(-1)
            raise ValueError(f"weights must be finite; got infinite or NaN ones by member: {bad}")
        x = w.double()
        z = (x[:, None, :] - self.mean[..., None]) / self.std[..., None]
        joint = z.square().mul_(-0.5).add_(self._level[..., None])
        top = joint.amax(1, keepdim=True)
        odds = joint.sub_(top)  # in place, as below: memory of n x k takes longer than arithmetic
        if bool((top < FAR).any()):  # there the squares lose their differences
            mean, std, level = self.mean[:, None], self.std[:, None], self._level[:, None]
            exact = standardised(x[..., None], mean, std)
            odds = log_odds(x[..., None], exact, level, mean, std).mT
            odds, z = odds - odds.amax(1, keepdim=True), exact.mT
        gamma = odds.exp_()
        total = gamma.sum(1, keepdim=True)
        value = w.shape[-1] * LOG_SQRT_2PI - (total.log() + top).sum((1, 2))
        return value, gamma.div_(total), z

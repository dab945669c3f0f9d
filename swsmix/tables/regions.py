"""Decision regions: where on the weight axis which component is the most responsible.

argmax_j gamma_j(w) is constant between the points where two components are equally responsible.
Those are the roots of quadratics, so that sorting N weights into them takes O(N log K) time and
no N x K memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix.mixture import GaussianMixture

_CHUNK = 1 << 17


@dataclass(frozen=True)
class Regions:
    """Intervals of the weight axis and the component that claims each.

    Attributes:
        boundaries: the ends between neighbouring intervals (r - 1,), ascending, in float64.
        component: the most responsible component in each interval (r,).
        num_components: K of the mixture.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> decision_regions(mixture).boundaries
        tensor([0.5000], dtype=torch.float64)
    """

    boundaries: Float[Tensor, " r_less_1"]
    component: Int[Tensor, " r"]
    num_components: int

    def assign(self, w: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The most responsible component of each weight.

        Returns:
            Component numbers of the weights' shape.
        """
        return self.component[torch.bucketize(w.detach().cpu().double(), self.boundaries)]

    def count(self, w: Float[Tensor, "*n"]) -> Int[Tensor, " k"]:
        """The number of weights that each component claims, in bounded memory.

        Returns:
            One number for each component.
        """
        total = torch.zeros(len(self.component), dtype=torch.int64)
        for part in w.detach().reshape(-1).split(_CHUNK):
            region = torch.bucketize(part.cpu().double(), self.boundaries)
            total += torch.bincount(region, minlength=len(total))
        claimed = torch.zeros(self.num_components, dtype=torch.int64)
        return claimed.index_add_(0, self.component, total)


@torch.no_grad()
def decision_regions(mixture: GaussianMixture) -> Regions:
    """Where each component of a mixture is the most responsible.

    Args:
        mixture: the mixture (k components).

    Returns:
        The regions; neighbours belong to different components. Of components that are equal
        everywhere the first claims all.

    Example:
        >>> mixture = GaussianMixture([0.9, 0.1], [0.0, 0.0], [0.1, 1.0])
        >>> decision_regions(mixture).component
        tensor([1, 0, 1])
    """
    mixing, mean, std = (
        t.detach().double().cpu() for t in (mixture.mixing, mixture.mean, mixture.std)
    )
    live = mixing > 0
    pi, mu, sigma = mixing[live], mean[live], std[live]
    i, j = torch.triu_indices(len(pi), len(pi), 1)
    # log(pi_i N_i) = log(pi_j N_j) at mu_i + t, where a t^2 + b t + c = 0.
    d = mu[j] - mu[i]
    a = 0.5 / sigma[j].square() - 0.5 / sigma[i].square()
    b = -d / sigma[j].square()
    c = 0.5 * (d / sigma[j]).square() + (pi[i] / sigma[i]).log() - (pi[j] / sigma[j]).log()
    q = -0.5 * (b + torch.where(b < 0, -1.0, 1.0) * (b * b - 4 * a * c).sqrt())
    roots = torch.cat([mu[i] + q / a, mu[i] + c / q])  # nan or inf where there is none
    # Nearly equal components meet so far out that the square of the distance overflows.
    roots = roots[roots.abs() < 1e100].unique()
    if not len(roots):
        roots = mu[:1]
    beyond = 1.0 + roots.abs().max()
    probes = torch.cat([roots[:1] - beyond, (roots[1:] + roots[:-1]) / 2, roots[-1:] + beyond])
    z = (probes[:, None] - mean) / std
    winner = (mixing.log() - std.log() - 0.5 * z.square()).argmax(-1)
    change = winner[1:] != winner[:-1]
    first = torch.cat([torch.ones(1, dtype=torch.bool), change])
    return Regions(roots[change], winner[first], len(mean))

"""Decision regions: where on the weight axis which component is the most responsible.

argmax_j gamma_j(w) is constant between the points where two components are equally responsible.
Those are the roots of quadratics, so that sorting N weights into them takes O(N log K) time and
no N x K memory. The roots are found in float64 and in units of the components themselves, so
that neither weights far out in the tails nor mixtures of any magnitude lose digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix._log_odds import log_odds, standardised
from swsmix.mixture import GaussianMixture

_CHUNK = 1 << 17
_TYPES = {torch.float32, torch.float64}  # those in which weights are compared


@dataclass(frozen=True)
class Regions:
    """Intervals of the weight axis and the component that claims each.

    Attributes:
        boundaries: the last number of each interval but the last (r - 1,), ascending, in float64.
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
        """The most responsible component of each weight, on the weights' own device.

        Returns:
            Component numbers of the weights' shape.
        """
        flat = w.detach().reshape(-1)
        claimed = torch.empty(len(flat), dtype=torch.int64, device=w.device)
        component = self.component.to(w.device)
        for part, out in zip(flat.split(_CHUNK), claimed.split(_CHUNK), strict=True):
            out.copy_(component[self._interval(part)])
        return claimed.view(w.shape)

    def count(self, w: Float[Tensor, "*n"]) -> Int[Tensor, " k"]:
        """The number of weights that each component claims, in bounded memory.

        Returns:
            One number for each component, on the CPU.
        """
        total = torch.zeros(len(self.component), dtype=torch.int64, device="cpu")
        for part in w.detach().reshape(-1).split(_CHUNK):
            total += torch.bincount(self._interval(part), minlength=len(total)).cpu()
        claimed = torch.zeros(self.num_components, dtype=torch.int64, device="cpu")
        return claimed.index_add_(0, self.component, total)

    def _interval(self, w: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        if not bool(w.isfinite().all()):
            bad = int((~w.isfinite()).sum())
            raise ValueError(f"weights must be finite; {bad} of {len(w)} are nan or inf")
        w = w if w.dtype in _TYPES else w.float()
        return torch.bucketize(w, _rounded_down(self.boundaries, w.dtype).to(w.device))


@torch.no_grad()
def decision_regions(mixture: GaussianMixture) -> Regions:
    """Where each component of a mixture is the most responsible.

    Args:
        mixture: the mixture (k components).

    Returns:
        The regions; neighbours belong to different components. Where two components are equally
        responsible the first claims the weight; of components that are equal everywhere it
        claims all.

    Example:
        >>> mixture = GaussianMixture([0.9, 0.1], [0.0, 0.0], [0.1, 1.0])
        >>> decision_regions(mixture).component
        tensor([1, 0, 1])
    """
    mixing, mean, std = (
        t.detach().double().cpu() for t in (mixture.mixing, mixture.mean, mixture.std)
    )
    live = mixing > 0
    roots = _crossings(mixing[live], mean[live], std[live])
    single = _single_floats(mean[live], std[live])
    roots = torch.cat([roots, single]).unique()
    if not len(roots):
        return Regions(roots, _winners(mean[:1], mixing, mean, std), len(mean))
    beyond = roots[-1] - roots[0] + std.max()
    # Inside each interval near the mixture: far out, where stds that differ by a rounding error
    # meet, densities of any two components round to the same.
    middle, far = (roots[1:] + roots[:-1]) / 2, 10.0 * std.max()
    near = middle.clamp(mean.min() - far, mean.max() + far)
    inside = torch.where((roots[:-1] < near) & (near < roots[1:]), near, middle)
    inside = torch.where(inside > roots[:-1], inside, roots[1:])  # neighbouring floats
    probes = torch.cat([roots[:1] - beyond, inside, roots[-1:] + beyond])
    winner = _winners(probes, mixing, mean, std)
    change = winner[1:] != winner[:-1]
    boundaries, component = roots[change], winner[torch.cat([change.new_ones(1), change])]
    # Where two components are equally responsible the first claims the weight.
    below = torch.nextafter(boundaries, torch.full_like(boundaries, -torch.inf))
    first = (component[1:] < component[:-1]) & ~torch.isin(boundaries, single)
    boundaries = torch.where(first, below, boundaries)
    return Regions(boundaries, component, len(mean))


def _crossings(
    mixing: Float[Tensor, " k"], mean: Float[Tensor, " k"], std: Float[Tensor, " k"]
) -> Float[Tensor, " c"]:
    """The points where two components are equally responsible, ascending."""
    # With n the narrower and v the wider of two, r = sigma_n / sigma_v, D = (mu_v - mu_n) / sigma_v
    # and L = log(pi_n / sigma_n) - log(pi_v / sigma_v), they meet at mu_n + sigma_n u where
    # (1 - r^2) / 2 u^2 + r D u - (D^2 / 2 + L) = 0.
    order = std.argsort(stable=True)
    mixing, mean, std = mixing[order], mean[order], std[order]
    n, v = torch.triu_indices(len(std), len(std), 1, dtype=torch.int64, device=std.device)
    height = mixing.log() - std.log()
    level = height[n] - height[v]
    ratio, gap = std[n] / std[v], (mean[v] - mean[n]) / std[v]
    a = 0.5 * (1.0 - ratio) * (1.0 + ratio)
    b = ratio * gap
    c = -(0.5 * gap.square() + level)
    q = -0.5 * (b + torch.where(b < 0, -1.0, 1.0) * (gap.square() + 4.0 * a * level).sqrt())
    roots = torch.cat([mean[n] + std[n] * (q / a), mean[n] + std[n] * (c / q)])
    # Nan or inf where there is none; beyond 1e300 the places between them overflow.
    roots = roots[roots.abs() < 1e300]
    ascending: Tensor = roots.unique()
    return ascending


def _single_floats(mean: Float[Tensor, " k"], std: Float[Tensor, " k"]) -> Float[Tensor, " f"]:
    """Means of components narrower than the distance of floats there, and the floats below them."""
    below = torch.nextafter(mean, torch.full_like(mean, -torch.inf))
    single = (std < mean - below) & (mean.abs() < 1e300)
    return torch.cat([below[single], mean[single]])


def _winners(
    w: Float[Tensor, " n"],
    mixing: Float[Tensor, " k"],
    mean: Float[Tensor, " k"],
    std: Float[Tensor, " k"],
) -> Int[Tensor, " n"]:
    """The first of the most responsible components, evaluated one by one."""
    level = mixing.log() - std.log()
    parts = w[:, None].split(max(_CHUNK // len(mean), 1))
    odds = (log_odds(p, standardised(p, mean, std), level, mean, std) for p in parts)
    return torch.cat([each.argmax(-1) for each in odds])


def _rounded_down(x: Float[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """The largest numbers of a type that are not above x: w <= x is the same for all its w."""
    near = x.to(dtype)
    below = torch.nextafter(near, torch.full_like(near, -torch.inf))
    return torch.where(near.double() > x, below, near)

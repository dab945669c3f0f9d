"""The conjugate hyper-prior on a mixture: pseudo-counts for the M step, a density for the penalty.

The densities are over the mixing proportions and sigma^2, the same measure in every mode, so that
EM and gradient descent have the same stationary points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from swsmix.mixture import GaussianMixture

PerComponent = float | Tensor


@dataclass(frozen=True, eq=False)
class HyperPrior:
    """The conjugate hyper-prior on (pi, mu, sigma^2): pseudo-counts for the M step.

        pi ~ Dirichlet(alpha),  mu_j | sigma_j ~ N(m_j, sigma_j^2 / kappa_j),
        sigma_j^2 ~ scaled-inverse-chi^2(nu_j, s_j^2)

    Each value is one number, or one per component (k,).

    Attributes:
        concentration: alpha >= 1. The default, 2, is Laplace's rule: each component owns one
            pseudo-weight, so that none can die for good.
        mean: m, where the means are drawn to; used only if mean_count > 0.
        mean_count: kappa >= 0, in weights. The default, 0, leaves the means free, as both papers
            do.
        std: s > 0, the std that an empty component falls back to, in units of the weights.
        std_count: nu > 0, in weights. It keeps sigma away from 0; small against the number of
            weights of a component it changes little else.

    Raises:
        ValueError: if a value is outside its range.

    Example:
        >>> HyperPrior(std=0.05, std_count=10.0).concentration
        2.0
    """

    concentration: PerComponent = 2.0
    mean: PerComponent = 0.0
    mean_count: PerComponent = 0.0
    std: PerComponent = 0.1
    std_count: PerComponent = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, strict in (
            ("concentration", 1.0, False),
            ("mean", -torch.inf, True),
            ("mean_count", 0.0, False),
            ("std", 0.0, True),
            ("std_count", 0.0, True),
        ):
            given = getattr(self, name)
            # In numpy: a few numbers, and torch takes several times as long for each operation.
            value = given.detach().double().cpu().numpy() if isinstance(given, Tensor) else given
            least, most = np.min(value), np.max(value)  # nan, if there is one
            inside = (least > low if strict else least >= low) and most < np.inf
            if not inside:
                sign = ">" if strict else ">="
                raise ValueError(f"{name} of a HyperPrior must be {sign} {low:g}; got {given}")

    @classmethod
    def known(cls, **values: Tensor) -> HyperPrior:
        """One of values that have been checked before: a training step makes it many times."""
        made = object.__new__(cls)
        vars(made).update(values)
        return made

    def expanded(self, mixture: GaussianMixture) -> dict[str, Tensor]:
        """Each value as float64 (*b, k), on the mixture's device, by name.

        Raises:
            ValueError: if a value has another number of components.
        """
        tensors = {}
        for field in fields(self):
            value = torch.as_tensor(
                getattr(self, field.name), dtype=torch.float64, device=mixture.mean.device
            )
            wanted = mixture.mean.shape
            if value.shape == wanted:
                tensors[field.name] = value
                continue
            members = mixture.batch_shape and value.shape == (*mixture.batch_shape, 1)
            alike = value.shape == wanted[-1:]
            if value.ndim and not members and not alike:
                several = " of each member, or (b, 1), one per member" * bool(mixture.batch_shape)
                raise ValueError(
                    f"{field.name} of the HyperPrior needs one value or {mixture.num_components} "
                    f"(one per component){several}; got shape {tuple(value.shape)}"
                )
            tensors[field.name] = value.expand(wanted)
        return tensors


def log_hyper_prior(mixture: GaussianMixture, hyper: HyperPrior) -> Float[Tensor, "*b"]:
    """Log p(pi, mu, sigma^2), normalised, over the entries that are not pinned, in nats.

    The densities are over pi and sigma^2, never over logits or log sigma: then the M step and
    gradient descent have the same stationary points.

    Args:
        mixture: where to evaluate; differentiable if its tensors are parameters.
        hyper: the hyper-prior.

    Returns:
        A scalar in float64, or one for each member (b,).
    """
    pins = mixture.pinned_mixing, mixture.pinned_mean, mixture.pinned_std
    values = mixture.mixing, mixture.mean, mixture.std
    return log_density(hyper.expanded(mixture), *values, *pins)


def log_density(
    prior: Mapping[str, Tensor],
    mixing: Float[Tensor, "*b k"],
    mean: Float[Tensor, "*b k"],
    std: Float[Tensor, "*b k"],
    pinned_mixing: Bool[Tensor, "*b k"],
    pinned_mean: Bool[Tensor, "*b k"],
    pinned_std: Bool[Tensor, "*b k"],
) -> Float[Tensor, "*b"]:
    """`log_hyper_prior` of a mixture that is given as tensors, under `HyperPrior.expanded`."""

    def over(chosen: Tensor, values: Tensor) -> Tensor:
        return torch.where(chosen, values, 0.0).sum(-1)

    free = ~pinned_mixing
    mixing, alpha = mixing.double(), prior["concentration"]
    # The free proportions share 1 - (the pinned ones); their shares are Dirichlet.
    rest = (1.0 - over(~free, mixing))[..., None]
    share = torch.where(free, mixing / torch.where(free.any(-1, keepdim=True), rest, 1.0), 1.0)
    total = over(free, torch.xlogy(alpha - 1.0, share) - alpha.lgamma())
    total = total + torch.where(free.any(-1), over(free, alpha).clamp_min(1.0).lgamma(), 0.0)

    mean, variance = mean.double(), std.double().square()
    drawn = (prior["mean_count"] > 0) & ~pinned_mean
    spread = variance / torch.where(drawn, prior["mean_count"], 1.0)
    off = mean - prior["mean"]
    total = total - 0.5 * over(drawn, off.square() / spread + (2.0 * torch.pi * spread).log())

    half, s2 = 0.5 * prior["std_count"], prior["std"].square()
    drawn_std = half * (half * s2).log() - half.lgamma() - (half + 1.0) * variance.log()
    return total + over(~pinned_std, drawn_std - half * s2 / variance)

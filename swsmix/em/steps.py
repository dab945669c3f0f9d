"""The EM step: the E step sums up the weights, the M step fits the mixture to the sums.

The M step is the *maximum a posteriori* one: pseudo-counts from a conjugate hyper-prior keep
empty, duplicate and exactly-zero components finite, where textbook EM divides 0 by 0.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix import tables
from swsmix.em import variational
from swsmix.em.hyper_prior import HyperPrior
from swsmix.em.moments import Moments
from swsmix.mixture import GaussianMixture


def e_step(
    mixture: GaussianMixture,
    w: Float[Tensor, "*n"],
    table: tables.Tables | tables.BatchTables | None = None,
    *,
    variance: Float[Tensor, "*n"] | None = None,
) -> Moments:
    """The E step: the expected sufficient statistics of the weights under the mixture.

    With the posterior variance s_i^2 of each weight the expectation is over the posterior
    N(w_i, s_i^2) too (variational EM; MacKay 1992 for one Gaussian):

        gamma_ij proportional to pi_j N(w_i | mu_j, sigma_j^2) exp(-s_i^2 / (2 sigma_j^2)),
        second_j = sum_i gamma_ij ((w_i - mu_j)^2 + s_i^2)

    A sample of the weights contains s^2 by itself: then leave `variance` out.

    Args:
        mixture: the current mixture, or b of them.
        w: the weights, any shape; (b, n) for b mixtures.
        table: the mixture's tables, if they are at hand; without `variance` only.
        variance: s^2, of the shape of the weights, in their squared units; 0 if None.

    Returns:
        Moments centred on the mixture's means.

    Raises:
        ValueError: if weights are not finite, or variances not finite, negative or of another
            shape.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> e_step(mixture, torch.tensor([0.0, 0.1, 1.0])).count
        tensor([2., 1.], dtype=torch.float64)
    """
    if mixture.batch_shape and w.shape[:-1] != mixture.batch_shape:
        b = mixture.batch_shape[0]
        raise ValueError(f"{b} mixtures need weights ({b}, n); got {tuple(w.shape)}")
    if variance is not None:
        variance = variational.check("the weights", w, variance).reshape(-1)
        if not w.isfinite().all():
            raise ValueError(f"{int((~w.isfinite()).sum())} of the weights are nan or inf")
        if mixture.batch_shape:
            each = [
                e_step(mixture.member(i), x, variance=s2)
                for i, (x, s2) in enumerate(zip(w, variance.view(w.shape), strict=True))
            ]
            columns = ([getattr(m, f.name) for m in each] for f in fields(Moments))
            return Moments(*map(torch.stack, columns))
        sums = variational.expected_sums(mixture, w.detach().reshape(-1), variance)[1]
        return Moments(mixture.mean.detach().double(), *sums)
    if table is None:
        make = tables.BatchTables if mixture.batch_shape else tables.build
        table = make(mixture.mixing.detach(), mixture.mean.detach(), mixture.std.detach())
    return Moments(mixture.mean.detach().double(), *table.moments(w))


@torch.no_grad()
def m_step_(mixture: GaussianMixture, moments: Moments, hyper: HyperPrior | None) -> None:
    """The M step, in place: the mixture that maximises the expected log posterior.

        pi_j      proportional to N_j + alpha_j - 1   (those pinned stay, the rest is shared)
        mu_j      = (sum_i gamma_ij w_i + kappa_j m_j) / (N_j + kappa_j)
        sigma_j^2 = (sum_i gamma_ij (w_i - mu_j)^2 + kappa_j (mu_j - m_j)^2 + nu_j s_j^2)
                    / (N_j + nu_j + c_j)

    with c = 3 where the mean has a prior and 2 where it is pinned or has none (kappa = 0). With
    `hyper=None` it is textbook EM, pi_j = N_j / N, sigma_j^2 = second moment / N_j, which is not
    the limit of the above. In textbook EM a component without weights keeps its mean and std, and
    one whose weights are all equal keeps its std. So does one whose new std its type cannot hold.

    Args:
        mixture: the mixture to change; its pinned entries stay as they are, to the last bit.
        moments: from `e_step`, possibly pooled or damped.
        hyper: the hyper-prior, or None for textbook EM.

    Raises:
        TypeError: if the mixture is trainable: an optimiser moves it then.
        ValueError: if the moments are not finite; the mixture is left as it was.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 0.8], [0.1, 0.1])
        >>> m_step_(mixture, e_step(mixture, torch.tensor([0.0, 0.1, 1.0])), HyperPrior())
        >>> mixture.mean
        tensor([0.0500, 1.0000], dtype=torch.float64)
    """
    if mixture.is_trainable:
        raise TypeError("EM moves plain mixtures; this one is trainable, for an optimiser")
    count = moments.count
    if not all(s.isfinite().all() for s in (count, moments.first, moments.second)):
        raise ValueError(
            "the moments are not finite: the weights hold nan or inf, or their squares overflow"
        )
    if hyper is None:
        kappa = pull = nu = scale = c = torch.zeros_like(count)
        pseudo = torch.zeros_like(count)
    else:
        prior = hyper.expanded(mixture)
        kappa = torch.where(mixture.pinned_mean, 0.0, prior["mean_count"])
        pull, nu, scale = prior["mean"] - moments.centre, prior["std_count"], prior["std"]
        c = torch.where(kappa > 0, 3.0, 2.0)
        pseudo = prior["concentration"] - 1.0

    owned = count + kappa
    shift = torch.where(owned > 0, (moments.first + kappa * pull) / owned.clamp_min(1e-300), 0.0)
    mean = torch.where(mixture.pinned_mean, mixture.mean.double(), moments.centre + shift)
    about = moments.recentred(mean).second.clamp_min(0.0)
    penalty = kappa * (moments.centre + pull - mean).square() + nu * scale.square()
    variance = (about + penalty) / (count + nu + c).clamp_min(1e-300)
    std = variance.sqrt().to(mixture.std.dtype)
    # Positive and finite after the cast: float32 has no 1e-50 and no 1e50.
    std = torch.where(mixture.pinned_std | ~((std > 0) & std.isfinite()), mixture.std, std)

    share = torch.where(mixture.pinned_mixing, 0.0, count + pseudo)
    mixing = mixture.mixing.double()
    rest = 1.0 - torch.where(mixture.pinned_mixing, mixing, 0.0).sum(-1, keepdim=True)
    total = share.sum(-1, keepdim=True)
    free = ~mixture.pinned_mixing & (total > 0)
    mixing = torch.where(free, rest * share / total.clamp_min(1e-300), mixing)

    mixture.mean.copy_(mean)
    mixture.std.copy_(std)
    mixture.mixing.copy_(mixing)


def fit_mixture_(
    mixture: GaussianMixture,
    w: Float[Tensor, "*n"],
    hyper: HyperPrior | None,
    *,
    max_steps: int = 500,
    tolerance: float = 1e-8,
) -> int:
    """EM steps on fixed weights until the mixture stands still.

    Args:
        mixture: the start, changed in place.
        w: the weights.
        hyper: the hyper-prior, or None for textbook EM.
        max_steps: the most steps to take.
        tolerance: stop when no mean or std moves by more than this share of its component's std,
            and no mixing proportion by more than this.

    Returns:
        The number of steps taken.
    """
    for step in range(1, max_steps + 1):
        mixing, mean, std = (t.clone() for t in (mixture.mixing, mixture.mean, mixture.std))
        m_step_(mixture, e_step(mixture, w), hyper)
        moved = torch.stack(
            [(mixture.mixing - mixing), (mixture.mean - mean) / std, (mixture.std - std) / std]
        )
        if moved.abs().max() <= tolerance:
            return step
    return max_steps

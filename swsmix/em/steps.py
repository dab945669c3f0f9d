"""The EM step: the E step sums up the weights, the M step fits the mixture to the sums.

The M step is the *maximum a posteriori* one: pseudo-counts from a conjugate hyper-prior keep
empty, duplicate and exactly-zero components finite, where textbook EM divides 0 by 0.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
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
        numbers = mixture.mixing.detach(), mixture.mean.detach(), mixture.std.detach()
        if mixture.batch_shape:
            table = tables.BatchTables(*numbers)
        else:
            table = tables.build(*numbers, num_weights=w.numel())
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
    # In numpy on a CPU: a few numbers, and torch takes several times as long for each operation.
    if mixture.mean.device.type == "cpu":
        with np.errstate(all="ignore"):
            mean, std, mixing = map(torch.from_numpy, _maximised(np, mixture, moments, hyper))
    else:
        mean, std, mixing = _maximised(torch, mixture, moments, hyper)
    std = std.to(mixture.std.dtype)
    # Positive and finite after the cast: float32 has no 1e-50 and no 1e50.
    std = torch.where(mixture.pinned_std | ~((std > 0) & std.isfinite()), mixture.std, std)
    mixture.mean.copy_(mean)
    mixture.std.copy_(std)
    mixture.mixing.copy_(mixing)


def _maximised(
    xp: Any, mixture: GaussianMixture, moments: Moments, hyper: HyperPrior | None
) -> tuple[Any, Any, Any]:
    """Mean, std and mixing of `m_step_`, in float64, as arrays of numpy or of torch (`xp`)."""

    def array(tensor: Tensor) -> Any:
        return tensor.numpy() if xp is np else tensor

    def at_least(low: float, values: Any) -> Any:  # not `clip`, which takes ten times as long
        return np.maximum(values, low) if xp is np else values.clamp_min(low)

    def total(values: Any) -> Any:  # in torch's order
        if xp is np:
            return torch.from_numpy(values).sum(-1, keepdim=True).numpy()
        return values.sum(-1, keepdim=True)

    centre, count, first, second = (
        array(getattr(moments, f.name).detach().double()) for f in fields(Moments)
    )
    if not all(xp.isfinite(s).all() for s in (count, first, second)):
        raise ValueError(
            "the moments are not finite: the weights hold nan or inf, or their squares overflow"
        )
    pinned_mean, pinned_mixing = array(mixture.pinned_mean), array(mixture.pinned_mixing)
    if hyper is None:
        kappa = pull = nu = scale = c = pseudo = xp.zeros_like(count)
    else:
        prior = {name: array(value) for name, value in hyper.expanded(mixture).items()}
        kappa = xp.where(pinned_mean, 0.0, prior["mean_count"])
        pull, nu, scale = prior["mean"] - centre, prior["std_count"], prior["std"]
        c = xp.where(kappa > 0, 3.0, 2.0)
        pseudo = prior["concentration"] - 1.0

    owned = count + kappa
    shift = xp.where(owned > 0, (first + kappa * pull) / at_least(1e-300, owned), 0.0)
    mean = xp.where(pinned_mean, array(mixture.mean.double()), centre + shift)
    away = mean - centre
    about = at_least(0.0, second - 2.0 * away * first + away * away * count)
    penalty = kappa * xp.square(centre + pull - mean) + nu * xp.square(scale)
    std = xp.sqrt((about + penalty) / at_least(1e-300, count + nu + c))

    share = xp.where(pinned_mixing, 0.0, count + pseudo)
    mixing = array(mixture.mixing.double())
    rest = 1.0 - total(xp.where(pinned_mixing, mixing, 0.0))
    whole = total(share)
    free = ~pinned_mixing & (whole > 0)
    return mean, std, xp.where(free, rest * share / at_least(1e-300, whole), mixing)


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

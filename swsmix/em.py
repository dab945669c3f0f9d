"""EM for the mixture: the E step sums up the weights (`Moments`), the M step fits the mixture.

One EM step is `m_step_(mixture, e_step(mixture, w), hyper)`.

The M step is the *maximum a posteriori* one: pseudo-counts from a conjugate hyper-prior keep
empty, duplicate and exactly-zero components finite, where textbook EM divides 0 by 0. The
hyper-prior's densities are over the mixing proportions and sigma^2, the same measure in every
mode, so that EM and gradient descent have the same stationary points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix import tables, variational
from swsmix._cells import Cells
from swsmix.mixture import GaussianMixture

PerComponent = float | Tensor


@dataclass(frozen=True)
class Moments:
    """The expected sufficient statistics of a mixture, centred and in float64.

        N_j = sum_i gamma_ij,  first_j = sum_i gamma_ij (w_i - c_j),
        second_j = sum_i gamma_ij (w_i - c_j)^2

    They add up over tensors and over machines. They are centred on c (the means at the E step),
    since raw moments lose the variance to cancellation once sigma is small.

    Attributes:
        centre: c (k,), in units of the weights.
        count: N_j (k,), the expected number of weights of each component.
        first: first centred moment (k,).
        second: second centred moment (k,).

    Example:
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> e_step(mixture, torch.tensor([0.0, 0.1, 1.0])).count
        tensor([2., 1.], dtype=torch.float64)
    """

    centre: Float[Tensor, " k"]
    count: Float[Tensor, " k"]
    first: Float[Tensor, " k"]
    second: Float[Tensor, " k"]

    def recentred(self, centre: Float[Tensor, " k"]) -> Moments:
        """The same moments about other centres, exactly.

        Returns:
            Moments with `centre` as their centre.
        """
        shift = centre - self.centre
        second = self.second - 2.0 * shift * self.first + shift.square() * self.count
        return Moments(centre, self.count, self.first - shift * self.count, second)

    def __add__(self, other: Moments) -> Moments:
        """Pool the moments of two sets of weights, about this one's centres."""
        other = other.recentred(self.centre)
        return Moments(
            self.centre,
            self.count + other.count,
            self.first + other.first,
            self.second + other.second,
        )

    def damped(self, new: Moments, rate: float) -> Moments:
        """Running moments, s <- (1 - rate) s + rate s_new (Cappe & Moulines 2009).

        Moments about different means do not add, hence the old ones are recentred first.

        Args:
            new: the fresh moments.
            rate: rho in (0, 1]; 1 forgets the old ones.

        Returns:
            The running moments, about the new ones' centres.

        Raises:
            ValueError: if the rate is outside (0, 1].
        """
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"the rate of the running moments must lie in (0, 1]; got {rate}")
        old = self.recentred(new.centre)
        return Moments(
            new.centre,
            torch.lerp(old.count, new.count, rate),
            torch.lerp(old.first, new.first, rate),
            torch.lerp(old.second, new.second, rate),
        )


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
            value = getattr(self, name)
            where = (
                value.device if isinstance(value, Tensor) else "cpu"
            )  # not a default of the user's
            value = torch.as_tensor(value, dtype=torch.float64, device=where)
            inside = (value > low if strict else value >= low) & value.isfinite()
            if not inside.all():
                sign = ">" if strict else ">="
                raise ValueError(f"{name} of a HyperPrior must be {sign} {low:g}; got {value}")

    def expanded(self, mixture: GaussianMixture) -> dict[str, Tensor]:
        """Each value as float64 (k,), on the mixture's device, by name.

        Raises:
            ValueError: if a value has another number of components.
        """
        tensors = {}
        for field in fields(self):
            value = torch.as_tensor(
                getattr(self, field.name), dtype=torch.float64, device=mixture.mean.device
            )
            if value.ndim and value.shape != mixture.mean.shape:
                raise ValueError(
                    f"{field.name} of the HyperPrior needs one value or {mixture.num_components} "
                    f"(one per component); got shape {tuple(value.shape)}"
                )
            tensors[field.name] = value.expand(mixture.num_components)
        return tensors


def e_step(
    mixture: GaussianMixture,
    w: Float[Tensor, "*n"],
    table: tables.Tables | None = None,
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
        mixture: the current mixture.
        w: the weights, any shape.
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
    if variance is not None:
        variance = variational.check("the weights", w, variance).reshape(-1)
        if not w.isfinite().all():
            raise ValueError(f"{int((~w.isfinite()).sum())} of the weights are nan or inf")
        sums = variational.expected_sums(mixture, w.detach().reshape(-1), variance)[1]
        return Moments(mixture.mean.detach().double(), *sums)
    if table is None:
        table = tables.build(mixture.mixing.detach(), mixture.mean.detach(), mixture.std.detach())
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
    rest = 1.0 - mixture.mixing.double()[mixture.pinned_mixing].sum()
    mixing = mixture.mixing.double()
    if share.sum() > 0:
        mixing = torch.where(mixture.pinned_mixing, mixing, rest * share / share.sum())

    mixture.mean.copy_(mean)
    mixture.std.copy_(std)
    mixture.mixing.copy_(mixing)


def log_hyper_prior(mixture: GaussianMixture, hyper: HyperPrior) -> Float[Tensor, ""]:
    """Log p(pi, mu, sigma^2), normalised, over the entries that are not pinned, in nats.

    The densities are over pi and sigma^2, never over logits or log sigma: then the M step and
    gradient descent have the same stationary points.

    Args:
        mixture: where to evaluate; differentiable if its tensors are parameters.
        hyper: the hyper-prior.

    Returns:
        A scalar in float64.
    """
    prior = hyper.expanded(mixture)
    free = ~mixture.pinned_mixing
    alpha = prior["concentration"][free]
    # The free proportions share 1 - (the pinned ones); their shares are Dirichlet.
    rest = 1.0 - mixture.mixing.double()[mixture.pinned_mixing].sum()
    share = mixture.mixing.double()[free] / rest
    total = share.new_zeros(())
    if len(share):
        total = torch.xlogy(alpha - 1.0, share).sum() + alpha.sum().lgamma() - alpha.lgamma().sum()

    mean, variance = mixture.mean.double(), mixture.std.double().square()
    drawn = (prior["mean_count"] > 0) & ~mixture.pinned_mean
    spread = variance[drawn] / prior["mean_count"][drawn]
    off = mean[drawn] - prior["mean"][drawn]
    total = total - 0.5 * (off.square() / spread + (2.0 * torch.pi * spread).log()).sum()

    free = ~mixture.pinned_std
    half, s2, v = 0.5 * prior["std_count"][free], prior["std"][free].square(), variance[free]
    return (
        total
        + (half * (half * s2).log() - half.lgamma() - (half + 1.0) * v.log() - half * s2 / v).sum()
    )


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


def e_step_on_cells(mixture: GaussianMixture, cells: Cells) -> tuple[Float[Tensor, ""], Moments]:
    """The log likelihood of cells, in nats, and their moments under the mixture.

    A cell's weights share their responsibilities, those of the expected log density: a lower bound
    of the weights' own log likelihood, and near it where cells are narrow.
    """
    variance = cells.scatter / cells.count
    value, moments = variational.sums(mixture, cells.mean, variance, cells.count)
    return value, Moments(mixture.mean.clone(), *moments)


def fit_cells_(mixture: GaussianMixture, cells: Cells, hyper: HyperPrior, steps: int) -> float:
    """EM on cells, in place, until the log posterior stands still; its last value, in nats."""
    last = -math.inf
    for _ in range(steps):
        log_p, moments = e_step_on_cells(mixture, cells)
        value = (log_p + log_hyper_prior(mixture, hyper)).item()
        if value - last < 1e-3:
            break
        m_step_(mixture, moments, hyper)
        last = value
    return value


_MOMENTS = ("centre", "count", "first", "second")


class EMState(nn.Module):
    """What EM keeps from step to step: a mixture, its hyper-prior and its running moments.

    Args:
        mixture: its components.
        hyper: the hyper-prior of its M step.
        start_std: the weights' std at the start; 0 if unknown.
    """

    def __init__(self, mixture: GaussianMixture, hyper: HyperPrior, start_std: float = 0.0) -> None:
        super().__init__()
        self.mixture = mixture
        for name, value in hyper.expanded(mixture).items():
            self.register_buffer(f"hyper_{name}", value.clone())
        for name in _MOMENTS:
            empty = torch.full_like(self.hyper_std, torch.nan)
            self.register_buffer(f"running_{name}", empty)
        steps = torch.zeros((), dtype=torch.int64, device=mixture.mean.device)
        self.register_buffer("steps", steps)
        self.register_buffer("start_std", torch.full_like(self.hyper_std[0], start_std))

    hyper_std: Tensor
    start_std: Tensor
    running_count: Tensor
    steps: Tensor  # EM steps taken

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMState:
        # Statistics follow the mixture to its device, but stay in float64.
        own = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in own.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(self.mixture.mean.device)
        return self

    @property
    def hyper(self) -> HyperPrior:
        """The hyper-prior."""
        prefix = "hyper_"
        values = {n[len(prefix) :]: b for n, b in self.named_buffers() if n.startswith(prefix)}
        return HyperPrior(**values)

    @property
    def running(self) -> Moments | None:
        """The running moments; None before the first EM step."""
        if self.running_count.isnan().any():
            return None
        return Moments(*(getattr(self, f"running_{name}").clone() for name in _MOMENTS))

    def forget_(self) -> None:
        """Forget the running moments: the components are others now."""
        for name in _MOMENTS:
            getattr(self, f"running_{name}").fill_(torch.nan)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # Runs of before have no count and no start.
        state.setdefault(f"{prefix}steps", torch.zeros_like(self.steps))
        state.setdefault(f"{prefix}start_std", self.start_std)
        super()._load_from_state_dict(state, prefix, *args)

    def keep_(self, moments: Moments) -> None:
        """Count an EM step, and make these the running moments."""
        self.steps += 1
        for name in _MOMENTS:
            getattr(self, f"running_{name}").copy_(getattr(moments, name))

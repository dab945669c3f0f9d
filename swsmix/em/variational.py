"""Weights that are known up to a variance: what a mixture expects of them.

For a weight with the posterior N(w_i, s_i^2), E log N(w | mu_j, sigma_j^2) is
log N(w_i | mu_j, sigma_j^2) - s_i^2 / (2 sigma_j^2), hence

    gamma_ij proportional to pi_j N(w_i | mu_j, sigma_j^2) exp(-s_i^2 / (2 sigma_j^2)),
    F(w, s^2) = -sum_i log sum_j pi_j N(w_i | mu_j, sigma_j^2) exp(-s_i^2 / (2 sigma_j^2)).

F bounds -E log p(w) from above, and the bound is tight for the best gamma (variational EM). At
s = 0 both are those of the mixture itself. EM's fixed point is MacKay's (1992)

    sigma_j^2 = sum_i gamma_ij (w_i - mu_j)^2 / sum_i gamma_ij (1 - s_i^2 / sigma_j^2),

whose own iteration is faster (6 steps against 21 on a regression of 12 weights) but may lower the
evidence, and divides by 0 where the data determine nothing.

What is expected of weights with nearly the same w and s
is nearly the same, so that many weights are summed up by cells in (w, log s).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.mixture import GaussianMixture

DIRECT = 1 << 22  # up to this N x K every weight is a cell of its own
_CHUNK = 1 << 20
# Cells are so many stds wide near a centre and in proportion to the distance farther out, and
# cover this share of s; below and above, s is told from no other.
_STEP, _SPREAD_STEP, _SPREADS = 0.02, 0.1, (1e-3, 30.0)


def neg_expected_log_prior(
    mixture: GaussianMixture, w: Float[Tensor, " n"], variance: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """F(w, s^2) in nats: differentiable, with N x K memory.

    Args:
        mixture: the mixture.
        w: the posterior means.
        variance: s^2, the posterior variances, in squared units of the weights.

    Returns:
        A scalar.

    Example:
        >>> mixture, w = GaussianMixture([1.0], [0.0], [1.0]), torch.zeros(1)
        >>> F = [neg_expected_log_prior(mixture, w, torch.tensor([s2])) for s2 in (0.0, 1.0)]
        >>> bool((F[1] - F[0]).isclose(torch.tensor(0.5)))
        True
    """
    log_p = _log_joint(mixture, w, variance)[0].logsumexp(1)
    return 0.5 * math.log(2.0 * math.pi) * len(w) - log_p.sum()


@torch.no_grad()
def precision(
    mixture: GaussianMixture, w: Float[Tensor, " n"], variance: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """sum_j gamma_ij / sigma_j^2: the precision that the mixture gives to each weight.

    It is that of the best Gaussian posterior: F's bound is quadratic in w once gamma is held fixed.
    """
    gamma = _log_joint(mixture, w, variance)[0].softmax(1)
    bends: Tensor = mixture.std.to(gamma).square().reciprocal()
    return gamma @ bends


@torch.no_grad()
def variance_of(
    mixture: GaussianMixture, w: Float[Tensor, " n"], data: Float[Tensor, " n"], tau: float
) -> Float[Tensor, " n"]:
    """s_i^2 = 1 / (h_i + tau sum_j gamma_ij / sigma_j^2), where gamma depends on s_i^2 in turn.

    Args:
        mixture: the mixture.
        w: the posterior means.
        data: h, the precision that the data give to each weight, in nats per squared unit.
        tau: the strength of the mixture.

    Returns:
        s^2 in float64, after six rounds of each for the other; bounded memory.
    """
    parts = []
    size = max(1, _CHUNK // len(mixture.mean))
    for x, h in zip(w.double().split(size), data.double().split(size), strict=True):
        s2 = torch.zeros_like(x)
        for _ in range(6):
            s2 = (h + tau * precision(mixture, x, s2)).reciprocal()
        parts.append(s2)
    return torch.cat(parts)


def _log_joint(
    mixture: GaussianMixture, w: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log pi_j + E log N up to a constant, w - mu_j and its expected square, each (*b, n, k)."""
    values = (mixture.mixing, mixture.mean, mixture.std)
    pi, mu, sigma = (t.detach().to(w).unsqueeze(-2) for t in values)
    off = w[:, None] - mu
    square = off.square() + variance[:, None]
    return pi.log() - sigma.log() - 0.5 * square / sigma.square(), off, square


@torch.no_grad()
def sums(
    mixture: GaussianMixture,
    w: Float[Tensor, " n"],
    variance: Float[Tensor, " n"],
    count: Float[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "3 *b k"]]:
    """-F of weights, and their expected N_j, first and second moments about the means.

        N_j = sum_i gamma_ij,  first_j = sum_i gamma_ij (w_i - mu_j),
        second_j = sum_i gamma_ij ((w_i - mu_j)^2 + s_i^2)

    Args:
        mixture: the mixture, or b of them, each over the same weights.
        w: the posterior means.
        variance: the posterior variances.
        count: how many weights each entry stands for; one by default.

    Returns:
        The value in nats and the moments, in float64.
    """
    w, variance = w.double(), variance.double()
    count = torch.ones_like(w) if count is None else count.double()
    value, moments = w.new_zeros(mixture.batch_shape), w.new_zeros(3, *mixture.mean.shape)
    size = max(1, _CHUNK // mixture.mean.numel())
    for part in zip(w.split(size), variance.split(size), count.split(size), strict=True):
        joint, off, square = _log_joint(mixture, *part[:2])
        log_p = joint.logsumexp(-1)
        share = (joint - log_p[..., None]).exp() * part[2][:, None]
        value += (part[2] * log_p).sum(-1)
        moments += torch.stack([share.sum(-2), (share * off).sum(-2), (share * square).sum(-2)])
    return value - 0.5 * math.log(2.0 * math.pi) * count.sum(), moments


@torch.no_grad()
def gathered(
    mixture: GaussianMixture, w: Float[Tensor, " n"], variance: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Weights with their variances as cells in (w, log s), in O(N).

    Args:
        mixture: its stds say how narrow cells must be.
        w: the posterior means.
        variance: the posterior variances.

    Returns:
        w, variance and count of the cells, for `sums`. A cell's variance includes its scatter, so
        that the sums over j of the moments about one centre are those of the weights themselves.
    """
    edges = _edges(mixture, *w.aminmax())
    least, most = (t.double().item() for t in mixture.std.aminmax())
    low, high = math.log(_SPREADS[0] * least), math.log(_SPREADS[1] * most)
    rows = math.ceil((high - low) / _SPREAD_STEP) + 1
    totals = torch.zeros(4, (len(edges) - 1) * rows, dtype=torch.float64, device=w.device)
    for x, s2 in zip(w.split(_CHUNK), variance.split(_CHUNK), strict=True):
        x, s2 = x.double(), s2.double()
        column = torch.searchsorted(edges, x, right=True).sub_(1).clamp_(0, len(edges) - 2)
        row = (0.5 * s2.log()).clamp_(low, high).sub_(low).div_(_SPREAD_STEP).long()
        off = x - edges[column]
        values = torch.stack([torch.ones_like(x), off, off.square(), s2])
        totals.index_add_(1, column * rows + row, values)
    used = totals[0].nonzero()[:, 0]
    count, first, second, s2 = totals[:, used]
    mean = first / count
    scatter = (second / count - mean.square()).clamp_min(0.0)
    return edges[used // rows] + mean, s2 / count + scatter, count


def _edges(mixture: GaussianMixture, low: Tensor, high: Tensor) -> Tensor:
    """Where the axis of the weights is cut: at mu_j +- sigma_j sinh(step k), for all j and k."""
    mu, sigma = mixture.mean.detach().double(), mixture.std.detach().double()
    low, high = low.double(), high.double()
    reach = torch.asinh(torch.maximum((high - mu).abs(), (low - mu).abs()) / sigma).max()
    most = math.ceil(reach.item() / _STEP)
    steps = torch.arange(-most, most + 1, dtype=torch.float64, device=mu.device)
    edges = (mu[:, None] + sigma[:, None] * torch.sinh(_STEP * steps)).flatten()
    inside = edges[(edges > low) & (edges < high)]
    return torch.cat([low.reshape(1), inside.unique(), high.reshape(1)])


@torch.no_grad()
def expected_sums(
    mixture: GaussianMixture, w: Float[Tensor, " n"], variance: Float[Tensor, " n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "3 k"]]:
    """`sums`, by cells where that takes less time: within 3e-3 of it, relative to N_j."""
    if w.numel() * len(mixture.mean) <= DIRECT:
        return sums(mixture, w, variance)
    return sums(mixture, *gathered(mixture, w, variance))


def check(name: str, w: Tensor, variance: object) -> Tensor:
    """A tensor's posterior variances, checked.

    Raises:
        ValueError: if their shape is not the tensor's, or they are not finite and at least 0.
    """
    if not isinstance(variance, Tensor):
        raise ValueError(
            f"the variance of {name} must be a tensor of the shape {tuple(w.shape)}, s^2 of each "
            f"weight; got {type(variance).__name__}"
        )
    if variance.shape != w.shape:
        raise ValueError(
            f"the variance of {name} must have its shape {tuple(w.shape)}, s^2 of each weight; got "
            f"{tuple(variance.shape)}"
        )
    wrong = ~(variance.isfinite() & (variance >= 0))
    if wrong.any():
        raise ValueError(
            f"variances must be finite and at least 0; {int(wrong.sum())} of the "
            f"{wrong.numel()} of {name} are not"
        )
    return variance.detach().to(w.device)


def check_names(names: Iterable[str], variance: Mapping[str, Tensor]) -> None:
    """Check that a mapping holds a prior's tensors, no fewer and no others.

    Raises:
        ValueError: if not.
    """
    if not isinstance(variance, Mapping):
        raise ValueError(
            "variance must be a mapping, name of the parameter -> tensor of s^2; got "
            f"{type(variance).__name__}"
        )
    names = list(names)
    missing = [name for name in names if name not in variance]
    unknown = [name for name in variance if name not in names]
    if missing or unknown:
        raise ValueError(
            "variance must hold s^2 of each tensor of the prior, by name; "
            + "; ".join(
                f"{what}: {which}"
                for what, which in (("missing", missing), ("not in the prior", unknown))
                if which
            )
        )


Variance = Mapping[str, Tensor]

"""Components that are nearly the same, merged by their moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.mixture import GaussianMixture

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Merged:
    """A mixture with fewer components, and what that costs.

    Attributes:
        mixture: the mixture.
        parts: the old components that each new one is made of.
        loss: sum_i log p_old(w_i) - log p_new(w_i) over the weights, in nats: by how much the
            penalty R rises.
    """

    mixture: GaussianMixture
    parts: tuple[tuple[int, ...], ...]
    loss: float


@torch.no_grad()
def merge_components(
    mixture: GaussianMixture,
    w: Float[Tensor, "*n"],
    *,
    by: Literal["kl", "overlap"] = "kl",
    threshold: float | None = None,
) -> Merged:
    """Merge components that are nearly the same, the closest pair first, matching their moments.

        pi = pi_a + pi_b,  mu = (pi_a mu_a + pi_b mu_b) / pi,
        sigma^2 = (pi_a (sigma_a^2 + (mu_a - mu)^2) + pi_b (sigma_b^2 + (mu_b - mu)^2)) / pi

    Ullrich, Meeds & Welling 2017, section 3.3, merge by KL but average the variances alone, which
    loses the spread between the means. A pinned mean or std stays, and the variance is taken
    about it; two different pinned means are never merged.

    Args:
        mixture: the mixture, unchanged.
        w: the weights on which the loss is stated.
        by: `"kl"` merges below a threshold of the symmetric divergence
            (KL(a||b) + KL(b||a)) / 2 in nats, 0.1 by default; `"overlap"` above one of
            Bhattacharyya's coefficient, the integral of sqrt(N_a N_b), 0.95 by default.
        threshold: the threshold of that measure; None takes its default.

    Returns:
        The merged mixture and what the merging costs.

    Raises:
        ValueError: for an unknown measure or an impossible threshold.

    Example:
        >>> mixture = GaussianMixture([0.5, 0.25, 0.25], [0.0, 1.0, 1.01], [0.1, 0.1, 0.1])
        >>> merged = merge_components(mixture, mixture.sample(1000))
        >>> merged.parts, bool(merged.loss < 1.0)
        (((0,), (1, 2)), True)
    """
    if by not in ("kl", "overlap"):
        raise ValueError(f"by must be 'kl' or 'overlap'; got {by!r}")
    threshold = (0.1 if by == "kl" else 0.95) if threshold is None else threshold
    if not 0.0 <= threshold <= (math.inf if by == "kl" else 1.0):
        raise ValueError(
            f"a threshold of {threshold} is impossible for {by!r}: it must lie between 0 and "
            + ("infinity" if by == "kl" else "1")
        )
    limit = threshold if by == "kl" else -math.log(max(threshold, 1e-300))
    columns = ("mixing", "mean", "std", "pinned_mixing", "pinned_mean", "pinned_std")
    table = torch.stack([getattr(mixture, name).detach().double() for name in columns])
    parts: list[tuple[int, ...]] = [(j,) for j in range(mixture.num_components)]
    while len(parts) > 1:
        distance = _distances(table, by)
        closest = int(distance.argmin())
        if not distance.flatten()[closest] <= limit:
            break
        a, b = sorted(divmod(closest, len(parts)))
        table[:, a] = _moment_matched(table[:, a], table[:, b])
        table = torch.cat([table[:, :b], table[:, b + 1 :]], 1)
        parts[a] = tuple(sorted(parts[a] + parts.pop(b)))
    like = mixture.mean
    merged = GaussianMixture(
        *(row.to(like.device, like.dtype) for row in table[:3]),
        **{name: row.bool() for name, row in zip(columns[3:], table[3:], strict=True)},
    )
    flat = w.detach().reshape(-1).to(like.dtype)
    loss = sum(
        (mixture.log_prob(part) - merged.log_prob(part)).double().sum().item()
        for part in flat.split(_CHUNK)
    )
    return Merged(merged, tuple(parts), float(loss))


def _distances(table: Float[Tensor, "6 k"], by: str) -> Float[Tensor, "k k"]:
    """Pairwise symmetric KL, or -log of Bhattacharyya's coefficient; inf where it must not be."""
    _, mean, std, _, pinned, fixed = table
    variance = std.square()
    gap = (mean[:, None] - mean).square()
    both = variance[:, None] + variance
    if by == "kl":  # the logarithms of sigma cancel
        inverse = 1.0 / variance
        ratio = variance[:, None] / variance
        distance = (ratio + 1.0 / ratio - 2.0 + gap * (inverse[:, None] + inverse)) / 4.0
    else:
        distance = gap / (4.0 * both) + 0.5 * (both / (2.0 * std[:, None] * std)).log()
    never = ((pinned[:, None] * pinned > 0) & (gap > 0)) | (
        (fixed[:, None] * fixed > 0) & (std[:, None] != std)
    )
    distance[never] = torch.inf
    distance.fill_diagonal_(torch.inf)
    result: Tensor = distance
    return result


def _moment_matched(a: Float[Tensor, " 6"], b: Float[Tensor, " 6"]) -> Float[Tensor, " 6"]:
    both = torch.stack([a, b])
    share = both[:, 0]
    total = share.sum()
    share = share / total if total > 0 else torch.full_like(share, 0.5)
    pins = both[:, 3:].amax(0)
    mean = (share * both[:, 1]).sum()
    if pins[1]:
        mean = both[int(both[:, 4].argmax()), 1]
    variance = (share * (both[:, 2].square() + (both[:, 1] - mean).square())).sum()
    std = both[int(both[:, 5].argmax()), 2] if pins[2] else variance.sqrt()
    return torch.stack([total, mean, std, *pins])

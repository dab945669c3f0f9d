"""The values of a file: components that describe the same weights become one value.

A mixture may have more components than the weights have values. In a file each one would split
the numbers of its weights from those of its twin's, and cost a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swsmix.mixture import GaussianMixture
from swsmix.tables.regions import Regions, decision_regions


@dataclass(frozen=True)
class FileValues:
    """The values that weights under a mixture take, and which of them take which.

    Attributes:
        codebook: the value of each component (k,); those of one group are equal.
        regions: where on the weight axis which value is taken; one component stands for its group.
    """

    codebook: Float[Tensor, " k"]
    regions: Regions


@torch.no_grad()
def file_values(mixture: GaussianMixture, distortion: float = 1.0) -> FileValues:
    """Merge the components that a file need not tell apart, within a bound on what that moves.

    A group S of components takes one value c, with the least distortion in units of their stds,

        c = sum_S pi_j mu_j / sigma_j^2 / sum_S pi_j / sigma_j^2,
        |c - mu_j| <= distortion * sigma_j for each j in S,

    or the pinned mean, if one of S has one; two different pinned means never merge. Merging two
    groups of proportions a and b saves one value and, per weight,
    (a + b) log(a + b) - a log a - b log b nats: it never costs bytes, and so the bound alone ends
    it. The pair with the least distortion per nat saved merges first. Components that are nowhere
    the most responsible take no part.

    Then no weight takes a value that is farther *and* rarer than another: it goes to the nearest
    of its component's value and those whose proportion is at least that component's. So a wide
    component that describes nothing, but claims the outermost weights of the others, moves them
    nowhere.

    All of this follows from the mixture alone, whose evidence is another matter and which stays
    as it is. So snapping is idempotent, as long as each value belongs to its own group.

    Args:
        mixture: the mixture.
        distortion: the most by which merging moves a weight, in stds of the component that claims
            it; 0 merges nothing, and each weight takes its most responsible component's mean.

    Returns:
        The values and the regions.

    Raises:
        ValueError: if the distortion is negative or not finite.

    Example:
        >>> twins = GaussianMixture([0.5, 0.3, 0.2], [0.0, 0.01, 1.0], [0.1, 0.12, 0.1])
        >>> found = file_values(twins)
        >>> found.regions.assign(torch.tensor([0.0, 0.3, 0.9]))
        tensor([0, 0, 2])
        >>> found.codebook[0] == found.codebook[1]
        tensor(True)
    """
    if not 0.0 <= distortion < math.inf:
        raise ValueError(
            "distortion is the most by which merging may move a weight, in stds of its component: "
            f"it must be finite and at least 0; got {distortion}"
        )
    regions = decision_regions(mixture)
    codebook = mixture.mean.detach().clone()
    if distortion == 0.0:
        return FileValues(codebook, regions)
    mixing = mixture.mixing.detach().double().cpu()
    owners = regions.component.unique()
    groups = _merged(_each(mixture, owners, distortion), codebook.dtype)
    group = torch.full_like(mixing, -1, dtype=torch.int64)
    group[owners] = groups.member.int().argmax(0)
    codebook[owners.to(codebook.device)] = groups.value[group[owners]].to(codebook)
    # A group's most common component stands for it, one pinned before all others.
    rank = groups.member * (mixing + 2.0 * mixture.pinned_mean.cpu())[owners]
    stands = owners[rank.argmax(1)]
    return FileValues(codebook, _nearest(regions, mixing, group, groups, stands))


class _Groups(NamedTuple):
    """Groups of components, in float64 on the CPU.

    Attributes:
        share: their mixing proportions (g,).
        weight: sum of pi / sigma^2, up to a factor (g,).
        value: c (g,).
        low: the least c that the bound allows (g,).
        high: the largest (g,).
        pinned: whether c is pinned (g,).
        member: which components belong to it (g, k).
    """

    share: Float[Tensor, " g"]
    weight: Float[Tensor, " g"]
    value: Float[Tensor, " g"]
    low: Float[Tensor, " g"]
    high: Float[Tensor, " g"]
    pinned: Bool[Tensor, " g"]
    member: Bool[Tensor, "g k"]


def _each(mixture: GaussianMixture, owners: Int[Tensor, " k"], distortion: float) -> _Groups:
    """Each of some components as a group of its own."""
    mixing, mean, std = (
        t.detach().double().cpu()[owners] for t in (mixture.mixing, mixture.mean, mixture.std)
    )
    return _Groups(
        mixing,
        (mixing * (std.min() / std).square()).clamp_min(1e-300),
        mean,
        mean - distortion * std,
        mean + distortion * std,
        mixture.pinned_mean.cpu()[owners],
        torch.eye(len(owners), dtype=torch.bool, device="cpu"),
    )


def _merged(groups: _Groups, dtype: torch.dtype) -> _Groups:
    """Groups merged, pair by pair, until no pair has a value that is allowed for both."""
    while True:
        share, weight, value, low, high, pinned, _ = groups
        gap = value - value[:, None]
        union = value[:, None] + weight / (weight + weight[:, None]) * gap
        union = union.to(dtype).double()  # the bound is on the value as it is stored
        union = torch.where(pinned, value, union)
        union = torch.where(pinned[:, None], value[:, None], union)
        allowed = (union >= torch.maximum(low, low[:, None])) & (
            union <= torch.minimum(high, high[:, None])
        )
        allowed &= ~(pinned & pinned[:, None]) | (gap == 0.0)
        allowed = allowed.triu(1)
        if not allowed.any():
            return groups
        both = share + share[:, None]
        entropy = torch.xlogy(share, share)
        saved = torch.xlogy(both, both) - entropy - entropy[:, None]
        moved = weight * (union - value).square()
        price = ((moved + moved.T) / saved.clamp_min(1e-300)).clamp_max(1e300)
        i, j = divmod(int(price.masked_fill(~allowed, torch.inf).argmin()), len(share))
        one, other = (_Groups(*(t[k] for t in groups)) for k in (i, j))
        made = _Groups(
            one.share + other.share,
            one.weight + other.weight,
            union[i, j],
            torch.maximum(one.low, other.low),
            torch.minimum(one.high, other.high),
            one.pinned | other.pinned,
            one.member | other.member,
        )
        rest = torch.arange(len(share), dtype=torch.int64, device="cpu") != j
        for t, new in zip(groups, made, strict=True):
            t[i] = new
        groups = _Groups(*(t[rest] for t in groups))


def _nearest(
    regions: Regions,
    mixing: Float[Tensor, " k"],
    group: Int[Tensor, " k"],
    groups: _Groups,
    stands: Int[Tensor, " g"],
) -> Regions:
    """The regions of the groups, each cut where a value that is as common is nearer."""
    order = groups.value.argsort(stable=True)
    ends = torch.nn.functional.pad(regions.boundaries, (1, 1), value=torch.inf)
    ends[0] = -torch.inf
    cuts, parts = [], []
    for number, j in enumerate(regions.component.tolist()):
        common = (groups.share >= mixing[j]).index_fill(0, group[j], True)
        near = order[common[order]]
        middle = groups.value[near]
        middle = (middle[1:] + middle[:-1]) / 2.0
        first = int(torch.searchsorted(middle, ends[number], right=True))
        last = int(torch.searchsorted(middle, ends[number + 1]))
        cuts += [middle[first:last], ends[number + 1 : number + 2]]
        parts.append(stands[near[first : last + 1]])
    boundaries, component = torch.cat(cuts)[:-1], torch.cat(parts)
    change = component[1:] != component[:-1]
    component = component[torch.cat([change.new_ones(1), change])]
    return Regions(boundaries[change], component, regions.num_components)

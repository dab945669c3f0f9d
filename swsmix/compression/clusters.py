"""The clusters of one tensor between the phases of `compress_`: split, merge, round, describe."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from swsmix.compression.centres import centre_sums
from swsmix.compression.snap import snap_to_grid
from swsmix.mixture import GaussianMixture
from swsmix.start import initial_mixture


def spread(w: Float[Tensor, "*n"]) -> float:
    """The std of the weights; of equal ones their magnitude, and 1 if they are all 0."""
    w = w.detach().double()
    return w.std(correction=0).item() or w.abs().max().item() or 1.0


def spike_and_slab(spike: float, slab: float) -> GaussianMixture:
    """A component pinned at zero, whose std the schedule sets, and a wide one that stays."""
    return GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=torch.float32, device="cpu"),
        torch.zeros(2, dtype=torch.float32, device="cpu"),
        torch.tensor([spike, slab], dtype=torch.float32, device="cpu"),
        pinned_mean=[True, True],
        pinned_std=[False, True],
    )


def split_slab(
    zero: Bool[Tensor, "*n"], w: Float[Tensor, "*n"], most: int, std: float, seed: int
) -> GaussianMixture:
    """The zero component and at most so many clusters of the weights outside it, of one std."""
    w = w.detach().reshape(-1)
    outside = w[~zero.reshape(-1)]
    k = min(most, len(outside.unique()))
    mixing = torch.ones(1, dtype=torch.float32, device=w.device)
    mean = torch.zeros_like(mixing)
    if k:
        clusters = initial_mixture(outside, k, method="kmeans", seed=seed)
        share = len(outside) / len(w)
        mixing = torch.cat([(1.0 - share) * mixing, share * clusters.mixing])
        mean = torch.cat([mean, clusters.mean])
    return GaussianMixture(
        mixing, mean, torch.full_like(mean, std), pinned_mean=[True] + [False] * k
    )


def many_centres(
    zero: Bool[Tensor, "*n"], w: Float[Tensor, "*n"], most: int, unit: float, seed: int
) -> tuple[Float[Tensor, " k"], float]:
    """Zero and at most so many centres of the other weights: by k-means, or many on a grid.

    Returns:
        The centres, and how near two of them may be to merge.
    """
    if most < 100:
        return split_slab(zero, w, most, unit, seed).mean, 0.01 * unit
    ends = float(w.min()), float(w.max())
    grid = torch.linspace(*ends, most, dtype=torch.float64, device=w.device)
    return torch.cat([torch.zeros_like(grid[:1]), grid]), 0.0


def merge_clusters(
    index: Int[Tensor, "*n"], w: Float[Tensor, "*n"], *, nearest: float, rare: int
) -> Int[Tensor, "*n"]:
    """Merge clusters nearer than `nearest` and those of fewer weights than `rare`; number anew.

    Args:
        index: the cluster of each weight; cluster 0 is that of zero, and its centre is 0.
        w: the weights.
        nearest: the largest distance of two centres that merge, in units of the weights.
        rare: the smallest number of weights that is a cluster of its own.

    Returns:
        The new cluster of each weight: 0 for zero, then in the order of the centres.
    """
    flat, j = w.reshape(-1).double(), index.reshape(-1)
    while True:
        count = torch.bincount(j)
        live = count.nonzero().reshape(-1)
        centre = torch.bincount(j, flat) / count.clamp_min(1)
        centre[0] = 0.0  # pinned, whatever the mean of its weights is
        order = live[centre[live].argsort()]
        if len(order) < 2:
            break
        gaps = centre[order].diff()
        few = count[order] < rare
        few[order == 0] = False
        # A gap beside a rare cluster closes in any case.
        close = (gaps < nearest) | few[1:] | few[:-1]
        if not close.any():
            break
        first = int(torch.where(close, gaps, torch.inf).argmin())
        one, other = sorted(order[first : first + 2].tolist())
        j = torch.where(j == other, one, j)  # 0 is the smallest number: it swallows its neighbour
    number = torch.zeros(len(count), dtype=torch.long, device=j.device)
    rest = order[order != 0]
    number[rest] = torch.arange(1, len(rest) + 1, dtype=torch.long, device=j.device)
    return number[j].view(index.shape)


@torch.no_grad()
def set_to_centres_(w: Float[Tensor, "*n"], index: Int[Tensor, "*n"]) -> None:
    """Each weight to the mean of its cluster, on a grid of 8 bits if it holds them; 0 stays 0.

    Otherwise in float16, or as it is where that overflows or loses more than its precision.
    """
    values = w.detach().double()
    count = centre_sums(index, torch.ones_like(values))
    centre = centre_sums(index, values) / count.clamp_min(1.0)
    centre[0] = 0.0
    grid, half = snap_to_grid(centre, 8), centre.half().double()
    if len(grid.unique()) == len(centre.unique()) and torch.equal(grid, grid.half().double()):
        centre = grid
    else:
        centre = torch.where((half - centre).abs() <= 1e-3 * centre.abs(), half, centre)
    w.copy_(centre[index])


def codebook_mixture(index: Int[Tensor, "*n"], w: Float[Tensor, "*n"]) -> GaussianMixture:
    """The mixture of a snapped tensor, so narrow that each weight belongs to its own value."""
    flat, j = w.reshape(-1).float(), index.reshape(-1)
    count = torch.bincount(j).float()
    mean = torch.zeros(len(count), dtype=torch.float32, device=w.device)
    mean[j] = flat
    gap = mean.sort().values.diff()
    narrow = (gap.min() / 50.0).item() if len(gap) else 1.0
    mixing = (count + 1.0) / (count + 1.0).sum()
    std = torch.full_like(mean, narrow)
    return GaussianMixture(mixing, mean, std, pinned_mean=[True] + [False] * (len(mean) - 1))

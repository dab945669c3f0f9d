"""Where the components begin: a mixture placed on a vector of weights.

Weights are numbers, so that the best start can be computed: dynamic programming over a few hundred
cells finds the segments, merging those that belong together makes nested shapes, and EM on the
cells finishes. No seed, no restarts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix._kmeans import kmeans
from swsmix.em import HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.start.cell_em import e_step_on_cells, fit_cells_
from swsmix.start.cells import Cells, cells_for, cells_of
from swsmix.start.moves import mergers
from swsmix.start.segments import best_partitions, divided, merged, pooled

Initialisation = Literal["auto", "spread", "quantiles", "kmeans"]
NumComponents = int | Literal["auto"]
Components = tuple[Tensor, Tensor, Tensor]  # mixing, mean, std: each (k,)
# k-means and quantiles see at most this many weights: more do not move the start.
_SAMPLE = 200_000
_MOST = 64  # the largest K that "auto" chooses
# EM steps of each candidate, and then of the best one.
_TRIAL, _FINISH = 10, 100
# The std of equal weights, in units of all weights' std and of the gap to the next component.
_EQUAL, _GAP = 1e-3, 0.125


def initial_mixture(
    w: Float[Tensor, "*n"],
    num_components: NumComponents,
    *,
    method: Initialisation = "auto",
    zero: bool = False,
    zero_mixing: float | None = None,
    seed: int = 0,
) -> GaussianMixture:
    """A mixture to start from, placed on a vector of weights.

    `"auto"` minimises the integrated classification likelihood (see `swsmix.start.cells.cost`) over
    all partitions of the sorted weights into segments, by dynamic programming; the best of them,
    nested shapes (merged segments), quantiles and an even spread then compete by their penalised
    likelihood under EM. It has no randomness, and is fast: EM sees a few hundred cells, whatever
    the number of weights. `"spread"` puts the means evenly over the weights' range, each std one
    spacing wide, as the papers do (Nowlan & Hinton 1992; Ullrich et al. 2017, section 3.1).
    `"quantiles"` cuts the sorted weights into K equal shares. `"kmeans"` minimises the sum of
    squares, by dynamic programming. The last two take each share's own mean, std and size.

    Args:
        w: the weights, finite.
        num_components: K, the zero component included; `"auto"` takes the number of the best
            partition, at most 64.
        method: how the means are placed.
        zero: pin the first component's mean at 0.
        zero_mixing: its mixing proportion, then fixed; free if None.
        seed: for the sample of very many weights that the named methods take.

    Returns:
        A mixture in the weights' dtype (float32 for 16-bit weights) and on their device.

    Raises:
        ValueError: for non-finite weights, K < 1, K above the number of weights, an unknown
            method, K = "auto" with another method than "auto", or a zero mixing proportion
            outside (0, 1) or without a zero component.

    Example:
        >>> w = torch.tensor([-1.0, -0.9, 0.0, 0.9, 1.0])
        >>> initial_mixture(w, 3, method="spread").mean
        tensor([-1.,  0.,  1.])
        >>> w = torch.cat([torch.randn(900) * 0.01, 1.0 + torch.randn(100) * 0.01])
        >>> initial_mixture(w, "auto").num_components
        2
    """
    w = w.detach().reshape(-1)
    _check(w, num_components, method, zero, zero_mixing)
    if method == "auto":
        components = _best(w, num_components, zero, zero_mixing)
    else:
        components = _named(w, int(num_components), method, zero, zero_mixing, seed)
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    mixing, mean, std = components
    std = std.clamp(torch.finfo(dtype).tiny, torch.finfo(dtype).max)
    placed = [v.to(w.device, dtype) for v in (mixing, mean, std)]
    return _pinned(placed, zero, zero_mixing is not None)


def _pinned(components: Sequence[Tensor], zero: bool, zero_mixing: bool) -> GaussianMixture:
    first = torch.zeros_like(components[0], dtype=torch.bool)
    first[0] = zero
    return GaussianMixture(*components, pinned_mean=first, pinned_mixing=first & zero_mixing)


def _named(
    w: Tensor, k: int, method: str, zero: bool, zero_mixing: float | None, seed: int
) -> Components:
    """The components of a method with a name, in float64 on the CPU."""
    sample = subsample([w], seed)
    mixing, mean, std = _place(sample, k - zero, method)
    if zero:
        alone = sample.square().mean().sqrt().item() or 1e-2
        narrow = std.min().item() if len(std) else alone
        mixing, mean, std = _with_zero((mixing, mean, std), narrow, zero_mixing)
    return mixing if zero_mixing is not None else mixing / mixing.sum(), mean, std


def _with_zero(components: Components, std: float, zero_mixing: float | None) -> Components:
    """One component more, at zero."""
    mixing, mean, other = components
    share = 1.0 / (len(mean) + 1) if zero_mixing is None else zero_mixing
    mixing = torch.cat([mixing.new_tensor([share]), (1.0 - share) * mixing])
    return mixing, torch.cat([mean.new_zeros(1), mean]), torch.cat([other.new_tensor([std]), other])


def _best(w: Tensor, k: NumComponents, zero: bool, zero_mixing: float | None) -> Components:
    """The components that the cells like best, in float64 on the CPU."""
    scale = _extreme(w)
    cells = cells_of(w if scale == 1.0 else w / scale, cells_for(_MOST // 2 if k == "auto" else k))
    tried = []
    for groups in _candidates(cells, k, zero):
        for components in _at_zero(groups, k, zero, zero_mixing):
            mixture = _pinned(components, zero, zero_mixing is not None)
            hyper = HyperPrior(std=mixture.std.min())  # EM may not end on a weight or two
            fit_cells_(mixture, cells, hyper, _TRIAL)
            tried.append((mixture, hyper))
    best, hyper = max(tried, key=lambda trial: _evidence(trial[0], cells))
    if k == "auto":
        best = _without_needless(best, cells, hyper)
    fit_cells_(best, cells, hyper, _FINISH)
    mixing, mean, std = _complete(best, cells, best.num_components if k == "auto" else k)
    return mixing, scale * mean, scale * std


def _extreme(w: Tensor) -> float:
    """A power of two to divide the weights by, that their squares neither vanish nor overflow."""
    top = w.abs().max().item() if w.dtype == torch.float64 else 1.0
    return 1.0 if top == 0.0 or 1e-60 < top < 1e60 else 2.0 ** max(math.frexp(top)[1] - 1, -1000)


def _evidence(mixture: GaussianMixture, cells: Cells) -> float:
    """The log likelihood, less half the log of the number of weights per parameter (BIC)."""
    log_p = e_step_on_cells(mixture, cells)[0].item()
    return log_p - 1.5 * mixture.num_components * math.log(cells.count.sum())


def _without_needless(mixture: GaussianMixture, cells: Cells, hyper: HyperPrior) -> GaussianMixture:
    """Components merged while the evidence rises: shapes that are no Gaussian need few."""
    value = _evidence(mixture, cells)
    while mixture.num_components > 1:
        for fewer in mergers(mixture, cells):
            fit_cells_(fewer, cells, hyper, _TRIAL)
            if (after := _evidence(fewer, cells)) > value:
                mixture, value = fewer, after
                break
        else:
            break
    return mixture


def _candidates(cells: Cells, k: NumComponents, zero: bool) -> Iterator[Cells]:
    """Groups of the weights: the best segments, nested shapes, quantiles, an even spread."""
    size, total = len(cells), cells.count.sum()
    parts = best_partitions(cells, min(_MOST if k == "auto" else 2 * k + 1, size))
    number = torch.arange(1.0, len(parts.cost) + 1.0, dtype=torch.float64, device="cpu")
    # The uniform Dirichlet's normaliser; a merger saves about log(n).
    evidence = -parts.cost + number.lgamma() - (total + number).lgamma()
    best = merged(parts.segments(int(evidence.argmax()) + 1), price=math.log(total))
    if k == "auto":
        yield best
        return
    if len(best) < k <= size:
        # There is less to find: the others share what is spread most. The likelihood alone would
        # rather put them on pairs of weights that lie close together by chance.
        yield divided(best, k)
        if zero and len(best) < k - 1:
            yield divided(best, k - 1)
        return
    yield parts.segments(min(k, size))
    if size > k:
        yield merged(parts.segments(len(parts.cost)), k)
    if zero and k > 1 and size >= k:
        yield parts.segments(k - 1)
    middle = (cells.count.cumsum(0) - 0.5 * cells.count) / total
    even = (cells.mean - cells.mean[0]) / cells.spread
    for share in (middle, even):
        owner = (share * k).long().clamp(0, k - 1).unique(return_inverse=True)[1]
        yield pooled(cells, torch.nn.functional.one_hot(owner).double())


def _at_zero(
    groups: Cells, k: NumComponents, zero: bool, zero_mixing: float | None
) -> Iterator[Components]:
    """The groups as components; the nearest at zero, or one more there, if one is pinned."""
    mixing = groups.count / groups.count.sum()
    std = (groups.scatter / groups.count + groups.floor**2).sqrt()
    if not zero:
        yield mixing, groups.mean, std
        return
    if k == "auto" or len(mixing) < k:
        narrow = min(std.min().item(), groups.spread)
        yield _with_zero((mixing, groups.mean, std), narrow, zero_mixing)
    if k == "auto" or len(mixing) == k:
        order = groups.mean.abs().argsort()
        order = torch.cat([order[:1], order[1:].sort().values])
        mixing, mean, std = mixing[order], groups.mean[order], std[order]
        std[0] = torch.hypot(std[0], mean[0])
        mean[0] = 0.0
        if zero_mixing is not None:
            mixing[1:] *= (1.0 - zero_mixing) / (1.0 - mixing[0]).clamp_min(1e-12)
            mixing[0] = zero_mixing
        if zero_mixing is None or len(mixing) > 1:
            yield mixing, mean, std


def _complete(mixture: GaussianMixture, cells: Cells, k: int) -> Components:
    """Equal weights get a std that training can move them in; missing components are spread."""
    mixing, mean, std = mixture.mixing, mixture.mean, mixture.std
    whole = pooled(cells, torch.ones_like(cells.count)[:, None])
    scale = (whole.scatter / whole.count).sqrt().item()
    if len(cells) == 1:  # the rounding of equal weights is no scale
        scale = 1e-2 * cells.spread
    wide = torch.full_like(std, scale)
    if len(mean) > 1:
        # Many equal weights say that they are equal; one weight says nothing of a std.
        wide[mixing * whole.count > 1.5] *= _EQUAL
        gap = (mean[:, None] - mean).abs().fill_diagonal_(torch.inf).amin(1)
        wide = torch.minimum(wide, _GAP * gap.clamp_min(8 * cells.floor))
    std = torch.where(std < 10.0 * cells.floor, torch.maximum(std, wide), std)
    if (extra := k - len(mean)) > 0:  # fewer different weights than components
        low, high = cells.mean[0] - scale, cells.mean[-1] + scale
        even = torch.linspace(0.0, 1.0, extra + 2, dtype=torch.float64, device="cpu")[1:-1]
        even = low + (high - low) * even
        share = mixing.new_full((extra,), 1.0 / (whole.count.item() + k))
        free = ~mixture.pinned_mixing
        mixing = torch.where(free, mixing * (1.0 - share.sum() / mixing[free].sum()), mixing)
        mean = torch.cat([mean, even])
        std = torch.cat([std, torch.full_like(even, ((high - low) / (extra + 1)).item())])
        mixing = torch.cat([mixing, share])
    return mixing, mean, std


def _check(
    w: Tensor, num_components: NumComponents, method: str, zero: bool, zero_mixing: float | None
) -> None:
    if not torch.isfinite(w).all():
        bad = int((~torch.isfinite(w)).sum())
        raise ValueError(f"weights must be finite; {bad} of {len(w)} are nan or inf")
    if not len(w):
        raise ValueError("a mixture to start from needs at least one weight; got none")
    if method not in ("auto", "spread", "quantiles", "kmeans"):
        raise ValueError(
            f"method must be 'auto', 'spread', 'quantiles' or 'kmeans'; got {method!r}"
        )
    if num_components == "auto":
        if method != "auto":
            raise ValueError(
                f"num_components='auto' needs method='auto', which counts; got {method!r}"
            )
        num_components = 1 + (zero_mixing is not None)
    if num_components < 1:
        raise ValueError(f"num_components must be at least 1; got {num_components}")
    if num_components > len(w):
        raise ValueError(
            f"a mixture of {num_components} components needs at least as many weights; got "
            f"{len(w)}: use fewer components"
        )
    if zero_mixing is not None and not (zero and 0.0 < zero_mixing < 1.0 and num_components > 1):
        raise ValueError(
            "zero_mixing fixes the mixing proportion of the zero component: it needs zero=True, "
            f"num_components >= 2 and a value between 0 and 1; got zero={zero}, "
            f"num_components={num_components}, zero_mixing={zero_mixing}"
        )


def subsample(flat: Sequence[Tensor], seed: int, *, most: int = _SAMPLE) -> Float[Tensor, " s"]:
    """All weights, or so many of them drawn at random and with them the two extremes.

    The extremes belong to it, so that what is placed on the sample spans all weights.

    Args:
        flat: the weights, as vectors, at least one of them not empty.
        seed: for the draw.
        most: the largest number that is not sampled.

    Returns:
        The weights, in float64 on the CPU.
    """
    total = sum(len(w) for w in flat)
    if total <= most:
        return torch.cat([w.double().cpu() for w in flat])
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(total, (most,), generator=generator, dtype=torch.int64, device="cpu")
    parts, begin = [], 0
    for w in flat:
        here = drawn[(drawn >= begin) & (drawn < begin + len(w))] - begin
        parts.append(w[here.to(w.device)].double().cpu())
        begin += len(w)
    ends = torch.stack([end.double().cpu() for w in flat if len(w) for end in w.aminmax()])
    return torch.cat([*parts, ends.min().reshape(1), ends.max().reshape(1)])


def _place(w: Tensor, k: int, method: str) -> Components:
    """Mixing, mean and std of k components on the weights w (n,), float64 on the CPU."""
    scale = w.std(correction=0).item() or max(w.abs().max().item(), 1.0) * 1e-2
    if k == 0:
        return w.new_zeros(0), w.new_zeros(0), w.new_zeros(0)
    if method == "spread" or k == 1:
        low, high = w.min().item(), w.max().item()
        even = torch.linspace(low, high, k, dtype=w.dtype, device=w.device)
        mean = even if k > 1 else w.mean().reshape(1)
        spacing = (high - low) / (k - 1) if k > 1 else 0.0
        return w.new_full((k,), 1 / k), mean, w.new_full((k,), spacing or scale)
    if method == "quantiles" or len(w.unique()) <= k:  # k-means needs k values
        rank = torch.arange(len(w), dtype=torch.int64, device=w.device) * k // len(w)
        share = torch.empty_like(rank)
        share[w.argsort(stable=True)] = rank
    else:
        centre = kmeans(w, k)
        share = torch.bucketize(w, (centre[1:] + centre[:-1]) / 2)
    size = torch.bincount(share, minlength=k).double()
    mean = w.new_zeros(k).index_add_(0, share, w) / size.clamp_min(1.0)
    second = w.new_zeros(k).index_add_(0, share, (w - mean[share]).square())
    std = (second / size.clamp_min(1.0)).sqrt().clamp_min(scale * 1e-2 / k)
    mixing = size.clamp_min(1e-3) / size.clamp_min(1e-3).sum()
    order = mean.argsort()
    return mixing[order], mean[order], std[order]

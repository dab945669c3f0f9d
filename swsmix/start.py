"""Where the components begin: mixing, mean and std placed on a vector of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix._kmeans import kmeans

Initialisation = Literal["spread", "quantiles", "kmeans"]
Components = tuple[Tensor, Tensor, Tensor]  # mixing, mean, std: each (k,)
# k-means and quantiles see at most this many weights: more do not move the start.
_SAMPLE = 200_000


def components_for(
    w: Float[Tensor, " n"],
    num_components: int,
    *,
    method: str,
    zero: bool,
    zero_mixing: float | None,
    seed: int,
) -> Components:
    """Components to start EM from; see `GaussianMixture.from_weights` for the methods.

    Args:
        w: the weights, finite.
        num_components: K, the zero component included.
        method: how the means are placed.
        zero: put the first component's mean at 0.
        zero_mixing: its mixing proportion.
        seed: for the sample of very many weights.

    Returns:
        Mixing, mean and std (k,), in float64 on the CPU.

    Raises:
        ValueError: for non-finite weights, K < 1, K above the number of weights, an unknown
            method, or a zero mixing proportion outside (0, 1) or without a zero component.

    Example:
        >>> w = torch.tensor([-1.0, -0.9, 0.9, 1.0])
        >>> components_for(w, 2, method="quantiles", zero=False, zero_mixing=None, seed=0)[0]
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    _check(w, num_components, method, zero, zero_mixing)
    sample = subsample([w], seed)
    mixing, mean, std = _place(sample, num_components - zero, method)
    if zero:
        share = 1.0 / num_components if zero_mixing is None else zero_mixing
        narrow = std.min() if len(std) else sample.std(correction=0).clamp_min(1e-3)
        mixing = torch.cat([mixing.new_tensor([share]), (1.0 - share) * mixing])
        mean = torch.cat([mean.new_zeros(1), mean])
        std = torch.cat([narrow.reshape(1), std])
    return mixing / mixing.sum() if zero_mixing is None else mixing, mean, std


def _check(
    w: Tensor, num_components: int, method: str, zero: bool, zero_mixing: float | None
) -> None:
    if not torch.isfinite(w).all():
        bad = int((~torch.isfinite(w)).sum())
        raise ValueError(f"weights must be finite; {bad} of {len(w)} are nan or inf")
    if num_components < 1:
        raise ValueError(f"num_components must be at least 1; got {num_components}")
    if num_components > len(w):
        raise ValueError(
            f"a mixture of {num_components} components needs at least as many weights; got "
            f"{len(w)}: use fewer components"
        )
    if method not in ("spread", "quantiles", "kmeans"):
        raise ValueError(f"method must be 'spread', 'quantiles' or 'kmeans'; got {method!r}")
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

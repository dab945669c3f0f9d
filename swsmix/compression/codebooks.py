"""Compression after training: a mixture fitted to each tensor's weights, no training data needed.

The mixture assigns a weight to its most responsible component, the largest
pi_j N(w | mu_j, sigma_j^2): besides the distance it counts how common a component is, so that the
coded numbers take fewer bits than those of k-means with as many values, at about its error. All
components share one std, in units of that error: it says what a bit is worth, and does not
describe the weights. `swsmix.compression.codebooks_fit` fits a mixture that describes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix._progress import watched
from swsmix.compression.snap import Quantized, assign
from swsmix.em import HyperPrior, e_step, m_step_
from swsmix.mixture import GaussianMixture

Method = Literal["mixture", "kmeans"]
# The mixture and the centres of k-means are fitted to at most this many weights.
_SAMPLE = 1 << 17
_EM_STEPS = 30
_LLOYD_STEPS = 1000


def quantize_state(
    state: Mapping[str, Tensor],
    num_values: int = 16,
    *,
    method: Method = "mixture",
    strength: float = 1.0,
    zero: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Quantized]:
    """Quantise every weight matrix of a state_dict, each with a codebook of its own.

    Args:
        state: name -> tensor. Floating-point tensors of at least two dimensions and four times
            as many weights as values are quantised, the others are not.
        num_values: K, the number of values of a tensor.
        method: `"mixture"`, or `"kmeans"`, the palettisation of other tools (Lloyd's algorithm,
            Han, Mao & Dally 2016), to compare with.
        strength: the common std of the mixture's components, in units of the error that k-means
            makes. The larger, the more it counts how common a value is: fewer bytes, more error.
        zero: keep one value at exactly 0.
        seed: for the start, and the sample of very many weights.
        progress: show a progress bar over the tensors.

    Returns:
        name -> codebook and index.

    Raises:
        ValueError: if weights are not finite, or num_values is below 1.

    Example:
        >>> found = quantize_state({"w": torch.randn(50, 50), "b": torch.randn(50)}, 4)
        >>> list(found), len(found["w"].values.unique())
        (['w'], 4)
    """
    if num_values < 1:
        raise ValueError(f"num_values must be at least 1; got {num_values}")
    found = {}
    for name, t in watched(state.items(), "quantising", shown=progress):
        if not t.is_floating_point() or t.ndim < 2 or t.numel() < 4 * num_values:
            continue
        if not torch.isfinite(t).all():
            raise ValueError(f"{name} holds nan or inf: it cannot be quantised")
        found[name] = _quantize(t.detach(), num_values, method, strength, zero, seed)
    return found


def snapped(state: Mapping[str, Tensor], quantized: Mapping[str, Quantized]) -> dict[str, Tensor]:
    """A state_dict with its quantised tensors snapped.

    Returns:
        name -> tensor, of the old dtypes.
    """
    return {n: quantized[n].values.to(t.dtype) if n in quantized else t for n, t in state.items()}


def packed_bytes(state: Mapping[str, Tensor], quantized: Mapping[str, Quantized]) -> int:
    """The size of plain palettisation: packed numbers of ceil(log2 K) bits, codebooks, the rest.

    Returns:
        Bytes, without any header; the codebooks and the rest in the dtypes they have.
    """
    total = 0
    for name, t in state.items():
        if name in quantized:
            k = len(quantized[name].codebook)
            total += -(-t.numel() * math.ceil(math.log2(k)) // 8) + k * t.element_size()
        else:
            total += t.numel() * t.element_size()
    return total


def _quantize(
    t: Tensor, k: int, method: Method, strength: float, zero: bool, seed: int
) -> Quantized:
    largest = t.abs().max().item()
    if largest and not 1e-6 < largest < 1e6:  # squares of weights like 1e30 are beyond float32
        unit = 2.0 ** round(math.log2(largest))
        near_one = _quantize((t.double() / unit).float(), k, method, strength, zero, seed)
        return Quantized((near_one.codebook.double() * unit).to(t.dtype), near_one.index)
    w = t.reshape(-1).float()
    few = w[:: max(len(w) // _SAMPLE, 1)][:_SAMPLE].unique()
    if len(few) <= k and len(few := w.unique()) <= k:  # quantised already
        return Quantized(few.to(t.dtype), torch.searchsorted(few, w).view(t.shape))
    generator = torch.Generator().manual_seed(seed)
    sample = w
    if len(w) > _SAMPLE:
        sample = w[torch.randint(len(w), (_SAMPLE,), generator=generator)]
    start = GaussianMixture.from_weights(sample, k, method="quantiles", zero=zero, seed=seed)
    centre = _lloyd(sample, start.mean.clone(), zero)
    index = _nearest(w, centre)
    if method == "mixture":
        mixture = _fitted(sample, centre, strength, zero)
        centre, index = mixture.mean.clone(), assign(mixture, w)
    # The best values for these assignments are the means of the weights.
    count = torch.bincount(index, minlength=k)
    total = torch.zeros(k, dtype=torch.float64).index_add_(0, index, w.double())
    fitted = torch.where(count > 0, (total / count.clamp_min(1)).float(), centre)
    if zero:
        fitted[0] = 0.0
    return Quantized(fitted.to(t.dtype), index.view(t.shape))


def _fitted(sample: Tensor, centre: Tensor, strength: float, zero: bool) -> GaussianMixture:
    """EM from the centres of k-means, with one std for all components, in units of its error."""
    label = _nearest(sample, centre)
    error = (sample - centre[label]).square().mean().sqrt().clamp_min(1e-12)
    share = torch.bincount(label, minlength=len(centre)).clamp_min(1).to(sample)
    every = torch.ones(len(centre), dtype=torch.bool)
    mixture = GaussianMixture(
        share / share.sum(),
        centre,
        (strength * error).expand(len(centre)),
        pinned_std=every,
        pinned_mean=every & (torch.arange(len(centre)) == 0) & zero,
    )
    hyper = HyperPrior(std=float(strength * error))
    for _ in range(_EM_STEPS):
        m_step_(mixture, e_step(mixture, sample), hyper)
    return mixture


def _lloyd(sample: Float[Tensor, " n"], centre: Float[Tensor, " k"], zero: bool) -> Tensor:
    ordered, _ = sample.double().sort()
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centre = centre.double()
    for _ in range(_LLOYD_STEPS):
        values, order = centre.sort()
        cuts = torch.searchsorted(ordered, (values[1:] + values[:-1]) / 2)
        ends = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(ordered))])
        count = ends.diff()
        mean = (sums[ends[1:]] - sums[ends[:-1]]) / count.clamp_min(1)
        new = centre.clone()
        new[order] = torch.where(count > 0, mean, values)
        if zero:
            new[0] = 0.0
        if torch.equal(new, centre):
            break
        centre = new
    return centre.float()


def _nearest(w: Float[Tensor, " n"], centre: Float[Tensor, " k"]) -> Tensor:
    values, order = centre.sort()
    return order[torch.searchsorted((values[1:] + values[:-1]) / 2, w)]

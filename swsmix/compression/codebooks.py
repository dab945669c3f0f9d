"""Codebooks of bare weights: mixtures fitted to them without any training data.

Two kinds. `quantize_state` fits one that *encodes*: a weight goes to its most responsible
component, the largest pi_j N(w | mu_j, sigma_j^2), which besides the distance counts how common a
component is, so that the coded numbers take fewer bits than those of k-means at the same error.
All components share one std, which says what a bit is worth: the same relative error in the whole
network (`rate`), or, where the number of values is given, one per tensor in units of k-means'
error. `cluster` fits one that *describes*, for a picture or a table: each component has a std of
its own. Both leave weights of few values as they are; where the number of values is given, both see
the same sample of very many weights and start from the same k-means.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix import tables
from swsmix._histogram import chunks, count, few_values
from swsmix._kmeans import kmeans
from swsmix._progress import watched
from swsmix.compression.rate import Network, check_asked
from swsmix.compression.snap import Quantized, assign
from swsmix.em import HyperPrior, e_step, m_step_
from swsmix.mixture import GaussianMixture
from swsmix.start import initial_mixture, subsample
from swsmix.start.cell_em import fit_cells_
from swsmix.start.cells import cells_for, cells_of

Method = Literal["mixture", "kmeans"]
_SAMPLE = 100_000  # a mixture is fitted to at most this many weights, and the two extremes
_EM_STEPS = 30
_CHUNK = 1 << 18
_TABULATED = {torch.float32, torch.float16, torch.bfloat16}
_MAX_VALUES = 64  # weights of so few values are described by a component for each


def quantize_state(
    state: Mapping[str, Tensor],
    num_values: int | None = None,
    *,
    bits: float | None = None,
    size_bytes: int | None = None,
    loss: float | None = None,
    method: Method = "mixture",
    strength: float = 1.0,
    zero: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Quantized]:
    """Quantise every weight matrix of a state_dict, each with a codebook of its own.

    By default, and for `bits`, `size_bytes` or `loss`, a bit is worth the same relative error in
    all tensors (`swsmix.compression.rate`): each gets as many values as pay for themselves, and

        sum over tensors of  sum (w - w_hat)^2 / sum (w - mean)^2

    is the least for the bits spent. `loss` is the mean of these over all weights, a tensor of n
    weights counted n times; the default is 0.005. Exact zeros stay zeros in tensors that have many,
    tied tensors are quantised once, and tensors of few values stay exact where these cost no more
    bits than other weights do at that loss.

    With `num_values`, each tensor gets at most K values. A tensor of no more than K different
    values keeps them all; a codebook of the mixture can hold fewer than K: values whose bits would
    cost more than they save in error are dropped.

    Args:
        state: name -> tensor. Floating-point tensors of at least two dimensions and 64 weights
            (with `num_values`, four times as many as values) are quantised, the others are not,
            nor are those of 8 bits per number.
        num_values: K, the largest number of values per tensor.
        bits: bits per weight, on average, as the order-0 entropy has it.
        size_bytes: the largest size of the whole file (`swsmix.codec.encode`); at most 1.5 %
            of it are left unused.
        loss: the relative distortion.
        method: with `num_values`, `"mixture"`, or `"kmeans"`, the palettisation of other tools
            (Han, Mao & Dally 2016), to compare with.
        strength: with `num_values`, the common std of the mixture's components, in units of the
            error that k-means makes. The larger it is, the more weights move to common values:
            fewer bytes, more error.
        zero: one value of each codebook is exactly 0; with `num_values` the first.
        seed: with `num_values`, for the sample of very many weights.
        progress: show a progress bar over the tensors.

    Returns:
        name -> codebook and index.

    Raises:
        ValueError: if weights are not finite, more than one of num_values, bits, size_bytes and
            loss is given, one of them is out of its range, or the method is unknown.

    Example:
        >>> codebooks = quantize_state({"w": torch.randn(50, 50), "b": torch.randn(50)}, 4)
        >>> list(codebooks), len(codebooks["w"].values.unique())
        (['w'], 4)
        >>> from swsmix.compression.snap import bits_per_weight
        >>> found = quantize_state({"w": torch.randn(50, 50)}, bits=2.0)["w"]
        >>> round(bits_per_weight(found.index), 1)
        2.0
    """
    check_asked(num_values=num_values, bits=bits, size_bytes=size_bytes, loss=loss)
    if method not in ("mixture", "kmeans"):
        raise ValueError(f"method must be 'mixture' or 'kmeans'; got {method!r}")
    if not 0.0 < strength < math.inf:
        raise ValueError(f"strength must be positive; got {strength}")
    if num_values is None:
        if method != "mixture" or strength != 1.0:
            raise ValueError("method and strength go with num_values: pass num_values=16, say")
        network = Network(state, zero=zero, progress=progress)
        return network.quantized(network.asked(bits=bits, size_bytes=size_bytes, loss=loss))
    used = strength if method == "mixture" else None
    found = {
        name: quantize_tensor(name, t, num_values, strength=used, zero=zero, seed=seed)
        for name, t in watched(state.items(), "quantising", shown=progress)
    }
    return {name: q for name, q in found.items() if q is not None}


def quantize_tensor(
    name: str,
    t: Tensor,
    num_values: int,
    *,
    strength: float | None = 1.0,
    zero: bool = False,
    seed: int = 0,
) -> Quantized | None:
    """A tensor with at most K values, as `quantize_state`; None if it stays as it is.

    Args:
        name: its name.
        t: the tensor.
        num_values: K.
        strength: of the mixture; None is k-means.
        zero: one value is exactly 0.
        seed: for the sample.

    Raises:
        ValueError: if weights are not finite.
    """
    wide = t.is_floating_point() and t.element_size() >= 2  # 8-bit floats stay as they are
    if not wide or t.ndim < 2 or t.numel() < 4 * num_values:
        return None
    if not torch.stack(t.aminmax()).isfinite().all():
        raise ValueError(f"{name} holds nan or inf: only finite weights can be quantised")
    return _quantize(t.detach(), num_values, strength, zero, seed)


@tables.uncompiled()  # compiling takes 100 MB and seconds, for five passes over the weights
def cluster(
    flat: Sequence[Tensor], num_components: int, *, seed: int = 0
) -> tuple[GaussianMixture, str]:
    """Fit a mixture that describes weights: k-means, EM on cells of a sample, a few steps on all.

    Weights of few different values (no more than K, or at most 64 with 8 weights per value) are
    clustered already: each value becomes a narrow component.

    Args:
        flat: the weights, finite, as vectors.
        num_components: K.
        seed: for the sample.

    Returns:
        The mixture, and how it was found, in words.

    Example:
        >>> mixture, origin = cluster([torch.tensor([0.0, 0.5, 0.5])], 7)
        >>> mixture.mean.tolist(), origin
        ([0.0, 0.5], 'one component for each of the 2 values that the weights have')
    """
    total = count(flat)
    values = few_values(flat, max(num_components, min(_MAX_VALUES, total // 8)))
    if values is not None:
        how = "one component for each of the {} values that the weights have"
        one = "one component for the one value that the weights have"
        mixture = mixture_of_values(flat, values)
        return mixture, how.format(len(values)) if len(values) > 1 else one
    flat, unit = _near_one(flat)
    sample = subsample(flat, seed, most=_SAMPLE).float()
    mixture = initial_mixture(sample, num_components, method="kmeans")
    hyper = HyperPrior(std=sample.double().std(correction=0).item() / 20)
    fit_cells_(mixture, cells_of(sample, cells_for(num_components)), hyper, 100)
    steps = 5 if total > _SAMPLE else 0
    for _ in range(steps):
        table = tables.build(mixture.mixing, mixture.mean, mixture.std)
        parts = [e_step(mixture, w if w.dtype in _TABULATED else w.float(), table) for w in flat]
        m_step_(mixture, functools.reduce(lambda a, b: a + b, parts), hyper)
    if unit != 1.0:
        mean, std = (unit * v.double() for v in (mixture.mean, mixture.std))
        mixture = GaussianMixture(mixture.mixing, mean, std)
    how = f"fitted here by EM, K = {num_components}"
    return mixture, how + (f", on a sample of {_SAMPLE:,} and then on all" if steps else "")


def mixture_of_values(flat: Sequence[Tensor], values: Float[Tensor, " k"]) -> GaussianMixture:
    """A mixture with a narrow component at each of the few values that weights have.

    Args:
        flat: the weights.
        values: all values that occur, and possibly others, ascending and different.

    Returns:
        The mixture; its mixing proportions are the values' shares of the weights.

    Example:
        >>> weights = [torch.tensor([0.0, 1.0, 1.0, 1.0])]
        >>> mixture_of_values(weights, torch.tensor([0.0, 1.0])).mixing
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    values = values.double()
    numbers = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    for part in chunks([w.reshape(-1) for w in flat]):
        index = torch.searchsorted(values, part.double())
        numbers += torch.bincount(index, minlength=len(values))[: len(values)]
    gap = values.diff().min().item() if len(values) > 1 else values[0].abs().item() or 1.0
    return GaussianMixture(numbers / numbers.sum(), values, torch.full_like(values, 0.03 * gap))


def snapped(state: Mapping[str, Tensor], quantized: Mapping[str, Quantized]) -> dict[str, Tensor]:
    """A state_dict with its quantised tensors snapped.

    Args:
        state: name -> tensor.
        quantized: name -> codebook and index, from `quantize_state`.

    Returns:
        name -> tensor, of the old dtypes; the other tensors are the same objects.
    """
    return {n: quantized[n].values.to(t.dtype) if n in quantized else t for n, t in state.items()}


def packed_bytes(state: Mapping[str, Tensor], quantized: Mapping[str, Quantized]) -> int:
    """The size of plain palettisation: packed numbers of ceil(log2 K) bits, codebooks, the rest.

    Args:
        state: name -> tensor.
        quantized: name -> codebook and index, from `quantize_state`.

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


def _quantize(t: Tensor, k: int, strength: float | None, zero: bool, seed: int) -> Quantized:
    """A codebook that encodes a tensor; that of k-means without a strength."""
    values = few_values([t.reshape(-1)], k)
    if values is not None:
        values = values.to(t.device, t.dtype)
        return Quantized(values, torch.searchsorted(values, t.contiguous()))
    (w,), unit = _near_one([t.reshape(-1)])
    sample = subsample([w], seed, most=_SAMPLE).float()
    centre = kmeans(sample, k, zero=zero).float()
    if zero:
        centre = torch.cat([centre.new_zeros(1), centre[centre != 0.0]])
    mixture = GaussianMixture(torch.full_like(centre, 1 / k), centre, torch.ones_like(centre))
    if strength is not None:
        mixture = _encoding_mixture(sample, mixture, strength, zero)
    index = assign(mixture, w)
    codebook, index = _means(w, index, k, zero)
    return Quantized((unit * codebook).to(t.device, t.dtype), index.view(t.shape))


def _encoding_mixture(
    sample: Tensor, nearest: GaussianMixture, strength: float, zero: bool
) -> GaussianMixture:
    """EM from the centres of k-means, with one std for all components, in units of its error."""
    label, centre = assign(nearest, sample), nearest.mean
    error = (sample - centre[label]).square().mean().sqrt().clamp_min(1e-12)
    share = torch.bincount(label, minlength=len(centre)).clamp_min(1).to(sample)
    every = torch.ones(len(centre), dtype=torch.bool, device=centre.device)
    mixture = GaussianMixture(
        share / share.sum(),
        centre,
        (strength * error).expand(len(centre)),
        pinned_std=every,
        pinned_mean=[zero] + [False] * (len(centre) - 1),
    )
    hyper = HyperPrior(std=float(strength * error))
    for _ in range(_EM_STEPS):
        m_step_(mixture, e_step(mixture, sample), hyper)
    return mixture


def _means(w: Tensor, index: Tensor, k: int, zero: bool) -> tuple[Tensor, Tensor]:
    """The mean of each centre's weights, the best value for them, and the index into these.

    Args:
        w: the weights.
        index: the centre of each weight.
        k: the number of centres; those without weights are dropped.
        zero: the first centre is 0, and stays.
    """
    size = torch.zeros(k, dtype=torch.int64, device="cpu")
    total = torch.zeros(k, dtype=torch.float64, device="cpu")
    for part, j in zip(w.split(_CHUNK), index.cpu().split(_CHUNK), strict=True):
        size += torch.bincount(j, minlength=k)
        total += torch.bincount(j, part.cpu().double(), minlength=k)
    used = size > 0
    if zero:
        used[0], total[0] = True, 0.0
    number = used.cumsum(0) - 1
    return (total / size.clamp_min(1))[used], number.to(index.device)[index]


def _near_one(flat: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """The weights and their unit, 1 unless squares of weights leave float32."""
    largest = max(end.abs().item() for part in chunks(flat) for end in part.aminmax())
    if not largest or 1e-6 < largest < 1e6:
        return list(flat), 1.0
    unit = 2.0 ** math.floor(math.log2(largest))
    return [(w.double() / unit).float() for w in flat], unit

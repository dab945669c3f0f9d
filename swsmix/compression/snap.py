"""From a mixture to few values: assign each weight to a component, and snap."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from swsmix.compression.duplicates import file_values
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior
from swsmix.tables.regions import decision_regions

_CHUNK = 1 << 20
_MOST_LOST = 0.05  # of the weights' variance, before snapping warns
_INDEX_TYPES = (torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Quantized:
    """A tensor of few values.

    Attributes:
        codebook: the values (k,).
        index: which of them each element is, of the tensor's shape.
    """

    codebook: Float[Tensor, " k"]
    index: Int[Tensor, "*n"]

    @property
    def values(self) -> Float[Tensor, "*n"]:
        """The tensor itself, codebook[index]."""
        flat = self.index.reshape(-1)
        values = self.codebook.new_empty(len(flat))
        for start in range(0, len(flat), _CHUNK):  # no wide copy of a narrow index
            part = slice(start, start + _CHUNK)
            # Ten times as fast as codebook[...].
            values[part] = self.codebook.index_select(0, flat[part].int())
        return values.view(self.index.shape)


def smallest_type(num_values: int) -> torch.dtype:
    """The smallest signed type of an index into so many values.

    Not uint8: `codebook[index]` would take that for a mask.

    Example:
        >>> smallest_type(128), smallest_type(129)
        (torch.int8, torch.int16)
    """
    return next(d for d in _INDEX_TYPES if num_values - 1 <= torch.iinfo(d).max)


@torch.no_grad()
def assign(mixture: GaussianMixture, w: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The most responsible component of each weight, argmax_j gamma_ij.

    In O(N log K) by the mixture's decision regions (`swsmix.tables.regions`). The weights are
    compared in their own type with boundaries that were found in float64, so that the answer is
    right far out in the tails too. Of equally responsible components the first claims the weight.

    Args:
        mixture: the mixture.
        w: the weights, any shape, on any device.

    Returns:
        Component numbers of the weights' shape, on their device.

    Example:
        >>> mixture = GaussianMixture([0.9, 0.1], [0.0, 1.0], [0.1, 0.1])
        >>> assign(mixture, torch.tensor([0.1, 0.9]))
        tensor([0, 1])
    """
    return decision_regions(mixture).assign(w)


@torch.no_grad()
def snap_(prior: MixturePrior, *, distortion: float = 1.0) -> dict[str, Int[Tensor, "..."]]:
    """Set each weight under the prior to the value of its most responsible component, in place.

    Ullrich, Meeds & Welling 2017, section 3.3. The network keeps its structure; its tensors then
    hold at most K values per mixture. The value is the component's mean, but components that
    describe the same weights share one, and no weight goes farther than to a value that is as
    common (`swsmix.compression.duplicates.file_values`); the prior stays as it is. Snapping again
    changes nothing, as long as each value belongs to its own component.

    A warning says where it takes more than a twentieth of the weights' variance from them: then the
    prior has not drawn them to its centres, and the network hardly remains what it was.

    Args:
        prior: the prior; its network is changed.
        distortion: the most by which merging components moves a weight, in stds of its component;
            0 merges nothing, and each weight takes its most responsible component's mean.

    Returns:
        name -> the component of each weight; one component stands for those that share its value.

    Raises:
        ValueError: if weights are not finite, or the distortion is negative or not finite.

    Example:
        >>> net = torch.nn.Linear(10, 10)
        >>> prior = MixturePrior(net, num_components=16)
        >>> index = snap_(prior)
        >>> len(net.weight.unique()) <= 16
        True
    """
    snapped = quantize(prior, distortion=distortion)
    for group in prior.mixtures:
        params = prior.parameters_of(group)
        share = _lost_share([(p, snapped[name].values) for name, p in params.items()])
        for name, p in params.items():
            p.copy_(snapped[name].values)
        if share > _MOST_LOST:
            warnings.warn(
                f"snapping took {share:.0%} of the variance of the weights of group {group!r} from "
                "them: the prior had not drawn them to its centres. Train longer under it or with "
                "a larger tau, and compare the network's accuracy before and after",
                stacklevel=3,
            )
    return {name: quantized.index for name, quantized in snapped.items()}


def _lost_share(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The sum of (w - value)^2 over weights, over that of (w - mean)^2; 0 if all are equal."""
    lost = squares = total = 0.0
    for w, values in pairs:
        parts = (t.reshape(-1).split(_CHUNK) for t in (w, values))
        for one, other in zip(*parts, strict=True):  # no copy of a large tensor in float64
            x = one.double()
            lost += float((x - other).square().sum())
            squares, total = squares + float(x.square().sum()), total + float(x.sum())
    variance = squares - total * total / max(sum(w.numel() for w, _ in pairs), 1)
    return lost / variance if variance > 1e-12 * squares else 0.0


@torch.no_grad()
def quantize(prior: MixturePrior, *, distortion: float = 1.0) -> dict[str, Quantized]:
    """Each weight under the prior as `snap_` would set it; the network stays as it is.

    Args:
        prior: the prior.
        distortion: see `snap_`.

    Returns:
        name -> codebook, a value per component, and index. Tensors of one group share one
        codebook, the same object.

    Raises:
        ValueError: if weights are not finite, or the distortion is negative or not finite.
    """
    quantized = {}
    for group, mixture in prior.mixtures.items():
        prior.check_weights(group)
        found = file_values(mixture, distortion)
        for name, p in prior.parameters_of(group).items():
            quantized[name] = Quantized(found.codebook, found.regions.assign(p))
    return quantized


@torch.no_grad()
def snapped_state(
    model: nn.Module | Mapping[str, Tensor],
    prior: MixturePrior | None = None,
    *,
    bias_bits: int | None = None,
    keep: Collection[str] = (),
    distortion: float = 1.0,
) -> dict[str, Tensor]:
    """The state_dict of a network as it would be if it were snapped; the network stays as it is.

    Args:
        model: the network, or a state_dict.
        prior: the prior, whose tensors are snapped to its centres; None snaps nothing.
        bias_bits: 8 or 16 snap the floating-point tensors outside the prior too: parameters to
            multiples of a power of two (`snap_to_grid`), buffers, such as the running variances
            of a batch norm, to bfloat16. None keeps them exactly. Of a bare state_dict those
            called `running_*` are buffers.
        keep: names of tensors that are snapped already.
        distortion: see `snap_`.

    Returns:
        name -> tensor, in the order of the network's.

    Raises:
        ValueError: if the prior is not over this network, bias_bits is not 8 or 16, or a number
            to be snapped is not finite.
    """
    if bias_bits not in (None, 8, 16):
        raise ValueError(f"bias_bits must be 8, 16 or None; got {bias_bits}")
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    inside: dict[str, Tensor] = {}
    if prior is not None:
        found = quantize(prior, distortion=distortion)
        inside = {name: quantized.values for name, quantized in found.items()}
    missing = [name for name in inside if name not in state]
    if missing:
        raise ValueError(
            f"the prior is over {missing}, which the model does not have; it has {list(state)}"
        )
    parameters = {n for n in state if not n.rpartition(".")[2].startswith("running_")}
    if isinstance(model, nn.Module):
        named = dict(model.named_parameters(remove_duplicate=False))
        parameters = set(named)
        # A tied tensor is in the state under each of its names.
        snapped = {id(named[name]): value for name, value in inside.items()}
        inside = {n: snapped[id(p)] for n, p in named.items() if id(p) in snapped}
    for name, t in state.items():
        if name in inside:
            state[name] = inside[name].to(t.dtype)
        elif bias_bits is not None and _is_wide(t) and name not in keep:
            if name in parameters and not torch.isfinite(t).all():
                raise ValueError(
                    f"{name} holds nan or inf, which {bias_bits} bits cannot hold: omit bias_bits"
                )
            state[name] = (
                snap_to_grid(t, bias_bits) if name in parameters else t.bfloat16().to(t.dtype)
            )
    return state


def _is_wide(t: Tensor) -> bool:
    return t.is_floating_point() and t.element_size() >= 2  # 8-bit floats stay as they are


def snap_to_grid(t: Float[Tensor, "*n"], bits: int) -> Float[Tensor, "*n"]:
    """Numbers rounded to multiples of a power of two, at most 2^(bits - 1) - 1 of them each way.

    A power of two keeps them exact in every floating-point type, and the codec finds it.

    Args:
        t: finite numbers.
        bits: bits per number, the sign included.

    Returns:
        The rounded numbers, at most half a step away; a step, where the nearest multiple would be
        too large for their type.

    Raises:
        ValueError: if they are not finite, or there are less than 2 bits.

    Example:
        >>> snap_to_grid(torch.tensor([1.0, 0.3, -0.3]), 3)
        tensor([ 1.0000,  0.5000, -0.5000])
    """
    if bits < 2:
        raise ValueError(f"a grid needs at least 2 bits, one of them for the sign; got {bits}")
    if not t.numel():
        return t.clone()
    largest = t.detach().abs().max().item()
    if not math.isfinite(largest):
        raise ValueError(f"numbers to snap to a grid must be finite; the largest is {largest}")
    if largest == 0.0:
        return t.clone()
    most = 2 ** (bits - 1) - 1
    mantissa, exponent = math.frexp(largest)  # apart: largest / most may be below any float
    limits = torch.finfo(t.dtype)
    highest = math.frexp(limits.max)[1] - 1
    exponent += math.ceil(math.log2(mantissa / most))
    step = math.ldexp(1.0, min(max(exponent, -1074), highest))
    most = int(min(most, limits.max / step))  # multiples that the type holds
    return ((t.detach().double() / step).round().clamp(-most, most) * step + 0.0).to(t.dtype)


def bits_per_weight(index: Int[Tensor, "*n"]) -> float:
    """The zero-order entropy of component numbers, -sum_j p_j log2 p_j, in bits per weight.

    What an ideal entropy coder without contexts needs for the numbers; the codebook is extra.

    Args:
        index: component numbers, at least one.

    Returns:
        Bits per weight.

    Example:
        >>> bits_per_weight(torch.tensor([0, 0, 1, 1]))
        1.0
    """
    share = torch.bincount(index.reshape(-1)).double()
    share = share[share > 0] / index.numel()
    return -(share * share.log2()).sum().item() + 0.0


@torch.no_grad()
def within_share(mixture: GaussianMixture, w: Float[Tensor, "*n"]) -> float:
    """The within-cluster share of the weights' variance: how far the histogram has collapsed.

        sum_i (w_i - mu_j(i))^2 / sum_i (w_i - mean(w))^2,  j(i) the most responsible component

    Args:
        mixture: the mixture.
        w: the weights.

    Returns:
        0 if every weight sits on its centre; nan if all weights are equal.
    """
    w = w.detach().reshape(-1).double()
    centre = mixture.mean.detach().double()[assign(mixture, w)]
    return ((w - centre).square().sum() / (w - w.mean()).square().sum()).item()

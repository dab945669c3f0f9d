"""What snapping does to a network, tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swsmix.compression.snap import Quantized, quantize, snapped_state
from swsmix.prior import MixturePrior

_CHUNK = 1 << 20


@dataclass(frozen=True)
class TensorReport:
    """One tensor under the prior, before and after.

    Attributes:
        name: the tensor's name.
        numel: the number of its weights.
        nonzero: the share of the weights that are not 0 afterwards.
        distinct: the number of different values afterwards.
        bits: the zero-order entropy, in bits per weight.
        mse: the mean squared change per weight.
        largest: the largest change of a weight.
        variance: the variance of the weights before.
    """

    name: str
    numel: int
    nonzero: float
    distinct: int
    bits: float
    mse: float
    largest: float
    variance: float


@dataclass(frozen=True)
class SnappingReport:
    """A network before and after snapping.

    Attributes:
        tensors: one report per tensor under the prior.
        bias_bits: the bits of the tensors outside the prior; None if they are exact.
        before: the measure of the network as it was, if one was given.
        after: the measure of the snapped network.
    """

    tensors: tuple[TensorReport, ...]
    bias_bits: int | None
    before: float | None
    after: float | None

    def __str__(self) -> str:
        """A table for `print`."""
        width = max((len(t.name) for t in self.tensors), default=6)
        lines = [f"{'tensor':<{width}}  weights  non-zero %  values  bits/weight      mse  largest"]
        lines += [
            f"{t.name:<{width}} {t.numel:>8,} {100 * t.nonzero:>11.2f} {t.distinct:>7} "
            f"{t.bits:>12.3f} {t.mse:>8.2g} {t.largest:>8.2g}"
            for t in self.tensors
        ]
        kept = "exact" if self.bias_bits is None else f"{self.bias_bits} bits"
        lines.append(f"tensors outside the prior: {kept}")
        if self.before is not None and self.after is not None:
            lines.append(f"measure: {self.before:.4g} before, {self.after:.4g} after")
        return "\n".join(lines)


@torch.no_grad()
def tensor_report(name: str, before: Tensor, after: Quantized) -> TensorReport:
    """What snapping did to a tensor, in memory that does not grow with it.

    Args:
        name: the tensor's name.
        before: the tensor as it was.
        after: its values; they are taken in the type of the tensor.
    """
    values, same = after.codebook.to(before.dtype).unique(return_inverse=True)
    share = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    squares = largest = 0.0
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    first = float(before.reshape(-1)[0]) if before.numel() else 0.0  # squares about it are exact
    parts = before.reshape(-1).split(_CHUNK), after.index.reshape(-1).split(_CHUNK)
    for w, j in zip(*parts, strict=True):
        index, w = same.index_select(0, j.int()), w.double()
        share += torch.bincount(index, minlength=len(values)).cpu()
        change = values.double().index_select(0, index).sub_(w).abs_()
        largest = max(largest, change.max().item())
        squares += change.square_().sum().item()
        w = w.sub_(first)
        sums += torch.stack([w.sum(), w.square_().sum()]).cpu()
    share, count = share / before.numel(), before.numel()
    used = share[share > 0]
    mean = float(sums[0]) / count
    return TensorReport(
        name,
        count,
        float(share @ (values != 0).double().cpu()),
        len(used),
        -float(used @ used.log2()) + 0.0,
        squares / count,
        largest,
        max(float(sums[1]) / count - mean * mean, 0.0),
    )


@torch.no_grad()
def snapping_report(
    model: nn.Module,
    prior: MixturePrior,
    *,
    measure: Callable[[nn.Module], float] | None = None,
    bias_bits: int | None = None,
    distortion: float = 1.0,
) -> SnappingReport:
    """What snapping would do to a network; the network stays as it is.

    Args:
        model: the network.
        prior: the prior on it.
        measure: a number to compare before and after, such as the error on given data.
        bias_bits: see `swsmix.compression.snap.snapped_state`.
        distortion: see `swsmix.snap_`.

    Returns:
        The report; `print` it.

    Example:
        >>> net = nn.Linear(10, 10)
        >>> prior = MixturePrior(net, 3)
        >>> report = snapping_report(net, prior, measure=lambda m: m.bias.sum().item())
        >>> report.tensors[0].distinct, report.before == report.after
        (3, True)
    """
    old = model.state_dict()
    state = snapped_state(model, prior, bias_bits=bias_bits, distortion=distortion)
    found = quantize(prior, distortion=distortion)
    rows = tuple(tensor_report(name, old[name], found[name]) for name in prior.selection.names)
    before = after = None
    if measure is not None:
        before = float(measure(model))
        snapped = copy.deepcopy(model)
        snapped.load_state_dict(state)
        after = float(measure(snapped))
    return SnappingReport(rows, bias_bits, before, after)

"""A tensor to be quantised: surveyed once, and then set to the values of any codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from swsmix._histogram import chunks, few_values
from swsmix.compression.entropy_constrained import Codebook, Histogram, histogram
from swsmix.compression.snap import Quantized

MIN_WEIGHTS = 64  # a smaller tensor stays as it is: its codebook would cost what it saves
_SPIKE = 0.05  # a share of exact zeros that makes zero a value
_FEW = 64  # values
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """A tensor to be quantised, under all names that it has.

    Attributes:
        names: its names.
        tensor: the tensor.
        weights: its histogram, in units.
        few: whether the histogram has a cell for each of its few values.
        zero: whether one of its values is to be exactly 0.
    """

    names: list[str]
    tensor: Tensor
    weights: Histogram
    few: bool
    zero: bool

    @property
    def variance(self) -> float:
        """The sum of squares about the mean."""
        size, mean = self.weights
        centre = (size @ mean) / size.sum()
        return float(size @ (mean - centre).square())

    @property
    def entropy(self) -> float:
        """Bits per weight of the cells."""
        share = self.weights.size / self.weights.size.sum()
        return float(-(share @ share.log2())) + 0.0

    @classmethod
    def of(cls, name: str, t: Tensor, unit: float, cells: int, *, zero: bool) -> Matrix:
        """A tensor surveyed, in units; zero is a value too where many weights are 0."""
        weights, few = _survey(t, unit, cells)
        return cls([name], t, weights, few, zero or weights.zeros >= _SPIKE)

    def is_tied(self, other: Matrix) -> bool:
        """Whether two tensors are equal; their histograms tell nearly all others apart."""
        a, b = self.tensor, other.tensor
        return (
            a.shape == b.shape
            and a.dtype == b.dtype
            and a.device == b.device
            and all(x.equal(y) for x, y in zip(self.weights, other.weights, strict=True))
            and torch.equal(a, b)
        )

    def quantized(self, book: Codebook | None, unit: float) -> Quantized:
        """The tensor by a codebook in units; None keeps its few values."""
        return _exactly(self) if book is None else _quantize(self, book, unit)


def is_quantised(t: Tensor) -> bool:
    """Whether a tensor is a matrix of enough weights; 8-bit floats stay as they are."""
    wide = t.is_floating_point() and t.element_size() >= 2
    return wide and t.ndim >= 2 and t.numel() >= MIN_WEIGHTS


def _survey(t: Tensor, unit: float, cells: int) -> tuple[Histogram, bool]:
    """The weights in units as cells, and whether these are their few values."""
    flat = [t.reshape(-1)]
    values = few_values(flat, min(_FEW, t.numel() // 8))
    if values is None:
        size, mean = histogram(flat, cells)
        return Histogram(size, mean / unit), False
    size = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    for part in chunks(flat):
        size += torch.bincount(torch.searchsorted(values, part.double()), minlength=len(values))
    return Histogram(size, values / unit), True


def _exactly(m: Matrix) -> Quantized:
    """A tensor of few values as it is."""
    values = few_values([m.tensor.reshape(-1)], _FEW)
    assert values is not None
    codebook = values.to(m.tensor.device, m.tensor.dtype)
    index = torch.searchsorted(codebook, m.tensor.contiguous(), out_int32=True)
    return Quantized(codebook, index)


def _quantize(m: Matrix, book: Codebook, unit: float) -> Quantized:
    """A tensor by a codebook in units, rounded as far as the file gains by it."""
    book, codebook = _rounded(m, book, unit)
    chosen, cuts = book.boundaries()
    codebook = codebook[chosen]
    w = m.tensor.reshape(-1)
    exact = torch.float64 if w.dtype == torch.float64 else torch.float32
    ends = _down(cuts * unit, exact).to(w.device)
    index = torch.empty(len(w), dtype=torch.int32, device=w.device)
    used = torch.zeros(len(chosen), dtype=torch.int64, device="cpu")
    for start in range(0, len(w), _CHUNK):
        part = torch.bucketize(w[start : start + _CHUNK].to(exact), ends, out_int32=True)
        index[start : start + _CHUNK] = part
        used += torch.bincount(part, minlength=len(chosen)).cpu()
    kept = used > 0
    if not kept.all():
        number = (kept.cumsum(0) - 1).int().to(w.device)
        index, codebook = number[index], codebook[kept]
    return Quantized(codebook.to(w.device), index.view(m.tensor.shape))


def _rounded(m: Matrix, book: Codebook, unit: float) -> tuple[Codebook, Tensor]:
    """The codebook with values that the tensor's type holds, or float16 where that pays.

    A value that rounds by e costs n e^2 and saves 16 bits or more, worth lambda each; codebooks of
    exact values are left as they are. Values that round to one share their weights.
    """
    values = (book.values * unit).to(m.tensor.dtype)
    if m.tensor.element_size() > 2 and book.outcome(m.weights)[1] > 0.0:
        short = values.to(torch.float16)
        error = (short.double() / unit - book.values).square() @ torch.exp2(-book.bits)
        saved = 8.0 * (m.tensor.element_size() - 2) * len(values) * book.lam
        if m.tensor.numel() * error.item() < saved:
            values = short.to(m.tensor.dtype)
    values, same = values.unique(return_inverse=True)
    share = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    share.index_add_(0, same, torch.exp2(-book.bits))
    return Codebook(values.double() / unit, (-torch.log2(share)).clamp_min(0.0), book.lam), values


def _down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of a type that are no larger, so that w <= x is the same for them."""
    near = x.to(dtype)
    below = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(near.double() > x, below, near)

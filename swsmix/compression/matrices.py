"""A tensor to be quantised: surveyed once, and then set to the values of any codebook.

What is kept of it is its histogram: the tensor itself is read again when it is quantised.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swsmix._histogram import chunks, few_values
from swsmix.compression.entropy_constrained import Codebook, Histogram, histogram
from swsmix.compression.patterns import Intervals, all_values, counts
from swsmix.compression.snap import Quantized, smallest_type

MIN_WEIGHTS = 64  # a smaller tensor stays as it is: its codebook would cost what it saves
_SPIKE = 0.05  # a share of exact zeros that makes zero a value
_FEW = 64  # values
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """What is known of a tensor to be quantised, under all names that it has.

    Attributes:
        names: its names.
        shape: of the tensor.
        dtype: of the tensor.
        weights: its histogram, in units.
        unit: the unit of the histogram and of codebooks.
        few: whether the histogram has a cell for each of its few values.
        zero: whether one of its values is to be exactly 0.
    """

    names: list[str]
    shape: tuple[int, ...]
    dtype: torch.dtype
    weights: Histogram
    few: bool
    zero: bool
    unit: float = 1.0

    @property
    def numel(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @functools.cached_property
    def variance(self) -> float:
        """The sum of squares about the mean."""
        size, mean = self.weights
        centre = (size @ mean) / size.sum()
        return float(size @ (mean - centre).square())

    @property
    def largest(self) -> float:
        """The largest magnitude of a cell."""
        return float(self.weights.mean[[0, -1]].abs().max())

    @property
    def entropy(self) -> float:
        """Bits per weight of the cells."""
        share = self.weights.size / self.weights.size.sum()
        return float(-(share @ share.log2())) + 0.0

    @classmethod
    def of(cls, name: str, t: Tensor, cells: int, *, zero: bool) -> Matrix:
        """A tensor surveyed, in units of 1; zero is a value too where many weights are 0.

        Raises:
            ValueError: if weights are not finite.
        """
        weights, few = _survey(name, t, cells)
        zero = zero or weights.zeros >= _SPIKE
        return cls([name], tuple(t.shape), t.dtype, weights, few, zero)

    def in_own_units(self) -> Matrix:
        """The same, in a unit in which the squares of its weights stay far inside the doubles."""
        unit = 2.0 ** math.floor(math.log2(self.largest)) if self.largest else 1.0
        weights = Histogram(self.weights.size, self.weights.mean / unit)
        return replace(self, weights=weights, unit=unit)

    def may_be_tied(self, other: Matrix) -> bool:
        """Whether two tensors may be equal: histograms tell nearly all others apart."""
        return (
            self.shape == other.shape
            and self.dtype == other.dtype
            and all(x.equal(y) for x, y in zip(self.weights, other.weights, strict=True))
        )

    def quantized(self, t: Tensor, book: Codebook | None) -> Quantized:
        """The tensor by a codebook in its units; None keeps its few values.

        The index has the smallest signed type, so that a large tensor needs little memory.
        """
        return _exactly(t) if book is None else _quantize(self, t, book)


def is_quantised(t: Tensor) -> bool:
    """Whether a tensor is a matrix of enough weights; 8-bit floats stay as they are."""
    wide = t.is_floating_point() and t.element_size() >= 2
    return wide and t.ndim >= 2 and t.numel() >= MIN_WEIGHTS


def _survey(name: str, t: Tensor, cells: int) -> tuple[Histogram, bool]:
    """The weights as cells, and whether these are their few values."""
    most = min(_FEW, t.numel() // 8)
    if t.element_size() == 2:  # no more values than cells
        found = _by_patterns(t)
        _check_finite(name, found.mean)
        return found, len(found.mean) <= most
    _check_finite(name, torch.stack(t.aminmax()))
    flat = [t.reshape(-1)]
    values = few_values(flat, most)
    if values is None:
        return histogram(flat, cells), False
    size = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    for part in chunks(flat):
        size += torch.bincount(torch.searchsorted(values, part.double()), minlength=len(values))
    return Histogram(size, values), True


def _check_finite(name: str, some: Tensor) -> None:
    if not some.isfinite().all():
        raise ValueError(f"{name} holds nan or inf: only finite weights can be quantised")


def _by_patterns(t: Tensor) -> Histogram:
    """The histogram of weights of 16 bits, with a cell for each value; 0 and -0 are one."""
    size = counts(t)
    used = size > 0
    mean, same = all_values(t.dtype)[used].double().unique(return_inverse=True)
    return Histogram(mean.new_zeros(len(mean)).index_add_(0, same, size[used].double()), mean)


def _exactly(t: Tensor) -> Quantized:
    """A tensor of few values as it is."""
    values = few_values([t.reshape(-1)], _FEW)
    assert values is not None
    codebook = values.to(t.device, t.dtype)
    flat = t.reshape(-1)
    index = torch.empty(len(flat), dtype=smallest_type(len(codebook)), device=t.device)
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        index[part] = torch.searchsorted(codebook, flat[part], out_int32=True)
    return Quantized(codebook, index.view(t.shape))


def _quantize(m: Matrix, t: Tensor, book: Codebook) -> Quantized:
    """A tensor by a codebook in its units, rounded as far as the file gains by it."""
    book, codebook = _rounded(m, book)
    chosen, cuts = book.boundaries()
    codebook = codebook[chosen]
    w = t.reshape(-1)
    exact = torch.float64 if w.dtype == torch.float64 else torch.float32
    ends = down(cuts * m.unit, exact).to(w.device)
    intervals = Intervals(ends, w.dtype, many=len(w) >= _CHUNK)
    index = torch.empty(len(w), dtype=smallest_type(len(chosen)), device=w.device)
    used = torch.zeros(len(chosen), dtype=torch.int64, device="cpu")
    for start in range(0, len(w), _CHUNK):
        part = intervals.of(w[start : start + _CHUNK])
        index[start : start + _CHUNK] = part
        used += torch.bincount(part, minlength=len(chosen)).cpu()
    kept = used > 0
    if not kept.all():
        number = (kept.cumsum(0) - 1).to(w.device)
        for part in index.split(_CHUNK):  # in place: a large tensor is in memory once
            part.copy_(number[part.int()])
        codebook = codebook[kept]
    return Quantized(codebook.to(w.device), index.view(t.shape))


def rounded_values(m: Matrix, book: Codebook) -> Tensor:
    """A codebook's values as the tensor's type holds them, or as float16 does where that pays.

    A value that rounds by e costs n e^2 and saves 16 bits or more, worth lambda each; codebooks of
    exact values are left as they are.
    """
    values = (book.values * m.unit).to(m.dtype)
    if m.dtype.itemsize > 2 and book.outcome(m.weights)[1] > 0.0:
        short = values.to(torch.float16)
        error = (short.double() / m.unit - book.values).square() @ torch.exp2(-book.bits)
        saved = 8.0 * (m.dtype.itemsize - 2) * len(values) * book.lam
        if m.numel * error.item() < saved:
            values = short.to(m.dtype)
    return values


def _rounded(m: Matrix, book: Codebook) -> tuple[Codebook, Tensor]:
    """The codebook with its values rounded; those that round to one share their weights."""
    values, same = rounded_values(m, book).unique(return_inverse=True)
    share = torch.zeros(len(values), dtype=torch.float64, device="cpu")
    share.index_add_(0, same, torch.exp2(-book.bits))
    return Codebook(values.double() / m.unit, (-torch.log2(share)).clamp_min(0.0), book.lam), values


def down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of a type that are no larger, so that w <= x is the same for them."""
    near = x.to(dtype)
    below = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(near.double() > x, below, near)

"""Bits where they matter: one price of a bit for all tensors of a network.

Every tensor gets the values that minimise its squared error + lambda * its bits
(`entropy_constrained`), with the same lambda: at the optimum of any budget, another bit saves the
same squared error wherever it is spent. lambda follows from what is asked: bits per weight, a
relative distortion, or the size of the whole file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from swsmix._histogram import chunks, few_values
from swsmix._progress import watched
from swsmix.codec import encode
from swsmix.compression.entropy_constrained import Codebook, Histogram, fit, histogram
from swsmix.compression.snap import Quantized

MIN_WEIGHTS = 64  # a smaller tensor stays as it is: its codebook would cost what it saves
DEFAULT_LOSS = 0.005
CURVE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # relative distortions
_VALUE_BITS = 24.0  # of a value in the file: 16, and about 8 for how often it occurs
_SPIKE = 0.05  # a share of exact zeros that makes zero a value
_MANY = 64  # tensors, whose histograms are coarser to fit into memory
_FEW = 64  # values
_CHUNK = 1 << 20
_SEARCHES = 60  # lambdas tried at most to meet what was asked
_WITHIN = 5e-4  # how near, as a logarithm
_FILES = 8  # files made at most to meet a size
_GAUSSIAN = math.pi * math.e / 6.0  # D 2^(2R) / variance of scalar quantisation at high rates


def check_asked(
    *,
    num_values: int | None = None,
    bits: float | None = None,
    size_bytes: int | None = None,
    loss: float | None = None,
) -> None:
    """Check that at most one thing is asked for, and that it is possible.

    Raises:
        ValueError: if not.
    """
    asked = {"num_values": num_values, "bits": bits, "size_bytes": size_bytes, "loss": loss}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"only one of {', '.join(asked)} can be given, each decides alone; got "
            + ", ".join(f"{name}={value}" for name, value in given.items())
        )
    if num_values is not None and num_values < 1:
        raise ValueError(f"num_values must be at least 1; got {num_values}")
    if bits is not None and not 0.0 < bits <= 16.0:
        raise ValueError(f"bits must be above 0 and at most 16 per weight; got {bits}")
    if size_bytes is not None and size_bytes < 1:
        raise ValueError(f"size_bytes must be at least 1; got {size_bytes}")
    if loss is not None and not 1e-8 <= loss < 1.0:
        raise ValueError(
            f"loss is a share of the weights' variance, from 1e-8 to below 1; got {loss}"
        )


class Outcome(NamedTuple):
    """What one lambda makes of a network.

    Attributes:
        lam: lambda, in units of the network squared.
        books: a codebook per tensor; None keeps all values that it has.
        bits: the order-0 entropy, per quantised weight.
        loss: the relative distortion.
    """

    lam: float
    books: tuple[Codebook | None, ...]
    bits: float
    loss: float


@dataclass(frozen=True)
class _Matrix:
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


class Network:
    """The weight matrices of a state_dict, surveyed once, for any lambda.

    Args:
        state: name -> tensor.
        zero: one value of each tensor is exactly 0.
        progress: show a progress bar over the tensors.

    Raises:
        ValueError: if weights are not finite.
    """

    def __init__(
        self, state: Mapping[str, Tensor], *, zero: bool = False, progress: bool = False
    ) -> None:
        chosen = {name: t.detach() for name, t in state.items() if is_quantised(t)}
        self.state = state
        ends = [end.abs().item() for t in chosen.values() for end in t.aminmax()]
        for name, end in zip(chosen, zip(ends[::2], ends[1::2], strict=True), strict=True):
            if not all(map(math.isfinite, end)):
                raise ValueError(f"{name} holds nan or inf: only finite weights can be quantised")
        # Squares of weights stay far inside the doubles.
        self.unit = 2.0 ** math.floor(math.log2(max(ends))) if any(ends) else 1.0
        self.matrices: list[_Matrix] = []
        cells = 1 << (16 if len(chosen) <= _MANY else 14)
        for name, t in watched(chosen.items(), "quantising", shown=progress):
            weights, few = _survey(t, self.unit, cells)
            matrix = _Matrix([name], t, weights, few, zero or weights.zeros >= _SPIKE)
            if tied := [m for m in self.matrices if _is_tied(m, matrix)]:
                tied[0].names.append(name)
            else:
                self.matrices.append(matrix)

    @property
    def numel(self) -> int:
        """The number of weights to be quantised, tied ones once."""
        return sum(m.tensor.numel() for m in self.matrices)

    def at(self, lam: float, *, exact: tuple[bool, ...] = ()) -> Outcome:
        """The best codebooks where a bit is worth lambda.

        Args:
            lam: lambda, in units of the network squared.
            exact: which tensors keep all their values.
        """
        books, bits, error, variance = list[Codebook | None](), 0.0, 0.0, 0.0
        for m, keep in zip(self.matrices, exact or (False,) * len(self.matrices), strict=True):
            if keep:
                books.append(None)
                bits += m.tensor.numel() * m.entropy
                continue
            book = fit(m.weights, lam, zero=m.zero, value_bits=_VALUE_BITS)
            more_bits, more_error = book.outcome(m.weights)
            books.append(book)
            bits, error, variance = bits + more_bits, error + more_error, variance + m.variance
        loss = error / variance if variance else 0.0
        return Outcome(lam, tuple(books), bits / max(self.numel, 1), loss)

    def for_bits(self, bits: float) -> Outcome:
        """The least distortion at so many bits per weight, or fewer if all are exact."""
        return self._search(lambda found: _log_ratio(found.bits, bits), rises=False)

    def for_loss(self, loss: float) -> Outcome:
        """The fewest bits at this relative distortion.

        Tensors of few values that cost no more than others do at this loss stay exact, and do not
        count: a network that is snapped already stays as it is.
        """
        most = max(0.5 * math.log2(_GAUSSIAN / loss), 0.0)
        exact = tuple(m.few and m.entropy <= most for m in self.matrices)
        return self._search(lambda found: _log_ratio(found.loss, loss), rises=True, exact=exact)

    def for_size(self, size: int, length: Callable[[dict[str, Quantized]], int]) -> Outcome:
        """The least distortion in a file of at most so many bytes.

        The entropy says which lambda to try, the file what it is worth: few files are made.

        Args:
            size: bytes of the whole file.
            length: the size of the file with these tensors.

        Raises:
            ValueError: if no file is so small.
        """
        finest, coarsest = self._range()
        coarse = self.at(coarsest)
        least = length(self.quantized(coarse))
        if least > size:
            raise ValueError(
                f"the file cannot be smaller than {least:,} bytes with one value per tensor; "
                f"got {size:,}: ask for more, or round biases to 8 bits"
            )
        best, best_length = coarse, least
        # Bits of the weights that the file had, over those of the entropy.
        gain, aim, tried = 1.0, 0.995 * size, dict[float, int]()
        for _ in range(_FILES):
            bits = (aim - least) / gain * 8.0 / max(self.numel, 1)
            found = self.for_bits(max(bits, 1e-9)) if bits < 16.0 else self.at(finest)
            if found.lam in tried:
                break
            made = tried[found.lam] = length(self.quantized(found))
            if best_length < made <= size:
                best, best_length = found, made
            if 0.985 * size <= made <= size or (made <= size and found.lam <= finest):
                break
            if found.bits > 0.0 and made > least:
                gain = (made - least) * 8.0 / (found.bits * self.numel)
        return best

    def asked(self, *, bits: float | None, size_bytes: int | None, loss: float | None) -> Outcome:
        """What was asked for, or the default if nothing was."""
        if bits is not None:
            return self.for_bits(bits)
        if size_bytes is None:
            return self.for_loss(DEFAULT_LOSS if loss is None else loss)
        return self.for_size(size_bytes, lambda found: len(encode(self.state_of(found))))

    def state_of(self, quantized: Mapping[str, Quantized]) -> dict[str, Tensor]:
        """The state_dict with these tensors."""
        return {n: quantized[n].values if n in quantized else t for n, t in self.state.items()}

    def quantized(self, found: Outcome) -> dict[str, Quantized]:
        """Name -> codebook and index, in the order of the state_dict."""
        made = {}
        for m, book in zip(self.matrices, found.books, strict=True):
            quantized = _exactly(m) if book is None else _quantize(m, book, self.unit)
            made.update(dict.fromkeys(m.names, quantized))
        return {name: made[name] for name in self.state if name in made}

    def _range(self) -> tuple[float, float]:
        """A lambda at which nearly all is kept, and one at which one value per tensor remains."""
        mean = sum(m.variance for m in self.matrices) / max(self.numel, 1)
        widest = max((m.weights.spread for m in self.matrices), default=1.0)
        return max(1e-10 * mean, 1e-30), 4.0 * widest**2 + 1e-29

    def _search(
        self,
        excess: Callable[[Outcome], float],
        *,
        rises: bool,
        exact: tuple[bool, ...] = (),
    ) -> Outcome:
        """The outcome where `excess`, a logarithm, is just below 0; it rises or falls in lambda."""
        good, bad = map(math.log, self._range())
        if not rises:
            good, bad = bad, good
        best, other = (self.at(math.exp(x), exact=exact) for x in (good, bad))
        if excess(other) <= 0.0:
            return other
        slack, over = excess(best), excess(other)
        for step in range(_SEARCHES):
            if slack >= -2.0 * _WITHIN or abs(bad - good) < 1e-6:
                break
            share = 0.5
            if step % 3 < 2 and math.isfinite(slack):  # both are nearly straight in log lambda
                share = min(max((-_WITHIN - slack) / (over - slack), 0.01), 0.99)
            x = good + share * (bad - good)
            found = self.at(math.exp(x), exact=exact)
            if excess(found) <= 0.0:
                good, best, slack = x, found, excess(found)
            else:
                bad, over = x, excess(found)
        return best


def is_quantised(t: Tensor) -> bool:
    """Whether a tensor is a matrix of enough weights; 8-bit floats stay as they are."""
    wide = t.is_floating_point() and t.element_size() >= 2
    return wide and t.ndim >= 2 and t.numel() >= MIN_WEIGHTS


def _log_ratio(is_: float, wanted: float) -> float:
    return math.log(is_ / wanted) if is_ > 0.0 else -math.inf


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


def _is_tied(a: _Matrix, b: _Matrix) -> bool:
    """Whether two tensors are equal; their histograms tell nearly all others apart."""
    return (
        a.tensor.shape == b.tensor.shape
        and a.tensor.dtype == b.tensor.dtype
        and a.tensor.device == b.tensor.device
        and all(torch.equal(x, y) for x, y in zip(a.weights, b.weights, strict=True))
        and torch.equal(a.tensor, b.tensor)
    )


def _exactly(m: _Matrix) -> Quantized:
    """A tensor of few values as it is."""
    values = few_values([m.tensor.reshape(-1)], _FEW)
    assert values is not None
    codebook = values.to(m.tensor.device, m.tensor.dtype)
    index = torch.searchsorted(codebook, m.tensor.contiguous(), out_int32=True)
    return Quantized(codebook, index)


def _quantize(m: _Matrix, book: Codebook, unit: float) -> Quantized:
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


def _rounded(m: _Matrix, book: Codebook, unit: float) -> tuple[Codebook, Tensor]:
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

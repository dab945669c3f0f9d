"""Values and assignments by what a value costs in the row and column where it stands.

`entropy_constrained` prices a value by how common it is in its tensor. The file's context coder
knows more: in a row of large weights a large value is cheap, among small ones it is dear. Rows and
columns are put into classes, as equal in number as they can be, by how far their weights are from
the commonest value. With a length b_cj for each value j in each class c of places, what falls is

    sum_i (w_i - v_(j_i))^2  +  lambda sum_c sum_j (n_cj + a s_j) b_cj,

n_cj being the number of weights, s_j the share of the value in the whole tensor, and a the weights'
worth of it that each class is given: lengths of few weights stay near those of the tensor. Three
steps in turn, none of which raises it: each weight to its cheapest value, values to the means of
their weights, b_cj = -log2 of (n_cj + a s_j) over its sum. They need the weights' histogram in each
class, no pass over the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix.codec.stream import entropy_bits
from swsmix.compression.entropy_constrained import Array, Codebook, boundaries_of
from swsmix.compression.matrices import Matrix, down, rounded_values
from swsmix.compression.snap import Quantized, smallest_type

CLASSES = (12, 8)  # of rows and of columns, at most
CELLS = 1024  # of a class's histogram, about
_PRIOR = 20.0  # a
_PER_GAP = (8, 32)  # cells between two values, at least and at most
_STEPS = 12
_STILL = 1e-6  # relative change of the objective at which the steps end
_PARTS = 1 << 20  # distances from the commonest value are whole numbers of these: sums are exact
_BLOCK = 1 << 18  # weights that are in memory a few times


class Classes(NamedTuple):
    """The classes of a matrix's rows and columns; a place's class is row * number + column.

    Attributes:
        rows: the class of each row (r,).
        columns: the class of each column (c,).
    """

    rows: Int[Tensor, " r"]
    columns: Int[Tensor, " c"]

    @property
    def of_columns(self) -> int:
        """The number of classes of columns."""
        return int(self.columns.max()) + 1

    @property
    def number(self) -> int:
        """The number of classes of places."""
        return (int(self.rows.max()) + 1) * self.of_columns

    @classmethod
    def of(cls, t: Tensor, unit: float, book: Codebook) -> Classes:
        """By the mean distance of the values that a codebook gives from the commonest.

        Args:
            t: a tensor of at least two dimensions.
            unit: of the codebook.
            book: the codebook.
        """
        away = (book.values - book.values[book.bits.argmin()]).abs()
        parts = (away / away.max() * _PARTS).round_().long()
        rows = torch.zeros(len(t), dtype=torch.int64, device="cpu")
        columns = torch.zeros(t[0].numel(), dtype=torch.int64, device="cpu")
        for some, w in _blocks_of(t, unit):
            far = parts[book.assign(w)]
            rows[some] = far.sum(1)
            columns += far.sum(0)
        return cls(_of_equal_size(rows, CLASSES[0]), _of_equal_size(columns, CLASSES[1]))


def _of_equal_size(size: Tensor, most: int) -> Tensor:
    """Classes of numbers, equally many in each; of equal numbers the first come first."""
    number = min(most, len(size))
    place = torch.empty_like(size)
    place[size.argsort(stable=True)] = torch.arange(len(size), dtype=torch.int64, device="cpu")
    return place * number // len(size)


def _blocks_of(t: Tensor, unit: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows as float64 in units, on the CPU."""
    rows = t.reshape(len(t), -1)
    several = max(_BLOCK // rows.shape[1], 1)
    for start in range(0, len(rows), several):
        some = slice(start, start + several)
        yield some, rows[some].detach().cpu().double() / unit


class ContextBook(NamedTuple):
    """Values with a length in each class.

    Attributes:
        values: v (k,), ascending, in units of the matrix.
        bits: b (classes, k).
        shared: -log2 of each value's share of the whole tensor (k,).
        lam: lambda, the squared error that a bit is worth.
        classes: of the rows and columns.
    """

    values: Float[Tensor, " k"]
    bits: Float[Tensor, "classes k"]
    shared: Float[Tensor, " k"]
    lam: float
    classes: Classes


class Spent(NamedTuple):
    """What a codebook makes of a tensor.

    Attributes:
        error: the squared error, in squared units.
        bits: the order-0 entropy of the whole.
        in_context: the entropies of the classes.
        described: about what the lengths of the classes take to be learned.
    """

    error: float
    bits: float
    in_context: float
    described: float


class ClassCells:
    """The weights of each class as cells that are much narrower than the distances of values.

    Args:
        m: the tensor's survey.
        t: the tensor.
        book: values at about whose distances the cells are cut.
    """

    def __init__(self, m: Matrix, t: Tensor, book: Codebook) -> None:
        self.zero = m.zero
        self.classes = Classes.of(t, m.unit, book)
        ends = _cell_ends(m, book)
        number, cells = self.classes.number, len(ends) + 1
        size, total = np.zeros((2, number * cells))
        self.squares = 0.0
        for some, w in _blocks_of(t, m.unit):
            where = self.classes.rows[some, None] * self.classes.of_columns + self.classes.columns
            where = (where * cells + torch.bucketize(w, ends)).reshape(-1)
            size += torch.bincount(where, minlength=len(size)).numpy()
            total += torch.bincount(where, w.reshape(-1), minlength=len(size)).numpy()
            self.squares += float(w.square().sum())
        size, total = size.reshape(number, cells), total.reshape(number, cells)
        self._ends = ends.numpy()
        mean = np.where(size > 0, total / np.maximum(size, 1.0), 0.0)
        # A cell's weights lie evenly about their mean, as far as its nearer end.
        outer = np.concatenate([[-np.inf], self._ends, [np.inf]])
        half = np.minimum(mean - outer[:-1], outer[1:] - mean).clip(0.0)
        self._low, self._half = mean - half, np.where(np.isfinite(half), half, 0.0)
        self._low = np.where(np.isfinite(half), self._low, mean)
        none = np.zeros((number, 1))
        self._size = np.concatenate([none, size.cumsum(1)], axis=1)
        self._total = np.concatenate([none, total.cumsum(1)], axis=1)

    @property
    def number(self) -> int:
        """The number of cells."""
        return int(self._half.size)

    def fitted(
        self,
        book: Codebook | ContextBook,
        lam: float | None = None,
        costs: list[float] | None = None,
    ) -> ContextBook:
        """Values and lengths in context, from those of a codebook.

        Args:
            book: where to begin.
            lam: lambda, by default the codebook's.
            costs: receives the objective, at first and after each step.
        """
        lam, last = book.lam if lam is None else lam, np.inf
        of_whole = book.shared if isinstance(book, ContextBook) else book.bits
        values, share = book.values.numpy(), np.exp2(-of_whole.numpy())
        bits = np.broadcast_to(book.bits.numpy(), (self.classes.number, len(values)))
        for _ in range(_STEPS):
            size, total = self._assigned(values, bits, lam)
            pinned = self.zero & (values == 0.0)
            kept = pinned | (size.sum(0) > 0)
            values, share, pinned = values[kept], share[kept], pinned[kept]
            size, total, bits = size[:, kept], total[:, kept], bits[:, kept]
            if costs is not None:
                costs.append(self._objective(values, bits, size, total, share, lam))
            means = total.sum(0) / np.maximum(size.sum(0), 1.0)
            means = np.where(pinned, 0.0, means)
            if (np.diff(means) > 0).all():  # else they stay: lengths can make means of classes pass
                values = means
            worth = size + _PRIOR * share
            bits = -np.log2(worth / worth.sum(1, keepdims=True))
            cost = self._objective(values, bits, size, total, share, lam)
            if costs is not None:
                costs.append(cost)
            if last - cost <= _STILL * abs(cost):
                break
            last = cost
        shared = -np.log2(np.maximum(size.sum(0), 0.5) / size.sum())
        v, b, s = (torch.from_numpy(each) for each in (values, bits, shared))
        return ContextBook(v, b, s, lam, self.classes)

    def spent(self, book: Codebook | ContextBook) -> Spent:
        """What a codebook makes of the tensor."""
        bits = np.broadcast_to(book.bits.numpy(), (self.classes.number, len(book.values)))
        values = book.values.numpy()
        size, total = self._assigned(values, bits, book.lam)
        lengths = 0.5 * np.log2(1.0 + size.sum(1)) @ (size > 0).sum(1)
        return Spent(
            max(self._error(values, size, total), 0.0),
            entropy_bits(size.sum(0)),
            sum(entropy_bits(each) for each in size),
            float(lengths),
        )

    def _assigned(self, values: Array, bits: Array, lam: float) -> tuple[Array, Array]:
        """The number of each class's weights at each value, and their sum (classes, k)."""
        size, total = np.zeros((2, len(bits), len(values)))
        for c, lengths in enumerate(bits):
            index, cuts = boundaries_of(values, lengths, lam)
            below = self._below(c, cuts)
            size[c, index], total[c, index] = np.diff(below, axis=1)
        return size, total

    def _below(self, c: int, cuts: Array) -> Array:
        """Number and sum of a class's weights below each cut, from none to all (2, cuts + 2)."""
        cell = np.searchsorted(self._ends, cuts, side="left")
        low, half = self._low[c, cell], self._half[c, cell]
        reach = np.where(half > 0.0, 2.0 * half, 1.0)
        part = np.where(half > 0.0, ((cuts - low) / reach).clip(0.0, 1.0), cuts >= low)
        inside = part * (self._size[c, cell + 1] - self._size[c, cell])
        found = np.zeros((2, len(cuts) + 2))
        found[0, 1:-1] = self._size[c, cell] + inside
        found[1, 1:-1] = self._total[c, cell] + inside * (low + part * half)
        found[:, -1] = self._size[c, -1], self._total[c, -1]
        return found

    def _error(self, values: Array, size: Array, total: Array) -> float:
        return float(self.squares - 2.0 * (total @ values).sum() + (size @ values**2).sum())

    def _objective(
        self, values: Array, bits: Array, size: Array, total: Array, share: Array, lam: float
    ) -> float:
        rate = ((size + _PRIOR * share) * bits).sum()
        return self._error(values, size, total) + lam * float(rate)


def _cell_ends(m: Matrix, book: Codebook) -> Tensor:
    """Where a cell ends and the next begins: evenly between each two values, and to the ends."""
    ends = torch.cat([book.values, m.weights.mean[[0, -1]]]).unique()
    each = min(max(CELLS // len(book.values), _PER_GAP[0]), _PER_GAP[1])
    parts = torch.arange(each, dtype=torch.float64, device="cpu") / each
    inner: Tensor = ends[:-1, None] + ends.diff()[:, None] * parts
    return inner.flatten().sort().values


def quantized(m: Matrix, t: Tensor, book: ContextBook) -> Quantized:
    """The tensor by a codebook in context, rounded as far as the file gains by it.

    Exact zeros stay zeros where zero is pinned.
    """
    plain = Codebook(book.values, book.shared, book.lam)
    codebook, same = rounded_values(m, plain).unique(return_inverse=True)
    share = torch.zeros(len(book.bits), len(codebook), dtype=torch.float64, device="cpu")
    share.index_add_(1, same, torch.exp2(-book.bits))
    assigner = _Assigner(m, t, codebook, -share.log2(), book)
    w = t.detach().reshape(len(t), -1)
    index = torch.empty(w.shape, dtype=smallest_type(len(codebook)), device=w.device)
    used = torch.zeros(len(codebook), dtype=torch.int64, device="cpu")
    several = max(_BLOCK // w.shape[1], 1)
    for start in range(0, len(w), several):
        some = slice(start, start + several)
        index[some] = assigner.of(w[some], book.classes.rows[some])
        used += torch.bincount(index[some].reshape(-1).int(), minlength=len(codebook)).cpu()
    kept = used > 0
    if not kept.all():
        number = (kept.cumsum(0) - 1).to(w.device)
        for part in index.view(-1).split(_BLOCK):
            part.copy_(number[part.int()])
        codebook = codebook[kept]
    return Quantized(codebook.to(w.device), index.view(t.shape))


class _Assigner:
    """Assigns blocks of rows: within a class each weight lies between two boundaries."""

    def __init__(
        self, m: Matrix, t: Tensor, codebook: Tensor, bits: Tensor, book: ContextBook
    ) -> None:
        self._exact = torch.float64 if t.dtype == torch.float64 else torch.float32
        self._of = list[tuple[Tensor, Tensor]]()
        values = (codebook.double() / m.unit).numpy()
        for lengths in bits.numpy():
            index, cuts = boundaries_of(values, lengths, book.lam)
            ends = down(torch.from_numpy(cuts) * m.unit, self._exact)
            self._of.append((torch.from_numpy(index).to(t.device), ends.to(t.device)))
        zero = (codebook == 0.0).nonzero().view(-1)
        self._zero = int(zero[0]) if m.zero and len(zero) else None
        columns = book.classes.columns
        self._order = columns.argsort(stable=True).to(t.device)
        self._back = self._order.argsort()
        self._widths = torch.bincount(columns).tolist()

    def of(self, w: Tensor, rows: Tensor) -> Tensor:
        """The number of each weight's value, for some rows of the matrix and their classes."""
        sorted_ = w.to(self._exact).index_select(1, self._order)
        index = torch.empty(sorted_.shape, dtype=torch.int64, device=w.device)
        for row_class in rows.unique().tolist():
            some = (rows == row_class).nonzero().view(-1).to(w.device)
            parts = []
            for c, part in enumerate(sorted_.index_select(0, some).split(self._widths, 1)):
                chosen, ends = self._of[row_class * len(self._widths) + c]
                parts.append(chosen[torch.bucketize(part.contiguous(), ends)])
            index[some] = torch.cat(parts, 1)
        if self._zero is not None:
            index[sorted_ == 0.0] = self._zero
        return index.index_select(1, self._back)

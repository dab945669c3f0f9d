"""Bits where they matter: one price of a bit for all tensors of a network.

A layer passes on the relative error of its weights, whatever their scale: with w = c v and the next
layer's inputs divided by c, or normalised, nothing changes. So the values of all tensors are those
that minimise

    sum over tensors of  error_t / variance_t  + lambda * bits,

error_t the sum of squared changes and variance_t the sum of squares about the mean of a tensor:
`entropy_constrained` with lambda * variance_t each. At the optimum of any budget, another bit saves
the same relative error wherever it is spent. To large tensors, whose errors are many and add up to
little, this gives fewer bits per weight. lambda follows from what is asked: bits per weight, the
size of the whole file, or the relative distortion, which is the mean over all weights of their
tensor's: one tensor of huge numbers does not hide what happens to the others.

    loss = sum over tensors of  n_t error_t / variance_t  /  sum over tensors of  n_t

With lambda near what it will be, bits are counted once more as the file's coder would count them,
by row and column, where that pays (`in_context`, `context_gain`). Of the two files, at what was
asked for, the smaller one is taken.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swsmix._progress import watched
from swsmix.codec import encode_to
from swsmix.compression import in_context
from swsmix.compression.context_gain import cells_where_it_pays
from swsmix.compression.entropy_constrained import Codebook, fit
from swsmix.compression.in_context import ClassCells, ContextBook
from swsmix.compression.lambda_search import Excess, Outcome, corrected, log_ratio, search
from swsmix.compression.lost_rows import lost_rows, normalised, warn_of_lost_rows
from swsmix.compression.matrices import Matrix, is_quantised
from swsmix.compression.memory import give_back
from swsmix.compression.snap import Quantized
from swsmix.compression.streamed import snapped_tensors

DEFAULT_LOSS = 0.005
CURVE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # relative distortions
_VALUE_BITS = 24.0  # of a value in the file: 16, and about 8 for how often it occurs
_CELLS = 1 << 22  # of all histograms, which stay in memory: 64 MB
_LEAST = 1e-30  # a lambda
_FILES = 8  # files made at most to meet a size
_GAUSSIAN = math.pi * math.e / 6.0  # D 2^(2R) / variance of scalar quantisation at high rates


class Point(NamedTuple):
    """A file of some distortion: bytes, bits per weight, relative distortion."""

    size: int
    bits: float
    loss: float


def rate_curve(network: Network, losses: Sequence[float] = CURVE) -> list[Point]:
    """Size against distortion, of the whole files, from the largest to the smallest."""
    points = []
    for loss in losses:
        found = network.for_loss(loss)
        points.append(Point(network.encoded_size(found), found.bits, found.loss))
    return points


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


class Network:
    """The weight matrices of a state_dict, surveyed once, for any lambda.

    No tensor is kept: each is asked for when it is surveyed, and again when it is quantised, so
    that a mapping that reads them from a file needs the memory of one.

    Args:
        state: name -> tensor.
        zero: one value of each tensor is exactly 0.
        exact: names of tensors that stay as they are.
        progress: show a progress bar over the tensors.

    Raises:
        ValueError: if weights are not finite.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        zero: bool = False,
        exact: Collection[str] = (),
        progress: bool = False,
    ) -> None:
        self.state = state
        sizes, self._total, self._progress = dict[str, int](), 0, progress
        for name, t in state.items():
            self._total += t.numel()
            if name not in exact and is_quantised(t):
                sizes[name] = t.numel()
        cells = min(max(_CELLS // max(len(sizes), 1), 1 << 11), 1 << 16)
        found: list[Matrix] = []
        for name in watched(sizes, "measuring", shown=progress, weight=sizes.__getitem__):
            t = state[name].detach()
            matrix = Matrix.of(name, t, cells, zero=zero)
            if tied := [m for m in found if m.may_be_tied(matrix) and self._holds(m, t)]:
                tied[0].names.append(name)
            else:
                found.append(matrix)
        self.matrices = [m.in_own_units() for m in found]
        self._matrix_of = {name: i for i, m in enumerate(self.matrices) for name in m.names}
        give_back()
        self._normalised = normalised(state)
        self.lost = dict[str, tuple[int, int]]()  # rows: see `lost_rows`

    @property
    def numel(self) -> int:
        """The number of weights to be quantised, tied ones once."""
        return sum(m.numel for m in self.matrices)

    def at(
        self,
        lam: float,
        *,
        exact: tuple[bool, ...] = (),
        start: Outcome | None = None,
        cells: Mapping[int, ClassCells] = MappingProxyType({}),
    ) -> Outcome:
        """The best codebooks where a bit is worth lambda, times each tensor's variance.

        Args:
            lam: lambda, the relative error of a tensor that is worth a bit.
            exact: which tensors keep all their values.
            start: values to begin with.
            cells: of tensors whose lengths depend on the context, by number.
        """
        before = start.books if start else (None,) * len(self.matrices)
        books, bits, lost, count = list[Codebook | ContextBook | None](), 0.0, 0.0, 0
        for i, m in enumerate(self.matrices):
            if exact and exact[i]:
                books.append(None)
                bits += m.numel * m.entropy
                continue
            price = max(lam * (m.variance or 1.0), _LEAST)
            book, more_bits, error = _book(m, price, before[i], cells.get(i))
            books.append(book)
            bits, count = bits + more_bits, count + m.numel
            lost += m.numel * error / (m.variance or 1.0)
        return Outcome(lam, tuple(books), bits / max(self.numel, 1), lost / max(count, 1))

    def for_bits(self, bits: float) -> Outcome:
        """The least distortion at so many bits per weight, or fewer if all are exact."""
        return self._met(lambda found: log_ratio(found.bits, bits), rises=False)

    def for_loss(self, loss: float) -> Outcome:
        """The fewest bits at this relative distortion.

        Tensors of few values that cost no more than others do at this loss stay exact, and do not
        count: a network that is snapped already stays as it is.
        """
        exact = tuple(
            m.few and m.entropy <= most
            for m, most in zip(self.matrices, self._bits_at(loss), strict=True)
        )
        return self._met(lambda found: log_ratio(found.loss, loss), rises=True, exact=exact)

    def for_size(self, size: int, length: Callable[[Outcome], int]) -> Outcome:
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
        least = length(coarse)
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
            made = tried[found.lam] = length(found)
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
        return self.for_size(size_bytes, self.encoded_size)

    def encoded_size(self, found: Outcome, names: Iterable[str] | None = None) -> int:
        """The size of the whole file, or of one with some of its tensors."""
        return encode_to(_Measured(), self.snapped(found, names), total=self._total)

    def snapped(
        self, found: Outcome, names: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The state_dict, or a part, with its quantised tensors, one after another."""
        return snapped_tensors(
            self.state, lambda name, t: self.quantized_tensor(found, name, t), names
        )

    def quantized_tensor(self, found: Outcome, name: str, t: Tensor) -> Quantized | None:
        """Codebook and index of a tensor of the state_dict; None if it is not quantised."""
        if name not in self._matrix_of:
            return None
        number = self._matrix_of[name]
        m, book = self.matrices[number], found.books[number]
        if isinstance(book, ContextBook):
            made = in_context.quantized(m, t.detach(), book)
        else:
            made = m.quantized(t.detach(), book)
        if name in self._normalised:
            variance = self.state[self._normalised[name]]
            self.lost[name] = lost_rows(t, made, variance), len(t)
        return made

    def quantized(self, found: Outcome) -> dict[str, Quantized]:
        """Name -> codebook and index, in the order of the state_dict."""
        made = dict[str, Quantized]()
        for m in self.matrices:
            one = self.quantized_tensor(found, m.names[0], self.state[m.names[0]])
            assert one is not None
            wide = Quantized(one.codebook, one.index.int())  # torch looks no other type up
            made.update(dict.fromkeys(m.names, wide))
        warn_of_lost_rows(self.lost)
        return {name: made[name] for name in self.state if name in made}

    def _met(self, excess: Excess, *, rises: bool, exact: tuple[bool, ...] = ()) -> Outcome:
        """The outcome where `excess`, a logarithm, is just below 0; it rises or falls in lambda.

        First with lengths of whole tensors, and then, near the lambda found, with lengths in
        context where they pay: the smaller file is taken.
        """
        at = functools.partial(self.at, exact=exact)
        plain = search(at, self._range(), excess, rises=rises)
        cells = cells_where_it_pays(
            self.state, self.matrices, plain.books, total=self._total, progress=self._progress
        )
        if not cells:
            return plain
        found = corrected(functools.partial(at, cells=cells), plain.lam, excess, rises=rises)
        if found is None:
            return plain
        return min(plain, found, key=self._weights_size)

    def _weights_size(self, found: Outcome) -> int:
        """The size of a file with nothing but what is quantised: not all else fits into files."""
        numel = {n: self.matrices[i].numel for n, i in self._matrix_of.items()}
        names = [name for name in self.state if name in numel]
        shown = watched(names, "comparing", shown=self._progress, weight=numel.__getitem__)
        return self.encoded_size(found, shown)

    def _bits_at(self, loss: float) -> list[float]:
        """About how many bits each tensor's weights take at this loss of the whole network.

        At high rates the squared error of a weight is as large as lambda says: a tensor's error
        relative to its variance is in proportion to its number of weights.
        """
        each = self.numel / max(sum(m.numel**2 for m in self.matrices), 1)
        relative = (loss * m.numel * each for m in self.matrices)
        return [max(0.5 * math.log2(_GAUSSIAN / share), 0.0) for share in relative]

    def _holds(self, m: Matrix, t: Tensor) -> bool:
        """Whether a tensor surveyed before is equal to this one, bit for bit."""
        before = self.state[m.names[0]]
        return before.device == t.device and torch.equal(before, t)

    def _range(self) -> tuple[float, float]:
        """A lambda at which nearly all is kept, and one at which one value per tensor remains."""
        most = max((m.numel for m in self.matrices), default=1)
        spreads = (m.weights.spread**2 / m.variance for m in self.matrices if m.variance > 0.0)
        return 1e-10 / most, 4.0 * max(spreads, default=1.0)


def _book(
    m: Matrix, lam: float, first: Codebook | ContextBook | None, cells: ClassCells | None
) -> tuple[Codebook | ContextBook, float, float]:
    """A tensor's values at a lambda, the order-0 bits and the squared error that they make."""
    if not isinstance(first, ContextBook):
        first = fit(m.weights, lam, zero=m.zero, value_bits=_VALUE_BITS, start=first)
        if cells is None:
            return first, *first.outcome(m.weights)
    assert cells is not None
    found = cells.fitted(first, lam)
    error, bits, *_ = cells.spent(found)
    return found, bits, error


class _Measured(io.BufferedIOBase):
    """A file that keeps nothing."""

    def write(self, data: Any, /) -> int:
        return len(data)

"""The passes over flat weights: chunk by chunk through the cells, compiled where possible.

A mixture's cells are cut when many weights first need them. Few weights, and those for which no
piece is certified, are evaluated exactly.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.cell_histogram import CellHistogram, least_for
from swsmix.tables.cells import Cells, ErrorBounds
from swsmix.tables.cutting import cut
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch, chunk_on
from swsmix.tables.threads import over_ranges

_WIDEST = 1e18  # cubics of wider ones have coefficients below the normal float32 numbers
_NARROWEST = 1e-18  # the curvature 1 / sigma^2 of a cell is a float32
DIRECT = 1 << 16  # up to this N x K, evaluating without tables is about as fast on a CPU
# The same for all of a mixture's weights, if its cells would be cut anew every ten steps.
IN_ALL = 1 << 19


class Passes:
    """What `Tables` does, on vectors of weights.

    Args:
        mixture: the mixture.
        tolerance: the most that the certified bounds may be; 0 for no cells at all.
        num_weights: how many weights the mixture has in all, if that is known.
    """

    def __init__(
        self, mixture: ExactMixture, tolerance: float, num_weights: int | None = None
    ) -> None:
        self.mixture, self.tolerance, self.num_weights = mixture, tolerance, num_weights
        self._slopes_16_bit: dict[torch.dtype, tuple[Tensor, ...]] = {}
        self._kept = threading.local()  # scratch memory; a thread's own ends with it

    @functools.cached_property
    def cells(self) -> Cells | None:
        """The cells, if there are not too many."""
        mixture = self.mixture
        if not self.tolerance:
            return None
        if on_gpu := backends.triton_cutting(mixture.mean.device):
            made: Cells | None = on_gpu.cut(mixture, self.tolerance, _NARROWEST, _WIDEST)
            return made
        least, most = mixture.std.aminmax()
        if least < _NARROWEST or most > _WIDEST:
            return None
        return cut(mixture.cpu(), self.tolerance, mixture.mean.device)

    def error(self) -> ErrorBounds:
        """The worst bounds of all cells; without cells, those of rounding."""
        rounding = ErrorBounds(2.0**-23, self.mixture.rounding, 2.0**-23)
        return ErrorBounds(*map(max, rounding, self.cells.error)) if self.cells else rounding

    def is_small(self, w: Tensor) -> bool:
        """Whether the weights are so few that they are evaluated exactly."""
        entries = w.numel() * self.mixture.size
        if w.device.type != "cpu":
            return entries <= 16 * DIRECT  # a GPU takes it in one go
        # Not by what was evaluated before: a run that is resumed has the same bits.
        return entries <= DIRECT or (self._has_few and w.dtype.itemsize > 2)

    @property
    def _has_few(self) -> bool:
        """Whether all weights of the mixture are so few that no cells are worth their cutting."""
        if self.num_weights is None or not backends.is_compiled():
            return False
        return self.num_weights * self.mixture.size <= IN_ALL

    def _cells_for(self, w: Tensor) -> Cells | None:
        if self.is_small(w) or w.dtype != torch.float32:
            return None
        return self.cells

    def _scratch(self, w: Tensor, *, curvature: bool = False) -> Scratch:
        """Scratch memory, kept: to allocate it again costs as much as the work in it."""
        kept = vars(self._kept)  # of this thread: two may look up at the same time
        scratch: Scratch | None = kept.get(str(curvature))
        if scratch is None or scratch.floats.shape[1] < min(len(w), chunk_on(w.device)):
            scratch = kept[str(curvature)] = Scratch(len(w), w.device, curvature=curvature)
        return scratch

    def __reduce__(self) -> tuple[type[Passes], tuple[ExactMixture, float, int | None]]:
        """For copies and pickles: without cells and scratch memory, quickly made again."""
        return type(self), (self.mixture, self.tolerance, self.num_weights)

    def _slopes(
        self,
        w: Tensor,
        start: int,
        stop: int,
        histogram: CellHistogram | None = None,
        curvature: bool = False,
    ) -> Iterator[Any]:
        """For each chunk of a range: its slice, f' and, if asked for, the curvature a."""
        cells = self._cells_for(w)
        scratch, size = self._scratch(w, curvature=curvature) if cells else None, chunk_on(w.device)
        for first in range(start, stop, size):
            part = slice(first, min(first + size, stop))
            if cells and scratch:
                place = cells.address.find(w[part], scratch)
                yield part, *cells.slopes(w[part], place, scratch, self.mixture.slopes)
                if histogram:
                    histogram.add_(*place)
            elif w.dtype.itemsize == 2 and (w.is_cuda or not self.is_small(w)):
                # On a GPU, to evaluate a few exactly would wait for it.
                bits = w[part].view(torch.uint16).long()
                slopes = self._by_bits(w.dtype)[: 1 + curvature]
                yield part, *(each.index_select(0, bits) for each in slopes)
            else:
                slopes = self.mixture.slopes(w[part])[: 1 + curvature]
                yield part, *(each.float() if w.dtype.itemsize == 2 else each for each in slopes)

    def _over_ranges(
        self,
        w: Tensor,
        work: Callable[[int, int, CellHistogram | None], None],
        histogram: CellHistogram | None = None,
    ) -> None:
        """On several threads, if they are many weights on a CPU; each counts on its own."""

        def counted(start: int, stop: int) -> CellHistogram | None:
            mine = histogram
            if histogram and stop - start < len(w):
                mine = CellHistogram(histogram.cells, stop - start)
            work(start, stop, mine)
            return mine

        if w.device.type != "cpu" or self.is_small(w):
            work(0, len(w), histogram)
            return
        if w.dtype.itemsize == 2:
            self._by_bits(w.dtype)  # once, not in each thread
        for part in over_ranges(len(w), counted, least_for(histogram)):
            if histogram and part and part is not histogram:
                histogram.merge_(part)

    def write_gradient_(
        self, target: Tensor, w: Tensor, scale: float | None, histogram: CellHistogram | None = None
    ) -> Tensor | None:
        """Write f' of the weights or, with a scale, add scale * f'.

        Returns:
            The weights for which no piece is certified, if they are known.
        """
        cells = self._cells_for(w)
        if triton := backends.triton_for(target, w):
            triton.write_gradient_(self.mixture, cells, target, w, scale, histogram)
            return None
        if cells and (numba := backends.numba_for(target, w)):
            gaps: Tensor = numba.write_gradient_(cells, target, w, scale, histogram)
            self.write_exactly_(gaps, target, w, scale)
            return gaps
        if self.is_small(w) and (numba := backends.numba_exact_for(target, w)):
            left = numba.write_gradient_(self.mixture, target, w, scale)
            self.write_exactly_(left, target, w, scale)
            return None
        if numba := self._numba_16(target, w, scale):
            numba.write_gradient_(self._by_bits(w.dtype)[0], target, w, scale)
            return None

        def work(start: int, stop: int, counts: CellHistogram | None) -> None:
            for part, slope in self._slopes(w, start, stop, counts):
                if scale is None:
                    target[part].copy_(slope)
                else:
                    target[part].add_(slope, alpha=scale)

        _ = cells and cells.pieces  # once, not in each thread
        self._over_ranges(w, work, histogram)
        return None

    def write_exactly_(self, which: Tensor, target: Tensor, w: Tensor, scale: float | None) -> None:
        """Write f', or add scale * f', of the weights at some indices, evaluated exactly."""
        if len(which):
            slope = self.mixture.slopes(w[which])[0].to(target.dtype)
            target[which] = slope if scale is None else target[which] + scale * slope

    def _numba_16(self, target: Tensor, w: Tensor, scale: float | None) -> Any | None:
        """Numba's loops, if they can handle many weights in 16 bits, and this target."""
        types = {torch.float32, w.dtype if scale is None else torch.bfloat16}
        many = w.dtype.itemsize == 2 and not self.is_small(w)
        return backends.numba_for_16(target, w) if many and target.dtype in types else None

    def _by_bits(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The slopes f' and a of all values of a 16-bit type, in the order of their bits."""
        if dtype not in self._slopes_16_bit:
            slopes = self.mixture.slopes(_all_16_bit_values(dtype, self.mixture.mean.device))
            self._slopes_16_bit[dtype] = tuple(each.float() for each in slopes)
        return self._slopes_16_bit[dtype]

    def sums(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of the weights."""
        if cells := self._cells_for(w):
            return self._sums_by_cells(w, cells)
        if w.dtype.itemsize == 2 and len(w) > 1 << 12:
            return self._sums_by_bits(_count_16(w), w.dtype)
        return self.mixture.sums(w)

    def _sums_by_bits(self, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k), from the number of weights of each 16-bit value."""
        used = count.nonzero()[:, 0]
        values = _all_16_bit_values(dtype, count.device)[used]
        return self.mixture.sums(values, count[used].double())

    def _count_(self, histogram: CellHistogram, w: Tensor) -> None:
        """Add the weights to a histogram."""
        if compiled := backends.triton_for(w) or backends.numba_for(w):
            compiled.count_(histogram, w)
            return

        def work(start: int, stop: int, counts: CellHistogram | None) -> None:
            assert counts is not None
            scratch = self._scratch(w)
            for part in w[start:stop].split(chunk_on(w.device)):
                counts.add_(*counts.cells.address.find(part, scratch))

        self._over_ranges(w, work, histogram)

    def _sums_by_cells(
        self,
        w: Tensor,
        cells: Cells,
        histogram: CellHistogram | None = None,
        gaps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of the weights, from a histogram over the cells."""
        if histogram is None:
            histogram = CellHistogram(cells, len(w))
            self._count_(histogram, w)
        value, moments, missing = histogram.sums()
        value, moments = value.to(w.device), moments.to(w.device)
        if missing:
            if gaps is None:
                numba = backends.numba_for(w)
                gaps = numba.gaps(cells, w) if numba else cells.gaps(w)
            more = self.mixture.sums(w[gaps])
            value, moments = value + more[0], moments + more[1]
        return value, moments

    def write_gradient_and_sum_(self, target: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Write f' of the weights, and return their value and moments (3, k)."""
        if cells := self._cells_for(w):
            histogram = CellHistogram(cells, len(w))
            gaps = self.write_gradient_(target, w, None, histogram)
            return self._sums_by_cells(w, cells, histogram, gaps)
        if len(w) > 1 << 12 and (numba := self._numba_16(target, w, None)):
            count = torch.zeros(1 << 16, dtype=torch.int64, device=w.device)
            numba.write_gradient_(self._by_bits(w.dtype)[0], target, w, None, count)
            return self._sums_by_bits(count, w.dtype)
        self.write_gradient_(target, w, None)
        return self.sums(w)

    def proximal_(
        self, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
    ) -> None:
        """The proximal step with t = rate / (sqrt(second) + eps), or the rate itself."""
        tensors = (w, at) if second is None else (w, at, second)
        cells, step_ = self._cells_for(at), functools.partial(_proximal_step_, rate=rate, eps=eps)
        if triton := backends.triton_for(*tensors):
            triton.proximal_(self.mixture, cells, w, at, second, rate, eps)
            return
        if cells and (numba := backends.numba_for(*tensors)):
            gaps = numba.proximal_(cells, w, at, second, rate, eps)
        elif not cells and (numba := backends.numba_exact_for(*tensors)):
            gaps = numba.proximal_(self.mixture, w, at, second, rate, eps)
        else:

            def work(start: int, stop: int, counts: CellHistogram | None) -> None:
                for part, slope, a in self._slopes(at, start, stop, counts, curvature=True):
                    step_(w[part], at[part], slope, a, None if second is None else second[part])

            _ = cells and (cells.pieces, cells.curvature_pieces)  # once, not in each thread
            self._over_ranges(at, work)
            return
        if len(gaps):
            self.proximal_exactly_(gaps, *tensors, rate=rate, eps=eps)

    def proximal_exactly_(
        self,
        which: Tensor,
        w: Tensor,
        at: Tensor,
        second: Tensor | None = None,
        *,
        rate: float,
        eps: float,
    ) -> None:
        """`proximal_` of the weights at some indices, evaluated exactly."""
        slope, a = self.mixture.slopes(at[which])
        squares = None if second is None else second[which]
        w[which] = _proximal_step_(w[which], at[which], slope, a, squares, rate, eps)


def _proximal_step_(
    w: Tensor, at: Tensor, slope: Tensor, a: Tensor, second: Tensor | None, rate: float, eps: float
) -> Tensor:
    """The proximal step with t = rate / (sqrt(second) + eps), or the rate itself."""
    inverse = 1.0 if second is None else second.to(a.dtype).sqrt().add_(eps)
    pull = (at - w).to(a.dtype).mul_(a).sub_(slope).mul_(rate)
    return w.add_(pull.div_(inverse + a * rate))


def _all_16_bit_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """All the 65,536 values of a 16-bit type, in the order of their bits."""
    return torch.arange(1 << 16, dtype=torch.int64, device=device).to(torch.int16).view(dtype)


def _count_16(w: Tensor) -> Tensor:
    """How many weights in 16 bits have which bits (65536,)."""
    count = torch.zeros(1 << 16, dtype=torch.int64, device=w.device)
    if numba := backends.numba_for_16(w):
        numba.count_(count, w)
        return count
    for part in w.split(chunk_on(w.device)):
        count += torch.bincount(part.view(torch.uint16).int(), minlength=1 << 16)
    return count

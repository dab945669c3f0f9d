"""The passes over flat weights: chunk by chunk through the cells, compiled where possible.

A mixture's cells are cut when many weights first need them. Few weights, and those for which no
line is certified, are evaluated exactly.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.bits import bit_cells
from swsmix.tables.cell_histogram import CellHistogram
from swsmix.tables.cells import Cells, ErrorBounds
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch, chunk_on

_NARROWEST = 1e-70  # the cells' bounds hold powers of the stds
DIRECT = 1 << 16  # up to this N x K, evaluating without tables is about as fast on a CPU


class Passes:
    """What `Tables` does, on vectors of weights.

    Args:
        mixture: the mixture.
        tolerance: the most that the certified bounds may be; 0 for no cells at all.
    """

    def __init__(self, mixture: ExactMixture, tolerance: float) -> None:
        self.mixture, self.tolerance = mixture, tolerance
        self._slopes_16_bit: dict[torch.dtype, tuple[Tensor, ...]] = {}
        self._kept = threading.local()  # scratch memory; a thread's own ends with it

    @functools.cached_property
    def cells(self) -> Cells | None:
        """The cells, if there are not too many."""
        mixture, (least, most) = self.mixture, self.mixture.std.aminmax()
        if not self.tolerance or least < _NARROWEST or most > 1.0 / _NARROWEST:
            return None
        return bit_cells(mixture.cpu(), self.tolerance, mixture.mean.device)

    def error(self) -> ErrorBounds:
        """The worst bounds of all cells; without cells, those of rounding."""
        rounding = ErrorBounds(2.0**-23, self.mixture.rounding, 2.0**-23)
        return ErrorBounds(*map(max, rounding, self.cells.error)) if self.cells else rounding

    def _is_small(self, w: Tensor) -> bool:
        limit = DIRECT if w.device.type == "cpu" else 16 * DIRECT  # a GPU takes it in one go
        return w.numel() * len(self.mixture.mean) <= limit

    def _cells_for(self, w: Tensor) -> Cells | None:
        if self._is_small(w) or w.dtype != torch.float32:
            return None
        return self.cells

    def _scratch(self, w: Tensor, *, curvature: bool = False) -> Scratch:
        """Scratch memory, kept: to allocate it again costs as much as the work in it."""
        kept = vars(self._kept)  # of this thread: two may look up at the same time
        scratch: Scratch | None = kept.get(str(curvature))
        if scratch is None or scratch.floats.shape[1] < min(len(w), chunk_on(w.device)):
            scratch = kept[str(curvature)] = Scratch(len(w), w.device, curvature=curvature)
        return scratch

    def __reduce__(self) -> tuple[type[Passes], tuple[ExactMixture, float]]:
        """For copies and pickles: without cells and scratch memory, quickly made again."""
        return type(self), (self.mixture, self.tolerance)

    def _slopes(
        self, w: Tensor, histogram: CellHistogram | None = None, curvature: bool = False
    ) -> Iterator[Any]:
        """For each chunk of the weights: its slice, f' and, if asked for, the curvature a."""
        cells = self._cells_for(w)
        scratch, size = self._scratch(w, curvature=curvature) if cells else None, chunk_on(w.device)
        for start in range(0, len(w), size):
            part = slice(start, start + size)
            if cells and scratch:
                place = cells.address.find(w[part], scratch)
                yield part, *cells.slopes(w[part], place, scratch, self.mixture.slopes)
                if histogram:
                    histogram.add_(*place)
            elif w.dtype.itemsize == 2 and not self._is_small(w):
                bits = w[part].view(torch.uint16).long()
                slopes = self._by_bits(w.dtype)[: 1 + curvature]
                yield part, *(each.index_select(0, bits) for each in slopes)
            else:
                slopes = self.mixture.slopes(w[part])[: 1 + curvature]
                yield part, *(each.float() if w.dtype.itemsize == 2 else each for each in slopes)

    def write_gradient_(
        self, target: Tensor, w: Tensor, scale: float | None, histogram: CellHistogram | None = None
    ) -> None:
        """Write f' of the weights or, with a scale, add scale * f'."""
        cells, numba = self._cells_for(w), backends.numba_for(target, w)
        if triton := backends.triton_for(target, w):
            triton.write_gradient_(self.mixture, cells, target, w, scale)
            if histogram:
                self._count_(histogram, w)
            return
        if not cells or not numba:
            for part, slope in self._slopes(w, histogram):
                if scale is None:
                    target[part].copy_(slope)
                else:
                    target[part].add_(slope, alpha=scale)
            return
        if numba.write_gradient_(cells, target, w, scale):
            gaps = cells.gaps(w)
            slope = self.mixture.slopes(w[gaps])[0].float()
            target[gaps] = slope if scale is None else target[gaps] + scale * slope
        if histogram:
            self._count_(histogram, w)

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
            count = torch.zeros(1 << 16, dtype=torch.int64, device=w.device)
            for part in w.split(chunk_on(w.device)):
                count += torch.bincount(part.view(torch.uint16).int(), minlength=1 << 16)
            used = count.nonzero()[:, 0]
            values = _all_16_bit_values(w.dtype, w.device)[used]
            return self.mixture.sums(values, count[used].double())
        return self.mixture.sums(w)

    def _count_(self, histogram: CellHistogram, w: Tensor) -> None:
        """Add the weights to a histogram."""
        if numba := backends.numba_for(w):
            numba.count_(histogram, w)
            return
        scratch = self._scratch(w)
        for part in w.split(chunk_on(w.device)):
            histogram.add_(*histogram.cells.address.find(part, scratch))

    def _sums_by_cells(
        self, w: Tensor, cells: Cells, histogram: CellHistogram | None = None
    ) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of the weights, from a histogram over the cells."""
        if histogram is None:
            histogram = CellHistogram(cells, len(w))
            self._count_(histogram, w)
        value, moments, missing = histogram.sums()
        value, moments = value.to(w.device), moments.to(w.device)
        if missing:
            more = self.mixture.sums(w[cells.gaps(w)])
            value, moments = value + more[0], moments + more[1]
        return value, moments

    def write_gradient_and_sum_(self, target: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Write f' of the weights, and return their value and moments (3, k)."""
        cells = self._cells_for(w)
        histogram = CellHistogram(cells, len(w)) if cells else None
        self.write_gradient_(target, w, None, histogram)
        return self._sums_by_cells(w, cells, histogram) if cells else self.sums(w)

    def proximal_(
        self, w: Tensor, at: Tensor, second: Tensor | None, rate: float, eps: float
    ) -> None:
        """The proximal step with t = rate / (sqrt(second) + eps), or the rate itself."""
        tensors = (w, at) if second is None else (w, at, second)
        if triton := backends.triton_for(*tensors):
            triton.proximal_(self.mixture, self._cells_for(at), w, at, second, rate, eps)
            return
        step_ = functools.partial(_proximal_step_, rate=rate, eps=eps)
        if cells := self._cells_for(at):
            numba = backends.numba_for(*tensors)
            left_out = numba and numba.proximal_(cells, w, at, second, rate, eps)
        else:
            numba = backends.numba_exact_for(*tensors)
            left_out = numba and numba.proximal_(self.mixture, w, at, second, rate, eps)
        if not numba:
            for part, slope, a in self._slopes(at, curvature=True):
                step_(w[part], at[part], slope, a, None if second is None else second[part])
        elif left_out:
            gaps = cells.gaps(at) if cells else numba.gaps(self.mixture, at)
            slope, a = self.mixture.slopes(at[gaps])
            w[gaps] = step_(w[gaps], at[gaps], slope, a, None if second is None else second[gaps])


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
